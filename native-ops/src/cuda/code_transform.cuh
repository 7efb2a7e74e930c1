/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The Walsh-Hadamard transform of codes of a tile, head_dim 128, by a warp: one of 16, over channels 8 apart, which the
// tensor cores do, and one of 8, of numbers that a lane has then. Codes are whole numbers, so all this is exact, in
// halves up to 4 bits; what is subtracted from all codes of a token only concerns the first channel. Two tiles of
// head_dim 64 go through it as one of 128 in which two transforms of 8 take the place of that of 16.
#pragma once
#include "ptx.cuh"
#include "read_rows.cuh"

namespace kvquant::cuda {

/// Lane 4 g + c holds tokens g and g + 8 and, of channels 8 u + r, u = c, c + 4, c + 8 and c + 12.
struct CodeSums {
  __half2 at[2][2][8];  // [token g or g + 8][u = c + 8 j and c + 8 j + 4][r], times 2^-14
};

/// An entry of the transform, times 1024, so that sums of codes times 2^-24 are no subnormals.
template <int D>
__device__ __forceinline__ uint32_t sign_half(int i, int j) {
  if (D == 64 && ((i ^ j) & 8) != 0) return 0;
  if (D == 64) i &= 7;
  return 0x6400u | static_cast<uint32_t>(__popc(i & j) & 1) << 15;
}

/// A channel's codes of a tile.
template <int bits>
struct TileCodes {
  uint32_t words[(bits + 1) / 2];
};

/// Codes of tokens g (later: g + 8) of two channels in the halves of a word; odd: of 3 bits, channels begin in the
/// middle of a word.
template <int bits>
__device__ __forceinline__ uint32_t two_codes(const TileCodes<bits>& a, const TileCodes<bits>& b, int g, bool later,
                                              bool odd) {
  constexpr uint32_t kMask = ((1u << bits) - 1u) * 0x00010001u;
  if constexpr (bits == 2) {
    return __byte_perm(a.words[0], b.words[0], later ? 0x7632 : 0x5410) >> (2 * g) & kMask;
  } else if constexpr (bits == 4) {
    const int word = later ? 1 : 0;
    return __byte_perm(a.words[word], b.words[word], g < 4 ? 0x5410 : 0x7632) >> (4 * (g % 4)) & kMask;
  } else {
    const int at = 3 * g + (later ? 24 : 0) + (odd ? 16 : 0);
    const auto code = [&](const TileCodes<bits>& x) {
      return at < 32 ? __funnelshift_r(x.words[0], x.words[1], at) : x.words[1] >> (at - 32);
    };
    return __byte_perm(code(a), code(b), 0x5410) & kMask;
  }
}

/// Codes of channels 8 u + 4 half to 8 u + 4 half + 3.
template <int bits>
__device__ __forceinline__ void load_four(const uint8_t* tile, int u, int half, TileCodes<bits> (&codes)[4]) {
  const uint8_t* from = tile + (2 * u + half) * (8 * bits);
  uint32_t words[2 * bits];
  if constexpr (bits == 3) {  // aligned to 8 bytes
#pragma unroll
    for (int i = 0; i < 2 * bits; i += 2) {
      const uint2 two = *reinterpret_cast<const uint2*>(from + 4 * i);
      words[i] = two.x;
      words[i + 1] = two.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < 2 * bits; i += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(from + 4 * i);
      words[i] = four.x;
      words[i + 1] = four.y;
      words[i + 2] = four.z;
      words[i + 3] = four.w;
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < (bits + 1) / 2; ++j) codes[i].words[j] = words[i * bits / 2 + j];
  }
}

/// ahead: of head_dim 64, bytes from where the first tile ends to where the second begins.
template <int bits = 2, int D = kReadDim>
__device__ __forceinline__ void transform_codes(const uint8_t* tile, CodeSums& sums, int lane, int64_t ahead = 0) {
  const int g = lane / 4, c = lane % 4;
  TileCodes<bits> own[4][2][4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint8_t* from = D == 64 && i >= 2 ? tile + ahead : tile;
    load_four(from, 4 * i + c, 0, own[i][0]);
    load_four(from, 4 * i + c, 1, own[i][1]);
  }
  uint32_t signs[2][2];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int to = 4 * (2 * j + g % 2) + g / 2;  // columns 2 c and 2 c + 1 of the product become u = c and c + 4
    signs[j][0] = sign_half<D>(c, to) | sign_half<D>(c + 4, to) << 16;
    signs[j][1] = sign_half<D>(c + 8, to) | sign_half<D>(c + 12, to) << 16;
  }
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    const auto codes = [&](int i, bool later) {
      return two_codes(own[i][r / 4][r % 4], own[i + 1][r / 4][r % 4], g, later, r % 2 != 0);
    };
    const uint32_t a0 = codes(0, false), a1 = codes(0, true), a2 = codes(2, false), a3 = codes(2, true);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      uint32_t x[2];
      mma_halves(x[0], x[1], a0, a1, a2, a3, signs[j][0], signs[j][1]);
      sums.at[0][j][r] = *reinterpret_cast<const __half2*>(&x[0]);
      sums.at[1][j][r] = *reinterpret_cast<const __half2*>(&x[1]);
    }
  }
#pragma unroll
  for (int half = 1; half < 8; half *= 2) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int row = i / 16, j = i / 8 % 2, r = i % 8;
      if (r & half) continue;
      const __half2 a = sums.at[row][j][r], b = sums.at[row][j][r + half];
      sums.at[row][j][r] = __hadd2(a, b);
      sums.at[row][j][r + half] = __hsub2(a, b);
    }
  }
}

/// The same of elements as sums of halves in fp32, times 1024; element(i, r, row): those of channels 8 u + r of the
/// lane, u = c + 4 i and c + 4 i + 4, of token g + 8 row. put(row, i, channels 8 u to 8 u + 7 of u = c + 4 i).
template <int D = kReadDim, class Elements, class Put>
__device__ __forceinline__ void transform_elements(int lane, Elements elements, Put put) {
  const int g = lane / 4, c = lane % 4;
  float x[2][4][8];
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    const uint32_t a0 = elements(0, r, 0), a1 = elements(0, r, 1), a2 = elements(2, r, 0), a3 = elements(2, r, 1);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int to = 4 * (2 * j + g % 2) + g / 2;
      float sums[4] = {};
      mma(sums, a0, a1, a2, a3, sign_half<D>(c, to) | sign_half<D>(c + 4, to) << 16,
          sign_half<D>(c + 8, to) | sign_half<D>(c + 12, to) << 16);
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i / 2][2 * j + i % 2][r] = sums[i];
    }
  }
#pragma unroll
  for (int row = 0; row < 2; ++row) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float(&y)[8] = x[row][i];
#pragma unroll
      for (int half = 1; half < 8; half *= 2) {
#pragma unroll
        for (int r = 0; r < 8; ++r) {
          if (r & half) continue;
          const float a = y[r], b = y[r + half];
          y[r] = a + b;
          y[r + half] = a - b;
        }
      }
      put(row, i, y);
    }
  }
}

/// Eight neighbouring channels of the transform of factor (code - zero), of sums of codes times 2^-14; first: channels
/// 0 to 7.
template <int D = kReadDim>
__device__ __forceinline__ uint4 scaled(float (&x)[8], float factor, float zero, bool first) {
  constexpr float kRoot = D == 64 ? 0.125f : 0.08838834764831845f;  // of 1 / D
  const float unit = factor * kRoot * 16384.0f;
  if (first) x[0] -= zero * (D / 16384.0f);
#pragma unroll
  for (int r = 0; r < 8; ++r) x[r] *= unit;
  return make_uint4(two_halves(x[0], x[1]), two_halves(x[2], x[3]), two_halves(x[4], x[5]), two_halves(x[6], x[7]));
}

/// The same of channels 8 u to 8 u + 7 with u = c + 4 i.
template <int D = kReadDim>
__device__ __forceinline__ uint4 transformed(const CodeSums& sums, int row, int i, float factor, float zero, int c) {
  float x[8];
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    const __half2 two = sums.at[row][i / 2][r];
    x[r] = i % 2 == 0 ? __low2float(two) : __high2float(two);
  }
  return scaled<D>(x, factor, zero, i % (D / 32) == 0 && c == 0);
}

}  // namespace kvquant::cuda
