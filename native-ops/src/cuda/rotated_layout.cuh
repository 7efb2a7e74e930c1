/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Shared memory of attend_rotated.cu, and how it is filled.
#pragma once
#include "block_merge.cuh"
#include "mean_term.cuh"
#include "norm_values.cuh"

namespace kvquant::cuda {

constexpr int kDim = 128, kPairs = kDim / 2, kWarps = 8, kThreads = kWarps * kWarp;
/// A round is 256 tokens, two groups of 8 tiles. Four warps share a group; a warp has tokens f, f + 1, f + 8 and f + 9
/// of each tile, f = 2 (warp % 4): two operands of 16 rows ("sides") whose codes lie in the same bytes.
constexpr int kRoundGroups = 2, kRoundTokens = kRoundGroups * kGroupTokens, kSides = 2;
constexpr int kTileBytes = kDim * 4;         // of a head's codes
constexpr int kKeyStride = kTileBytes + 64;  // of a tile in shared memory: quarter warps then read different banks
constexpr int kScaleBytes = kRotatedHeads * 4 * kTileTokens;  // of a tile: 16 scales, 16 zeros of each head
constexpr int kScaleStride = kScaleBytes + 16;                // 8 tiles are then different banks

/// Weights are halves with this factor and fields are codes times 2^(p - 24): sums have a factor of 2^-21.
__device__ __forceinline__ float weight_unit(int product) {
  return 8.0f / static_cast<float>(1 << field_position(product));
}
constexpr float kSumFactor = 2097152.0f;

/// An address in shared memory that the compiler keeps: it would compute it again and again.
template <class T>
__device__ __forceinline__ T* kept(T* p) {
#ifdef __CUDA_ARCH__
  uint32_t address = shared_address(p);
  asm volatile("" : "+r"(address));
  return static_cast<T*>(__cvta_shared_to_generic(address));
#else
  return p;
#endif
}
__device__ __forceinline__ uint32_t kept(uint32_t x) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(x));
#endif
  return x;
}

/// 128 tokens, in bytes.
struct Stage {
  static constexpr int kValues = kRotatedHeads * 8 * kKeyStride;
  static constexpr int kKeyScales = kValues + kRotatedHeads * 8 * kValueStride;
  static constexpr int kValueScales = kKeyScales + 8 * kScaleStride;
  static constexpr int kBytes = kValueScales + 8 * kScaleStride;
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
  unsigned char stages[2][kRoundGroups][Stage::kBytes];
  /// Second operands: of 16 pairs the real parts' two words, then the imaginary parts'.
  uint4 queries[2][kRoundGroups][kSides][products][4][kWarp];
  float4 turned[kSides][products][kThreads];                   // a thread's own queries, two pairs
  uint2 weights[2][kRoundGroups][kProducts][products][kWarp];  // second operands for values
  float references[2][kRoundGroups][4][8 * products];
  uint4 selectors[kRotatedHeads][4][4];  // of scales, with an order: of 32 channels, 4 c to 4 c + 3 of each 16
  float mixing[kRotatedHeads][products][4];
  float sums[kWarps][8 * products], zeros[kWarps][8 * products], last_references[kWarps][8 * products];
  float value_references[kRotatedHeads][8];
};

/// What a thread copies of each group of 128 tokens: 16 bytes of a tile's codes of each head, and 16 bytes of scales
/// (half of the threads: of keys). Keys and all scales are copied a round before values.
struct Copier {
  static constexpr int kParts = 2 * kRoundGroups;

  const uint8_t* pages;
  int64_t page_bytes;
  const int32_t* table;
  int last_page, keys, values, scales;  // offsets in a page
  int code_page, scale_page;            // which of the group's two pages
  int to_keys, to_values, to_scales;
  int key_ids[kRoundGroups] = {}, value_ids[kRoundGroups], scale_ids[kRoundGroups];  // pages that are copied next

  __device__ Copier(const CacheView& cache, int b, int first_head, int last) {
    const int thread = threadIdx.x, tile = thread / kWarp, at = thread % kWarp * 16;
    pages = cache.pages;
    page_bytes = cache.page_bytes;
    table = cache.page_table + static_cast<int64_t>(b) * cache.page_columns;
    last_page = last;
    keys = static_cast<int>(cache.keys.tile(first_head, tile % kPageTiles)) + at;
    values = static_cast<int>(cache.values.tile(first_head, tile % kPageTiles)) + at;
    code_page = tile / kPageTiles;
    to_keys = tile * kKeyStride + at;
    to_values = Stage::kValues + tile * kValueStride + at;
    const bool of_keys = thread < kThreads / 2;
    const SideView& side = of_keys ? cache.keys : cache.values;
    const int scale_tile = thread / 16 % 8, scale_at = thread % 16 * 16;
    scales = static_cast<int>(side.scales(scale_tile % kPageTiles, first_head)) + scale_at;
    scale_page = scale_tile / kPageTiles;
    to_scales = (of_keys ? Stage::kKeyScales : Stage::kValueScales) + scale_tile * kScaleStride + scale_at;
  }

  /// Finds the pages of a round's keys and scales; values are those of the round before it.
  __device__ __forceinline__ void find(int round) {
#pragma unroll
    for (int i = 0; i < kRoundGroups; ++i) {
      const int page = (round * kRoundGroups + i) * 2;
      value_ids[i] = key_ids[i];
      key_ids[i] = table[min(page + code_page, last_page)];
      scale_ids[i] = table[min(page + scale_page, last_page)];
    }
  }

  using Stages = unsigned char[kRoundGroups][Stage::kBytes];
  __device__ __forceinline__ void copy_scales(Stages& to) const {
#pragma unroll
    for (int i = 0; i < kRoundGroups; ++i) {
      copy_async(to[i] + to_scales, pages + scale_ids[i] * page_bytes + scales);
    }
  }

  /// Codes of a group, of values first.
  __device__ __forceinline__ void copy_codes(Stages& of_these_keys, Stages& of_values, int part) const {
    const bool is_key = part >= kRoundGroups;
    const int id = part == 0 ? value_ids[0] : part == 1 ? value_ids[1] : part == 2 ? key_ids[0] : key_ids[1];
    const uint8_t* from = pages + id * page_bytes + (is_key ? keys : values);
    unsigned char* to =
        is_key ? &of_these_keys[part % kRoundGroups][to_keys] : &of_values[part % kRoundGroups][to_values];
    const int stride = is_key ? 8 * kKeyStride : 8 * kValueStride;
#pragma unroll
    for (int head = 0; head < kRotatedHeads; ++head) {
      copy_async(to + head * stride, from + head * kPageTiles * kTileBytes);
    }
  }
};

}  // namespace kvquant::cuda
