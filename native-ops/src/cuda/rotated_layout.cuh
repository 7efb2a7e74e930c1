/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Shared memory of attend_rotated.cu, and how it is filled.
#pragma once
#include "block_merge.cuh"
#include "mean_term.cuh"
#include "norm_values.cuh"

namespace kvquant::cuda {

constexpr int kDim = 128, kPairs = kDim / 2;
/// Warps that find scores; warps that do all else, a head each for values.
constexpr int kKeyWarps = 8, kHelpers = kRotatedHeads, kKeyThreads = kKeyWarps * kWarp,
              kHelperThreads = kHelpers * kWarp, kThreads = kKeyThreads + kHelperThreads;
/// Of a thread, on Hopper: scores of an order need more, values of helpers profit from them.
template <bool kOrdered>
constexpr int kKeyRegisters = kOrdered ? 200 : 184;
template <bool kOrdered>
constexpr int kHelperRegisters = 504 - 2 * kKeyRegisters<kOrdered>;
/// A round is 256 tokens, two groups of 8 tiles. Four warps, quarters 0 to 3, share a group; a warp has tokens f, f +
/// 2, f + 8 and f + 10 of each tile, f = 0, 1, 4 or 5: two operands of 16 rows ("sides") whose codes lie in the same
/// bytes, 4 bits apart.
constexpr int kRoundGroups = 2, kRoundTokens = kRoundGroups * kGroupTokens, kSides = 2, kSideStep = 2;
/// A quarter's f; the quarter that has a token.
__device__ __forceinline__ int first_token(int quarter) { return quarter / 2 * 4 + quarter % 2; }
__device__ __forceinline__ constexpr int quarter_of(int token) { return token % 8 / 4 * 2 + token % 2; }
constexpr int kTileBytes = kDim * 4;         // of a head's codes
constexpr int kKeyStride = kTileBytes + 64;  // of a tile in shared memory: quarter warps then read different banks
constexpr int kScaleBytes = kRotatedHeads * 4 * kTileTokens;  // of a tile: 16 scales, 16 zeros of each head
constexpr int kScaleStride = kScaleBytes + 16;                // 8 tiles are then different banks

/// Weights are halves with this factor and fields are codes times 2^(p - 24): sums have a factor of 2^-21.
__device__ __forceinline__ float weight_unit(int product) {
  return 8.0f / static_cast<float>(1 << field_position(product));
}
constexpr float kSumFactor = 2097152.0f;

/// A number that the compiler keeps in a register: it would compute it again and again. All lanes must be here.
__device__ __forceinline__ uint32_t kept(uint32_t x) {
  return __shfl_sync(0xffffffffu, x, static_cast<int>(threadIdx.x) % kWarp);
}
/// An address in shared memory, likewise.
template <class T>
__device__ __forceinline__ T* kept(T* p) {
#ifdef __CUDA_ARCH__
  return static_cast<T*>(__cvta_shared_to_generic(kept(shared_address(p))));
#else
  return p;
#endif
}

/// The two score warps of a scheduler, w and w + 4: a warp's turn to transform, which the other one ends.
__device__ __forceinline__ void wait_turn(int warp) { meet_at<2 * kWarp>(4 + warp); }
__device__ __forceinline__ void end_turn(int warp) { arrive_at<2 * kWarp>(4 + (warp ^ 4)); }

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
  float4 turned[2][kSides][products][kHelperThreads];          // a helper's own queries, two pairs twice
  uint2 weights[2][kRoundGroups][kProducts][products][kWarp];  // second operands for values
  float references[2][kRoundGroups][4][8 * products];
  uint4 selectors[kRotatedHeads][4][4];        // of scales, with an order: of 32 channels, 4 c to 4 c + 3 of each 16
  float units[2][kRoundGroups][kGroupTokens];  // of scores, with an order; see scale_rows
  float mixing[kRotatedHeads][products][4];
  float sums[kKeyWarps][8 * products], zeros[kKeyWarps][8 * products], last_references[kKeyWarps][8 * products];
  float value_references[kRotatedHeads][8];
  uint64_t ready[2], done[2], taken[2];  // a round's keys and queries; its weights; those added with values
};

/// What a helper's thread copies of each page: 16 bytes of a tile's codes of each head; of each group 16 bytes of both
/// sides' scales. Keys and all scales are copied a round before values.
struct Copier {
  static constexpr int kGroupPages = kGroupTokens / kPageTokens, kRoundPages = kRoundGroups * kGroupPages;

  const uint8_t* pages;
  int64_t page_bytes;
  const int32_t* table;
  int last_page, keys, values, key_scales, value_scales;  // offsets in a page
  bool second_scales;                                     // scales are of the group's second page
  int to_keys, to_values, to_scales;
  int ids = 0, value_ids = 0;  // a lane a page of those that are copied next

  __device__ Copier(const CacheView& cache, int b, int first_head, int last, int thread) {
    const int tile = thread / kWarp, at = thread % kWarp * 16;
    pages = cache.pages;
    page_bytes = cache.page_bytes;
    table = cache.page_table + static_cast<int64_t>(b) * cache.page_columns;
    last_page = last;
    keys = static_cast<int>(cache.keys.tile(first_head, tile)) + at;
    values = static_cast<int>(cache.values.tile(first_head, tile)) + at;
    to_keys = tile * kKeyStride + at;
    to_values = Stage::kValues + tile * kValueStride + at;
    const int scale_tile = thread / 16, scale_at = thread % 16 * 16;
    second_scales = scale_tile >= kPageTiles;
    key_scales = static_cast<int>(cache.keys.scales(scale_tile % kPageTiles, first_head)) + scale_at;
    value_scales = static_cast<int>(cache.values.scales(scale_tile % kPageTiles, first_head)) + scale_at;
    to_scales = Stage::kKeyScales + scale_tile * kScaleStride + scale_at;
  }

  /// Finds the pages of a round's keys and scales; values are those of the round before it.
  __device__ __forceinline__ void find(int round) {
    value_ids = ids;
    ids = table[min(round * kRoundPages + static_cast<int>(threadIdx.x) % kRoundPages, last_page)];
  }

  using Stages = unsigned char[kRoundGroups][Stage::kBytes];
  __device__ __forceinline__ void copy_scales(Stages& to) const {
#pragma unroll
    for (int i = 0; i < kRoundGroups; ++i) {
      const int id = __shfl_sync(0xffffffffu, ids, i * kGroupPages + (second_scales ? 1 : 0));
      const uint8_t* page = pages + id * page_bytes;
      copy_async(to[i] + to_scales, page + key_scales);
      copy_async<Stage::kValueScales - Stage::kKeyScales, 0>(to[i] + to_scales, page + value_scales);
    }
  }

  /// Codes of a group.
  template <bool is_key>
  __device__ __forceinline__ void copy_codes(Stages& stages, int group) const {
    constexpr int kStep = kPageTiles * kTileBytes, kTo = 8 * (is_key ? kKeyStride : kValueStride);
#pragma unroll
    for (int i = 0; i < kGroupPages; ++i) {
      const int id = __shfl_sync(0xffffffffu, is_key ? ids : value_ids, group * kGroupPages + i);
      const uint8_t* from = pages + id * page_bytes + (is_key ? keys : values);
      unsigned char* to = &stages[group][is_key ? to_keys : to_values] + i * kTo / 2;
      copy_async<0, 0>(to, from);
      copy_async<kTo, kStep>(to, from);
      copy_async<2 * kTo, 2 * kStep>(to, from);
      copy_async<3 * kTo, 3 * kStep>(to, from);
    }
  }
};

}  // namespace kvquant::cuda
