/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The part that the mean has in scores: q . R_t mean for every token t, though no token stores it.
//
// Over 128 tokens it is a sum of waves, a cosine and a sine for each pair of channels, whose amplitudes follow from the
// query turned back to the first of them. Cosines and sines of 0 to 127 steps are the same for all heads, sequences and
// layers: a table of constant operands (33 KB at head_dim 128). A product's D / 2 amplitude pairs take one rotation
// each, by fp32 numbers from the table of rope.h, so that angles stay exact at any position.
//
// Where pairs from 16 on of head_dim 128 are slow, turned by 0.12 a step or less, their waves are added up at 16 tokens
// only, the nodes, and a polynomial of degree 15 goes through the 16 sums: products with the table for 16 pairs, with a
// small one for the nodes, and with what polynomials are at 128 tokens. Nodes are about where Chebyshev's are: the
// polynomial misses a wave by 1e-4 of its amplitude at most, by 7e-6 where RoPE's base is 10000, and passes on what
// sums are off by unmagnified. It goes through their distances from one of them, so that fp16 rounds only what varies.
#pragma once
#include "static_keys.cuh"

namespace kvquant::cuda {

constexpr int kGroupTokens = 128;
template <int D>
struct Waves {
  static constexpr int kBlocks = D / 16;      // of 8 pairs
  static constexpr int kParts = kBlocks / 2;  // of two blocks
  /// Words from one product's table to the next; the excess spreads the writes of fill_waves over the banks.
  static constexpr int kStride = kBlocks * kWarp * 4 + 4;
  static constexpr int kBytes = kProducts * kStride * 4;
};
constexpr int kWaveStride = Waves<128>::kStride;

/// Pair of channels of a lane's first or second (side 1) words in a block: lanes then read 4 neighbours for a part.
__host__ __device__ constexpr int wave_pair(int block, int side, int c) {
  return block / 2 * 16 + c * 4 + block % 2 * 2 + side;
}
/// The factor of a product's waves: that of its codes, times 2^12.
__host__ __device__ constexpr float wave_unit(int product) {
  return 1.0f / static_cast<float>(1 << (12 - field_position(product)));
}

/// Nodes are tokens 64 + wave_node(i) and 63 - wave_node(i), so far and 1/2 from the middle.
constexpr int kNodes = 8;
constexpr float kSlowCosine = 0.9928f;
constexpr uint64_t kNodeBytes = 0x06121e2831383d3f;  // 63, 61, 56, 49, 40, 30, 18, 6
__host__ __device__ constexpr int wave_node(int i) { return static_cast<int>(kNodeBytes >> (8 * i) & 0xff); }
/// Distances are in units of 64 tokens, so that products of them stay in range.
__host__ __device__ constexpr double node_distance(int i) { return (wave_node(i) + 0.5) / 64; }
/// The polynomial of a node, 1 there and 0 at others, is at a distance v from the middle this factor times the product
/// of v^2 - node_distance^2 of all over v - node_distance; that of the node below the middle is its reflection.
__host__ __device__ constexpr double node_factor(int i) {
  double product = 2 * node_distance(i);
  for (int j = 0; j < kNodes; ++j) {
    if (j != i) product *= node_distance(i) * node_distance(i) - node_distance(j) * node_distance(j);
  }
  return 1 / product;
}
/// Words of the table that have no waves of slow pairs then: each product's polynomials, in rows of tokens; in products
/// 0 to 5 waves of slow blocks at the nodes, rows g and g + 8 those above and below the middle.
constexpr int kPolynomials = 2 * kWarp * 4, kNodeWaves = 3 * kWarp * 4;

/// Whether pairs from 16 on are slow.
__device__ __forceinline__ bool slow_waves(const CacheView& cache, int lane) {
  const float* cosines = cache.rope + 1;  // of position 1
  const float first = __ldg(cosines + (16 + lane) * kPageTokens), second = __ldg(cosines + (32 + lane) * kPageTokens);
  return __all_sync(0xffffffffu, first >= kSlowCosine && second >= kSlowCosine);
}

/// Fills a thread's share of the table's waves of `parts`: [8 products][D / 16 blocks][32 lanes][4 words]. Row g of
/// product f is token 16 g + f, row g + 8 token 16 g + f + 8; the words of a lane are of both, first side, then of
/// both, second side. Threads have tokens `token` and + 64.
template <int D>
__device__ __forceinline__ void fill_parts(const CacheView& cache, uint32_t* table, int token, int c, int parts) {
  constexpr int kHalf = D / 2;
  const float* second = cache.rope + static_cast<int64_t>(kPageTokens + 1) * 2 * kHalf;  // of position 64
  const float unit = wave_unit(token % 8);
#pragma unroll 1
  for (int part = 0; part < parts; ++part) {
    const int first = wave_pair(2 * part, 0, c);
    const float *cosines = cache.rope + first * kPageTokens + token, *sines = cosines + kHalf * kPageTokens;
    const float4 x1 = *reinterpret_cast<const float4*>(second + first);
    const float4 y1 = *reinterpret_cast<const float4*>(second + kHalf + first);
    const float turns[4][2] = {{x1.x, y1.x}, {x1.y, y1.y}, {x1.z, y1.z}, {x1.w, y1.w}};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float x = cosines[j * kPageTokens] * unit, y = sines[j * kPageTokens] * unit;
      uint32_t* words = table + (2 * part + j / 2) * (kWarp * 4) + j % 2 * 2;
      words[0] = pack_halves(x, y);
      // 64 tokens on: tiles 4 to 7.
      words[16 * 4] = pack_halves(x * turns[j][0] - y * turns[j][1], y * turns[j][0] + x * turns[j][1]);
    }
  }
}

/// The same of what polynomials of nodes 2 c and 2 c + 1 are, above the middle, then below.
__device__ __forceinline__ void fill_polynomials(uint32_t* table, int token, int c) {
  float distance[2] = {}, factor[2] = {};
#pragma unroll
  for (int i = 0; i < kNodes; ++i) {
    if (i / 2 != c) continue;
    distance[i % 2] = static_cast<float>(node_distance(i));
    factor[i % 2] = static_cast<float>(node_factor(i)) * wave_unit(0);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float v = (static_cast<float>(token + 64 * half) - 63.5f) * (1.0f / 64);
    float product = static_cast<float>(1 << field_position(token % 8));
#pragma unroll
    for (int i = 0; i < kNodes; ++i) product *= v * v - static_cast<float>(node_distance(i) * node_distance(i));
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      float values[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float from = side == 0 ? v - distance[i] : -v - distance[i];
        values[i] = from == 0.0f ? wave_unit(token % 8) : __fdividef(product * factor[i], from);
      }
      table[kPolynomials + half * (16 * 4) + side * 2] = pack_halves(values[0], values[1]);
    }
  }
}

/// Waves of slow pairs at nodes.
__device__ __forceinline__ void fill_nodes(const CacheView& cache, uint32_t* table) {
  constexpr int kHalf = 64;
  const float* second = cache.rope + static_cast<int64_t>(kPageTokens + 1) * 2 * kHalf;  // of position 64
  for (int i = threadIdx.x; i < (Waves<128>::kBlocks - 2) * 2 * kWarp; i += blockDim.x) {
    const int block = i / (2 * kWarp), side = i / kWarp % 2, lane = i % kWarp;
    const int pair = wave_pair(block + 2, side, lane % 4), node = wave_node(lane / 4);
    const float *cosines = cache.rope + pair * kPageTokens, *sines = cosines + kHalf * kPageTokens;
    const float x0 = cosines[63 - node], y0 = sines[63 - node], x = cosines[node], y = sines[node];
    const float x1 = second[pair], y1 = second[kHalf + pair];
    uint32_t* words = table + block * kWaveStride + kNodeWaves + lane * 4 + side * 2;
    words[0] = pack_halves(x * x1 - y * y1, y * x1 + x * y1);
    words[1] = pack_halves(x0, y0);
  }
}

/// Where it is written whether pairs are slow: in what the table has left.
constexpr int kSlowFlag = kWaveStride - 1;

/// Fills the table; a block's work.
template <int D>
__device__ __forceinline__ void fill_waves(const CacheView& cache, uint32_t* table, bool slow) {
  const int token = static_cast<int>(threadIdx.x) % kPageTokens;
  uint32_t* to = table + token % 8 * Waves<D>::kStride + token / 16 * 16 + token / 8 % 2;
  for (int c = static_cast<int>(threadIdx.x) / kPageTokens; c < 4; c += static_cast<int>(blockDim.x) / kPageTokens) {
    fill_parts<D>(cache, to + c * 4, token, c, slow ? 1 : Waves<D>::kParts);
    if (slow) fill_polynomials(to + c * 4, token, c);
  }
  if (slow) fill_nodes(cache, table);
  if (D == 128 && threadIdx.x == 0) table[kSlowFlag] = slow;
}

/// Where a warp has the rows of rope.h of a batch's groups if pairs are slow: where its product has no waves then.
/// Loads of them would wait for all copies that are under way.
__device__ __forceinline__ float* batch_rows(uint32_t* table, int warp) {
  return reinterpret_cast<float*>(table + warp * kWaveStride + 4 * kWarp * 4);
}

/// Starts copying them: of the first tokens of groups [first, first + batch), before last.
__device__ __forceinline__ void copy_rows(const CacheView& cache, float* rows, int first, int last, int batch,
                                          int lane) {
#pragma unroll 1
  for (int i = 0; i < batch && first + i < last; ++i) {
    copy_async(rows + i * 128 + lane * 4, cache.rope + (kPageTokens + 2 * (first + i)) * 128 + lane * 4);
  }
}

/// A part's amplitudes as second operands, turned by a column's angles.
struct TurnedAmplitudes {
  uint32_t b[2][2];

  __device__ __forceinline__ TurnedAmplitudes(const float4* amplitudes, const float4& c, const float4& s) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 x = amplitudes[i * kWarp];
      const float c0 = i == 0 ? c.x : c.z, s0 = i == 0 ? s.x : s.z, c1 = i == 0 ? c.y : c.w, s1 = i == 0 ? s.y : s.w;
      b[i][0] = pack_halves(fmaf(x.x, c0, x.y * s0), fmaf(x.y, c0, -x.x * s0));
      b[i][1] = pack_halves(fmaf(x.z, c1, x.w * s1), fmaf(x.w, c1, -x.z * s1));
    }
  }
};

/// Adds products of all 8 tables' words at `words` with a second operand.
template <int D>
__device__ __forceinline__ void add_words(float (&scores)[kProducts][4], const uint32_t* words, uint32_t b0,
                                          uint32_t b1) {
#pragma unroll
  for (int f = 0; f < kProducts; ++f) {
    const uint4 a = *reinterpret_cast<const uint4*>(words + f * Waves<D>::kStride);
    mma(scores[f], a.x, a.y, a.z, a.w, b0, b1);
  }
}

/// The same of a part's waves.
template <int D>
__device__ __forceinline__ void add_part(float (&scores)[kProducts][4], const uint32_t* table, int part,
                                         const TurnedAmplitudes& turned, int lane) {
  const uint32_t* words = table + (2 * part * kWarp + lane) * 4;
  add_words<D>(scores, words, turned.b[0][0], turned.b[0][1]);
  add_words<D>(scores, words + kWarp * 4, turned.b[1][0], turned.b[1][1]);
}

/// Begins sums of products with the mean's part if pairs are slow. angles: the lane's of its column's row.
__device__ __forceinline__ void start_slow(float (&scores)[kProducts][4], const uint32_t* table,
                                           const float4* amplitudes, const float4* angles, int lane) {
  float sums[4] = {};  // at nodes
#pragma unroll
  for (int part = 1; part < Waves<128>::kParts; ++part) {
    const TurnedAmplitudes turned(amplitudes + 2 * part * kWarp, angles[4 * part], angles[64 / 4 + 4 * part]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t* words = table + (2 * part - 2 + i) * kWaveStride + kNodeWaves + lane * 4;
      const uint4 a = *reinterpret_cast<const uint4*>(words);
      mma(sums, a.x, a.y, a.z, a.w, turned.b[i][0], turned.b[i][1]);
    }
  }
  // The last node above the middle.
  const float reference0 = __shfl_sync(0xffffffffu, sums[0], kWarp - 4 + lane % 4);
  const float reference1 = __shfl_sync(0xffffffffu, sums[1], kWarp - 4 + lane % 4);
#pragma unroll
  for (int f = 0; f < kProducts; ++f) {
    scores[f][0] = scores[f][2] = reference0 * wave_unit(f);
    scores[f][1] = scores[f][3] = reference1 * wave_unit(f);
  }
  const uint32_t b0 = transpose8x8(pack_halves(sums[0] - reference0, sums[1] - reference1));
  const uint32_t b1 = transpose8x8(pack_halves(sums[2] - reference0, sums[3] - reference1));
  add_words<128>(scores, table + kPolynomials + lane * 4, b0, b1);
  add_part<128>(scores, table, 0, TurnedAmplitudes(amplitudes, angles[0], angles[64 / 4]), lane);
}

/// Begins sums of products, which are 0, with the mean's part otherwise. amplitudes [D / 16 blocks][32 lanes], from the
/// lane's on: of its column's cosines and sines at position 0, both sides; base: the row of rope.h of its column's
/// first token.
template <int D>
__device__ __forceinline__ void start_fast(float (&scores)[kProducts][4], const uint32_t* table,
                                           const float4* amplitudes, const float* base, int lane) {
  const float4* angles = reinterpret_cast<const float4*>(base) + lane % 4;
#pragma unroll 1
  for (int part = 0; part < Waves<D>::kParts; ++part) {
    const TurnedAmplitudes turned(amplitudes + 2 * part * kWarp, __ldg(angles + 4 * part),
                                  __ldg(angles + D / 2 / 4 + 4 * part));
    add_part<D>(scores, table, part, turned, lane);
  }
}

}  // namespace kvquant::cuda
