/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Codes of a codebook as halves in shared memory, 16 tokens of a head, by a warp.
//
// A lane reads the codes of channels 4 l to 4 l + 3 as they lie: all tokens of a channel are together. Levels are
// looked up by byte permutations: two codes of 2 bits at a time in four halves; wider codes four at a time, first the
// low bytes of halves, then the high ones. Keys of 2 bits have levels of their own in each channel, so that starts and
// steps cost nothing. What comes out is [2 halves of the tokens][channel][8 tokens] of 16 bytes, in which the blocks of
// a channel are exchanged so that lanes write, and ldmatrix reads, different banks. Tokens of a half lie in the order
// in which their codes come apart: rows of products may have any.
#pragma once
#include "fp16_tile.cuh"

namespace kvquant::cuda {

/// The place of a token of 8 in its half.
template <int bits>
__host__ __device__ constexpr int place_of(int token) {
  return bits == 2 ? token % 4 * 2 + token / 4 : token;
}
/// The token at a place.
template <int bits>
__host__ __device__ constexpr int token_at(int place) {
  return bits == 2 ? place / 2 + place % 2 * 4 : place;
}

/// Bits of 32 tokens in the order of places.
template <int bits>
__device__ __forceinline__ uint32_t bits_at_places(uint32_t valid) {
  if (bits != 2) return valid;
  uint32_t placed = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) placed |= ((valid >> token_at<bits>(i)) & 0x01010101u) << i;
  return placed;
}

/// Halves of 8 tokens in the order of places.
template <int bits>
__device__ __forceinline__ uint4 in_places(uint4 x) {
  if (bits != 2) return x;
  return make_uint4(__byte_perm(x.x, x.z, 0x5410), __byte_perm(x.x, x.z, 0x7632), __byte_perm(x.y, x.w, 0x5410),
                    __byte_perm(x.y, x.w, 0x7632));
}

/// Byte of a channel's 8 tokens; heads follow each other.
__device__ __forceinline__ int place_of_channel(int channel) { return (channel * 16) ^ ((channel * 2) & 0x30); }

/// Levels of a codebook, split into low and high bytes of halves.
template <int bits>
struct LevelTable {
  static constexpr int kWords = (1 << bits) / 4;
  uint32_t low[kWords], high[kWords];

  __device__ __forceinline__ explicit LevelTable(const float* levels) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const uint32_t x = pack_halves(levels[4 * i], levels[4 * i + 1]);
      const uint32_t y = pack_halves(levels[4 * i + 2], levels[4 * i + 3]);
      low[i] = __byte_perm(x, y, 0x6420);
      high[i] = __byte_perm(x, y, 0x7531);
    }
  }

  /// Moves what all lanes have into registers of each, by way of a lane's word: byte permutations would move it again
  /// and again.
  __device__ __forceinline__ void hold(volatile uint32_t* scratch) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      *scratch = low[i];
      low[i] = *scratch;
      *scratch = high[i];
      high[i] = *scratch;
    }
  }

  /// Bytes of four codes, each in 4 bits of `codes`; which: their places, plus 4 where a code has its highest bit.
  __device__ __forceinline__ static uint32_t find(const uint32_t (&bytes)[kWords], uint32_t codes, uint32_t which) {
    if constexpr (bits == 4) {
      return permute_bytes(permute_bytes(bytes[0], bytes[1], codes), permute_bytes(bytes[2], bytes[3], codes), which);
    } else {
      return permute_bytes(bytes[0], bytes[kWords - 1], codes);
    }
  }

  __device__ __forceinline__ void look_up(uint32_t codes, uint32_t which, uint32_t& first, uint32_t& second) const {
    const uint32_t a = find(low, codes, which), b = find(high, codes, which);
    first = __byte_perm(a, b, 0x5140);
    second = __byte_perm(a, b, 0x7362);
  }
};

/// Four halves.
struct FourLevels {
  uint32_t low, high;

  __device__ __forceinline__ explicit FourLevels(const float* levels, float start = 0.0f, float step = 1.0f)
      : low(pack_halves(fmaf(step, levels[0], start), fmaf(step, levels[1], start))),
        high(pack_halves(fmaf(step, levels[2], start), fmaf(step, levels[3], start))) {}
};
template <>
struct LevelTable<2> : FourLevels {
  using FourLevels::FourLevels;
  __device__ __forceinline__ void hold(volatile uint32_t* scratch) {
    *scratch = low;
    low = *scratch;
    *scratch = high;
    high = *scratch;
  }
};

/// What a lane reads of a tile: codes of four channels.
template <int bits>
struct LaneCodes {
  uint32_t words[2 * bits];

  __device__ __forceinline__ void load(const uint8_t* own) {
    if constexpr (bits == 3) {
      const auto* from = reinterpret_cast<const uint2*>(own);
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const uint2 x = __ldg(from + i);
        words[2 * i] = x.x;
        words[2 * i + 1] = x.y;
      }
    } else {
      const auto* from = reinterpret_cast<const uint4*>(own);
#pragma unroll
      for (int i = 0; i < bits / 2; ++i) {
        const uint4 x = __ldg(from + i);
        words[4 * i] = x.x;
        words[4 * i + 1] = x.y;
        words[4 * i + 2] = x.z;
        words[4 * i + 3] = x.w;
      }
    }
  }

  /// The levels of a channel's 16 tokens, by place.
  __device__ __forceinline__ void halves(const LevelTable<bits>& table, int channel, uint32_t (&x)[2][4]) const {
    if constexpr (bits == 2) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // A code c selects bytes 2 c and 2 c + 1: of tokens i, i + 4, i + 8, i + 12, a byte each.
        const uint32_t select = ((words[channel] >> (2 * i)) & 0x03030303u) * 0x22u + 0x10101010u;
        x[0][i] = permute_bytes(table.low, table.high, select);
        x[1][i] = permute_bytes(table.low, table.high, select >> 16);
      }
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t codes, which = 0;
        if constexpr (bits == 4) {
          codes = words[2 * channel + half];
          which = ((codes >> 1) & 0x44444444u) | 0x32103210u;
        } else {
          const int bit = 48 * channel + 24 * half, at = bit / 32, shift = bit % 32;
          codes = shift > 8 ? __funnelshift_r(words[at], words[at + 1], shift) : words[at] >> shift;
          codes = (codes & 0x00000fffu) | ((codes << 4) & 0xfffff000u);
          codes = (codes & 0x003f003fu) | ((codes << 2) & 0xffc0ffc0u);
          codes = (codes & 0x07070707u) | ((codes << 1) & 0xf8f8f8f8u);
        }
        codes &= 0x77777777u;
        table.look_up(codes, which, x[half][0], x[half][1]);
        table.look_up(codes >> 16, which >> 16, x[half][2], x[half][3]);
      }
    }
  }
};

__device__ __forceinline__ uint32_t scaled(uint32_t x, __half2 step, __half2 start) {
  return as_bits(__hfma2(as_half2(x), step, start));
}

/// Levels of 8 tokens become values.
__device__ __forceinline__ void scale(uint32_t (&x)[4], const uint4& steps, const uint4& starts) {
  x[0] = scaled(x[0], as_half2(steps.x), as_half2(starts.x));
  x[1] = scaled(x[1], as_half2(steps.y), as_half2(starts.y));
  x[2] = scaled(x[2], as_half2(steps.z), as_half2(starts.z));
  x[3] = scaled(x[3], as_half2(steps.w), as_half2(starts.w));
}

__device__ __forceinline__ void put_channel(const uint32_t (&x)[2][4], unsigned char* to, int half_bytes) {
  *reinterpret_cast<uint4*>(to) = make_uint4(x[0][0], x[0][1], x[0][2], x[0][3]);
  *reinterpret_cast<uint4*>(to + half_bytes) = make_uint4(x[1][0], x[1][1], x[1][2], x[1][3]);
}

/// How a lane's four channels of keys are read: every channel has a start and a step.
template <int bits>
struct KeyReader {
  LevelTable<bits> levels;
  __half2 ranges[4];  // step, start

  /// steps: start and step of the lane's first channel.
  __device__ __forceinline__ KeyReader(const float* all_levels, const float* steps) : levels(all_levels) {
#pragma unroll
    for (int k = 0; k < 4; ++k) ranges[k] = __floats2half2_rn(steps[2 * k + 1], steps[2 * k]);
  }

  __device__ __forceinline__ void read(const LaneCodes<bits>& codes, int k, uint32_t (&x)[2][4]) const {
    codes.halves(levels, k, x);
    const __half2 step = __low2half2(ranges[k]), start = __high2half2(ranges[k]);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i / 4][i % 4] = scaled(x[i / 4][i % 4], step, start);
  }
};
template <>
struct KeyReader<2> {
  LevelTable<2> levels[4];

  __device__ __forceinline__ KeyReader(const float* all, const float* steps)
      : levels{LevelTable<2>(all, steps[0], steps[1]), LevelTable<2>(all, steps[2], steps[3]),
               LevelTable<2>(all, steps[4], steps[5]), LevelTable<2>(all, steps[6], steps[7])} {}

  __device__ __forceinline__ void read(const LaneCodes<2>& codes, int k, uint32_t (&x)[2][4]) const {
    codes.halves(levels[k], k, x);
  }
};

/// Byte of a lane's channels of a head; that of its channel k has 16 k exchanged in it.
__device__ __forceinline__ int lane_place(int lane) { return place_of_channel(4 * lane); }

/// to: of the lane's channel 0; addresses are such that 16 k may be exchanged in them.
template <int bits>
__device__ __forceinline__ void put_keys(const LaneCodes<bits>& codes, const KeyReader<bits>& reader,
                                         unsigned char* head, int place, int half_bytes) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t x[2][4];
    reader.read(codes, k, x);
    put_channel(x, head + (place ^ (16 * k)), half_bytes);
  }
}

/// Values: every token has a step and a start; ranges: in shared memory, steps of the 16 places, then starts.
template <int bits>
__device__ __forceinline__ void put_values(const LaneCodes<bits>& codes, const LevelTable<bits>& table,
                                           const uint4* ranges, unsigned char* head, int place, int half_bytes) {
  uint4 steps[2] = {ranges[0], ranges[1]}, starts[2] = {ranges[2], ranges[3]};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t x[2][4];
    codes.halves(table, k, x);
#pragma unroll
    for (int half = 0; half < 2; ++half) scale(x[half], steps[half], starts[half]);
    put_channel(x, head + (place ^ (16 * k)), half_bytes);
  }
}

/// 16 tokens of an exact page.
template <int bits>
__device__ __forceinline__ void put_exact(const uint8_t* from, unsigned char* head, int place, int half_bytes,
                                          int lane) {
#pragma unroll 1
  for (int i = 0; i < 8; ++i) {
    const int k = i / 2, half = i % 2;
    const uint4 x = __ldg(reinterpret_cast<const uint4*>(from + (4 * lane + k) * 32 + half * 16));
    *reinterpret_cast<uint4*>(head + half * half_bytes + (place ^ (16 * k))) = in_places<bits>(x);
  }
}

}  // namespace kvquant::cuda
