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

/// Pair of channels of a lane's first or second (side 1) words in a block: lanes then read 16 neighbours.
__host__ __device__ constexpr int wave_pair(int block, int side, int c) { return 16 * c + 2 * block + side; }

/// Fills the table [8 products][8 blocks][32 lanes][4 words]. Row g of product f is token 16 g + f, row g + 8 token
/// 16 g + f + 8; the words of a lane are of both, first side, then of both, second side. A product's waves have the
/// factor that its codes have, times 2^12.
__device__ __forceinline__ void fill_waves(const CacheView& cache, uint32_t* table) {
  constexpr int kHalf = 64;
  const float* second = cache.rope + static_cast<int64_t>(kPageTokens + 1) * 2 * kHalf;  // of position 64
  const int token = static_cast<int>(threadIdx.x) % kPageTokens, f = token % 8;
  const float unit = 1.0f / static_cast<float>(1 << (12 - field_position(f)));
  for (int c = static_cast<int>(threadIdx.x) / kPageTokens; c < 4; c += static_cast<int>(blockDim.x) / kPageTokens) {
    uint32_t* to = table + f * kWaveStride + (token / 16 * 4 + c) * 4 + token / 8 % 2;
    const int first = wave_pair(0, 0, c);
    const float *cosines = cache.rope + first * kPageTokens + token, *sines = cosines + kHalf * kPageTokens;
#pragma unroll 2
    for (int i = 0; i < 2 * kWaveBlocks; i += 4) {
      const float4 x1 = *reinterpret_cast<const float4*>(second + first + i);
      const float4 y1 = *reinterpret_cast<const float4*>(second + kHalf + first + i);
      const float turns[4][2] = {{x1.x, y1.x}, {x1.y, y1.y}, {x1.z, y1.z}, {x1.w, y1.w}};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float x = cosines[(i + j) * kPageTokens] * unit, y = sines[(i + j) * kPageTokens] * unit;
        uint32_t* words = to + (i + j) / 2 * (kWarp * 4) + j % 2 * 2;
        words[0] = pack_halves(x, y);
        // 64 tokens on: tiles 4 to 7.
        words[16 * 4] = pack_halves(x * turns[j][0] - y * turns[j][1], y * turns[j][0] + x * turns[j][1]);
      }
    }
  }
}

/// Adds the mean's part to sums of products. amplitudes [8 blocks][32 lanes], from the lane's on: of its column's
/// cosines and sines at position 0, both sides; base: the row of rope.h of its column's first token.
__device__ __forceinline__ void add_mean(float (&scores)[kProducts][4], const uint32_t* table, const float4* amplitudes,
                                         const float* base, int lane) {
  const float4* cosines = reinterpret_cast<const float4*>(base + 16 * (lane % 4));
  const float4* sines = cosines + 64 / 4;
#pragma unroll 1
  for (int part = 0; part < 4; ++part) {
    const float4 c = __ldg(cosines + part), s = __ldg(sines + part);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int block = 2 * part + i;
      const float4 x = amplitudes[block * kWarp];
      const float c0 = i == 0 ? c.x : c.z, s0 = i == 0 ? s.x : s.z, c1 = i == 0 ? c.y : c.w, s1 = i == 0 ? s.y : s.w;
      const uint32_t b0 = pack_halves(fmaf(x.x, c0, x.y * s0), fmaf(x.y, c0, -x.x * s0));
      const uint32_t b1 = pack_halves(fmaf(x.z, c1, x.w * s1), fmaf(x.w, c1, -x.z * s1));
      const uint32_t* words = table + (block * kWarp + lane) * 4;
#pragma unroll
      for (int f = 0; f < kProducts; ++f) {
        const uint4 a = *reinterpret_cast<const uint4*>(words + f * kWaveStride);
        mma(scores[f], a.x, a.y, a.z, a.w, b0, b1);
      }
    }
  }
}

}  // namespace kvquant::cuda
