/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Sums of weighted values in codes of 2, 3, 4 or 8 bits with a norm per token, 128 tokens at a time.
//
// A channel's codes of the 16 tokens of a tile lie behind each other. A mask makes of them the operand of tokens f and
// f + 8, in subnormal fp16 as in static_keys.cuh: with 2 bits token f is field f of the low half of a word and token
// f + 8 that of the high half; bytes of more bits are brought together so first (ChannelCodes). A product takes its 16
// tokens (columns of the first operand) from 8 tiles: pair c is tokens f, f + 8 of tile 2 c, pair c + 4 those of tile
// 2 c + 1. Channels are dealt so that a lane reads four at a time: row g of products 2 m and 2 m + 1 is channels 32 m +
// 4 g and + 2, row g + 8 those after them.
//
// Norms go into the weights. Levels are equally spaced around 0: a step times (code - centre); the sum of weights,
// which the centre takes, is one more product, with ones. Tokens of the high halves are taken as (largest code - code)
// with negative weights: sums stay near zero, which the truncating accumulator needs.
#pragma once
#include "static_keys.cuh"

namespace kvquant::cuda {

constexpr int kValueTileBytes = 128 * 4;  // head_dim 128, 2 bits
/// From one tile to the next in shared memory; lanes of a quarter warp then read different banks.
constexpr int kValueStride = kValueTileBytes + 16;
constexpr int kNormBytes = kTileTokens * 2;  // of a tile

/// Where codes of values of a number of bits lie.
template <int bits, int D = 128>
struct ValueCodes {
  static constexpr int kTileBytes = D * bits * 2, kFourBytes = 4 * bits * 2;  // of a tile, of four channels
  static constexpr float kCentre = 0.5f * ((1 << bits) - 1);

  /// Of the codes of a product's tokens in the halves of an operand.
  static __host__ __device__ constexpr int position(int product) {
    const int field = product % 4;
    return bits == 2 ? 2 * field : bits == 3 ? 3 * (field < 2 ? field : 2) : bits == 4 ? field % 2 * 4 : 0;
  }
  /// The exchange of a tile's blocks of 16 bytes: lanes read four channels of two tiles each.
  static __device__ __forceinline__ int swizzle(int tile) {
    if (bits == 4) return (tile & 2) << 3 | (tile & 4) << 4;
    return bits == 8 ? (tile & 6) << 3 : value_swizzle(tile);
  }
};

/// A channel's codes of a tile; `now`: those of tokens f and f + 8 at ValueCodes::position, others around them.
template <int bits>
struct ChannelCodes {
  uint32_t words[(bits + 1) / 2], now;
  bool odd;  // bits == 3: begins in the middle of a word

  /// Begins with tokens 0 to 3 and 8 to 11, or those 4 behind them.
  __device__ __forceinline__ void start(bool later) {
    if constexpr (bits == 2) {
      now = words[0] >> (later ? 8 : 0);
    } else if constexpr (bits == 3) {
      const uint32_t bytes = odd ? (later ? 0x7643 : 0x6532) : (later ? 0x5421 : 0x4310);
      now = __byte_perm(words[0], words[1], bytes) >> (later ? 4 : 0);
    } else if constexpr (bits == 4) {
      now = __byte_perm(words[0], words[1], later ? 0x7632 : 0x5410);
    } else {
      words[0] = later ? words[1] : words[0];
      words[2] = later ? words[3] : words[2];
      now = __byte_perm(words[0], words[2], 0x5410);
    }
  }
  /// Goes on to the next of four; token: 1 to 3, one after the other.
  __device__ __forceinline__ void go_on(int token) {
    if (bits == 3 && token == 3) now >>= 3;
    if (bits == 4 && token == 2) now >>= 8;
    if (bits == 8) now = token == 2 ? __byte_perm(words[0], words[2 % ((bits + 1) / 2)], 0x7632) : now >> 8;
  }
  /// Goes on to a product of 8; they come in order.
  __device__ __forceinline__ void go_to(int f) {
    if (f % 4 == 0) {
      start(f == 4);
    } else {
      go_on(f % 4);
    }
  }
};

/// Reads four channels of a tile in shared memory: from, which is the same for all reads of a lane, plus offset, a
/// multiple of what 8 lanes read at a time.
template <int bits>
__device__ __forceinline__ void read_four(ChannelCodes<bits>* channels, const unsigned char* tile, int from, int offset,
                                          int swizzle) {
  if constexpr (bits == 3) {
    uint32_t words[6];
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const uint2 two = *reinterpret_cast<const uint2*>(tile + ((from + offset + 8 * i) ^ swizzle));
      words[2 * i] = two.x;
      words[2 * i + 1] = two.y;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      channels[i].odd = i % 2 != 0;
      channels[i].words[0] = words[3 * i / 2];
      channels[i].words[1] = words[3 * i / 2 + 1];
    }
  } else {
    constexpr int kWords = bits / 2;
    // No bits of i are set in from, none of the swizzle in offset: a lane has few addresses.
    const int first = from ^ swizzle;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const uint4 x = *reinterpret_cast<const uint4*>(tile + (first ^ (16 * i)) + offset);
      const uint32_t four[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) channels[(4 * i + j) / kWords].words[(4 * i + j) % kWords] = four[j];
    }
  }
}

/// 1 / x of a power of 2.
__device__ __forceinline__ float inverse_power(float x) { return __int_as_float((254 << 23) - __float_as_int(x)); }

/// A warp's sums: [2 m, 2 m + 1] as above; ones: of the weights.
template <int D>
struct ValueSums {
  float sums[D / 16][4] = {}, ones[4] = {};
  /// Norms are multiplied by this power of 2, so that weights fill fp16; norms up to `limit` are safe.
  float norm_scale = 0.0f, limit = -1.0f;

  __device__ __forceinline__ void multiply(float factor0, float factor1) {
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
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

/// Scores in base 2 become weights, times norms, as operands. norms: of the lane's tile.
template <int value_bits, bool kMasked, int D>
__device__ __forceinline__ void weigh(Softmax& softmax, ValueSums<D>& sums, float (&scores)[kProducts][4], uint4 n0,
                                      uint4 n1, uint32_t valid, WeightOperands& operands) {
  uint32_t words[8] = {n0.x, n0.y, n0.z, n0.w, n1.x, n1.y, n1.z, n1.w};  // of tokens 2 i and 2 i + 1 of the lane's tile
  if constexpr (kMasked) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t mask = ((valid >> (2 * i)) & 1u) * 0xffffu | ((valid >> (2 * i + 1)) & 1u) * 0xffff0000u;
      words[i] &= mask;
    }
#pragma unroll
    for (int f = 0; f < kProducts; ++f) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (((valid >> (f + i / 2 * 8)) & 1u) == 0) scores[f][i] = -INFINITY;
      }
    }
  }
  float maximum0 = fmaxf(scores[0][0], scores[0][2]), maximum1 = fmaxf(scores[0][1], scores[0][3]);
  __half2 largest = as_half2(words[0]);
#pragma unroll
  for (int f = 1; f < kProducts; ++f) {
    maximum0 = fmaxf(maximum0, fmaxf(scores[f][0], scores[f][2]));
    maximum1 = fmaxf(maximum1, fmaxf(scores[f][1], scores[f][3]));
    largest = __hmax2(largest, as_half2(words[f]));
  }
  float norm = fmaxf(__low2float(largest), __high2float(largest));
  const bool raise = softmax.must_raise(maximum0, maximum1);
  if (__any_sync(0xffffffffu, raise || norm > sums.limit)) {
    const float2 keep = softmax.raise(maximum0, maximum1);
    sums.multiply(keep.x, keep.y);
#pragma unroll
    for (int step = 4; step < kWarp; step *= 2) norm = fmaxf(norm, __shfl_xor_sync(0xffffffffu, norm, step));
    if (norm > sums.limit) sums.make_room(norm);
  }
#pragma unroll
  for (int f = 0; f < kProducts; ++f) {
    const __half2 low = as_half2(words[f / 2]), high = as_half2(words[f / 2 + 4]);
    const float unit = sums.norm_scale * static_cast<float>(1 << (6 - ValueCodes<value_bits>::position(f)));
    const float a = (f % 2 == 0 ? __low2float(low) : __high2float(low)) * unit;
    const float b = (f % 2 == 0 ? __low2float(high) : __high2float(high)) * -unit;
    float w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      w[i] = exp2_fast(scores[f][i] - softmax.reference[i % 2]);
      softmax.weights[i % 2] += w[i];
    }
    weight_operand(operands.b[f], w[0] * a, w[1] * a, w[2] * b, w[3] * b);
  }
}

/// Adds the values of 8 tiles, weights of the columns that `columns` is all ones for.
template <int bits, int D>
__device__ __forceinline__ void add_codes(ValueSums<D>& sums, const unsigned char* values,
                                          const WeightOperands& weights, uint32_t columns, int lane) {
  using Codes = ValueCodes<bits, D>;
  constexpr uint32_t kFlip = 0xffff0000u;
  constexpr int kTogether = bits == 8 ? 1 : 2;  // pairs of sums: products of one sum would wait for each other
  const int c = lane % 4, from = lane / 4 * Codes::kFourBytes, swizzle = Codes::swizzle(2 * c);
  const unsigned char* tile = values + c * 2 * Codes::kTileBytes;
#pragma unroll
  for (int first = 0; first < D / 32; first += kTogether) {
    ChannelCodes<bits> a[kTogether][8];
#pragma unroll
    for (int m = 0; m < kTogether; ++m) {
      const int offset = (first + m) * 8 * Codes::kFourBytes;
      read_four(a[m], tile, from, offset, swizzle);
      read_four(a[m] + 4, tile + Codes::kTileBytes, from, offset, swizzle);
    }
#pragma unroll
    for (int f = 0; f < kProducts; ++f) {
      constexpr uint32_t kField = ((1u << bits) - 1u) * 0x00010001u;
      const uint32_t mask = kField << Codes::position(f);
      const uint32_t b0 = weights.b[f][0] & columns, b1 = weights.b[f][1] & columns;
#pragma unroll
      for (int m = 0; m < kTogether; ++m) {
#pragma unroll
        for (int i = 0; i < 8; ++i) a[m][i].go_to(f);
        const auto field = [&](int i) { return flip_and_mask(a[m][i].now, kFlip, mask); };
        mma(sums.sums[2 * (first + m)], field(0), field(1), field(4), field(5), b0, b1);
        mma(sums.sums[2 * (first + m) + 1], field(2), field(3), field(6), field(7), b0, b1);
      }
    }
  }
}

/// Adds weights to their sums.
template <int bits, int D>
__device__ __forceinline__ void add_ones(ValueSums<D>& sums, const WeightOperands& weights) {
#pragma unroll
  for (int f = 0; f < kProducts; ++f) {
    const uint32_t one = 0x00010001u << ValueCodes<bits>::position(f);
    mma(sums.ones, one, one, one, one, weights.b[f][0], weights.b[f][1]);
  }
}

}  // namespace kvquant::cuda
