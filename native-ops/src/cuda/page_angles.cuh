/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Cosines and sines of the 64 positions of a page in shared memory: for kernels whose lanes hold two pairs of RoPE. Of
// head_dim 64 a warp holds two heads.
#pragma once
#include "cache_view.cuh"

namespace kvquant::cuda {

/// [64][D / 4 lanes] of the angles of pairs 2 l and 2 l + 1, lane l at l ^ (token / 4): writers of one pair then meet
/// different banks, as readers of one token do.
template <int D>
struct AnglesOfPage {
  static constexpr int kLanes = D / 4;
  float4 at[kPageTokens][kLanes];

  __device__ __forceinline__ const float4& of(int token, int lane) const {
    return at[token][(D == 128 ? lane : lane % kLanes) ^ (token / 4)];
  }
};
using PageAngles = AnglesOfPage<128>;

/// To the bit of rope_angle; the work of 128 threads.
template <int D>
__device__ __forceinline__ void page_angles(const CacheView& cache, int page, int thread, AnglesOfPage<D>& angles) {
  constexpr int kPairs = D / 2, kQuads = kPageTokens / 4;
  const float* base = cache.rope + (static_cast<int64_t>(kPageTokens) + page) * (2 * kPairs);
  const int quad = thread % kQuads;
#pragma unroll 4
  for (int pair = thread / kQuads; pair < kPairs; pair += 128 / kQuads) {
    const float c0 = base[pair], s0 = base[kPairs + pair];
    const auto* steps = reinterpret_cast<const float4*>(cache.rope);
    const float4 c = steps[pair * kQuads + quad], s = steps[(kPairs + pair) * kQuads + quad];
    const float c1[4] = {c.x, c.y, c.z, c.w}, s1[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      auto* to = reinterpret_cast<float2*>(&angles.at[4 * quad + i][pair / 2 ^ quad]) + pair % 2;
      *to = make_float2(__fsub_rn(__fmul_rn(c0, c1[i]), __fmul_rn(s0, s1[i])),
                        __fadd_rn(__fmul_rn(s0, c1[i]), __fmul_rn(c0, s1[i])));
    }
  }
}

}  // namespace kvquant::cuda
