/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Shared memory of attend_reordered.cu, and how it is filled.
#pragma once
#include "block_merge.cuh"
#include "mean_term.cuh"
#include "norm_values.cuh"

namespace kvquant::cuda::reordered {

constexpr int kDim = 128, kPairs = kDim / 2, kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kKeyStride = 512 + 64;  // of a tile in shared memory: quarter warps then read different banks
constexpr int kScaleBytes = kRotatedHeads * 4 * kTileTokens;  // of a tile: 16 scales, 16 zeros of each head
/// Weights are halves with this factor and fields are codes times 2^(p - 24): sums have a factor of 2^-21.
__device__ __forceinline__ float weight_unit(int product) {
  return 8.0f / static_cast<float>(1 << field_position(product));
}
constexpr float kSumFactor = 2097152.0f;

/// A stage of the ring, in bytes; keys' scales, of as many groups as they need, are its end.
struct Stage {
  static constexpr int kValues = kRotatedHeads * 8 * kKeyStride;
  static constexpr int kValueScales = kValues + kRotatedHeads * 8 * kValueStride;
  static constexpr int kKeyScales = kValueScales + 8 * kScaleBytes;
};

/// What depends on how many groups the layer has, in any of which a channel may be.
struct RotatedLayout {
  int groups, steps;  // of keys' scales that a block reads; products of 16 groups each
  int stages, stage_bytes;
  int one_hot_bytes;  // [4 heads][8][steps][32 lanes] of 16 bytes

  __host__ __device__ int key_scale_bytes() const { return groups * 4 * kTileTokens; }  // of a tile
};

/// Columns are query heads: with two products of 8 columns each, head h of the block has column 4 (h % 2) + r of
/// product h / 2; with one, column 4 (h % 2) + 2 (h / 2) + r.
template <int products>
struct Columns {
  static __device__ int head(int column) {
    return products == 2 ? column / 8 * 2 + column / 4 % 2 : column / 4 + column / 2 % 2 * 2;
  }
  static __device__ int query(int column) { return products == 2 ? column % 4 : column % 2; }
  static __device__ int of(int head, int query) {
    return products == 2 ? head / 2 * 8 + head % 2 * 4 + query : head % 2 * 4 + head / 2 * 2 + query;
  }
};

template <int products>
struct SharedState {
  uint32_t queries[2][products][4][kWarp]
                  [4];                        // second operands: words 2 i, 2 i + 1 of 16 pairs i, real, then imaginary
  uint2 weights[2][kWarps][products][kWarp];  // second operands for values
  float references[2][kWarps][8 * products];
  float mixing[kRotatedHeads][products][4];
  float sums[kWarps][8 * products], zeros[kWarps][8 * products];
  float value_references[kRotatedHeads][8];
};

/// Copies 128 tokens.
__device__ __forceinline__ void copy_group(const CacheView& cache, const RotatedLayout& layout, int first_head,
                                           int2 ids, unsigned char* stage) {
  const int thread = threadIdx.x;
  const uint8_t *page0 = cache.pages + ids.x * cache.page_bytes, *page1 = cache.pages + ids.y * cache.page_bytes;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int chunk = i * kThreads + thread, head = chunk / 256, tile = chunk / 32 % 8, at = chunk % 32 * 16;
    const uint8_t* page = tile < kPageTiles ? page0 : page1;
    copy_async(stage + (head * 8 + tile) * kKeyStride + at,
               page + cache.keys.tile(first_head + head, tile % kPageTiles) + at);
    copy_async(stage + Stage::kValues + (head * 8 + tile) * kValueStride + at,
               page + cache.values.tile(first_head + head, tile % kPageTiles) + at);
  }
  if (thread < 128) {
    const int tile = thread / 16, at = thread % 16 * 16;
    copy_async(stage + Stage::kValueScales + tile * kScaleBytes + at,
               (tile < kPageTiles ? page0 : page1) + cache.values.scales(tile % kPageTiles, first_head) + at);
  }
  const int chunks = layout.groups * 4;
  for (int i = thread; i < 8 * chunks; i += kThreads) {
    const int tile = i / chunks, at = i % chunks * 16;
    copy_async(stage + Stage::kKeyScales + tile * layout.key_scale_bytes() + at,
               (tile < kPageTiles ? page0 : page1) + cache.keys.scales(tile % kPageTiles, 0) + at);
  }
}

}  // namespace kvquant::cuda::reordered
