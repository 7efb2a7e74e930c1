/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Sums of weighted values in 2-bit codes with a norm per token, 128 tokens at a time, head_dim 128.
//
// A word holds a channel's codes of 16 tokens, token f in field f of the low half and token f + 8 in that of the high
// half: a mask makes of it the operand of tokens f and f + 8, in subnormal fp16 as in static_keys.cuh. A product takes
// its 16 tokens (columns of the first operand) from 8 tiles: pair c is tokens f, f + 8 of tile 2 c, pair c + 4 those of
// tile 2 c + 1. Channels are dealt so that a lane reads 16 bytes: row g of products 2 m and 2 m + 1 is channels 32 m +
// 4 g and + 2, row g + 8 those after them.
//
// Norms go into the weights. Levels are equally spaced around 0: a step times (code - 1.5); the sum of weights, which
// 1.5 takes, is one more product, with ones. Tokens of the high halves are taken as 3 - code with negative weights:
// sums stay near zero, which the truncating accumulator needs.
#pragma once
#include "static_keys.cuh"

namespace kvquant::cuda {

constexpr int kValueTileBytes = 128 * 4;
/// From one tile to the next in shared memory; lanes of a quarter warp then read different banks.
constexpr int kValueStride = kValueTileBytes + 16;
constexpr int kNormBytes = kTileTokens * 2;  // of a tile

/// 1 / x of a power of 2.
__device__ __forceinline__ float inverse_power(float x) { return __int_as_float((254 << 23) - __float_as_int(x)); }

/// A warp's sums: [2 m, 2 m + 1] as above; ones: of the weights.
struct ValueSums {
  float sums[8][4] = {}, ones[4] = {};
  /// Norms are multiplied by this power of 2, so that weights fill fp16; norms up to `limit` are safe.
  float norm_scale = 0.0f, limit = -1.0f;

  __device__ __forceinline__ void multiply(float factor0, float factor1) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      sums[i][0] *= factor0;
      sums[i][1] *= factor1;
      sums[i][2] *= factor0;
      sums[i][3] *= factor1;
    }
    ones[0] *= factor0;
    ones[1] *= factor1;
    ones[2] *= factor0;
    ones[3] *= factor1;
  }

  /// Chooses norm_scale for norms up to the given one; all lanes must agree on it.
  __device__ __forceinline__ void make_room(float norm) {
    // The largest norm so far becomes 1 to 2; 8 is safe: with the slack of weights and the factor of fields that is
    // 8 2^5 2^6 < 65504.
    const int exponent = norm > 0.0f ? ((__float_as_int(norm) >> 23) & 0xff) - 127 : 0;
    const float wanted = __int_as_float((127 - min(max(exponent, -40), 20)) << 23);
    const float keep = norm_scale > 0.0f ? wanted * inverse_power(norm_scale) : 0.0f;
    multiply(keep, keep);
    norm_scale = wanted;
    limit = 8.0f * inverse_power(wanted);
  }
};

/// Weights of one head pair as second operands of the 8 products.
struct WeightOperands {
  uint32_t b[kProducts][2];
};

/// Weights [16 tokens, 2 heads] (those of tokens f + 8 negative) as operands.
__device__ __forceinline__ void weight_operand(uint32_t (&b)[2], float w0, float w1, float w2, float w3) {
  const uint32_t low = transpose8x8(pack_halves(w0, w1)), high = transpose8x8(pack_halves(w2, w3));
  b[0] = __byte_perm(low, high, 0x5410);
  b[1] = __byte_perm(low, high, 0x7632);
}

/// Adds the values of 8 tiles, weights of the columns that `columns` is all ones for.
__device__ __forceinline__ void add_codes(ValueSums& sums, const unsigned char* values, const WeightOperands& weights,
                                          uint32_t columns, int lane) {
  constexpr uint32_t kFlip = 0xffff0000u;
  const int c = lane % 4;
  const unsigned char* first = values + c * 2 * kValueTileBytes + ((lane / 4 * 16) ^ value_swizzle(2 * c));
#pragma unroll
  for (int half = 0; half < 2; ++half) {  // four sums at a time: products of one would wait for each other
    uint32_t a[2][8];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const uint4 x = *reinterpret_cast<const uint4*>(first + 256 * half + 128 * m);
      const uint4 y = *reinterpret_cast<const uint4*>(first + 256 * half + 128 * m + kValueTileBytes);
      const uint32_t all[8] = {x.x, x.y, x.z, x.w, y.x, y.y, y.z, y.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) a[m][i] = all[i];
    }
#pragma unroll
    for (int f = 0; f < kProducts; ++f) {
      if (f == 4) {
#pragma unroll
        for (int i = 0; i < 16; ++i) a[i / 8][i % 8] >>= 8;
      }
      const uint32_t mask = 0x00030003u << field_position(f);
      const uint32_t b0 = weights.b[f][0] & columns, b1 = weights.b[f][1] & columns;
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const auto field = [&](int i) { return flip_and_mask(a[m][i], kFlip, mask); };
        mma(sums.sums[4 * half + 2 * m], field(0), field(1), field(4), field(5), b0, b1);
        mma(sums.sums[4 * half + 2 * m + 1], field(2), field(3), field(6), field(7), b0, b1);
      }
    }
  }
}

/// Adds weights to their sums.
__device__ __forceinline__ void add_ones(ValueSums& sums, const WeightOperands& weights) {
#pragma unroll
  for (int f = 0; f < kProducts; ++f) {
    const uint32_t one = 0x00010001u << field_position(f);
    mma(sums.ones, one, one, one, one, weights.b[f][0], weights.b[f][1]);
  }
}

}  // namespace kvquant::cuda
