/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// A warp's part of attend_codebook.cu: scores, weights and sums of 32 tokens of a head that lie as halves in shared
// memory (codebook_tile.cuh).
//
// Of up to four query heads, columns of products that are to spare hold the same queries turned back by 16 positions
// more. So both tiles share angles of keys, which are read half as often; and a lane has scores of two columns to weigh
// instead of four. At the end columns of the second tile are added to those of the first.
#pragma once
#include "block_merge.cuh"
#include "codebook_tile.cuh"

namespace kvquant::cuda {

constexpr int kDim = 128, kPairs = kDim / 2, kMostHeads = 8, kThreads = kMostHeads * kWarp;
constexpr int kUnitTokens = 2 * kTileTokens;
constexpr int kHeadHalf = kDim * 16;  // bytes of a head's 8 tokens
constexpr int kRangeBytes = 4 * kTileTokens;
constexpr int kSlotBytes = 4 * kTileTokens;  // of 16 outliers: values, then channels
/// Query heads of a kv head that have a column for each of two tiles.
constexpr int kPaired = kHeads / 2;

/// Cosines and sines of the 32 positions of a unit, in the first or in the second half of a page, as keys' operands
/// want them: [half of the page][rows g + 8, rows g][4 blocks of 16 pairs][32 lanes] in shared memory. held: of the
/// first tile, rows g in registers; queries are turned back to the tile.
template <bool held>
struct RowAngles {
  static constexpr int kBlocks = 4, kEntries = kBlocks * kWarp;
  const uint4* table;  // of the lane
  uint4 own[held ? kBlocks : 1];

  /// Of both words of a row's operand.
  struct Block {
    uint32_t cosines[4], sines[4];
  };

  /// A block's work, before a barrier.
  template <int bits>
  static __device__ __forceinline__ void fill(const CacheView& cache, uint4* to) {
    for (int i = threadIdx.x; i < 4 * kEntries; i += blockDim.x) {
      const int row = i / (2 * kEntries) * kUnitTokens + (i / kEntries % 2 == 0 ? 8 : 0);
      to[i] = load<bits>(cache, i / kWarp % kBlocks, i % kWarp, row);
    }
  }

  template <int bits>
  __device__ __forceinline__ void start(const CacheView& cache, const uint4* shared, int lane) {
    table = shared + lane;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      if (held) own[held ? i : 0] = load<bits>(cache, i, lane, 0);
    }
  }

  /// half: of the page.
  __device__ __forceinline__ Block block(int i, int half) const {
    const uint4* from = table + (held ? 0 : half * (2 * kEntries)) + i * kWarp;
    const uint4 y = *from, x = held ? own[held ? i : 0] : from[kEntries];
    return {{x.x, y.x, x.z, y.z}, {x.y, y.y, x.w, y.w}};
  }

 private:
  /// Of the row of a lane, plus `row`: cosines, sines of its pairs in the first operand, then of those 8 behind.
  template <int bits>
  static __device__ __forceinline__ uint4 load(const CacheView& cache, int block, int lane, int row) {
    const float* cosines = cache.rope + (16 * block + 2 * (lane % 4)) * kPageTokens + token_at<bits>(lane / 4) + row;
    const float* sines = cosines + kPairs * kPageTokens;
    const auto pair = [](const float* at) { return pack_halves(__ldg(at), __ldg(at + kPageTokens)); };
    return make_uint4(pair(cosines), pair(sines), pair(cosines + 8 * kPageTokens), pair(sines + 8 * kPageTokens));
  }
};

/// A block's shared memory, in bytes.
struct Layout {
  int step, operands, queries, tiles, ranges, zeros, barrier, outliers, bytes;
  int channels;  // of outliers, behind their values

  __host__ __device__ Layout(int heads, int columns, int slots)
      : step(4 * RowAngles<false>::kEntries * 16),
        operands(step + kWarp * 16),
        queries(operands + heads * 4 * operand_stride(columns) * 16),
        tiles(queries + heads * columns * kDim * 4),
        ranges(tiles + 4 * heads * kHeadHalf),
        zeros(ranges + heads * 2 * kRangeBytes),
        barrier(zeros + 16),
        outliers(barrier + 16),
        bytes(outliers + 2 * (slots | 1) * kSlotBytes),
        channels((slots | 1) * kSlotBytes) {}

  /// Of operands of 16 pairs, in 16 bytes, for two tiles; an odd multiple of 64 bytes spreads those who write them over
  /// the banks.
  static __host__ __device__ int operand_stride(int columns) { return 4 * (2 * columns + 1); }
};

/// A warp's head: two tiles of halves in shared memory become scores, weights and sums. paired: columns 0 to 3 are
/// queries for the first tile, 4 to 7 the same for the second.
template <bool paired, bool held>
struct HeadWarp {
  static constexpr int kBlocks = kDim / 16, kTiles = paired ? 1 : 2;  // of scores that are kept
  unsigned char* tiles;                                               // of the head
  int half_bytes, lane;
  int key_rows, value_rows;  // rows_at
  Softmax softmax;
  float sums[kBlocks][4] = {};
  uint4* q;  // second operands: of the four blocks of pairs [tile][query] words of four lanes
  int queries;
  const unsigned char* own_q;  // the lane's words, q_step bytes from block to block; zeros for columns without a head
  int q_step, q_tile;          // bytes to the next block and to the second tile's
  RowAngles<held> angles;

  /// Turns queries, FP32 [queries, 128], back by the positions of two tiles, the first of them given. step: cosines and
  /// sines of 16 positions, of the lane's two pairs.
  __device__ __forceinline__ void turn_queries_back(const CacheView& cache, const float* from, int first,
                                                    const float4& step) {
    const float* base = cache.rope + (static_cast<int64_t>(kPageTokens) + first / kPageTokens) * kDim + 2 * lane;
    float2 cosine[2], sine[2];
    cosine[0] = __ldg(reinterpret_cast<const float2*>(base));
    sine[0] = __ldg(reinterpret_cast<const float2*>(base + kPairs));
    const auto advance = [&] {
      cosine[1].x = fmaf(cosine[0].x, step.x, -sine[0].x * step.z);
      cosine[1].y = fmaf(cosine[0].y, step.y, -sine[0].y * step.w);
      sine[1].x = fmaf(sine[0].x, step.x, cosine[0].x * step.z);
      sine[1].y = fmaf(sine[0].y, step.y, cosine[0].y * step.w);
    };
#pragma unroll 1
    for (int tile = first / kTileTokens % (held ? kPageTiles : 2); tile > 0; --tile) {
      advance();
      cosine[0] = cosine[1];
      sine[0] = sine[1];
    }
    advance();
    from += 2 * lane;
    auto* to = reinterpret_cast<uint32_t*>(q + lane / 8 * Layout::operand_stride(queries) + lane % 4) + lane / 4 % 2;
#pragma unroll 2
    for (int head = 0; head < queries; ++head) {
      const float2 x = *reinterpret_cast<const float2*>(from + head * kDim);
      const float2 y = *reinterpret_cast<const float2*>(from + head * kDim + kPairs);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const float2 c = cosine[u], s = sine[u];
        uint32_t* own = to + 16 * (u * queries + head);
        own[0] = pack_halves(fmaf(x.x, c.x, y.x * s.x), fmaf(x.y, c.y, y.y * s.y));
        own[2] = pack_halves(fmaf(y.x, c.x, -x.x * s.x), fmaf(y.y, c.y, -x.y * s.y));
      }
    }
  }

  /// Where a lane's rows of the first blocks of channels are in a tile; in every second block 32 is exchanged.
  __device__ __forceinline__ int rows_at(int upper, int half) const {
    return half * half_bytes + upper * 128 + ((lane % 8) ^ upper) * 16;
  }

  /// Scores (base 2) of both tiles; half: of the page.
  __device__ __forceinline__ void score(float (&scores)[kTiles][4], int tile_bytes, int half) const {
    float all[2][4] = {}, others[2][4] = {};  // paired: there are no registers for others
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned char* rows = tiles + (i % 2 == 0 ? key_rows : key_rows ^ 32) + 256 * i;
      uint4 words = *reinterpret_cast<const uint4*>(own_q + i * q_step);
      const auto angle = angles.block(i, half);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        uint32_t a[4], b[4];
        load_transposed(a, rows + u * tile_bytes);
        load_transposed(b, rows + u * tile_bytes + 1024);
#pragma unroll
        for (int at = 0; at < 4; ++at) turn_halves(a[at], b[at], angle.cosines[at], angle.sines[at]);
        if (!paired && u == 1) words = *reinterpret_cast<const uint4*>(own_q + i * q_step + q_tile);
        mma(all[u], a[0], a[1], a[2], a[3], words.x, words.y);
        mma(paired ? all[u] : others[u], b[0], b[1], b[2], b[3], words.z, words.w);
      }
    }
    const bool second = lane % 4 >= 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (paired) {
        scores[0][i] = second ? all[1][i] : all[0][i];
      } else {
        scores[0][i] = all[0][i] + others[0][i];
        scores[kTiles - 1][i] = all[1][i] + others[1][i];
      }
    }
  }

  /// Scores become weights as second operands.
  __device__ __forceinline__ void weigh(float (&scores)[kTiles][4], uint32_t (&weights)[2][2]) {
    float maximum0 = fmaxf(scores[0][0], scores[0][2]), maximum1 = fmaxf(scores[0][1], scores[0][3]);
    if (!paired) {
      maximum0 = fmaxf(maximum0, fmaxf(scores[kTiles - 1][0], scores[kTiles - 1][2]));
      maximum1 = fmaxf(maximum1, fmaxf(scores[kTiles - 1][1], scores[kTiles - 1][3]));
    }
    if (__any_sync(0xffffffffu, softmax.must_raise(maximum0, maximum1))) {
      const float2 keep = softmax.raise(maximum0, maximum1);
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        sums[i][0] *= keep.x;
        sums[i][1] *= keep.y;
        sums[i][2] *= keep.x;
        sums[i][3] *= keep.y;
      }
    }
#pragma unroll
    for (int u = 0; u < kTiles; ++u) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[u][i] = exp2_fast(scores[u][i] - softmax.reference[i % 2]);
        softmax.weights[i % 2] += scores[u][i];
      }
      weights[u][0] = transpose8x8(pack_halves(scores[u][0], scores[u][1]));
      weights[u][1] = transpose8x8(pack_halves(scores[u][2], scores[u][3]));
    }
    if (!paired) return;
    const uint32_t first = lane < 16 ? ~0u : 0;  // columns of the first tile
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      weights[1][i] = weights[0][i] & ~first;
      weights[0][i] &= first;
    }
  }

  /// Scores of tokens that are not to be read; valid: a bit for each place of both tiles.
  __device__ __forceinline__ void exclude(float (&scores)[kTiles][4], uint32_t valid) const {
    valid >>= lane / 4 + (paired ? lane % 4 / 2 * 16 : 0);
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
      if (((valid >> (i / 2 * 8)) & 1u) == 0) scores[i / 4][i % 4] = -INFINITY;  // they may be NaN
    }
  }

  /// Clears their values, which may be anything.
  __device__ __noinline__ static void clear_values(unsigned char* tiles, int place, int half_bytes, int tile_bytes,
                                                   uint32_t valid) {
    for (int i = 0; i < 16; ++i) {
      const int k = i % 4, half = i / 4 % 2, u = i / 8;
      auto* words = reinterpret_cast<uint32_t*>(tiles + u * tile_bytes + half * half_bytes + (place ^ (16 * k)));
      for (int j = 0; j < 4; ++j) {
        const uint32_t pair = valid >> (i / 4 * 8 + 2 * j);
        words[j] &= (pair & 1u) * 0xffffu | (pair >> 1 & 1u) * 0xffff0000u;
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ void add_values(const unsigned char* tile, const uint32_t (&weights)[2]) {
    const unsigned char *even = tile + value_rows, *odd = tile + (value_rows ^ 32);
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      uint32_t a[4];
      load_matrices(a, (i % 2 == 0 ? even : odd) + 256 * i);
      mma(sums[i], a[0], a[1], a[2], a[3], weights[0], weights[1]);
    }
  }

  /// Leaves the part's sums for combine().
  __device__ __forceinline__ void write(const CacheView& cache, const Attention& p, const BlockHeads& heads) {
#pragma unroll
    for (int step = 4; step < kWarp; step *= 2) {
      softmax.weights[0] += __shfl_xor_sync(0xffffffffu, softmax.weights[0], step);
      softmax.weights[1] += __shfl_xor_sync(0xffffffffu, softmax.weights[1], step);
    }
    if (paired) add_second();
    const int g = lane / 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = 2 * (lane % 4) + i;
      if (column >= heads.count) continue;
      const int64_t to = (static_cast<int64_t>(heads.b) * cache.heads + heads.first + column) * p.parts + heads.part;
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
        p.sums[to * kDim + 16 * j + g] = sums[j][i];
        p.sums[to * kDim + 16 * j + g + 8] = sums[j][2 + i];
      }
      if (g == 0) p.ranges[to] = make_float2(softmax.reference[i], softmax.weights[i]);
    }
  }

 private:
  /// Adds what the second tiles' columns come to to the first ones'.
  __device__ __forceinline__ void add_second() {
    const auto other = [](float x) { return __shfl_xor_sync(0xffffffffu, x, 2); };
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float raised = fmaxf(softmax.reference[i], other(softmax.reference[i]));
      const float keep = exp2_fast(softmax.reference[i] - raised);
      const auto add = [&](float& x) {
        x *= keep;
        x += other(x);
      };
      softmax.reference[i] = raised;
      add(softmax.weights[i]);
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
        add(sums[j][i]);
        add(sums[j][2 + i]);
      }
    }
  }

  static __device__ __forceinline__ void turn_halves(uint32_t& a, uint32_t& b, uint32_t cosine, uint32_t sine) {
    const __half2 x = as_half2(a), y = as_half2(b), c = as_half2(cosine), s = as_half2(sine);
    a = as_bits(__hfma2(x, c, __hneg2(__hmul2(y, s))));
    b = as_bits(__hfma2(y, c, __hmul2(x, s)));
  }
};

}  // namespace kvquant::cuda
