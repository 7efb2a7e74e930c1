/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Softmax of a warp whose products have 8 columns each, and of values whose codes have zeros.
#pragma once
#include "fp16_tile.cuh"

namespace kvquant::cuda {

/// A lane's share, of columns 2 c and 2 c + 1 of each product: what weights refer to, their sums, and those of weights
/// times zeros. References are whole numbers: what follows from a change of one is exact.
template <int products>
struct ColumnSums {
  float reference[2 * products], weights[2 * products], zeros[2 * products];

  /// Before all else.
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 2 * products; ++i) {
      reference[i] = kLowest;
      weights[i] = zeros[i] = 0.0f;
    }
  }

  /// Raises references to the highest scores of the warp, if any lane must: it has one that exceeds them by kSlack.
  /// high: the lane's.
  __device__ __forceinline__ void raise(float (&high)[2 * products], bool must) {
    if (!__any_sync(0xffffffffu, must)) return;
#pragma unroll
    for (int i = 0; i < 2 * products; ++i) {
#pragma unroll
      for (int step = 4; step < kWarp; step *= 2) high[i] = fmaxf(high[i], __shfl_xor_sync(0xffffffffu, high[i], step));
      const float raised = fmaxf(reference[i], high[i] > kLowest ? ceilf(high[i]) : kLowest);
      const float keep = exp2_fast(reference[i] - raised);
      reference[i] = raised;
      weights[i] *= keep;
      zeros[i] *= keep;
    }
  }

  /// Leaves what the warp comes to, of column i at [i].
  __device__ __forceinline__ void publish(float (&all_weights)[8 * products], float (&all_zeros)[8 * products],
                                          float (&references)[8 * products], int lane) {
#pragma unroll
    for (int i = 0; i < 2 * products; ++i) {
#pragma unroll
      for (int step = 4; step < kWarp; step *= 2) {
        weights[i] += __shfl_xor_sync(0xffffffffu, weights[i], step);
        zeros[i] += __shfl_xor_sync(0xffffffffu, zeros[i], step);
      }
      if (lane >= 4) continue;
      const int column = i / 2 * 8 + 2 * lane + i % 2;
      all_weights[column] = weights[i];
      all_zeros[column] = zeros[i];
      references[column] = reference[i];
    }
  }
};

}  // namespace kvquant::cuda
