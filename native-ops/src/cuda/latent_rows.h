/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The basis of a layer's keys as append_latent_tiles.cu multiplies tokens with it: made once, beside the copy of
// parameters, behind the other basis (latent_basis.h).
#pragma once
#include <cuda_runtime.h>

#include "latent_basis.h"

namespace kvquant::cuda {

constexpr int kRowSteps = kLatentDim / 16;  // products of 16 channels
/// What is kept of two runs, one behind the other of those that have codes: elements of a row as two halves, [high,
/// low][steps][32 lanes] of what mma takes of a row of each; then RowScale of their places.
constexpr int kPairFragments = 2 * kRowSteps * 32 * 16, kRowPairBytes = kPairFragments + 2 * kRunPlaces * 32;

/// The i-th of four channels that lane 4 g + c has of a product of 16 channels.
__host__ __device__ constexpr int row_channel(int step, int c, int i) { return step * 16 + i / 2 * 8 + c * 2 + i % 2; }

/// A code is round(levels (sum factor + offset)), between 0 and 1 before, unless that lies within of_norm |token| +
/// of_sum |the larger of the sum and that over half of the channels| + always of a border: the portable operator, whose
/// sum has another order and is rounded otherwise, may then have its neighbour. levels: the largest code.
struct RowScale {
  float factor, offset, of_norm, of_sum, always, unused[3];
};

/// Runs that have codes.
int stored_runs(const uint8_t* widths);

inline size_t align_rows(size_t bytes) { return (bytes + 127) / 128 * 128; }
inline size_t latent_rows_offset(const LayerParams& params) {
  return align_rows(latent_offset(params) + latent_bytes(params));
}
/// [kv heads][pairs of stored runs].
inline size_t latent_rows_bytes(const LayerParams& params) {
  return static_cast<size_t>(params.num_kv_heads * ((stored_runs(params.keys.widths) + 1) / 2) * kRowPairBytes);
}
void write_latent_rows(const LayerParams& params, uint8_t* to);

}  // namespace kvquant::cuda
