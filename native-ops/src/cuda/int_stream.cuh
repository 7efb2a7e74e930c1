/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Shared memory of attend_int.cuh, and how codes get there.
#pragma once
#include "block_merge.cuh"
#include "exact_part.cuh"
#include "mean_term.cuh"
#include "norm_values.cuh"

namespace kvquant::cuda {

constexpr int kDim = 128;
constexpr int kGroupTiles = kGroupTokens / kTileTokens;
/// Warps of a block; fewer where shared memory is small.
constexpr int kManyWarps = 8, kFewWarps = 4;

/// Of 8 bytes in a tile of keys of head_dim 64, at most.
constexpr int kMostChunks = 128;

/// What the host finds out about a layer once per call.
struct IntLayer {
  KeySteps keys;
  int key_stride;  // bytes from one tile of keys to the next in shared memory
  float level_step;
  int stage_bytes, warp_bytes;  // of shared memory
  int column_bits;              // of the columns of a group of tokens: 2, 4 or 8, for as many query heads
  int together;                 // kv heads of a block
  int team_bits;                // of the warps for each
  int queries, head_groups;     // heads of a kv head, groups of 8 of them
  HalfRuns halves;              // of head_dim 64
  bool scattered;               // and whether runs lie elsewhere in shared memory,
  uint8_t chunks[kMostChunks];  // chunks of 8 bytes of a tile each at 8 times this
};

/// A warp's shared memory: two stages, each for keys or values of 8 tiles, and norms of a batch. For exact tokens: a
/// tile of keys and one of values.
constexpr int kStages = 2, kMostBatch = 4, kNormsBytes = kMostBatch * kGroupTiles * kNormBytes;
constexpr int kKeptHeads = 4;  // of a block at most, whose turned queries are kept for exact tokens
constexpr int kIdGroups = 16;  // whose pages a warp knows at a time

template <int D, int warps>
struct IntBlock {
  static_assert(Fp16Tile<D>::kBytes <= kGroupTiles * ValueCodes<2, D>::kTileBytes, "exact tiles fit");
  static constexpr int kAmplitudes = Waves<D>::kBytes;  // [D / 16 blocks][32 lanes] of 16 bytes
  static constexpr int kQueries = kAmplitudes + Waves<D>::kBlocks * kWarp * 16;
  static constexpr int kFactors = (kQueries + kWidthRuns * kQueryWords * 4 + 15) / 16 * 16;  // 1 / sigma, constants
  static constexpr int kSums = kHeads * kMergeStride<D> * 4;  // of a warp, at last; they begin where waves did
  static_assert(warps * kSums <= kQueries, "sums fit where waves and amplitudes were");
  static constexpr int kScratch = kFactors + 2 * kHeads * 4;
  static constexpr int kKept = kScratch + static_cast<int>(sizeof(MergeScratch<warps>));  // turned queries
  static constexpr int kBarriers = kKept + kKeptHeads * D * 4;                            // two of each warp
  static constexpr int kWarpBuffers = (kBarriers + warps * 16 + 127) / 128 * 128;
  static_assert(kScratch % 16 == 0 && sizeof(MergeScratch<warps>) % 16 == 0, "loads of 16 bytes");
};

/// What a warp copies to its stages: of `batch` groups their keys and norms, then their values, then the next ones; at
/// last the first exact unit, if exact tokens follow. usual: keys have as many bytes as values of 2 bits.
template <int D, int value_bits, bool usual, class Exact>
struct GroupStream {
  const CacheView& cache;
  const IntLayer& layer;
  const int32_t* table;
  int kv_head, lane, pages, batch, begin, end;
  unsigned char *stages, *norms;
  Exact& exact;
  bool exact_follow;
  int first, group;  // of the batch, next to be copied
  bool values = false;
  int now = 0, next = 0;  // pages of 16 groups, a lane one; of the 16 behind them
  uint32_t places = 0;    // of the lane's chunks of a tile, if these are scattered

  __device__ __forceinline__ int load_ids(int from) const { return table[min(2 * from + lane, pages - 1)]; }

  /// Starts the next copy, to a stage.
  __device__ __forceinline__ void start(int stage) {
    if (group < end) {
      const int at = (group - begin) % kIdGroups;
      if (at == 0 && !values && group > begin) {
        now = next;
        next = load_ids(group + kIdGroups);
      }
      const uint8_t* page0 = cache.pages + __shfl_sync(0xffffffffu, now, 2 * at) * cache.page_bytes;
      const uint8_t* page1 = cache.pages + __shfl_sync(0xffffffffu, now, 2 * at + 1) * cache.page_bytes;
      unsigned char* to = stages + stage * layer.stage_bytes;
      const int64_t begin = (values ? cache.values.tile(kv_head, 0) : cache.keys.tile(kv_head, 0)) + lane * 16;
      if (values && value_bits != 2) {
        copy_wide(to, page0 + begin, page1 + begin, Values::kTileBytes, Values::kTileBytes, Values::swizzle);
      } else if (values || usual) {
        copy_tiles(to, page0 + begin, page1 + begin);
      } else if (D == 64 && layer.scattered) {
        copy_chunks(to, page0 + begin, page1 + begin);
      } else {
        copy_wide(to, page0 + begin, page1 + begin, cache.keys.tile_bytes, layer.key_stride, key_swizzle);
      }
      if (!values) copy_norms(norms + at % kMostBatch * (kGroupTiles * kNormBytes), page0, page1);
      if (++group == min(first + batch, end)) {
        if (values) {
          first = group;
        } else {
          group = first;
        }
        values = !values;
      }
    } else if (exact_follow) {
      exact_follow = !values;
      values = true;
      return exact.start(exact.team.place, !exact_follow);
    }
    commit_copies();
  }

 private:
  using Values = ValueCodes<value_bits, D>;
  static constexpr int kTwoBits = ValueCodes<2, D>::kTileBytes;
  static constexpr int kTogether = 128 / D, kTileLanes = kWarp / kTogether;  // tiles copied at a time, lanes of each

  /// Tile i of 8 is tile i % 4 of page i / 4 of the two.
  template <class Swizzle>
  __device__ __forceinline__ void copy_wide(unsigned char* to, const uint8_t* page0, const uint8_t* page1, int bytes,
                                            int stride, Swizzle swizzle) const {
    const int own = kTogether == 1 ? 0 : lane / kTileLanes;
#pragma unroll 1
    for (int at = (lane - own * kTileLanes) * 16; at < bytes; at += kTileLanes * 16) {
#pragma unroll
      for (int i = 0; i < kGroupTiles; i += kTogether) {
        const uint8_t* from = (i < kPageTiles ? page0 : page1) + (i % kPageTiles + own) * bytes;
        copy_async(to + (i + own) * stride + (at ^ swizzle(i + own)), from + (at - lane * 16));
      }
    }
  }

  __device__ __forceinline__ void copy_norms(unsigned char* to, const uint8_t* page0, const uint8_t* page1) const {
    if (lane >= 2 * kGroupTiles) return;
    const int tile = lane / 2;
    const uint8_t* from = (tile < kPageTiles ? page0 : page1) + cache.values.norms +
                          tile % kPageTiles * cache.values.norm_tile_bytes + kv_head * kNormBytes + lane % 2 * 16;
    copy_async(to + lane * 16, from);
  }

  /// Keys of head_dim 64 whose runs lie in another order in shared memory, or whose tiles are not aligned to 16 bytes.
  __device__ __forceinline__ void copy_chunks(unsigned char* to, const uint8_t* page0, const uint8_t* page1) const {
    const int bytes = cache.keys.tile_bytes;
    uint32_t left = places;
#pragma unroll 1
    for (int at = lane * 8; at < bytes; at += kWarp * 8, left >>= 8) {
      const int place = static_cast<int>(left & 0xffu) * 8;
#pragma unroll
      for (int i = 0; i < kGroupTiles; ++i) {
        const uint8_t* from = (i < kPageTiles ? page0 : page1) + i % kPageTiles * bytes;
        copy_eight(to + i * layer.key_stride + (place ^ key_swizzle(i)), from + (at - lane * 16));
      }
    }
  }

  /// Keys or values of 2 bits, 512 bytes at a time: a tile of head_dim 128 or two of 64.
  __device__ __forceinline__ void copy_tiles(unsigned char* to, const uint8_t* page0, const uint8_t* page1) const {
#pragma unroll
    for (int i = 0; i < kGroupTiles; i += kTogether) {
      const uint8_t* from = (i < kPageTiles ? page0 : page1) + i % kPageTiles * kTwoBits;
      const int tile = kTogether == 1 ? i : i + lane / kTileLanes;
      copy_async(to + i * kTwoBits + ((lane * 16) ^ (values ? value_swizzle(tile) : key_swizzle(tile))), from);
    }
  }
};

}  // namespace kvquant::cuda
