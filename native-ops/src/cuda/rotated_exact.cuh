/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// What a sequence keeps exactly, sinks and the window, in attend_rotated.cu: the parts of a sequence share it, 16
// tokens at a time, and the warps that find scores attend to a block's share after their last round, while helpers add
// values.
//
// A warp takes 16 tokens of a head from memory to registers: a lane 4 g + c has tokens 2 g and 2 g + 1 of a quarter of
// the pairs of channels of keys, and tokens 4 c to 4 c + 3 of channels g, g + 8, ... of values. Keys, which may be of
// any positions, are turned as those in codes are, in halves. Products have queries in the rows of the first operand;
// their columns are tokens 2 g, then tokens 2 g + 1, so that weights are where the products with values want them.
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
    units = cache.exact_runs(work.coded, work.length);
  }

  /// Fetches a warp's first 16 tokens to L2.
  __device__ __forceinline__ void prefetch(int warp) const {
    const int unit = work.part + warp / kRotatedHeads * work.parts, head = work.first_head + warp % kRotatedHeads;
    if (threadIdx.x % kWarp != 0 || unit >= units) return;
    const int column =
        unit < cache.sink_pages ? unit : cache.sink_pages + (first_run + unit - cache.sink_pages) % cache.ring;
    const uint8_t* page = cache.exact_page(work.b, column);
    constexpr int kBytes = kDim * kTileTokens * 2;
    prefetch_far(page + cache.exact_key(head, 0), kBytes);
    prefetch_far(page + cache.exact_value(head, 0), kBytes);
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

  /// Cosines and sines of tokens 2 g and 2 g + 1.
  using Angles = __half[kPairs][kTileTokens / 2][2][2];

  /// Leaves sums of the block's share. Threads that find scores call it; keys' places must be free when all are here.
  __device__ __forceinline__ void attend(SharedState<products>& state, bool ordered, int rounds) const {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, c = lane % 4;
    const int own = warp % kRotatedHeads, half = warp / kRotatedHeads, thread = threadIdx.x % (kKeyThreads / 2);
    const int column = Columns<products>::of(own, 0);
    auto& angles = reinterpret_cast<Angles*>(state.stages[rounds % 2][1])[half];
    static_assert(2 * sizeof(angles) <= Stage::kValues, "angles take the place of keys");
    // state.turned has this factor; see Queries::load.
    const float unscale = 11.313708498984761f / (ordered ? 1.0f : 512.0f);
    const int64_t key_at = cache.exact_key(work.first_head + own, 4 * c) + 4 * g;
    const int64_t value_at = cache.exact_value(work.first_head + own, g) + 8 * c;
    uint32_t k[2][16];
    uint2 v[kDim / 8];
    const auto load_keys = [&](const Unit& unit) {
      const auto* keys = reinterpret_cast<const uint32_t*>(unit.page + key_at);
#pragma unroll
      for (int i = 0; i < 32; ++i) k[i / 16][i % 16] = keys[(i / 4 * 16 + i % 4) * (kTileTokens / 2)];
    };
    const auto load_values = [&](const Unit& unit) {
      const auto* values = reinterpret_cast<const uint2*>(unit.page + value_at);
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) v[i] = values[8 * i * (kTileTokens / 4)];
    };
    float all[kDim / 8][4] = {}, reference = kLowest, weights = 0.0f;
    Unit unit = find(work.part + half * work.parts, lane);
    load_keys(unit);
    load_values(unit);
#pragma unroll 1
    for (int first = work.part; first < units; first += 2 * work.parts) {
      meet<kKeyThreads, 2>();
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int pair = i * 8 + thread / kTileTokens, token = thread % kTileTokens;
        const float2 angle = rope_angle(cache, unit.token, pair);
        angles[pair][token / 2][0][token % 2] = __float2half_rn(angle.x);
        angles[pair][token / 2][1][token % 2] = __float2half_rn(angle.y);
      }
      meet<kKeyThreads, 2>();
      float scores[2][4] = {};  // [tokens 4 c and 4 c + 2, 1 and 3 more][queries g]
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4* from = &state.turned[i / 2][0][column / 8][i % 2 * 64 + 8 * g + 2 * c];
        const float4 q0 = from[0], q1 = from[1];
        const uint32_t q[2][2] = {
            {pack_halves(q0.x * unscale, q0.z * unscale), pack_halves(q1.x * unscale, q1.z * unscale)},
            {pack_halves(q0.y * unscale, q0.w * unscale), pack_halves(q1.y * unscale, q1.w * unscale)}};
        uint32_t turned[2][4];  // tokens 2 g and 2 g + 1 of a pair
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint2 angle = *reinterpret_cast<const uint2*>(angles[16 * i + 4 * c + j][g]);
          const __half2 x = as_half2(k[0][4 * i + j]), y = as_half2(k[1][4 * i + j]);
          const __half2 cosine = as_half2(angle.x), sine = as_half2(angle.y);
          turned[0][j] = as_bits(__hfma2(x, cosine, __hneg2(__hmul2(y, sine))));
          turned[1][j] = as_bits(__hfma2(y, cosine, __hmul2(x, sine)));
        }
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          const uint32_t(&x)[4] = turned[part];
          mma(scores[0], q[part][0], 0, q[part][1], 0, __byte_perm(x[0], x[1], 0x5410),
              __byte_perm(x[2], x[3], 0x5410));
          mma(scores[1], q[part][0], 0, q[part][1], 0, __byte_perm(x[0], x[1], 0x7632),
              __byte_perm(x[2], x[3], 0x7632));
        }
      }
      const uint32_t valid = unit.valid >> (4 * c);
      const int next = first + (2 + half) * work.parts;
      if (first + 2 * work.parts < units) {
        unit = find(next, lane);
        load_keys(unit);
      }
      float four[4] = {scores[0][0], scores[1][0], scores[0][1], scores[1][1]}, most = kLowest;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if ((valid >> i & 1u) == 0) four[i] = -INFINITY;  // selected: the score may be NaN
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
      const auto mask = [&](int i) {
        return ((valid >> i & 1u) != 0 ? 0xffffu : 0u) | ((valid >> (i + 1) & 1u) != 0 ? 0xffff0000u : 0u);
      };
      const uint32_t mask_low = mask(0), mask_high = mask(2);
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        all[i][0] *= keep;
        all[i][1] *= keep;
        mma(all[i], low, 0, high, 0, v[i].x & mask_low, v[i].y & mask_high);
      }
      if (first + 2 * work.parts < units) load_values(unit);
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
