/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// What a sequence keeps exactly, sinks and the window, in attend_rotated.cu: the parts of a sequence share it, 16
// tokens at a time, and the warps that find scores attend to a block's share after their last round, while helpers add
// values.
//
// A warp takes 16 tokens of a head from memory to registers: a lane 4 g + c has tokens 2 g and 2 g + 1 of a quarter of
// the pairs of channels of keys, and tokens 4 c to 4 c + 3 of channels g, g + 8, ... of values. Keys, which may be of
// any positions, are turned in FP32. Products have queries in the rows of the first operand; their columns are tokens 2
// g, then tokens 2 g + 1, so that weights are where the products with values want them.
#pragma once
#include "rotated_layout.cuh"

namespace kvquant::cuda {

/// What a block works on.
struct Work {
  int b, part, parts, first_head, length, coded, tokens, begin, end;  // coded tokens, those of rounds [begin, end)
};

template <int products>
struct RotatedExact {
  static constexpr int kColumns = 2 * products;  // of a head
  /// Warp w has a share of head w % 4.
  struct Sums {
    float sums[kKeyWarps][kColumns][kMergeStride<kDim>], references[kKeyWarps][kColumns], weights[kKeyWarps][kColumns];
  };
  static_assert(sizeof(Sums) <= Stage::kValues, "sums take the place of keys");

  const CacheView& cache;
  const Work& work;
  int sink, first_run, units;  // the token in a lane's slot of sinks; the first 16 tokens of the window; all 16 tokens

  __device__ __forceinline__ RotatedExact(const CacheView& cache, const Work& work, int sink)
      : cache(cache), work(work), sink(sink) {
    first_run = work.coded / kTileTokens;
    const int runs = cache.window > 0 ? (work.length + kTileTokens - 1) / kTileTokens - first_run : 0;
    units = cache.sink_pages + max(0, runs);
  }

  /// Whether there is a share for the block.
  __device__ __forceinline__ bool any() const { return work.part < units; }

  /// Where sums lie, after so many rounds: keys' places are free then.
  static __device__ __forceinline__ Sums& sums(SharedState<products>& state, int rounds) {
    return *reinterpret_cast<Sums*>(state.stages[(rounds + 1) % 2][1]);
  }

  /// Of 16 tokens: where they are, a bit each that is there, and lane's % 16 token.
  struct Unit {
    const uint8_t* page;
    uint32_t valid;
    int token;
  };
  __device__ __forceinline__ Unit find(int unit, int lane) const {
    const bool is_sink = unit < cache.sink_pages, exists = unit < units;
    const int run = first_run + unit - cache.sink_pages, first = run * kTileTokens;
    const int of_slot = __shfl_sync(0xffffffffu, sink, (unit * kExactTokens + lane % kExactTokens) % kWarp);
    Unit result;
    result.token = is_sink ? of_slot : first + lane % kTileTokens;
    const bool is_there = is_sink ? of_slot >= 0 : result.token >= work.coded && result.token < work.length;
    result.valid = __ballot_sync(0xffffffffu, exists && is_there) & 0xffffu;
    if (!exists || !is_there) result.token = 0;
#pragma unroll 1
    for (uint32_t left = __ballot_sync(0xffffffffu, !is_sink && sink >= 0 && sink / kTileTokens == run); left != 0;
         left &= left - 1) {
      const int place = __shfl_sync(0xffffffffu, sink, __ffs(static_cast<int>(left)) - 1) % kTileTokens;
      result.valid &= ~(1u << place);
    }
    result.page = cache.exact_page(work.b, !exists ? 0 : is_sink ? unit : cache.sink_pages + run % cache.ring);
    return result;
  }

  /// Leaves sums of the block's share. Threads that find scores call it; keys' places must be free for them when all
  /// are here.
  __device__ __forceinline__ void attend(SharedState<products>& state, bool ordered, int rounds) const {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, c = lane % 4;
    const int own = warp % kRotatedHeads, half = warp / kRotatedHeads, thread = threadIdx.x % (kKeyThreads / 2);
    const int column = Columns<products>::of(own, 0);
    // Cosines and sines of 16 tokens for either half of the warps.
    auto& angles = reinterpret_cast<float2(*)[kPairs][kTileTokens]>(state.stages[rounds % 2][1])[half];
    static_assert(2 * sizeof(angles) <= Stage::kValues, "angles take the place of keys");
    // state.turned has this factor; see Queries::load.
    const float unscale = 11.313708498984761f / (ordered ? 1.0f : 512.0f);
    float all[kDim / 8][4] = {}, reference = kLowest, weights = 0.0f;
#pragma unroll 1
    for (int first = work.part; first < units; first += 2 * work.parts) {
      const Unit unit = find(first + half * work.parts, lane);
      const auto* keys = reinterpret_cast<const uint32_t*>(unit.page + cache.exact_key(work.first_head + own, 0)) + g;
      const auto* values = reinterpret_cast<const uint2*>(unit.page + cache.exact_value(work.first_head + own, 0)) + c;
      uint32_t k[2][16];
      uint2 v[kDim / 8];
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const int pair = i / 4 * 16 + 4 * c + i % 4;
        k[0][i] = keys[pair * (kTileTokens / 2)];
        k[1][i] = keys[(pair + kPairs) * (kTileTokens / 2)];
      }
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) v[i] = values[(8 * i + g) * (kTileTokens / 4)];
      meet<kKeyThreads, 2>();
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int pair = i * 8 + thread / kTileTokens;
        angles[pair][thread % kTileTokens] = rope_angle(cache, unit.token, pair);
      }
      meet<kKeyThreads, 2>();
      float scores[2][4] = {};  // [tokens 4 c and 4 c + 2, 1 and 3 more][queries g]
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4* from = &state.turned[i / 2][0][column / 8][i % 2 * 64 + 8 * g + 2 * c];
        const float4 q0 = from[0], q1 = from[1];
        const uint32_t re[2] = {pack_halves(q0.x * unscale, q0.z * unscale),
                                pack_halves(q1.x * unscale, q1.z * unscale)};
        const uint32_t im[2] = {pack_halves(q0.y * unscale, q0.w * unscale),
                                pack_halves(q1.y * unscale, q1.w * unscale)};
        float2 turned[4][2];  // [pair][token]
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float4 angle = reinterpret_cast<const float4*>(angles[16 * i + 4 * c + j])[g];
          const float2 x = __half22float2(as_half2(k[0][4 * i + j])), y = __half22float2(as_half2(k[1][4 * i + j]));
          turned[j][0] = turn(x.x, y.x, make_float2(angle.x, angle.y));
          turned[j][1] = turn(x.y, y.y, make_float2(angle.z, angle.w));
        }
#pragma unroll
        for (int t = 0; t < 2; ++t) {
          mma(scores[t], re[0], 0, re[1], 0, pack_halves(turned[0][t].x, turned[1][t].x),
              pack_halves(turned[2][t].x, turned[3][t].x));
          mma(scores[t], im[0], 0, im[1], 0, pack_halves(turned[0][t].y, turned[1][t].y),
              pack_halves(turned[2][t].y, turned[3][t].y));
        }
      }
      const auto is_valid = [&](int i) { return (unit.valid >> (4 * c + i) & 1u) != 0; };
      float four[4] = {scores[0][0], scores[1][0], scores[0][1], scores[1][1]}, most = kLowest;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!is_valid(i)) four[i] = -INFINITY;  // selected: the score may be NaN
        most = fmaxf(most, four[i]);
      }
#pragma unroll
      for (int step = 1; step < 4; step *= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
      const float raised = fmaxf(reference, most), keep = exp2_fast(reference - raised);
      reference = raised;
      weights *= keep;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        four[i] = exp2_fast(four[i] - raised);
        weights += four[i];
      }
      const uint32_t low = pack_halves(four[0], four[1]), high = pack_halves(four[2], four[3]);
      const auto mask = [&](int i) { return (is_valid(i) ? 0xffffu : 0u) | (is_valid(i + 1) ? 0xffff0000u : 0u); };
      const uint32_t mask_low = mask(0), mask_high = mask(2);
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        all[i][0] *= keep;
        all[i][1] *= keep;
        mma(all[i], low, 0, high, 0, v[i].x & mask_low, v[i].y & mask_high);
      }
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2) weights += __shfl_xor_sync(0xffffffffu, weights, step);
    const int row = g - column % 8;
    if (row < 0 || row >= kColumns) return;
    Sums& out = sums(state, rounds);
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
      *reinterpret_cast<float2*>(&out.sums[warp][row][8 * i + 2 * c]) = make_float2(all[i][0], all[i][1]);
    }
    if (c == 0) {
      out.references[warp][row] = reference;
      out.weights[warp][row] = weights;
    }
  }

  /// Adds the block's share for a query of a head, a lane n neighbouring channels.
  template <int n>
  static __device__ __forceinline__ void add(const Sums& from, int head, int query, int lane, MergedHead<n>& merged) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int warp = half * kRotatedHeads + head;
      MergedHead<n> own;
      own.maximum = from.references[warp][query];
      own.weights = from.weights[warp][query];
#pragma unroll
      for (int i = 0; i < n; ++i) own.sums[i] = from.sums[warp][query][lane * n + i];
      merged.add(own);
    }
  }
};

}  // namespace kvquant::cuda
