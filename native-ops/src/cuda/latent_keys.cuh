/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Scores of keys in static codes of a basis over their head, a page at a time, head_dim 128; see attend_latent.cu.
//
// Keys are rebuilt as a product of codes with the basis. Its rows are tokens, 16 a warp: warp f of 4 has token f + 4 (g
// / 4) of tile g % 4 in row g and the token 8 on in row g + 8. Its inner index is the places that have codes, sorted by
// width, and a run for what is the same for all tokens: the mean and the starts of codes, as a half and what it lacks.
// Codes are subnormal halves, code * 2^-24; other warps unpack them to shared memory. Two blocks of 8 channels that
// RoPE turns into each other are turned together, by the token's place in the page, and are the first operand of the
// product with queries, which were turned back by the position of the page.
#pragma once
#include "exact_part.cuh"
#include "int_stream.cuh"
#include "latent_basis.h"

namespace kvquant::cuda {

/// Products of latent2's usual widths.
constexpr int kUsualSteps = 7;
/// Groups of 16 rows of a page, a warp each, and bytes of a run's codes of a page as operand.
constexpr int kRowGroups = kPageTokens / 16, kCodeBytes = kPageTokens * kRunPlaces * 2;

/// What steps read of a tile: bytes from its beginning to each run.
struct LatentKeys {
  LatentSteps order;
  int tile[2 * kMostSteps];
};

/// Words of cosines and sines of a warp; the excess spreads writes over the banks.
constexpr int kTurnBlocks = kDim / 2 / 8, kTurnStride = kTurnBlocks * kWarp * 4 + 4;
constexpr int kTurnBytes = kRowGroups * kTurnStride * 4;

/// Fills the table [4 warps][8 blocks of pairs][32 lanes][4 words]: cosines of rows g and g + 8, then sines, each of
/// pairs 8 block + 2 c and + 1.
__device__ __forceinline__ void fill_turns(const CacheView& cache, uint32_t* table, int thread, int threads) {
  const int token = thread % kPageTokens, row = token / kTileTokens + token % 8 / 4 * 4;
  for (int c = thread / kPageTokens; c < 4; c += threads / kPageTokens) {
    uint32_t* words = table + token % 4 * kTurnStride + (row * 4 + c) * 4 + token / 8 % 2;
    const float* cosines = cache.rope + 2 * c * kPageTokens + token;
    const float* sines = cosines + kDim / 2 * kPageTokens;
#pragma unroll
    for (int block = 0; block < kTurnBlocks; ++block) {
      const int at = 8 * block * kPageTokens;
      words[block * (kWarp * 4)] = pack_halves(cosines[at], cosines[at + kPageTokens]);
      words[block * (kWarp * 4) + 2] = pack_halves(sines[at], sines[at + kPageTokens]);
    }
  }
}

/// Codes of places 2 c and 2 c + 1 of a run in the halves of a word: words[0] has tokens 4 half to 4 half + 3 of the
/// lane's tile, words[1] those 8 on, `width` bits each from the lowest on, among other bits.
template <int width>
struct CodeQuads {
  uint32_t words[2];

  __device__ __forceinline__ CodeQuads(const TileReader& tile, int run, int c, int half) {
    run += c * (4 * width);
    if constexpr (width == 1) {
      words[0] = tile.at<uint32_t>(run) >> (4 * half);
      words[1] = words[0] >> 8;
    } else if constexpr (width == 2) {
      const uint2 x = tile.at<uint2>(run);
      words[0] = __byte_perm(x.x, x.y, 0x5410) >> (8 * half);
      words[1] = __byte_perm(x.x, x.y, 0x7632) >> (8 * half);
    } else if constexpr (width == 3) {
      const CodePair<3> pair(tile, run - c * (4 * width), c);
      const uint32_t second = __byte_perm(pair.chunks[0], pair.chunks[1], 0x6341) >> 4;  // from bits 12, 24
      const uint32_t third = __byte_perm(pair.chunks[1], pair.chunks[2], 0x6341);
      words[0] = half == 0 ? pair.chunks[0] : second;
      words[1] = half == 0 ? third : pair.chunks[2] >> 4;
    } else {
      const uint4 x = tile.at<uint4>(run);
      const uint32_t halves = half == 0 ? 0x5410u : 0x7632u;
      words[0] = __byte_perm(x.x, x.z, halves);
      words[1] = __byte_perm(x.y, x.w, halves);
    }
  }

  template <int token>
  __device__ __forceinline__ uint32_t operand(int late) const {
    return words[late] >> (token * width) & 0x00010001u * ((1u << width) - 1u);
  }
};

template <>
struct CodeQuads<8> {
  uint32_t words[2][2];  // of two tokens each

  __device__ __forceinline__ CodeQuads(const TileReader& tile, int run, int c, int half) {
    run += c * 32 + half * 4;
#pragma unroll
    for (int late = 0; late < 2; ++late) {
      const uint32_t x = tile.at<uint32_t>(run + late * 8), y = tile.at<uint32_t>(run + late * 8 + 16);
      words[late][0] = __byte_perm(x, y, 0x5410);
      words[late][1] = __byte_perm(x, y, 0x7632);
    }
  }

  template <int token>
  __device__ __forceinline__ uint32_t operand(int late) const {
    return words[late][token / 2] >> (token % 2 * 8) & 0x00ff00ffu;
  }
};

/// Unpacks the codes of one run of a page. to: of the run's operand, blocks [8] of 8 rows of 16 bytes, what belongs to
/// the lane's places of row g.
template <int width>
__device__ __forceinline__ void unpack_run(const TileReader& tile, int run, int c, int half, unsigned char* to) {
  const CodeQuads<width> codes(tile, run, c, half);
  auto* words = reinterpret_cast<uint32_t*>(to);
#pragma unroll
  for (int late = 0; late < 2; ++late) {
    words[late * 32] = codes.template operand<0>(late);
    words[late * 32 + 64] = codes.template operand<1>(late);
    words[late * 32 + 128] = codes.template operand<2>(late);
    words[late * 32 + 192] = codes.template operand<3>(late);
  }
}

__device__ __forceinline__ void unpack_run(int width, const TileReader& tile, int run, int c, int half,
                                           unsigned char* to) {
  if (width == 2) {
    unpack_run<2>(tile, run, c, half, to);
  } else if (width == 1) {
    unpack_run<1>(tile, run, c, half, to);
  } else if (width == 4) {
    unpack_run<4>(tile, run, c, half, to);
  } else if (width == 3) {
    unpack_run<3>(tile, run, c, half, to);
  } else if (width == 8) {
    unpack_run<8>(tile, run, c, half, to);
  }
}

/// One of two runs of each step: of all pages' codes that are not the same for all tokens.
struct RunUnpacker {
  const LatentKeys& keys;
  int place;  // of the two

  __device__ __forceinline__ void unpack_page(const TileReader& tile, int c, int half, unsigned char* to) const {
#pragma unroll 1
    for (int step = 0; step < keys.order.mixed; ++step) {
      const int i = 2 * step + place;
      unpack_run(keys.order.width[i], tile, keys.tile[i], c, half, to + i * kCodeBytes);
    }
    int step = keys.order.mixed;
    unpack_pairs<0>(step, tile, c, half, to);
    unpack_pairs<1>(step, tile, c, half, to);
    unpack_pairs<2>(step, tile, c, half, to);
    unpack_pairs<3>(step, tile, c, half, to);
    unpack_pairs<4>(step, tile, c, half, to);
  }

 private:
  template <int which>
  __device__ __forceinline__ void unpack_pairs(int& step, const TileReader& tile, int c, int half,
                                               unsigned char* to) const {
    const int end = keys.order.ends[which];
#pragma unroll 1
    for (; step < end; ++step) {
      const int i = 2 * step + place;
      unpack_run<kLatentWidths[which]>(tile, keys.tile[i], c, half, to + i * kCodeBytes);
    }
  }
};

/// Turns pairs of channels, in halves.
__device__ __forceinline__ void turn_halves(uint32_t& re, uint32_t& im, uint32_t cosine, uint32_t sine) {
  const __half2 x = as_half2(re), y = as_half2(im), a = as_half2(cosine), b = as_half2(sine);
  re = as_bits(__hfma2(x, a, __hneg2(__hmul2(y, b))));
  im = as_bits(__hfma2(y, a, __hmul2(x, b)));
}

/// Keys of 16 tokens as they are rebuilt: [16 blocks of 8 channels].
using RebuiltKeys = float[2 * kTurnBlocks][4];

/// Starts to rebuild the keys of warp f: codes times the basis, which lie alike: [runs][rows][8 places].
__device__ __forceinline__ void start_keys(RebuiltKeys& keys, const unsigned char* codes, const unsigned char* basis,
                                           int steps, int f, int lane) {
#ifdef KVQUANT_WARPGROUP_MMA
  const uint64_t a = operand_at(codes, kCodeBytes, 128), b = operand_at(basis, kRunBytes, 128);
  begin_products();
  const auto add = [&](int step) {
    warpgroup_mma(keys, a + step * (2 * kCodeBytes / 16), b + step * (2 * kRunBytes / 16), step);
  };
  if (steps == kUsualSteps) {
#pragma unroll
    for (int step = 0; step < kUsualSteps; ++step) add(step);
    commit_products();
  } else {
#pragma unroll 1
    for (int step = 0; step < steps; ++step) add(step);
    commit_products();
  }
#else
#pragma unroll
  for (int i = 0; i < 2 * kTurnBlocks; ++i) keys[i][0] = keys[i][1] = keys[i][2] = keys[i][3] = 0.0f;
  // Matrices that a lane names rows of: of codes two runs of both halves of rows; of the basis two runs, channels of
  // the first half, then of the second.
  codes += lane / 16 * kCodeBytes + (2 * f + lane / 8 % 2) * 128 + lane % 8 * 16;
  basis += lane / 8 % 2 * kRunBytes + (lane / 16 * (kDim / 2) + lane % 8) * 16;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    uint32_t a[4];
    load_matrices(a, codes + step * (2 * kCodeBytes));
#pragma unroll
    for (int block = 0; block < kTurnBlocks; ++block) {
      uint32_t b[4];
      load_matrices(b, basis + step * (2 * kRunBytes) + block * 128);
      mma(keys[block], a[0], a[1], a[2], a[3], b[0], b[1]);
      mma(keys[kTurnBlocks + block], a[0], a[1], a[2], a[3], b[2], b[3]);
    }
  }
#endif
}

/// Cosines and sines that a lane turns keys with, which are the same for all groups; on Hopper in registers.
struct LaneTurns {
#ifdef KVQUANT_WARPGROUP_MMA
  uint4 words[kTurnBlocks];

  __device__ __forceinline__ explicit LaneTurns(const uint4* from) {
#pragma unroll
    for (int block = 0; block < kTurnBlocks; ++block) words[block] = from[block * kWarp];
  }
  __device__ __forceinline__ uint4 at(int block) const { return words[block]; }
#else
  const uint4* words;

  __device__ __forceinline__ explicit LaneTurns(const uint4* from) : words(from) {}
  __device__ __forceinline__ uint4 at(int block) const { return words[block * kWarp]; }
#endif
};

/// Queries as second operands: words [16 blocks of 8 channels].
struct QueryWords {
  uint32_t words[4][4];

  /// From halves [8 heads] with kTurnedStride.
  __device__ __forceinline__ QueryWords(const __half* from, int lane) {
    from += lane % 8 * kTurnedStride<kDim> + lane / 8 * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) load_matrices(words[i], from + 32 * i);
  }
  __device__ __forceinline__ uint32_t at(int block) const { return words[block / 4][block % 4]; }
};

/// Scores of 16 tokens, 8 columns, once keys are there.
__device__ __forceinline__ void finish_scores(float (&scores)[4], RebuiltKeys& keys, const QueryWords& q,
                                              const LaneTurns& turns) {
#ifdef KVQUANT_WARPGROUP_MMA
  wait_products();
  settle(keys);
#endif
  float sums[2][4] = {};
#pragma unroll
  for (int block = 0; block < kTurnBlocks; ++block) {
    const float(&first)[4] = keys[block], (&second)[4] = keys[kTurnBlocks + block];
    const uint4 angle = turns.at(block);
    uint32_t re0 = pack_halves(first[0], first[1]), re1 = pack_halves(first[2], first[3]);
    uint32_t im0 = pack_halves(second[0], second[1]), im1 = pack_halves(second[2], second[3]);
    turn_halves(re0, im0, angle.x, angle.z);
    turn_halves(re1, im1, angle.y, angle.w);
    mma(sums[block % 2], re0, re1, im0, im1, q.at(block), q.at(kTurnBlocks + block));
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) scores[i] = sums[0][i] + sums[1][i];
}

}  // namespace kvquant::cuda
