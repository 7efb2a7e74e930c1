/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// A basis over all kv heads of a layer as tensor cores multiply with it: made once, beside the copy of parameters, at
// latent_offset.
#pragma once
#include <cuda_runtime.h>

#include "latent_basis.h"

namespace kvquant::cuda {

/// Channels, or places, that a block multiplies at a time; and runs of places of a block.
constexpr int kSlab = 64, kTileRuns = 8, kTilePlaces = kTileRuns * kRunPlaces;
/// Bytes of a slab of a row: eight chunks of 16 bytes, that of index i of row r at i ^ r % 8, so that what reads eight
/// rows at once meets all banks.
constexpr int kSlabBytes = kSlab * 2;

/// Runs that have codes, those of all heads one after the other, as blocks take them.
struct StoredRuns {
  int count;  // of a head
  uint8_t run[kWidthRuns];

  /// Tiles of kTileRuns runs, the last one perhaps with fewer.
  __host__ __device__ int tiles(int kv_heads) const { return (kv_heads * count + kTileRuns - 1) / kTileRuns; }
};
template <class Width>
inline StoredRuns stored_runs_of(const Width* widths) {
  StoredRuns runs = {};
  for (int i = 0; i < kWidthRuns; ++i) {
    if (widths[i] != 0) runs.run[runs.count++] = static_cast<uint8_t>(i);
  }
  return runs;
}

/// A code is round(sum factor + offset), unless that lies within of_sum |largest sum| + always of a border, the largest
/// of the sums over the first n slabs: the portable operator, which rounds otherwise, may then have its neighbour.
struct PlaceScale {
  float factor, offset, of_sum, always;
};

bool has_layer_basis(const LayerParams& params);

/// Rows of stored places as two halves, high and low: [tiles][slabs][2][kTilePlaces][kSlab], then PlaceScale [tiles]
/// [kTilePlaces]. Behind the last place: zeros.
inline size_t layer_rows_bytes(int kv_heads, const StoredRuns& runs) {
  const auto tiles = static_cast<size_t>(runs.tiles(kv_heads)),
             slabs = static_cast<size_t>(kv_heads) * kLatentDim / kSlab;
  return tiles * (slabs * 2 * kTilePlaces * kSlabBytes + kTilePlaces * sizeof(PlaceScale));
}

/// The n-th row of a warp's 64, of the two that share a head, as products that rebuild keys have it: a lane then gets
/// eight neighbours of columns 2 c and 2 c + 1 of four products.
__host__ __device__ constexpr int rebuilt_channel(int row) {
  return row % 64 / 32 * 64 + row / 64 * 32 + row % 8 / 2 * 8 + row % 32 / 8 * 2 + row % 2;
}
/// Behind them, what keys are rebuilt with: columns of stored places times their steps, [kv heads][tiles][channels in
/// the order of rebuilt_channel][kTilePlaces]; FP32 [channels]: what is the same for all tokens; and FP32: what sums of
/// products with codes less 2^(bits - 1) are to be multiplied by.
inline size_t layer_columns_bytes(int kv_heads, const StoredRuns& runs) {
  return static_cast<size_t>(kv_heads) * runs.tiles(kv_heads) * kLatentDim * kSlabBytes;
}

size_t layer_basis_bytes(const LayerParams& params);
void write_layer_basis(const LayerParams& params, uint8_t* to);

}  // namespace kvquant::cuda
