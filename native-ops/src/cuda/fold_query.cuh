/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// A query, folded into what products with codes and the mean term want; head_dim 128.
#pragma once
#include "queries.cuh"

namespace kvquant::cuda {

constexpr int kFoldDim = 128, kLanes = 4;  // channels of a head, of a lane

/// Folds a query into what products and the mean term want. A warp does one head.
__device__ __noinline__ void fold_query(const CacheView& cache, const BlockHeads& heads, int head, int lane,
                                        float (&q)[kLanes], uint32_t* queries, float2* amplitudes, float* factors) {
  turn_head(cache, cache.length(heads.b), lane, q);
  const SideView& keys = cache.keys;
  const int kv_head = heads.kv_head;
  const int first = kv_head * kFoldDim + lane * kLanes, column = head * 4;
  const float scale = cache.score_scale * kLog2e;
  float folded[kLanes], constant = 0.0f, largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    const int c = channel_at<kFoldDim>(keys, kv_head, lane * kLanes + i);
    float x = 0.0f;
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      const float value = __shfl_sync(0xffffffffu, q[j], c / kLanes);
      if (c % kLanes == j) x = value * scale;
    }
    if (keys.width[(lane * kLanes + i) / (kFoldDim / kWidthRuns)] == 0) x = 0.0f;
    const float2 step = reinterpret_cast<const float2*>(keys.steps)[first + i];
    constant = fmaf(x, step.x, constant);
    folded[i] = x * step.y;
    largest = fmaxf(largest, fabsf(folded[i]));
    if (keys.noise != nullptr) {
      constant = fmaf(0.5f * cache.score_scale * scale * q[i] * q[i], keys.noise[first + i], constant);
    }
  }
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    constant += __shfl_xor_sync(0xffffffffu, constant, step);
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  }
  // sigma brings the largest to 2^10 .. 2^11: 16 times that is still an fp16, 2^-24 of it still a normal one.
  const int exponent = largest > 0.0f ? min(max(((__float_as_int(largest) >> 23) & 0xff) - 127, -80), 80) : 0;
  const float sigma = __int_as_float((127 + 10 - exponent) << 23);
  if (lane == 0) {
    factors[head] = 1.0f / sigma;
    factors[kHeads + head] = constant;
  }
  // Lane 4 g + c of run r wants places 8 r + 2 c and + 1 of head g.
  auto* to = reinterpret_cast<uint2*>(queries + lane / 2 * kWarp + column + lane % 2 * 2);
  *to =
      make_uint2(pack_halves(folded[0] * sigma, folded[1] * sigma), pack_halves(folded[2] * sigma, folded[3] * sigma));
  if (keys.mean == nullptr) return;
  // q . R_t mean = cos (q_i m_i + q_j m_j) + sin (q_j m_i - q_i m_j), j the partner of i; lanes 0 to 15 hold the i.
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    const float other = __shfl_xor_sync(0xffffffffu, q[i], kWarp / 2);
    if (lane >= kWarp / 2) continue;
    const float mi = keys.mean[first + i], mj = keys.mean[first + i + kFoldDim / 2];
    amplitudes[lane * kWarp + column + i] =
        make_float2(scale * fmaf(q[i], mi, other * mj), scale * fmaf(other, mi, -q[i] * mj));
  }
}

}  // namespace kvquant::cuda
