/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Scores of keys in static codes of a basis over their head, 128 tokens at a time, head_dim 128; see attend_latent.cu.
//
// Keys are rebuilt, 32 tokens at a time, as a product of codes with the basis: rows are tokens as in static_keys.cuh
// (product f of 8 has tokens f and f + 8 of tile g in rows g and g + 8), its inner index is the places that have codes,
// sorted by width, and a run for what is the same for all tokens: the mean and the starts of codes, as a half and what
// it lacks. Codes are subnormal halves, code * 2^-24. Two blocks of 8 channels that RoPE turns into each other are
// rebuilt together, turned by the token's place in the 128, and are the first operand of the product with queries,
// which were turned back by the position of the 128 tokens.
#pragma once
#include "exact_part.cuh"
#include "int_stream.cuh"
#include "latent_basis.h"

namespace kvquant::cuda {

/// What steps read of a tile: bytes from its beginning to each run.
struct LatentKeys {
  LatentSteps order;
  int tile[2 * kMostSteps];
};

/// Words of cosines and sines of a product; the excess spreads writes over the banks.
constexpr int kTurnBlocks = kDim / 2 / 8, kTurnStride = kTurnBlocks * kWarp * 4 + 4;
constexpr int kTurnBytes = kProducts * kTurnStride * 4;

/// Fills the table [8 products][8 blocks of pairs][32 lanes][4 words]: cosines of rows g and g + 8, then sines, each of
/// pairs 8 block + 2 c and + 1.
__device__ __forceinline__ void fill_turns(const CacheView& cache, uint32_t* table) {
  constexpr int kHalf = kDim / 2;
  const float* second = cache.rope + static_cast<int64_t>(kPageTokens + 1) * kDim;  // of position 64
  const int token = static_cast<int>(threadIdx.x) % kPageTokens;
  for (int c = static_cast<int>(threadIdx.x) / kPageTokens; c < 4; c += static_cast<int>(blockDim.x) / kPageTokens) {
    uint32_t* to = table + token % 8 * kTurnStride + (token / 16 * 4 + c) * 4 + token / 8 % 2;
#pragma unroll 2
    for (int block = 0; block < kTurnBlocks; ++block) {
      float cosine[2][2], sine[2][2];  // of both pairs; of the token, of that 64 on
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int pair = 8 * block + 2 * c + i;
        const float x = cache.rope[pair * kPageTokens + token], y = cache.rope[(kHalf + pair) * kPageTokens + token];
        const float x1 = second[pair], y1 = second[kHalf + pair];
        cosine[i][0] = x;
        sine[i][0] = y;
        cosine[i][1] = x * x1 - y * y1;
        sine[i][1] = y * x1 + x * y1;
      }
      uint32_t* words = to + block * (kWarp * 4);
#pragma unroll
      for (int i = 0; i < 2; ++i) {  // 64 tokens on: tiles 4 to 7
        words[i * 64] = pack_halves(cosine[0][i], cosine[1][i]);
        words[i * 64 + 2] = pack_halves(sine[0][i], sine[1][i]);
      }
    }
  }
}

/// Words of codes that are still to be masked.
struct CodeWords {
  uint32_t x[2], mask;
};

/// Codes of places 2 c and 2 c + 1 of a run: of tokens f and f + 8 of the lane's tile, among other bits, and their
/// mask.
template <int width>
__device__ __forceinline__ void unpack(CodeWords& words, const TileReader& tile, int run, int c, int f) {
  uint32_t(&x)[2] = words.x;
  words.mask = 0x00010001u * ((1u << width) - 1u);
  const int at = run + c * (4 * width);
  if constexpr (width == 1) {
    const uint32_t y = tile.at<uint32_t>(at) >> f;
    x[0] = y;
    x[1] = y >> 8;
  } else if constexpr (width == 2) {
    const uint2 y = tile.at<uint2>(at);
    x[0] = __byte_perm(y.x, y.y, 0x5410) >> (2 * f);
    x[1] = __byte_perm(y.x, y.y, 0x7632) >> (2 * f);
  } else if constexpr (width == 3) {
    const uint32_t y0 = tile.at<uint32_t>(at), y1 = tile.at<uint32_t>(at + 4), y2 = tile.at<uint32_t>(at + 8);
    uint32_t low = __byte_perm(y0, y1, 0x7610), high = __byte_perm(y1, y2, 0x7610);  // from bits 0, 32
    const uint32_t middle = __byte_perm(y0, y2, 0x5432);
    const bool early = f < 5;
    low = early ? low : __byte_perm(low, middle, 0x6341);     // or from bit 8
    high = early ? __byte_perm(middle, high, 0x6341) : high;  // from bit 24
    const int shift = early ? 3 * f : 3 * f - 8;
    x[0] = low >> shift;
    x[1] = high >> shift;
  } else if constexpr (width == 4) {
    const uint4 y = tile.at<uint4>(at);
    const uint32_t halves = f < 4 ? 0x5410u : 0x7632u;
    x[0] = __byte_perm(y.x, y.z, halves) >> (4 * (f % 4));
    x[1] = __byte_perm(y.y, y.w, halves) >> (4 * (f % 4));
  } else {
    const int word = f / 4 * 4;
    const uint32_t byte = 0x4400u + 0x1111u * static_cast<uint32_t>(f % 4);
    x[0] = __byte_perm(tile.at<uint32_t>(at + word), tile.at<uint32_t>(at + 16 + word), byte);
    x[1] = __byte_perm(tile.at<uint32_t>(at + 8 + word), tile.at<uint32_t>(at + 24 + word), byte);
  }
}

/// The same of a run of any width; 0: zeros.
__device__ __forceinline__ void unpack(CodeWords& words, int width, const TileReader& tile, int run, int c, int f) {
  if (width == 2) {
    unpack<2>(words, tile, run, c, f);
  } else if (width == 1) {
    unpack<1>(words, tile, run, c, f);
  } else if (width == 4) {
    unpack<4>(words, tile, run, c, f);
  } else if (width == 3) {
    unpack<3>(words, tile, run, c, f);
  } else if (width == 8) {
    unpack<8>(words, tile, run, c, f);
  } else {
    words.x[0] = words.x[1] = words.mask = 0;
  }
}

/// Turns pairs of channels, in halves.
__device__ __forceinline__ void turn_halves(uint32_t& re, uint32_t& im, uint32_t cosine, uint32_t sine) {
  const __half2 x = as_half2(re), y = as_half2(im), a = as_half2(cosine), b = as_half2(sine);
  re = as_bits(__hfma2(x, a, __hneg2(__hmul2(y, b))));
  im = as_bits(__hfma2(y, a, __hmul2(x, b)));
}

/// Halves of 8 pairs of channels of 16 tokens: rows g and g + 8 of first channels, then of second ones.
struct KeyBlock {
  uint32_t words[4];

  __device__ __forceinline__ KeyBlock(const float (&first)[4], const float (&second)[4])
      : words{pack_halves(first[0], first[1]), pack_halves(first[2], first[3]), pack_halves(second[0], second[1]),
              pack_halves(second[2], second[3])} {}

  /// Adds to scores [16 tokens, 8 columns] their part, once they are turned.
  __device__ __forceinline__ void add_turned(float (&scores)[4], const uint4& angle, uint32_t q0, uint32_t q1) const {
    uint32_t re0 = words[0], re1 = words[1], im0 = words[2], im1 = words[3];
    turn_halves(re0, im0, angle.x, angle.z);
    turn_halves(re1, im1, angle.y, angle.w);
    mma(scores, re0, re1, im0, im1, q0, q1);
  }
};

/// Keys of 16 tokens as they are rebuilt: [16 blocks of 8 channels].
using RebuiltKeys = float[2 * kTurnBlocks][4];

/// Adds the product of two runs (their codes as unpack has them) with the basis; kFirst: begins the sums.
template <bool kFirst>
__device__ __forceinline__ void add_step(RebuiltKeys& keys, const CodeWords& low, const CodeWords& high,
                                         const unsigned char* basis, int step, int lane) {
#ifdef KVQUANT_WARPGROUP_MMA
  // The product before this one reads its operands while this one's are unpacked, but for the mask.
  if constexpr (!kFirst) wait_products();
  const uint32_t a[4] = {mask_here(low.x[0], low.mask), mask_here(low.x[1], low.mask), mask_here(high.x[0], high.mask),
                         mask_here(high.x[1], high.mask)};
  begin_products();
  warpgroup_mma<kFirst>(keys, a, operand_at(basis + step * (2 * kRunBytes), kRunBytes, 128));
  commit_products();
#else
  const uint32_t a[4] = {low.x[0] & low.mask, low.x[1] & low.mask, high.x[0] & high.mask, high.x[1] & high.mask};
  // Matrices of the basis that a lane names rows of: two runs, channels of the first half, then of the second.
  const unsigned char* rows =
      basis + (2 * step + lane / 8 % 2) * kRunBytes + (lane / 16 * (kDim / 2) + lane % 8) * (kRunPlaces * 2);
#pragma unroll
  for (int block = 0; block < kTurnBlocks; ++block) {
    uint32_t b[4];
    load_matrices(b, rows + block * (8 * kRunPlaces * 2));
    mma(keys[block], a[0], a[1], a[2], a[3], b[0], b[1]);
    mma(keys[kTurnBlocks + block], a[0], a[1], a[2], a[3], b[2], b[3]);
  }
#endif
}

/// The steps that take pairs of runs of a width.
template <int which>
__device__ __forceinline__ void add_width(RebuiltKeys& rebuilt, int& step, const LatentKeys& keys,
                                          const TileReader& tile, const unsigned char* basis, int c, int f, int lane) {
  const int end = keys.order.ends[which];
#pragma unroll 1
  for (; step < end; ++step) {
    CodeWords low, high;
    unpack<kLatentWidths[which]>(low, tile, keys.tile[2 * step], c, f);
    unpack<kLatentWidths[which]>(high, tile, keys.tile[2 * step + 1], c, f);
    add_step<false>(rebuilt, low, high, basis, step, lane);
  }
}

/// Scores of product f: 16 tokens, 8 columns. q: the lane's words of second operands, every fourth; turns: the
/// product's.
__device__ __forceinline__ void score_latent(float (&scores)[4], const uint32_t* q, const LatentKeys& keys,
                                             const TileReader& tile, const unsigned char* basis, const uint4* turns,
                                             int f, int lane) {
  const int c = lane % 4;
  RebuiltKeys rebuilt;
#ifndef KVQUANT_WARPGROUP_MMA
#pragma unroll
  for (int i = 0; i < 2 * kTurnBlocks; ++i) rebuilt[i][0] = rebuilt[i][1] = rebuilt[i][2] = rebuilt[i][3] = 0.0f;
#endif
  CodeWords low, high;
  low.x[0] = low.x[1] = low.mask = c == 0 ? 0x00010001u * kConstantCode : 0;
  unpack(high, keys.order.width[1], tile, keys.tile[1], c, f);
  add_step<true>(rebuilt, low, high, basis, 0, lane);
  int step = 1;
#pragma unroll 1
  for (; step < keys.order.mixed; ++step) {
    unpack(low, keys.order.width[2 * step], tile, keys.tile[2 * step], c, f);
    unpack(high, keys.order.width[2 * step + 1], tile, keys.tile[2 * step + 1], c, f);
    add_step<false>(rebuilt, low, high, basis, step, lane);
  }
  add_width<0>(rebuilt, step, keys, tile, basis, c, f, lane);
  add_width<1>(rebuilt, step, keys, tile, basis, c, f, lane);
  add_width<2>(rebuilt, step, keys, tile, basis, c, f, lane);
  add_width<3>(rebuilt, step, keys, tile, basis, c, f, lane);
  add_width<4>(rebuilt, step, keys, tile, basis, c, f, lane);
#ifdef KVQUANT_WARPGROUP_MMA
  wait_products();
#endif
  float sums[2][4] = {};
#pragma unroll
  for (int block = 0; block < kTurnBlocks; ++block) {
    KeyBlock(rebuilt[block], rebuilt[kTurnBlocks + block])
        .add_turned(sums[block % 2], turns[block * kWarp], q[4 * block], q[4 * (kTurnBlocks + block)]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) scores[i] = sums[0][i] + sums[1][i];
}

}  // namespace kvquant::cuda
