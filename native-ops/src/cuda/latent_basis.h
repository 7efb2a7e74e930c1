/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The basis of a layer's keys as attend_latent.cu multiplies codes with it: made once, beside the copy of parameters.
#pragma once
#include <cuda_runtime.h>

#include "core/layout.h"

namespace kvquant::cuda {

/// head_dim, and the places of a run of one width.
constexpr int kLatentDim = 128, kRunPlaces = kLatentDim / kWidthRuns;
/// Products of 16 places (two runs) that rebuild keys, at most: all runs and one for what is the same for all tokens.
constexpr int kMostSteps = (kWidthRuns + 2) / 2;
/// The code that stands for what is the same for all tokens.
constexpr int kConstantCode = 64;
/// Widths in the order of steps.
constexpr int kLatentWidths[5] = {2, 1, 4, 3, 8};

/// What steps take: the run of constants and one that no other of its width is left for, more such, then pairs of runs
/// of each width.
struct LatentSteps {
  int mixed;                  // the first step of pairs
  int ends[5];                // the first step behind the pairs of a width
  int width[2 * kMostSteps];  // 0: constants; or nothing, where the basis is zero
  int run[2 * kMostSteps];    // -1: none

  __host__ __device__ int steps() const { return ends[4]; }
};
LatentSteps latent_steps(const uint8_t* widths);

constexpr int kRunBytes = kLatentDim * kRunPlaces * 2;  // of the basis: halves [128 channels][8 places]

/// Whether parameters get such a basis, at latent_offset of their copy: for each kv head its runs in the order of
/// steps, then FP32 [kv heads]: what products with codes (subnormal halves, code 2^-24) are to be multiplied by.
bool has_latent_basis(const LayerParams& params);
inline size_t latent_offset(const LayerParams& params) { return (static_cast<size_t>(params.bytes) + 127) / 128 * 128; }
size_t latent_bytes(const LayerParams& params);
void write_latent_basis(const LayerParams& params, uint8_t* to);

}  // namespace kvquant::cuda
