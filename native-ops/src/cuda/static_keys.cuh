/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Static codes of keys as operands of products, 128 tokens at a time, head_dim 128.
//
// A tile (16 tokens) holds all codes of one channel together, while an operand wants two channels of one token in a
// word. So a product takes its 16 rows from 8 tiles: lane 4 g + c reads channels 2 c and 2 c + 1 of a run (8 channels
// of one width) from tile g, and product number f of 8 has token f of tile g in row g and token f + 8 in row g + 8.
// Every lane reads other bytes, and every bit it reads is used.
//
// A field of bits at position p of an fp16 whose exponent is zero is the number code * 2^(p - 24): an operand takes a
// shift and a mask. The position is 2 (f % 4) for all widths, so that it is a factor of a product's sums. 8 bits would
// not fit above position 2: there they lie 4 lower and queries are 16 times as large.
#pragma once
#include <utility>

#include "fp16_tile.cuh"

namespace kvquant::cuda {

/// A run of channels that has codes, or two of the same width.
struct KeyStep {
  int16_t width, runs;
  int16_t offset[2];  // bytes from the beginning of a tile
  int16_t run[2];     // which runs: where their queries are
};

constexpr int kProducts = 8;
constexpr int kLargeFactor = 16;  // of queries against 8 bits at positions 4 and 6

__host__ __device__ constexpr int field_position(int product) { return 2 * (product % 4); }

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
  uint32_t chunks[width == 8 ? 8 : width];

  __device__ __forceinline__ CodePair(const unsigned char* run, int c) {
    if constexpr (width == 1) {
      chunks[0] = reinterpret_cast<const uint32_t*>(run)[c];
    } else if constexpr (width == 2) {
      const uint2 x = reinterpret_cast<const uint2*>(run)[c];
      interleave(x.x, x.y, 0);
    } else if constexpr (width == 3) {
      const auto* x = reinterpret_cast<const uint32_t*>(run) + 3 * c;
      chunks[0] = __byte_perm(x[0], x[1], 0x7610);
      chunks[1] = __byte_perm(x[0], x[2], 0x5432);
      chunks[2] = __byte_perm(x[1], x[2], 0x7610);
    } else if constexpr (width == 4) {
      const uint4 x = reinterpret_cast<const uint4*>(run)[c];
      interleave(x.x, x.z, 0);
      interleave(x.y, x.w, 2);
    } else {
      const uint4 x = reinterpret_cast<const uint4*>(run)[2 * c], y = reinterpret_cast<const uint4*>(run)[2 * c + 1];
      interleave(x.x, y.x, 0);
      interleave(x.y, y.y, 2);
      interleave(x.z, y.z, 4);
      interleave(x.w, y.w, 6);
    }
  }

  /// Operand of a token: its two codes at position field_position(token % 8), or 4 lower if kLow.
  template <int token>
  __device__ __forceinline__ uint32_t operand() const {
    constexpr bool low = width == 8 && field_position(token % 8) >= 4;
    constexpr int position = field_position(token % 8) - (low ? 4 : 0);
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

__device__ __forceinline__ uint32_t scale_up(uint32_t q) {
  return as_bits(__hmul2(as_half2(q), __float2half2_rn(static_cast<float>(kLargeFactor))));
}

using Products = std::make_integer_sequence<int, kProducts>;

/// A run's query against positions below 4 and, of 8 bits, above.
struct StepQuery {
  uint32_t low, high;

  template <int width>
  static __device__ __forceinline__ StepQuery load(const uint32_t* queries, int run, int lane) {
    const uint32_t q = queries[run * kWarp + lane];
    return {q, width == 8 ? scale_up(q) : q};
  }
  __device__ __forceinline__ uint32_t at(int product) const { return field_position(product) >= 4 ? high : low; }
};

template <int width, int... f>
__device__ __forceinline__ void add_products(float (&scores)[kProducts][4], const CodePair<width>& codes,
                                             const StepQuery& q, std::integer_sequence<int, f...>) {
  (mma(scores[f], codes.template operand<f>(), codes.template operand<f + 8>(), q.at(f)), ...);
}

template <int width, int... f>
__device__ __forceinline__ void add_products(float (&scores)[kProducts][4], const CodePair<width> (&codes)[2],
                                             const StepQuery (&q)[2], std::integer_sequence<int, f...>) {
  (mma(scores[f], codes[0].template operand<f>(), codes[0].template operand<f + 8>(), codes[1].template operand<f>(),
       codes[1].template operand<f + 8>(), q[0].at(f), q[1].at(f)),
   ...);
}

/// Adds a step's products to scores [8 products] of [16 tokens, 8 heads]. tile: the keys of the lane's tile; queries
/// [16 runs][32 lanes].
template <int width>
__device__ __forceinline__ void add_step(float (&scores)[kProducts][4], const KeyStep& step, const unsigned char* tile,
                                         const uint32_t* queries, int lane) {
  const CodePair<width> first(tile + step.offset[0], lane % 4);
  const StepQuery q = StepQuery::load<width>(queries, step.run[0], lane);
  if (step.runs == 1) return add_products(scores, first, q, Products());
  const CodePair<width> both[2] = {first, CodePair<width>(tile + step.offset[1], lane % 4)};
  const StepQuery queries_of_both[2] = {q, StepQuery::load<width>(queries, step.run[1], lane)};
  add_products(scores, both, queries_of_both, Products());
}

__device__ __forceinline__ void add_steps(float (&scores)[kProducts][4], const KeyStep* steps, int count,
                                          const unsigned char* tile, const uint32_t* queries, int lane) {
  for (int i = 0; i < count; ++i) {
    const KeyStep& step = steps[i];
    if (step.width == 2) {
      add_step<2>(scores, step, tile, queries, lane);
    } else if (step.width == 4) {
      add_step<4>(scores, step, tile, queries, lane);
    } else if (step.width == 1) {
      add_step<1>(scores, step, tile, queries, lane);
    } else if (step.width == 8) {
      add_step<8>(scores, step, tile, queries, lane);
    } else {
      add_step<3>(scores, step, tile, queries, lane);
    }
  }
}

}  // namespace kvquant::cuda
