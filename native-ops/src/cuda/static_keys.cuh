/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Static codes of keys as operands of products, 128 tokens at a time. Runs of head_dim 128 are meant below; of head_dim
// 64, whose runs are half as long, two of one width count as a run, or one and what lies behind it, for no query.
//
// A tile (16 tokens) holds all codes of one channel together, while an operand wants two channels of one token in a
// word. So a product takes its 16 rows from 8 tiles: lane 4 g + c reads channels 2 c and 2 c + 1 of a run (8 channels
// of one width) from tile g, and product number f of 8 has token f of tile g in row g and token f + 8 in row g + 8.
// Every lane reads other bytes, and every bit it reads is used.
//
// A field of bits at position p of an fp16 whose exponent is zero is the number code * 2^(p - 24): an operand takes a
// mask, and few shifts if every width is taken where it lies. A product's sums count as if the position were 2 (f % 4):
// where it is another, the query makes up for it by a power of 2, which costs one multiplication for 4 operands.
#pragma once
#include <utility>

#include "fp16_tile.cuh"

namespace kvquant::cuda {

/// Two runs of channels of one width, or one: places in bytes from the beginning of a tile and of the queries.
struct KeyStep {
  int tile[2], query[2];
};

/// What the products of a tile go through, widths in the order of kStepWidths, of each the pairs of runs, then the run
/// that is left over.
struct KeySteps {
  KeyStep steps[kWidthRuns];
  int pairs[5], singles[5];
};
constexpr int kStepWidths[5] = {8, 4, 2, 1, 3};

/// Of head_dim 64: where a run's queries begin, in words, if it has a width; how many pairs of runs there are.
struct HalfRuns {
  int query[kWidthRuns], pairs;
};

constexpr int kProducts = 8;
/// Words of a run's queries: [8 columns][4 lanes] and a zero, which other columns read.
constexpr int kQueryWords = 33;

__host__ __device__ constexpr int field_position(int product) { return 2 * (product % 4); }

/// Where the code of a product's tokens lies in a (shifted) chunk.
__host__ __device__ constexpr int code_position(int width, int product) {
  return width == 1 ? product % 4 : width == 4 ? product % 2 * 4 : width == 8 ? 0 : field_position(product);
}

/// A lane's tile in shared memory; blocks of 16 bytes are exchanged so that lanes of a quarter warp read different
/// banks.
struct TileReader {
  const unsigned char* tile;
  int swizzle;

  template <class T>
  __device__ __forceinline__ T at(int offset) const {
    return *reinterpret_cast<const T*>(tile + (offset ^ swizzle));
  }
};

/// The exchange of a tile's blocks: keys, and values, whose lanes read two tiles each.
__device__ __forceinline__ int key_swizzle(int tile) { return (tile & 1) << 6 | (tile & 2) << 4 | (tile & 4) << 2; }
__device__ __forceinline__ int value_swizzle(int tile) { return (tile & 6) << 4; }

/// Moves bits from position `from` of a word to position `to`.
template <int from, int to>
__device__ __forceinline__ uint32_t move_bits(uint32_t x) {
  if constexpr (from >= to) {
    return x >> (from - to);
  } else {
    return x << (to - from);
  }
}

/// The codes of two channels for the 16 tokens of a tile: chunks of 16 bits of both in the halves of a word.
template <int width>
struct CodePair {
  uint32_t chunks[width];

  __device__ __forceinline__ CodePair(const TileReader& tile, int run, int c) {
    run += c * 4 * width;
    if constexpr (width == 1) {
      chunks[0] = tile.at<uint32_t>(run);
    } else if constexpr (width == 2) {
      const uint2 x = tile.at<uint2>(run);
      interleave(x.x, x.y, 0);
    } else if constexpr (width == 3) {
      const uint32_t x[3] = {tile.at<uint32_t>(run), tile.at<uint32_t>(run + 4), tile.at<uint32_t>(run + 8)};
      chunks[0] = __byte_perm(x[0], x[1], 0x7610);
      chunks[1] = __byte_perm(x[0], x[2], 0x5432);
      chunks[2] = __byte_perm(x[1], x[2], 0x7610);
    } else if constexpr (width == 4) {
      const uint4 x = tile.at<uint4>(run);
      interleave(x.x, x.z, 0);
      interleave(x.y, x.w, 2);
    } else {
      const uint4 x = tile.at<uint4>(run), y = tile.at<uint4>(run + 16);
      interleave(x.x, y.x, 0);
      interleave(x.y, y.y, 2);
      interleave(x.z, y.z, 4);
      interleave(x.w, y.w, 6);
    }
  }

  /// Operand of a token: its two codes at code_position.
  template <int token>
  __device__ __forceinline__ uint32_t operand() const {
    constexpr int position = code_position(width, token % 8);
    constexpr int chunk = token * width / 16, bit = token * width % 16;
    constexpr int inside = bit + width <= 16 ? width : 16 - bit;  // bits in this chunk; the rest begins the next one
    constexpr uint32_t mask = ((1u << inside) - 1u) * 0x00010001u;
    uint32_t x = move_bits<bit, position>(chunks[chunk]) & (mask << position);
    if constexpr (inside < width) {
      constexpr uint32_t rest = ((1u << (width - inside)) - 1u) * 0x00010001u;
      x |= move_bits<0, position + inside>(chunks[chunk + 1]) & (rest << (position + inside));
    }
    return x;
  }

 private:
  __device__ __forceinline__ void interleave(uint32_t a, uint32_t b, int to) {
    chunks[to] = __byte_perm(a, b, 0x5410);
    chunks[to + 1] = __byte_perm(a, b, 0x7632);
  }
};

/// A run's query against products f, f + 4.
template <int width>
struct StepQuery {
  uint32_t at[4];

  __device__ __forceinline__ StepQuery(const unsigned char* query) {
    const uint32_t q = *reinterpret_cast<const uint32_t*>(query);
#pragma unroll
    for (int f = 0; f < 4; ++f) {
      const int lower = field_position(f) - code_position(width, f);
      const float factor = lower < 0 ? 1.0f / static_cast<float>(1 << -lower) : static_cast<float>(1 << lower);
      at[f] = lower == 0 ? q : as_bits(__hmul2(as_half2(q), __float2half2_rn(factor)));
    }
  }
};

using Products = std::make_integer_sequence<int, kProducts>;

template <int width, int... f>
__device__ __forceinline__ void add_products(float (&scores)[kProducts][4], const CodePair<width>& codes,
                                             const StepQuery<width>& q, std::integer_sequence<int, f...>) {
  (mma(scores[f], codes.template operand<f>(), codes.template operand<f + 8>(), q.at[f % 4]), ...);
}

template <int width, int... f>
__device__ __forceinline__ void add_products(float (&scores)[kProducts][4], const CodePair<width>& codes0,
                                             const CodePair<width>& codes1, const StepQuery<width>& q0,
                                             const StepQuery<width>& q1, std::integer_sequence<int, f...>) {
  (mma(scores[f], codes0.template operand<f>(), codes0.template operand<f + 8>(), codes1.template operand<f>(),
       codes1.template operand<f + 8>(), q0.at[f % 4], q1.at[f % 4]),
   ...);
}

/// Adds a width's products to scores [8 products] of [16 tokens, 8 columns]; next: the first of its steps, then the
/// first behind them. queries: the lane's.
template <int which>
__device__ __forceinline__ void add_width(float (&scores)[kProducts][4], const KeySteps& steps, int& next,
                                          const TileReader& tile, const unsigned char* queries, int c) {
  constexpr int width = kStepWidths[which];
  const int end = next + steps.pairs[which];
#pragma unroll 1
  for (; next < end; ++next) {
    const KeyStep& step = steps.steps[next];
    add_products(scores, CodePair<width>(tile, step.tile[0], c), CodePair<width>(tile, step.tile[1], c),
                 StepQuery<width>(queries + step.query[0]), StepQuery<width>(queries + step.query[1]), Products());
  }
  if (steps.singles[which] == 0) return;
  const KeyStep& step = steps.steps[next++];
  add_products(scores, CodePair<width>(tile, step.tile[0], c), StepQuery<width>(queries + step.query[0]), Products());
}

__device__ __forceinline__ void add_steps(float (&scores)[kProducts][4], const KeySteps& steps, const TileReader& tile,
                                          const unsigned char* queries, int c) {
  int next = 0;
  add_width<0>(scores, steps, next, tile, queries, c);
  add_width<1>(scores, steps, next, tile, queries, c);
  add_width<2>(scores, steps, next, tile, queries, c);
  add_width<3>(scores, steps, next, tile, queries, c);
  add_width<4>(scores, steps, next, tile, queries, c);
}

}  // namespace kvquant::cuda
