/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The part that the mean has in scores: q . R_t mean for every token t, though no token stores it.
//
// Over 128 tokens it is a sum of waves, a cosine and a sine for each pair of channels, whose amplitudes follow from the
// query turned back to the first of them. Cosines and sines of 0 to 127 steps are the same for all heads, sequences and
// layers: a table of constant operands (33 KB). A product's 64 amplitude pairs take one rotation each, by fp32 numbers
// from the table of rope.h, so that angles stay exact at any position.
#pragma once
#include "static_keys.cuh"

namespace kvquant::cuda {

constexpr int kGroupTokens = 128;
constexpr int kWaveBlocks = 8;  // of 8 pairs
/// Words from one product's table to the next; the excess spreads the writes of fill_waves over the banks.
constexpr int kWaveStride = kWaveBlocks * kWarp * 4 + 4;
constexpr int kWaveBytes = kProducts * kWaveStride * 4;

/// Fills the table [8 products][8 blocks][32 lanes][4 words]. Row g of product f is token 16 g + f, row g + 8 token
/// 16 g + f + 8; the words of a lane are pairs 8 block + c of both, then pairs 8 block + 4 + c.
__device__ __forceinline__ void fill_waves(const CacheView& cache, uint32_t* table) {
  constexpr int kHalf = 64;
  const float* second = cache.rope + static_cast<int64_t>(kPageTokens + 1) * 2 * kHalf;  // of position 64
  const int token = static_cast<int>(threadIdx.x) % kPageTokens;
  for (int place = static_cast<int>(threadIdx.x) / kPageTokens; place < 4;
       place += static_cast<int>(blockDim.x) / kPageTokens) {
    uint32_t* to = table + token % 8 * kWaveStride + (token / 16 * 4 + place) * 4 + token / 8 % 2;
#pragma unroll 4
    for (int i = 0; i < 2 * kWaveBlocks; ++i) {  // half blocks
      const int pair = 4 * i + place;
      const float c = cache.rope[pair * kPageTokens + token], s = cache.rope[(kHalf + pair) * kPageTokens + token];
      const float c1 = second[pair], s1 = second[kHalf + pair];
      uint32_t* words = to + i / 2 * (kWarp * 4) + i % 2 * 2;
      words[0] = pack_halves(c, s);
      words[16 * 4] = pack_halves(c * c1 - s * s1, s * c1 + c * s1);  // 64 tokens on: lanes of tiles 4 to 7
    }
  }
}

/// Adds the mean's part to scores in base 2. amplitudes [16 half blocks][32 lanes]: of the head's cosine and sine at
/// position 0; base [2, 64]: cosines, then sines, of the position of the first token.
__device__ __forceinline__ void add_mean(float (&scores)[kProducts][4], const uint32_t* table, const float2* amplitudes,
                                         const float* base, int lane) {
#pragma unroll 2
  for (int block = 0; block < kWaveBlocks; ++block) {
    uint32_t b[2];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int pair = 8 * block + 4 * side + lane % 4;
      const float2 x = amplitudes[(2 * block + side) * kWarp + lane];
      const float c = base[pair], s = base[64 + pair];
      b[side] = pack_halves(fmaf(x.x, c, x.y * s), fmaf(x.y, c, -x.x * s));
    }
    const uint32_t* words = table + (block * kWarp + lane) * 4;
#pragma unroll
    for (int f = 0; f < kProducts; ++f) {
      const uint4 a = *reinterpret_cast<const uint4*>(words + f * kWaveStride);
      mma(scores[f], a.x, a.y, a.z, a.w, b[0], b[1]);
    }
  }
}

}  // namespace kvquant::cuda
