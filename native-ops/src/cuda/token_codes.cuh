/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Codes of 64 neighbouring channels of a token, which a lane has in registers, and how those of 16 lanes, the tokens of
// a tile, become what a page holds of channels, four of them a lane.
#pragma once
#include "code_limits.cuh"
#include "row_codes.cuh"

namespace kvquant::cuda {

/// Ones in the nibbles of tokens [first, last) of 16.
__device__ __forceinline__ uint64_t nibbles_between(int first, int last) {
  const auto below = [](int n) { return n >= 16 ? ~0ull : (1ull << (4 * n)) - 1ull; };
  return below(last) & ~below(first);
}

__device__ __forceinline__ uint2 two_words(uint64_t x) {
  return make_uint2(static_cast<uint32_t>(x), static_cast<uint32_t>(x >> 32));
}

/// Eight nibbles of 3 bits each, in a row.
__device__ __forceinline__ uint32_t in_a_row(uint32_t x) {
  x = (x & 0x07070707u) | (x >> 1 & 0x38383838u);
  x = (x & 0x003f003fu) | (x >> 2 & 0x0fc00fc0u);
  return (x & 0xfffu) | (x >> 4 & 0xfff000u);
}

/// 3 or 4 bits; up to the page, codes lie 4 bits apart.
template <int bits>
struct TokenCodes {
  using Field = uint2;  // of a channel: tokens 0 to 7, 8 to 15

  uint32_t words[8];  // of a token: eight channels each
  Field fields[4];

  /// The channel of a lane's field, among the 64: such that a warp writes as many bytes in a row as can be.
  static __device__ __forceinline__ int channel(int i, int lane) {
    const int own = lane % kTileTokens;
    return bits == 3 ? own * 4 + i : i / 2 * 32 + own * 2 + i % 2;
  }

  /// The same of nibble j of a word.
  static __device__ __forceinline__ int channel_of(int w, int j) { return channel(w % 4, w / 4 * 8 + j); }

  /// range: scale and zero; elements are size times as large.
  __device__ __forceinline__ void encode(const float (&x)[kRowHalf], float2 range, float size) {
    const RoundedCode<bits> code(range, size);
    float left = 0.0f;
    put([&](int i) {
      const float sum = code.sum(x[i]);
      left = fmaxf(left, code.left(x[i], sum));
      return sum;
    });
    if (!(left < code.half)) put([&](int i) { return code.right_sum(x[i]); });
  }

  /// From tokens to channels, within each half of a warp.
  __device__ __forceinline__ void transpose(int lane) {
#pragma unroll
    for (int w = 0; w < 8; ++w) words[w] = transpose_nibbles(words[w], lane);
    const bool upper = (lane & 8) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? words[i] : words[i + 4], 8);
      fields[i] = upper ? make_uint2(other, words[i + 4]) : make_uint2(words[i], other);
    }
  }

  /// Codes of tokens [first, last) of the tile; to: of the 64 channels.
  __device__ __forceinline__ void store(int first, int last, uint8_t* to, int lane) {
    if constexpr (bits == 4) {
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        auto* at = reinterpret_cast<uint4*>(to + channel(i, lane) * 8);
        uint4 two = make_uint4(fields[i].x, fields[i].y, fields[i + 1].x, fields[i + 1].y);
        if (first != 0 || last != kTileTokens) {
          const uint2 ones = two_words(nibbles_between(first, last));
          const uint4 old = *at;
          two.x = (two.x & ones.x) | (old.x & ~ones.x);
          two.y = (two.y & ones.y) | (old.y & ~ones.y);
          two.z = (two.z & ones.x) | (old.z & ~ones.x);
          two.w = (two.w & ones.y) | (old.w & ~ones.y);
        }
        *at = two;
      }
    } else {
      auto* at = reinterpret_cast<uint2*>(to + channel(0, lane) * 6);
      uint2 words[3];
      pack(fields, words);
      if (first != 0 || last != kTileTokens) {
        const uint2 ones = two_words(nibbles_between(first, last));
        const uint2 all[4] = {ones, ones, ones, ones};
        uint2 masks[3];
        pack(all, masks);
#pragma unroll
        for (int i = 0; i < 3; ++i) {
          const uint2 old = at[i];
          words[i].x = (words[i].x & masks[i].x) | (old.x & ~masks[i].x);
          words[i].y = (words[i].y & masks[i].y) | (old.y & ~masks[i].y);
        }
      }
#pragma unroll
      for (int i = 0; i < 3; ++i) at[i] = words[i];
    }
  }

 private:
  /// Words of codes of the sums of channels.
  template <class Sum>
  __device__ __forceinline__ void put(Sum sum) {
#pragma unroll
    for (int w = 0; w < 8; ++w) {
      words[w] = 0;
#pragma unroll
      for (int j = 7; j >= 0; --j) words[w] = words[w] * 16 + RoundedCode<bits>::code(sum(channel_of(w, j)));
      words[w] -= RoundedCode<bits>::kBits * 0x11111111u;
    }
  }

  /// Transposes 8 x 8 nibbles of eight lanes.
  static __device__ __forceinline__ uint32_t transpose_nibbles(uint32_t x, int lane) {
    uint32_t y = __shfl_xor_sync(0xffffffffu, x, 4);
    x = __byte_perm(x, y, (lane & 4) != 0 ? 0x3276 : 0x5410);
    y = __shfl_xor_sync(0xffffffffu, x, 2);
    x = __byte_perm(x, y, (lane & 2) != 0 ? 0x3715 : 0x6240);
    y = __shfl_xor_sync(0xffffffffu, x, 1);
    const uint32_t own = (lane & 1) != 0 ? 0xf0f0f0f0u : 0x0f0f0f0fu;
    y = __funnelshift_l(y, y, (lane & 1) != 0 ? 28 : 4);
    return (x & own) | (y & ~own);
  }

  /// Four fields of 3 bits as they lie in a page.
  static __device__ __forceinline__ void pack(const uint2 (&from)[4], uint2 (&to)[3]) {
    uint32_t low[4], high[4];  // 32 and 16 bits
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t first = in_a_row(from[i].x), second = in_a_row(from[i].y);
      low[i] = first | second << 24;
      high[i] = second >> 8;
    }
    to[0] = make_uint2(low[0], high[0] | low[1] << 16);
    to[1] = make_uint2(low[1] >> 16 | high[1] << 16, low[2]);
    to[2] = make_uint2(high[2] | low[3] << 16, low[3] >> 16 | high[3] << 16);
  }
};

template <>
struct TokenCodes<2> {
  using Field = uint32_t;

  Field fields[4];  // before they are transposed, of channels 4 k + i of a token

  static __device__ __forceinline__ int channel(int i, int lane) { return lane % kTileTokens * 4 + i; }

  __device__ __forceinline__ void encode(const float (&x)[kRowHalf], float2 range, float size) {
    const float limits[3] = {code_limit(range, 1) * size, code_limit(range, 2) * size, code_limit(range, 3) * size};
#pragma unroll
    for (int i = 0; i < 4; ++i) fields[i] = 0;
#pragma unroll
    for (int i = 0; i < kRowHalf; ++i) {
      const bool above = x[i] > limits[1], outer = !(x[i] > limits[0]) || x[i] > limits[2];
      if (above) fields[i % 4] += 2u << (i / 4 * 2);
      if (outer) fields[i % 4] += 1u << (i / 4 * 2);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) fields[i] ^= ~(fields[i] >> 1) & 0x55555555u;  // not outer where above is not set
  }

  __device__ __forceinline__ void transpose(int lane) {
#pragma unroll
    for (int i = 0; i < 4; ++i) fields[i] = transpose_codes(fields[i], lane);
  }

  __device__ __forceinline__ void store(int first, int last, uint8_t* to, int lane) const {
    store_words(make_uint4(fields[0], fields[1], fields[2], fields[3]), first, last, to + channel(0, lane) * 4);
  }
};

}  // namespace kvquant::cuda
