/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Attention over 16 tokens of one kv head that lie as halves [channel][16 tokens], which is how exact pages and fp16
// pages lie: one warp, tensor cores, up to 8 query heads.
//
// Products put tokens (of keys) or channels (of values) in the rows of the first operand and query heads in the columns
// of the second, so that 8 heads fill it; ldmatrix turns both sides' rows of 16 tokens into operands. In shared memory
// the two 16-byte halves of a row change places in every second group of 4 rows: 8 rows are then 8 different banks.
#pragma once
#include "cache_view.cuh"
#include "ptx.cuh"

namespace kvquant::cuda {

/// Query heads of a block: the columns of a product.
constexpr int kHeads = 8;
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLowest = -1e30f;
/// How far, in powers of 2, a score may exceed the reference of weights before that is raised.
constexpr float kSlack = 5.0f;

__device__ __forceinline__ uint32_t as_bits(__half2 x) { return *reinterpret_cast<uint32_t*>(&x); }
__device__ __forceinline__ __half2 as_half2(uint32_t x) { return *reinterpret_cast<__half2*>(&x); }
__device__ __forceinline__ uint32_t pack_halves(float low, float high) { return as_bits(__floats2half2_rn(low, high)); }

/// The steps of a Walsh-Hadamard transform between the blocks of each half of them, of the words that a lane has.
template <int blocks>
__device__ __forceinline__ void transform_blocks(uint32_t (&x)[blocks][4]) {
#pragma unroll
  for (int step = 1; step < blocks / 2; step *= 2) {
#pragma unroll
    for (int i = 0; i < blocks; ++i) {
      if (i & step) continue;
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const __half2 a = as_half2(x[i][r]), b = as_half2(x[i | step][r]);
        x[i][r] = as_bits(__hadd2(a, b));
        x[i | step][r] = as_bits(__hsub2(a, b));
      }
    }
  }
}

/// Online softmax of a warp: of query heads 2 c and 2 c + 1 the reference of weights and this lane's share of their
/// sum.
struct Softmax {
  float reference[2] = {kLowest, kLowest}, weights[2] = {0.0f, 0.0f};

  /// Raises references to the given maxima of all lanes; returns the factors of what was summed so far.
  __device__ float2 raise(float maximum0, float maximum1) {
#pragma unroll
    for (int step = 4; step < kWarp; step *= 2) {
      maximum0 = fmaxf(maximum0, __shfl_xor_sync(0xffffffffu, maximum0, step));
      maximum1 = fmaxf(maximum1, __shfl_xor_sync(0xffffffffu, maximum1, step));
    }
    const float raised0 = fmaxf(reference[0], maximum0), raised1 = fmaxf(reference[1], maximum1);
    const float2 keep = make_float2(exp2_fast(reference[0] - raised0), exp2_fast(reference[1] - raised1));
    reference[0] = raised0;
    reference[1] = raised1;
    weights[0] *= keep.x;
    weights[1] *= keep.y;
    return keep;
  }

  __device__ bool must_raise(float maximum0, float maximum1) const {
    return fmaxf(maximum0 - reference[0], maximum1 - reference[1]) > kSlack;
  }
};

/// plain: in shared memory a tile lies as in its page, which copies of whole tiles leave it as; rows then meet in
/// banks.
template <int D, bool plain = false>
struct Fp16Tile {
  static constexpr int kBytes = D * kTileTokens * 2;  // of one side
  static constexpr int kBlocks = D / 16;

  /// Byte of a half row (8 tokens) of a channel in shared memory.
  static __device__ __forceinline__ int swizzled(int channel, int half) {
    return channel * 32 + ((plain ? half : half ^ (channel >> 2)) & 1) * 16;
  }

  /// Starts copying one side to shared memory.
  static __device__ __forceinline__ void copy(unsigned char* to, const uint8_t* from, int lane) {
#pragma unroll
    for (int i = 0; i < kBytes / 16 / kWarp; ++i) {
      const int chunk = i * kWarp + lane;
      copy_async(to + swizzled(chunk / 2, chunk % 2), from + chunk * 16);
    }
  }

  /// Keys of 16 channels as an operand: tokens in rows.
  static __device__ __forceinline__ void load_keys(uint32_t (&a)[4], const unsigned char* keys, int block, int lane) {
    const int matrix = lane / 8;
    load_transposed(a, keys + swizzled(16 * block + matrix / 2 * 8 + lane % 8, matrix % 2));
  }

  /// Scores [16 tokens, 8 heads] of keys that are turned already; q: the second operands, two words a block.
  static __device__ __forceinline__ void score(float (&scores)[4], const unsigned char* keys,
                                               const uint32_t (&q)[2 * kBlocks], int lane) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      uint32_t a[4];
      load_keys(a, keys, i, lane);
      mma(scores, a[0], a[1], a[2], a[3], q[2 * i], q[2 * i + 1]);
    }
  }

  /// Scores of keys before RoPE: q is turned back by the tile's first position, keys are turned by 0 to 15, in fp32.
  /// angles: [D / 16 places][tokens g, g + 8][32 lanes] of {cosines, sines of two pairs}.
  static __device__ __forceinline__ void score_turned(float (&scores)[4], const unsigned char* keys,
                                                      const uint32_t (&q)[2 * kBlocks], const float4* angles,
                                                      int lane) {
#pragma unroll
    for (int i = 0; i < kBlocks / 2; ++i) {
      uint32_t a[4], b[4];
      load_keys(a, keys, i, lane);
      load_keys(b, keys, i + kBlocks / 2, lane);
#pragma unroll
      for (int at = 0; at < 4; ++at) turn_pairs(a[at], b[at], angles[(4 * i + at) * kWarp + lane]);
      mma(scores, a[0], a[1], a[2], a[3], q[2 * i], q[2 * i + 1]);
      mma(scores, b[0], b[1], b[2], b[3], q[kBlocks + 2 * i], q[kBlocks + 2 * i + 1]);
    }
  }

  /// Adds weights [16 tokens, 8 heads] times values to sums: of block i rows g and g + 8 are channels 16 i + g and + 8.
  /// valid: a bit per token; others may hold anything.
  static __device__ __forceinline__ void add_values(float (&sums)[kBlocks][4], const unsigned char* values,
                                                    const float (&weights)[4], uint32_t valid, int lane) {
    const uint32_t b0 = transpose8x8(pack_halves(weights[0], weights[1]));
    const uint32_t b1 = transpose8x8(pack_halves(weights[2], weights[3]));
    const int matrix = lane / 8, first = 2 * (lane % 4);
    const auto mask = [valid](int token) {
      return ((valid >> token) & 1u) * 0xffffu | ((valid >> (token + 1)) & 1u) * 0xffff0000u;
    };
    const uint32_t low = mask(first), high = mask(first + 8);
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      uint32_t a[4];
      load_matrices(a, values + swizzled(16 * i + matrix % 2 * 8 + lane % 8, matrix / 2));
      mma(sums[i], a[0] & low, a[1] & low, a[2] & high, a[3] & high, b0, b1);
    }
  }

  /// The 16 tokens' part in softmax: turns scores (base 2) into weights relative to the reference.
  static __device__ __forceinline__ void weigh(Softmax& softmax, float (&sums)[kBlocks][4], float (&scores)[4],
                                               uint32_t valid, int lane) {
    const int g = lane / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (((valid >> (g + i / 2 * 8)) & 1u) == 0) scores[i] = -INFINITY;  // selected: the score may be NaN
    }
    const float maximum0 = fmaxf(scores[0], scores[2]), maximum1 = fmaxf(scores[1], scores[3]);
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
    for (int i = 0; i < 4; ++i) {
      scores[i] = exp2_fast(scores[i] - softmax.reference[i % 2]);
      softmax.weights[i % 2] += scores[i];
    }
  }

 private:
  static __device__ __forceinline__ void turn_pairs(uint32_t& a, uint32_t& b, const float4& angle) {
    const float2 x = __half22float2(as_half2(a)), y = __half22float2(as_half2(b));
    a = pack_halves(fmaf(x.x, angle.x, -y.x * angle.z), fmaf(x.y, angle.y, -y.y * angle.w));
    b = pack_halves(fmaf(y.x, angle.x, x.x * angle.z), fmaf(y.y, angle.y, x.y * angle.w));
  }
};

}  // namespace kvquant::cuda
