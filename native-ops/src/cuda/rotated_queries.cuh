/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// What helpers prepare for a round of keys of rotatekv2: queries and, with an order of channels, scales; see
// attend_rotated.cu.
#pragma once
#include "elements.cuh"
#include "rotated_layout.cuh"
#include "token_reader.cuh"

namespace kvquant::cuda {

/// What a helper's thread turns of queries: two neighbouring pairs of channels of a column of each product, and those
/// 32 pairs on.
template <int products>
struct Queries {
  static constexpr int kShares = 2, kStep = 32;
  int thread, pair, column;
  float2 cosines[kRoundGroups][kShares], sines[kRoundGroups][kShares];  // of the next round's groups' first tokens

  __device__ explicit Queries(int thread) : thread(thread) {
    pair = thread / 64 * 16 + thread % 8 * 2;
    column = thread / 8 % 8;
  }

  /// Two neighbouring elements.
  template <class Element>
  static __device__ __forceinline__ float2 two(const void* data, int64_t index) {
    const auto* x = static_cast<const Element*>(data) + index;
    return make_float2(to_float(x[0]), to_float(x[1]));
  }
  template <class Element>
  __device__ __forceinline__ void load_elements(const CacheView& cache, const Attention& p, int b, int first_head,
                                                int pair, float2 (&x)[products][2]) const {
    const int per_head = cache.heads / cache.kv_heads;
#pragma unroll
    for (int n = 0; n < products; ++n) {
      const int at = 8 * n + column, r = Columns<products>::query(at);
      const int64_t row = static_cast<int64_t>(b) * (cache.heads + 2 * cache.kv_heads) +
                          (first_head + Columns<products>::head(at)) * per_head + min(r, per_head - 1);
#pragma unroll
      for (int i = 0; i < 2; ++i) x[n][i] = two<Element>(p.qkv, row * kDim + pair + i * kPairs);
      if (r >= per_head) x[n][0] = x[n][1] = make_float2(0.0f, 0.0f);
    }
  }

  /// Leaves the thread's queries, turned to their position and back by a side's token, times the score's factor.
  __device__ void load(const CacheView& cache, const Attention& p, int b, int first_head, bool ordered,
                       SharedState<products>& state) const {
    const int position = cache.length(b);
#pragma unroll
    for (int share = 0; share < kShares; ++share) {
      const int first = pair + share * kStep;
      float2 angles[kSides][2], x[products][2];
#pragma unroll
      for (int i = 0; i < 2 * kSides; ++i) {
        angles[i / 2][i % 2] = rope_angle(cache, max(position - i / 2 * kSideStep, 0), first + i % 2);
      }
      if (p.type == ElementType::kFloat16) {
        load_elements<__half>(cache, p, b, first_head, first, x);
      } else if (p.type == ElementType::kBFloat16) {
        load_elements<__nv_bfloat16>(cache, p, b, first_head, first, x);
      } else {
        load_elements<float>(cache, p, b, first_head, first, x);
      }
#pragma unroll
      for (int side = 0; side < kSides; ++side) {
        // In natural order products with H_16 have a factor of 2^-9, of side 1 2^-5.
        const float unit = ordered ? 1.0f : side == 0 ? 512.0f : 32.0f;
        const float scale = cache.score_scale * kLog2e * unit * 0.08838834764831845f;
#pragma unroll
        for (int n = 0; n < products; ++n) {
          const float2 a = turn(x[n][0].x, x[n][1].x, angles[side][0]);
          const float2 c = turn(x[n][0].y, x[n][1].y, angles[side][1]);
          state.turned[share][side][n][thread] = make_float4(a.x * scale, a.y * scale, c.x * scale, c.y * scale);
        }
      }
    }
  }

  static __device__ __forceinline__ const float* angle_row(const CacheView& cache, int group) {
    return cache.rope + (static_cast<int64_t>(kPageTokens) + group * (kGroupTokens / kPageTokens)) * kDim;
  }

  /// Loads what the next call of store turns by.
  __device__ __forceinline__ void load_angles(const CacheView& cache, int round, int last_group) {
#pragma unroll
    for (int i = 0; i < kRoundGroups * kShares; ++i) {
      const float* row =
          angle_row(cache, min(round * kRoundGroups + i / kShares, last_group)) + pair + i % kShares * kStep;
      cosines[i / kShares][i % kShares] = *reinterpret_cast<const float2*>(row);
      sines[i / kShares][i % kShares] = *reinterpret_cast<const float2*>(row + kPairs);
    }
  }
  /// Of a group's first token, for both pairs: cosine - sine, cosine + sine.
  __device__ __forceinline__ float4 angles(int group, int share) const {
    const float2 a = cosines[group][share], b = sines[group][share];
    return make_float4(a.x - b.x, a.x + b.x, a.y - b.y, a.y + b.y);
  }

  /// Queries turned back by a round's groups' first positions, times 1 - j, as operands.
  __device__ __forceinline__ void store(SharedState<products>& state, int turn) const {
    const int k = pair % 16, lane = column * 4 + k % 8 / 2;
#pragma unroll
    for (int group = 0; group < kRoundGroups; ++group) {
      auto& operands = state.queries[turn][group];
#pragma unroll
      for (int share = 0; share < kShares; ++share) {
        const float4 angle = angles(group, share);
        const auto& own = state.turned[share];
        float4 all[kSides][products];
#pragma unroll
        for (int i = 0; i < kSides * products; ++i)
          all[i / products][i % products] = own[i / products][i % products][thread];
#pragma unroll
        for (int i = 0; i < kSides * products; ++i) {
          const int side = i / products, n = i % products;
          const float4 x = all[side][n];
          uint32_t* to =
              reinterpret_cast<uint32_t*>(&operands[side][n][pair / 16 + share * (kStep / 16)][lane]) + k / 8;
          to[0] = pack_halves(fmaf(x.x, angle.x, x.y * angle.y), fmaf(x.z, angle.z, x.w * angle.w));
          to[2] = pack_halves(fmaf(x.y, angle.x, -x.x * angle.y), fmaf(x.w, angle.z, -x.z * angle.w));
        }
      }
    }
  }
};

/// With an order of channels, what products need of the scales of the 4 groups, in place of them: of each token 4
/// scales of codes' fields, then minus scales times zeros, both in units of a power of 2 that suits the token. A thread
/// does a token of each group; all helpers must call it when the scales are there.
__device__ __forceinline__ void scale_rows(unsigned char (&stages)[kRoundGroups][Stage::kBytes],
                                           float (&units)[kRoundGroups][kGroupTokens], int thread) {
  const int tile = thread / kTileTokens, token = thread % kTileTokens;
  uint4 rows[kRoundGroups];
#pragma unroll
  for (int group = 0; group < kRoundGroups; ++group) {
    const auto* at = reinterpret_cast<const __half*>(stages[group] + Stage::kKeyScales + tile * kScaleStride) + token;
    float s[4], o[4], most = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[i] = __half2float(at[2 * kTileTokens * i]);
      o[i] = -s[i] * __half2float(at[2 * kTileTokens * i + kTileTokens]);
      most = fmaxf(most, fmaxf(s[i], fabsf(o[i]) * 0.015625f));
    }
    // Scales become less than 2^15, elements code * 2^(p - 24) * scale.
    const int exponent = max(__float_as_int(most) >> 23, 64), shift = 24 - field_position(token);
    const float up = __int_as_float((254 + 14 - exponent) << 23), unit = __int_as_float((exponent - 14 + shift) << 23);
    const float down = __int_as_float((254 + 14 - exponent - shift) << 23);
    rows[group] = make_uint4(pack_halves(s[0] * up, s[1] * up), pack_halves(s[2] * up, s[3] * up),
                             pack_halves(o[0] * down, o[1] * down), pack_halves(o[2] * down, o[3] * down));
    units[group][thread] = unit;
  }
  meet<kHelperThreads, 3>();
#pragma unroll
  for (int group = 0; group < kRoundGroups; ++group) {
    reinterpret_cast<uint4*>(stages[group] + Stage::kKeyScales + tile * kScaleStride)[token] = rows[group];
  }
}

}  // namespace kvquant::cuda
