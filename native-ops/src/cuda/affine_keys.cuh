/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Keys of attend_affine.cu: from codes to weights of 16 tokens of all heads, by a warp.
#pragma once
#include "affine_layout.cuh"
#include "column_sums.cuh"

namespace kvquant::cuda::affine {

/// A lane's codes of four channels of a tile, of which those of tokens f and f + 8 become an operand's words of 16
/// channels: rows g and g + 8.
template <int bits>
struct FourChannels {
  uint32_t words[2 * bits];

  __device__ __forceinline__ explicit FourChannels(const unsigned char* from) {
    if constexpr (bits == 3) {
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const uint2 two = reinterpret_cast<const uint2*>(from)[i];
        words[2 * i] = two.x;
        words[2 * i + 1] = two.y;
      }
    } else {
#pragma unroll
      for (int i = 0; i < bits / 2; ++i) {
        const uint4 four = reinterpret_cast<const uint4*>(from)[i];
        words[4 * i] = four.x;
        words[4 * i + 1] = four.y;
        words[4 * i + 2] = four.z;
        words[4 * i + 3] = four.w;
      }
    }
  }
};

/// How a token's codes are found among those of a channel's 16: two bytes that they are in, and where in them.
template <int bits>
struct CodePlace {
  uint32_t first[2], second[2], mask;  // moves of bytes for tokens f and f + 8; second: 3 bits only

  static __device__ __forceinline__ int position(int f) { return f * bits % 8; }

  __device__ __forceinline__ explicit CodePlace(int f) {
    mask = ((1u << bits) - 1u) * 0x00010001u << position(f);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t byte = f * bits / 8 + i * bits;  // of the channel
      if constexpr (bits == 3) {
        // Bytes of the second channel are 6 behind those of the first; two words first, then a third one.
        const uint32_t low = 6 + byte, high = 7 + byte;
        first[i] = byte | (byte + 1) << 4 | min(low, 7u) << 8 | min(high, 7u) << 12;
        second[i] = 0x10u | (low < 8 ? 2u : low - 4) << 8 | (high < 8 ? 3u : min(high - 4, 7u)) << 12;
      } else {
        first[i] = byte % 4 * 0x1111u + 0x4400u;
        second[i] = 0;
      }
    }
  }

  /// Row g or g + 8 (i) of the first or second two channels.
  __device__ __forceinline__ uint32_t operand(const FourChannels<bits>& codes, int i, int two) const {
    const uint32_t* w = codes.words + two * bits;
    if constexpr (bits == 2) return permute_bytes(w[0], w[1], first[i]) & mask;
    if constexpr (bits == 4) return permute_bytes(w[i], w[2 + i], first[i]) & mask;
    return permute_bytes(permute_bytes(w[0], w[1], first[i]), w[2 % (2 * bits)], second[i]) & mask;
  }
};

/// A warp's constants and its share of softmax. field: the token f of each tile.
template <int bits, int D, int products>
struct KeyWarp : ColumnSums<products> {
  using Sums = ColumnSums<products>;
  using Sums::reference, Sums::weights, Sums::zeros;
  using State = SharedState<bits, D, products>;
  static constexpr int kBlocks = D / 16, kHalf = kBlocks / 2;  // 16 channels each
  uint32_t cosines[4 * kHalf], sines[4 * kHalf];               // of rows g, g + 8 and pairs 16 i + 2 c, + 8
  uint32_t h[4];                                               // H_16: two words for columns 0 to 7, two for 8 to 15
  CodePlace<bits> place;
  int field, lane;

  __device__ KeyWarp(const State& state, int field, int lane) : place(field), field(field), lane(lane) {
    const int g = lane / 4, c = lane % 4;
#pragma unroll
    for (int i = 0; i < 4 * kHalf; ++i) {
      cosines[i] = state.early.angles[field][i][lane];
      sines[i] = state.early.angles[field][4 * kHalf + i][lane];
    }
    // Rows 2 c, 2 c + 1, 2 c + 8 and 2 c + 9 of the operand are channels 4 c to 4 c + 3: they lie together.
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int channel = 4 * c + i % 2 * 2, column = g + i / 2 * 8;
      h[i] = pack_halves((__popc(channel & column) & 1) != 0 ? -32768.0f : 32768.0f,
                         (__popc((channel + 1) & column) & 1) != 0 ? -32768.0f : 32768.0f);
    }
    Sums::clear();
  }

  /// The transform of a head, but for the bit that RoPE pairs: words of 16 channels each, rows g, g + 8, g, g + 8.
  __device__ __forceinline__ void transform(uint32_t (&x)[kBlocks][4], const unsigned char* codes) const {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      const FourChannels<bits> four(codes + 32 * bits * i);
      const uint32_t a0 = place.operand(four, 0, 0), a1 = place.operand(four, 1, 0);
      const uint32_t a2 = place.operand(four, 0, 1), a3 = place.operand(four, 1, 1);
      mma_halves(x[i][0], x[i][1], a0, a1, a2, a3, h[0], h[1]);
      mma_halves(x[i][2], x[i][3], a0, a1, a2, a3, h[2], h[3]);
    }
    transform_blocks(x);
  }

  /// Scores (base 2).
  __device__ __forceinline__ void score(float (&scores)[products][4], const Stage<bits, D>& stage,
                                        const uint4 (&queries)[products][D / 32][kWarp], const State& state,
                                        int group_shift) const {
    const int g = lane / 4, c = lane % 4;
    // Products with H_16 are codes times 2^(p - 9); a constant meets element 0 of each half alone.
    const float unit =
        static_cast<float>(512 >> CodePlace<bits>::position(field)) * (D == 128 ? 0.08838834764831845f : 0.125f);
    const float zero_factor = -static_cast<float>(D / 2 << CodePlace<bits>::position(field)) * 0.001953125f;
    const __half2 element = c == 0 ? __floats2half2_rn(zero_factor, 0.0f) : __floats2half2_rn(0.0f, 0.0f);
    const unsigned char* codes = stage.keys[0][g] + c * 8 * bits;
    const auto* scales = reinterpret_cast<const __half*>(stage.key_scales[g]) + field;
#pragma unroll 1
    for (int head = 0; head < kTeam; ++head) {
      uint32_t x[kBlocks][4];
      transform(x, codes);
      codes += kRoundTiles * Stage<bits, D>::kKeyStride;
      const __half* own = scales + (head >> group_shift) * (2 * kTileTokens);
      const __half scale[2] = {own[0], own[8]}, zero[2] = {own[kTileTokens], own[kTileTokens + 8]};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        x[0][r] = as_bits(__hfma2(__half2half2(zero[r]), element, as_half2(x[0][r])));
        x[kHalf][r] = as_bits(__hfma2(__half2half2(zero[r]), element, as_half2(x[kHalf][r])));
      }
      float sums[products][4] = {};
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        uint32_t re[4], im[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const __half2 a = as_half2(x[i][r]), b = as_half2(x[i + kHalf][r]);
          const __half2 cosine = as_half2(cosines[4 * i + r]), sine = as_half2(sines[4 * i + r]);
          re[r] = as_bits(__hfma2(a, cosine, __hmul2(b, sine)));
          im[r] = as_bits(__hfma2(a, sine, __hneg2(__hmul2(b, cosine))));
        }
#pragma unroll
        for (int n = 0; n < products; ++n) {
          const uint4 q = queries[n][i][lane];
          mma(sums[n], re[0], re[1], re[2], re[3], q.x, q.y);
          mma(sums[n], im[0], im[1], im[2], im[3], q.z, q.w);
        }
      }
#pragma unroll
      for (int n = 0; n < products; ++n) {
        const float mixed = state.mixing[head][n][c] * unit;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          scores[n][i] = fmaf(mixed * __half2float(scale[i / 2]), sums[n][i], scores[n][i]);
        }
      }
    }
  }

  /// Raises references to scores, if any exceeds them by much.
  __device__ __forceinline__ void raise(const float (&scores)[products][4]) {
    float high[2 * products];
    bool must = false;
#pragma unroll
    for (int i = 0; i < 2 * products; ++i) {
      high[i] = fmaxf(scores[i / 2][i % 2], scores[i / 2][2 + i % 2]);
      must = must || high[i] - reference[i] > kSlack;
    }
    Sums::raise(high, must);
  }

  /// Weights of the 16 tokens, times values' scales, as operands. Tokens of rows g + 8 are negative, their codes
  /// largest - code, as in norm_values.cuh. valid: of rows g and g + 8.
  __device__ __forceinline__ void weigh(float (&scores)[products][4], const bool (&valid)[2],
                                        const Stage<bits, D>& stage, uint2 (&operands)[products][kWarp],
                                        float (&references)[8 * products], int group_shift) {
    const int g = lane / 4, c = lane % 4;
#pragma unroll
    for (int i = 0; i < products * 4; ++i) {
      if (!valid[i % 4 / 2]) scores[i / 4][i % 4] = -INFINITY;  // selected: the score may be NaN
    }
    raise(scores);
    constexpr float kLargest = (1 << bits) - 1;
    const float inverse = static_cast<float>(1 << ValueCodes<bits, D>::position(field)) / kWeightUnit;
    const float unit = 1.0f / inverse;
#pragma unroll
    for (int n = 0; n < products; ++n) {
      const int head = Columns<products>::head(8 * n + 2 * c);
      const __half* own =
          reinterpret_cast<const __half*>(stage.value_scales[g]) + field + (head >> group_shift) * (2 * kTileTokens);
      uint32_t parts[2];  // of rows g and g + 8
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float scale = valid[r] ? __half2float(own[8 * r]) : 0.0f;
        const float zero = valid[r] ? __half2float(own[8 * r + kTileTokens]) : 0.0f;
        const float factor = r == 0 ? scale * unit : -scale * unit;
        const float taken = (r == 0 ? zero : kLargest - zero) * inverse;
        const float weight0 = exp2_fast(scores[n][2 * r] - reference[2 * n]);
        const float weight1 = exp2_fast(scores[n][2 * r + 1] - reference[2 * n + 1]);
        weights[2 * n] += weight0;
        weights[2 * n + 1] += weight1;
        const __half2 w = __floats2half2_rn(weight0 * factor, weight1 * factor);
        zeros[2 * n] = fmaf(__low2float(w), taken, zeros[2 * n]);
        zeros[2 * n + 1] = fmaf(__high2float(w), taken, zeros[2 * n + 1]);
        parts[r] = transpose8x8(as_bits(w));
      }
      operands[n][lane] = make_uint2(__byte_perm(parts[0], parts[1], 0x5410), __byte_perm(parts[0], parts[1], 0x7632));
      if (g == 0) {
        *reinterpret_cast<float2*>(&references[8 * n + 2 * c]) = make_float2(reference[2 * n], reference[2 * n + 1]);
      }
    }
  }

  /// As ColumnSums::publish, with which nvcc makes 48 instructions more of the file's kernels.
  __device__ void publish_sums(State& state) {
#pragma unroll
    for (int i = 0; i < 2 * products; ++i) {
#pragma unroll
      for (int step = 4; step < kWarp; step *= 2) {
        weights[i] += __shfl_xor_sync(0xffffffffu, weights[i], step);
        zeros[i] += __shfl_xor_sync(0xffffffffu, zeros[i], step);
      }
      if (lane >= 4) continue;
      const int column = i / 2 * 8 + 2 * lane + i % 2;
      state.sums[field][column] = weights[i];
      state.zeros[field][column] = zeros[i];
      state.last_references[field][column] = reference[i];
    }
  }
};

/// Cosines and sines of the places of products' rows in 128 tokens, as KeyWarp has them. The whole block calls it.
template <int bits, int D, int products>
__device__ __forceinline__ void fill_angles(const CacheView& cache, SharedState<bits, D, products>& state) {
  constexpr int kWords = D / 8;
  for (int at = threadIdx.x; at < D / 4 * kRoundTokens; at += kThreads) {
    const int g = at % kRoundTiles, token = at / kRoundTiles % kTileTokens, i = at / kRoundTokens;
    const int position = g * kTileTokens + token;
    const float2 a = rope_angle(cache, position, 2 * i), b = rope_angle(cache, position, 2 * i + 1);
    const int word = i / 8 * 4 + i / 4 % 2 * 2 + token / 8, lane = g * 4 + i % 4;
    state.early.angles[token % 8][word][lane] = pack_halves(a.x, b.x);
    state.early.angles[token % 8][kWords + word][lane] = pack_halves(a.y, b.y);
  }
}

/// The share of stored heads in the heads of columns 2 c, 2 c + 1 of each product.
template <int bits, int D, int products>
__device__ __forceinline__ void fill_mixing(const CacheView& cache, SharedState<bits, D, products>& state) {
  if (threadIdx.x >= kTeam * products * 4) return;
  const int c = threadIdx.x % 4, n = threadIdx.x / 4 % products, head = threadIdx.x / (4 * products);
  const int own = Columns<products>::head(8 * n + 2 * c), heads = cache.keys.rotation_heads;
  state.mixing[head][n][c] = own / heads == head / heads ? mixing(heads, own % heads, head % heads) : 0.0f;
}

}  // namespace kvquant::cuda::affine
