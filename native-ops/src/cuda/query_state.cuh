/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Attention of one query, a token at a time, by a warp; lanes hold channels as in token_reader.cuh.
#pragma once
#include "block_merge.cuh"
#include "token_reader.cuh"

namespace kvquant::cuda {

template <int n>
__device__ float dot(const float (&x)[n], const float (&y)[n]) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < n; ++i) sum = fmaf(x[i], y[i], sum);
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  return sum;
}

/// Online softmax of one query; values that are stored rotated are summed as they are.
template <int n>
struct QueryState {
  float maximum = kLowest, weights = 0.0f;
  float natural[n] = {}, rotated[n] = {};

  __device__ void add(float score, const float (&v)[n], bool is_rotated) {
    const float raised = fmaxf(maximum, score), keep = exp2f(maximum - raised), weight = exp2f(score - raised);
    maximum = raised;
    weights = weights * keep + weight;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      natural[i] = natural[i] * keep + (is_rotated ? 0.0f : weight * v[i]);
      rotated[i] = rotated[i] * keep + (is_rotated ? weight * v[i] : 0.0f);
    }
  }
};

}  // namespace kvquant::cuda
