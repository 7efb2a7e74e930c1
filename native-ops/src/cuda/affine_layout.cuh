/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Shared memory of attend_affine.cu, and how it is filled.
#pragma once
#include "block_merge.cuh"
#include "norm_values.cuh"
#include "queries.cuh"

namespace kvquant::cuda::affine {

/// Kv heads of a block; query heads of each at most.
constexpr int kTeam = 4, kMostQueries = 4;
/// Warps that find scores, a product each; warps that do all else, a head each for values.
constexpr int kKeyWarps = kProducts, kHelpers = kTeam, kWarps = kKeyWarps + kHelpers;
constexpr int kKeyThreads = kKeyWarps * kWarp, kHelperThreads = kHelpers * kWarp, kThreads = kWarps * kWarp;
/// A round is 128 tokens of all heads.
constexpr int kRoundTiles = 8, kRoundTokens = kRoundTiles * kTileTokens, kRoundPages = kRoundTokens / kPageTokens;
/// Of a tile: at most four groups' scales and zeros.
constexpr int kScaleBytes = kTeam * 4 * kTileTokens, kScaleStride = kScaleBytes + 16;
/// Weights are halves with this factor and fields are codes times 2^(p - 24).
constexpr float kWeightUnit = 8.0f, kSumFactor = 2097152.0f;

/// 128 tokens of the block's heads, in codes.
template <int bits, int D>
struct Stage {
  static constexpr int kTileBytes = D * bits * 2;
  /// Lanes of a group that is read at once then meet different banks.
  static constexpr int kKeyStride = kTileBytes + (bits == 4 ? 16 : bits == 3 ? 96 : 64);

  alignas(128) unsigned char values[kTeam][kRoundTiles][kTileBytes];
  alignas(128) unsigned char keys[kTeam][kRoundTiles][kKeyStride];
  alignas(16) unsigned char key_scales[kRoundTiles][kScaleStride], value_scales[kRoundTiles][kScaleStride];
};

/// Columns are query heads: those of head h begin at column 2 products h, of all products.
template <int products>
struct Columns {
  static constexpr int kOfHead = 2 * products;
  static __device__ __forceinline__ int head(int column) { return column / kOfHead; }
};

/// What is kept exactly; see attend_exact.
template <int D>
struct ExactState {
  static constexpr int kScratch = kHeads * kMergeStride<D> * 4;  // of a warp: a tile of halves, then its sums
  static_assert(Fp16Tile<D>::kBytes <= kScratch && kScratch % 128 == 0, "both fit");

  alignas(128) unsigned char scratch[kWarps][kScratch];
  float2 angles[kPageTokens][D / 2];
  float queries[kTeam][kHeads][D];
};

template <int bits, int D, int products>
struct SharedState {
  static constexpr int kWords = D / 8;  // of a row's cosines
  union {
    Stage<bits, D> stages[2];
    ExactState<D> exact;
    struct {
      Stage<bits, D> first;
      uint32_t angles[kProducts][2 * kWords][kWarp];  // cosines and sines of rows, before the second round
    } early;
  };
  /// Second operands: of 16 pairs the real parts' two words, then the imaginary parts'.
  uint4 queries[2][products][D / 32][kWarp];
  uint2 weights[2][kProducts][products][kWarp];  // second operands for values
  float references[2][kProducts][8 * products];
  float mixing[kTeam][products][4];
  float sums[kKeyWarps][8 * products], zeros[kKeyWarps][8 * products], last_references[kKeyWarps][8 * products];
  float value_references[kTeam][8];
  float out[kTeam][8][kMergeStride<D>];
  MergeScratch<kWarps> merge;
};

/// What a block works on.
struct Work {
  int b, part, parts, first_head, first_query, queries;  // queries: of a kv head
  int length, coded, begin, end;                         // coded tokens; rounds [begin, end)
};

/// Copies what a round needs, by all helpers.
template <int bits, int D>
struct Copier {
  using Staged = Stage<bits, D>;
  static constexpr int kChunks = Staged::kTileBytes / 16;  // of a tile
  /// Tiles that helpers copy at once, a power of 2, and how often of a page.
  static constexpr int kAtOnce = kChunks > 32 ? 2 : kChunks > 16 ? 4 : 8, kSteps = kTeam * kPageTiles / kAtOnce;

  const CacheView& cache;
  const int32_t* table;
  int first_head, last_page, thread, tile, at;  // tile, at: of a thread's chunk among those that are copied at once

  __device__ Copier(const CacheView& cache, const Work& work, int thread)
      : cache(cache), first_head(work.first_head), thread(thread), tile(thread / kChunks), at(thread % kChunks * 16) {
    table = cache.page_table + static_cast<int64_t>(work.b) * cache.page_columns;
    last_page = max(work.coded - 1, 0) / kPageTokens;
  }

  __device__ __forceinline__ const uint8_t* page(int round, int i) const {
    return cache.pages + table[min(round * kRoundPages + i, last_page)] * cache.page_bytes;
  }

  __device__ __forceinline__ void copy_keys(Staged& to, int round) const {
    unsigned char* own = to.keys[tile / kPageTiles][tile % kPageTiles] + at;
    copy_codes<sizeof(to.keys[0]), Staged::kKeyStride>(cache.keys, round, [&](int) { return own; }, Steps());
    copy_scales(cache.keys, to.key_scales, round);
    copy_scales(cache.values, to.value_scales, round);
  }
  __device__ __forceinline__ void copy_values(Staged& to, int round) const {
    unsigned char* own = to.values[tile / kPageTiles][tile % kPageTiles];
    // Which bytes are exchanged depends on the tile.
    copy_codes<sizeof(to.values[0]), Staged::kTileBytes>(
        cache.values, round,
        [&](int first) { return own + (at ^ ValueCodes<bits, D>::swizzle(first + tile % kPageTiles)); }, Steps());
  }

 private:
  using Steps = std::make_integer_sequence<int, kRoundPages * kSteps>;

  /// to(first): where a thread's chunk would lie in the first tiles; first: the tile of a round that tile 0 of it is.
  template <int head_bytes, int stride, class To, int... step>
  __device__ __forceinline__ void copy_codes(const SideView& side, int round, const To& to,
                                             std::integer_sequence<int, step...>) const {
    if (kAtOnce * kChunks < kHelperThreads && tile >= kAtOnce) return;
    const int64_t offset = side.tile(first_head, 0) + tile * (kChunks * 16) + at;
    const uint8_t* const from[kRoundPages] = {page(round, 0) + offset, page(round, 1) + offset};
    (copy_async<step % kSteps * kAtOnce / kPageTiles * head_bytes +
                    (step / kSteps * kPageTiles + step % kSteps * kAtOnce % kPageTiles) * stride,
                step % kSteps * kAtOnce * kChunks * 16>(
         to(step / kSteps * kPageTiles + step % kSteps * kAtOnce % kPageTiles), from[step / kSteps]),
     ...);
  }
  __device__ __forceinline__ void copy_scales(const SideView& side, unsigned char (&to)[kRoundTiles][kScaleStride],
                                              int round) const {
    const int own = thread / 16, byte = thread % 16 * 16;
    static_assert(kHelperThreads == kRoundTiles * kScaleBytes / 16, "a thread copies 16 bytes");
    if (byte >= kTeam * D / side.group_size * 4 * kTileTokens) return;
    copy_async(to[own] + byte,
               page(round, own / kPageTiles) + side.scales(own % kPageTiles, first_head * D / side.group_size) + byte);
  }
};

/// What a helper's thread turns of queries: four pairs of channels of a column of its products.
template <int D, int products>
struct Queries {
  static constexpr int kBlocks = D / 32;                // 16 pairs each
  static constexpr int kOwn = D == 128 ? products : 1;  // products of a thread
  int block, first_product, lane;
  float2 turned[kOwn][4];  // pairs 2 c, 2 c + 1, and those 8 behind

  __device__ Queries(const CacheView& cache, const Attention& p, const Work& work, int thread) {
    const int warp = thread / kWarp;
    lane = thread % kWarp;
    block = warp % kBlocks;
    first_product = D == 128 ? 0 : warp / kBlocks;
    const int per_head = cache.heads / cache.kv_heads, position = cache.length(work.b);
    const float scale = cache.score_scale * kLog2e;
#pragma unroll
    for (int n = 0; n < kOwn; ++n) {
      const int column = 8 * (first_product + n) + lane / 4, head = Columns<products>::head(column);
      const int query = column % Columns<products>::kOfHead;
      const bool exists = query < work.queries && first_product + n < products;
      const int64_t row = static_cast<int64_t>(work.b) * (cache.heads + 2 * cache.kv_heads) +
                          (work.first_head + head) * per_head + work.first_query + query;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float x = exists ? element(p, row * D + pair(i)) : 0.0f;
        const float y = exists ? element(p, row * D + pair(i) + D / 2) : 0.0f;
        const float2 own = turn(x, y, rope_angle(cache, position, pair(i)));
        turned[n][i] = make_float2(own.x * scale, own.y * scale);
      }
    }
  }

  __device__ __forceinline__ int pair(int i) const { return 16 * block + 2 * (lane % 4) + i % 2 + i / 2 * 8; }

  /// Queries turned back by a round's first position, times 1 - j, as operands.
  __device__ __forceinline__ void store(const CacheView& cache, int round, uint4 (&to)[products][D / 32][kWarp]) const {
    const float* row = cache.rope + (static_cast<int64_t>(kPageTokens) + round * kRoundPages) * D;
    float minus[4], plus[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float cosine = row[pair(i)], sine = row[D / 2 + pair(i)];
      minus[i] = cosine - sine;
      plus[i] = cosine + sine;
    }
#pragma unroll
    for (int n = 0; n < kOwn; ++n) {
      if (first_product + n >= products) break;
      float re[4], im[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 q = turned[n][i];
        re[i] = fmaf(q.x, minus[i], q.y * plus[i]);
        im[i] = fmaf(q.y, minus[i], -q.x * plus[i]);
      }
      to[first_product + n][block][lane] = make_uint4(pack_halves(re[0], re[1]), pack_halves(re[2], re[3]),
                                                      pack_halves(im[0], im[1]), pack_halves(im[2], im[3]));
    }
  }

 private:
  static __device__ __forceinline__ float element(const Attention& p, int64_t at) {
    if (p.type == ElementType::kFloat16) return __half2float(static_cast<const __half*>(p.qkv)[at]);
    if (p.type == ElementType::kBFloat16) return __bfloat162float(static_cast<const __nv_bfloat16*>(p.qkv)[at]);
    return static_cast<const float*>(p.qkv)[at];
  }
};

}  // namespace kvquant::cuda::affine
