/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Keys of rotatekv2: from codes to weights of 2 x 16 tokens, by a warp; see attend_rotated.cu.
#pragma once
#include "column_sums.cuh"
#include "elements.cuh"
#include "rotated_layout.cuh"
#include "token_reader.cuh"

namespace kvquant::cuda {

/// With an order of channels, what a warp's rows need of the scales of the 4 groups; see scale_rows.
struct RowScales {
  uint4 rows[kSides][2];  // [side][row g or g + 8]

  __device__ __forceinline__ RowScales(const unsigned char* stage, int field, int lane) {
    const auto* at = reinterpret_cast<const uint4*>(stage + Stage::kKeyScales + lane / 4 * kScaleStride) + field;
#pragma unroll
    for (int i = 0; i < kSides * 2; ++i) rows[i / 2][i % 2] = at[i / 2 * kSideStep + i % 2 * 8];
  }
};
struct NoScales {
  __device__ __forceinline__ NoScales(const unsigned char*, int, int) {}
};

/// A warp's constants and its share of softmax.
template <int products, bool kOrdered>
struct KeyWarp : ColumnSums<products> {
  using Sums = ColumnSums<products>;
  using Sums::reference, Sums::weights, Sums::zeros;
  uint32_t cosines[16], sines[16];  // of rows g, g + 8 and pairs 16 i + 2 c, + 8
  uint32_t h[4];                    // H_16: two words for columns 0 to 7, two for 8 to 15
  uint32_t select, select_pair, shift, masks[kSides], zero_factors[kSides], biases[kSides];

  /// field: of side 0; angles: see fill_angles.
  __device__ KeyWarp(const uint32_t (&angles)[4][32][kWarp], int field, int lane) {
    const int g = lane / 4, c = lane % 4;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      cosines[i] = angles[quarter_of(field)][i][lane];
      sines[i] = angles[quarter_of(field)][16 + i][lane];
    }
    // Rows 2 c, 2 c + 1, 2 c + 8 and 2 c + 9 of the operand are channels 4 c to 4 c + 3: a lane reads 16 bytes.
    const float unit = kOrdered ? 1.0f : 32768.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int channel = 4 * c + i % 2 * 2, column = g + i / 2 * 8;
      h[i] = pack_halves((__popc(channel & column) & 1) != 0 ? -unit : unit,
                         (__popc((channel + 1) & column) & 1) != 0 ? -unit : unit);
    }
    select = kept(field < 4 ? 0x6420u : 0x7531u);  // bytes 0 and 2 (or 1 and 3) of both words
    masks[0] = kept(0x00030003u << field_position(field));
    masks[1] = kept(0x00030003u << (field_position(field) + 2 * kSideStep));
    select_pair = kept(field % 2 == 0 ? 0x5410u : 0x7632u);
    shift = kept(field_position(field));
    // Element 0 of a half of the channels is in the lanes with c = 0. -64 z 2^-9, of side 1 -64 z 2^-5.
    zero_factors[0] = kept(c == 0 ? pack_halves(-0.125f, 0.0f) : 0u);
    zero_factors[1] = kept(c == 0 ? pack_halves(-2.0f, 0.0f) : 0u);
    biases[0] = kept(c == 0 ? pack_halves(-0.1875f, 0.0f) : 0u);
    biases[1] = kept(c == 0 ? pack_halves(-3.0f, 0.0f) : 0u);
    Sums::clear();
  }

  /// Codes of a head's 16 channels i: of two channels each, both sides' rows g and g + 8 in fields of 4 bits.
  __device__ __forceinline__ void load_codes(uint32_t (&z)[8][2], const unsigned char* codes) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint4 w = *reinterpret_cast<const uint4*>(codes + 64 * i);
      z[i][0] = __byte_perm(w.x, w.y, select);
      z[i][1] = __byte_perm(w.z, w.w, select);
    }
  }

  /// The transform of a head, but for bit 6: words of 16 channels each, rows g, g + 8, g, g + 8. Sums of codes of
  /// channels that differ in bits 4 and 5 are multiplied by H_16.
  __device__ __forceinline__ void transform(uint32_t (&x)[kSides][8][4], uint32_t (&z)[8][2]) const {
#pragma unroll
    for (int i = 0; i < 16; ++i) z[i / 2][i % 2] = z[i / 2][i % 2] >> shift & 0x33333333u;
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        if (i / 2 & step) continue;
        uint32_t &low = z[i / 2][i % 2], &high = z[i / 2 | step][i % 2];
        const uint32_t a = low, b = high;
        low = a + b;
        high = a - b + 0x33333333u * step;  // no field is negative: those of all but channels 0 and 64 are 6 too large
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int side = 0; side < kSides; ++side) {
        const uint32_t mask = 0x000f000fu << (4 * side);
        const uint32_t a0 = z[i][0] & mask, a1 = z[i][0] >> 8 & mask, a2 = z[i][1] & mask, a3 = z[i][1] >> 8 & mask;
        uint32_t(&to)[4] = x[side][i];
        to[0] = to[1] = i % 4 != 0 ? biases[side] : 0u;
        to[2] = to[3] = 0u;
        add_mma_halves(to[0], to[1], a0, a1, a2, a3, h[0], h[1]);
        add_mma_halves(to[2], to[3], a0, a1, a2, a3, h[2], h[3]);
      }
    }
  }

  /// The same of a side with an order: codes times their groups' scales are multiplied by H_16. Bit 4 is sums of
  /// products, bit 5 additions of halves.
  __device__ __forceinline__ void transform(uint32_t (&x)[8][4], const uint32_t (&z)[8][2], int side,
                                            const RowScales& scales, const uint4* selectors) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t words[4] = {z[i][0], z[i][0] >> 8, z[i][1], z[i][1] >> 8};
      uint32_t a[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const uint4 all = selectors[i / 2 * 4], row = scales.rows[side][r % 2];
        const uint32_t groups = i % 2 == 0 ? (r < 2 ? all.x : all.y) : (r < 2 ? all.z : all.w);
        a[r] = as_bits(__hfma2(as_half2(words[r] & masks[side]), as_half2(permute_bytes(row.x, row.y, groups)),
                               as_half2(permute_bytes(row.z, row.w, groups))));
      }
      uint32_t(&low)[4] = x[i & ~1], (&high)[4] = x[i | 1];
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        if (i % 2 == 0) {
          mma_halves(low[j], low[j + 1], a[0], a[1], a[2], a[3], h[j], h[j + 1]);
          high[j] = low[j];
          high[j + 1] = low[j + 1];
        } else {
          add_mma_halves(low[j], low[j + 1], a[0], a[1], a[2], a[3], h[j], h[j + 1]);
          add_mma_halves(high[j], high[j + 1], a[0], a[1], a[2], a[3], h[j] ^ 0x80008000u, h[j + 1] ^ 0x80008000u);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i & 2) continue;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t &low = x[i][j], &high = x[i | 2][j];
        const __half2 a = as_half2(low), b = as_half2(high);
        low = as_bits(__hadd2(a, b));
        high = as_bits(__hsub2(a, b));
      }
    }
  }

  /// Scores (base 2). units: with an order, of a group's tokens; is_first, is_last: a warp whose first turn nobody
  /// ends, a warp that nobody waits for after its last one.
  __device__ __forceinline__ void score(float (&scores)[kSides][products][4], const unsigned char* stage,
                                        const uint4 (&all_queries)[kSides][products][4][kWarp],
                                        const SharedState<products>& state, const float (&units)[kGroupTokens],
                                        bool is_first, bool is_last, int field, int lane) const {
    using Scales = std::conditional_t<kOrdered, RowScales, NoScales>;
    const Scales of_rows(stage, field, lane);
    const unsigned char* codes = kept(stage + lane / 4 * kKeyStride + lane % 4 * 16);
    const unsigned char* scales_at = kept(stage + Stage::kKeyScales + lane / 4 * kScaleStride + 2 * (field & 4));
    const uint4* queries = kept(&all_queries[0][0][0][lane]);
    const float* mixing = kept(&state.mixing[0][0][lane % 4]);
#pragma unroll 1  // code that fits the instruction cache is faster than overlapping heads
    for (int head = 0; head < kRotatedHeads; ++head) {
      uint32_t x[kSides][8][4], z[8][2];
      if constexpr (kOrdered) {
        // The two warps of a scheduler take turns: while one transforms, which is moves of bytes, the other goes on.
        const int warp = threadIdx.x / kWarp;
        if (!is_first || head != 0) wait_turn(warp);
        load_codes(z, codes);
#pragma unroll
        for (int side = 0; side < kSides; ++side) {
          transform(x[side], z, side, of_rows, &state.selectors[head][0][lane % 4]);
        }
        if (!is_last || head != kRotatedHeads - 1) end_turn(warp);
      } else {
        load_codes(z, codes);
        transform(x, z);
      }
      codes += 8 * kKeyStride;
      // Of rows g, g + 8: both sides' scales and zeros.
      __half2 scales[2];
      if constexpr (!kOrdered) {
        const unsigned char* at = scales_at;
        scales_at += 4 * kTileTokens;
        const __half2 element0 = as_half2(zero_factors[0]), element1 = as_half2(zero_factors[1]);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          scales[r] = both_sides(at + 16 * r);
          const __half2 zeros_of = both_sides(at + 16 * r + 2 * kTileTokens);
#pragma unroll
          for (int i = 0; i < 8; i += 4) {
            x[0][i][r] = as_bits(__hfma2(__low2half2(zeros_of), element0, as_half2(x[0][i][r])));
            x[1][i][r] = as_bits(__hfma2(__high2half2(zeros_of), element1, as_half2(x[1][i][r])));
          }
        }
      }
      float sums[kSides][products][4] = {};
#pragma unroll
      for (int k = 0; k < 4 * kSides; ++k) {
        const int i = kOrdered ? k % 4 : k / 2, side = kOrdered ? k / 4 : k % 2;
        uint32_t re[4], im[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const __half2 a = as_half2(x[side][i][r]), b = as_half2(x[side][i + 4][r]);
          const __half2 cosine = as_half2(cosines[4 * i + r]), sine = as_half2(sines[4 * i + r]);
          re[r] = as_bits(__hfma2(a, cosine, __hmul2(b, sine)));
          im[r] = as_bits(__hfma2(a, sine, __hneg2(__hmul2(b, cosine))));
        }
#pragma unroll
        for (int n = 0; n < products; ++n) {
          const uint4 q = queries[((side * products + n) * 4 + i) * kWarp];
          mma(sums[side][n], re[0], re[1], re[2], re[3], q.x, q.y);
          mma(sums[side][n], im[0], im[1], im[2], im[3], q.z, q.w);
        }
      }
#pragma unroll
      for (int side = 0; side < kSides; ++side) {
#pragma unroll
        for (int n = 0; n < products; ++n) {
          const float own = mixing[4 * n];
          float factors[2] = {own, own};
          if constexpr (!kOrdered) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              factors[r] *= side == 0 ? __low2float(scales[r]) : __high2float(scales[r]);
            }
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            scores[side][n][i] = fmaf(factors[i / 2], sums[side][n][i], scores[side][n][i]);
          }
        }
      }
      mixing += 4 * products;
    }
    if constexpr (kOrdered) {
      const float* at = units + lane / 4 * kTileTokens + field;
      const float of_rows_units[kSides][2] = {{at[0], at[8]}, {at[kSideStep], at[kSideStep + 8]}};
#pragma unroll
      for (int i = 0; i < kSides * products * 4; ++i) {
        const int side = i / 4 / products;
        scores[side][i / 4 % products][i % 4] *= of_rows_units[side][i % 4 / 2];
      }
    }
  }

  /// Scales or zeros of both sides' tokens.
  __device__ __forceinline__ __half2 both_sides(const unsigned char* at) const {
    const uint2 four = *reinterpret_cast<const uint2*>(at);
    return as_half2(__byte_perm(four.x, four.y, select_pair));
  }

  /// Raises references to scores, if any exceeds them by much.
  __device__ __forceinline__ void raise(const float (&scores)[kSides][products][4]) {
    float high[2 * products];
    bool must = false;
#pragma unroll
    for (int i = 0; i < 2 * products; ++i) {
      const auto& a = scores[0][i / 2];
      const auto& b = scores[1][i / 2];
      high[i] = fmaxf(fmaxf(a[i % 2], a[2 + i % 2]), fmaxf(b[i % 2], b[2 + i % 2]));
      must = must || high[i] - reference[i] > kSlack;
    }
    Sums::raise(high, must);
  }

  /// Weights of 2 x 16 tokens, times values' scales, as operands of products field and field + 2. Tokens of rows g + 8
  /// are negative, their codes 3 - code, as in norm_values.cuh. valid: bits g and g + 8 of each side.
  __device__ __forceinline__ void weigh(float (&scores)[kSides][products][4], bool all_valid,
                                        const uint32_t (&valid)[kSides], const unsigned char* scales,
                                        uint2 (&operands)[kProducts][products][kWarp],
                                        float (&references)[4][8 * products], int field, int lane) {
    const int g = lane / 4, c = lane % 4;
    const auto is_valid = [&](int side, int r) { return (valid[side] >> (g + 8 * r) & 1u) != 0; };
    if (!all_valid) {
#pragma unroll
      for (int i = 0; i < kSides * products * 4; ++i) {
        const int side = i / 4 / products;
        if (!is_valid(side, i % 4 / 2)) scores[side][i / 4 % products][i % 4] = -INFINITY;
      }
    }
    raise(scores);
#pragma unroll
    for (int n = 0; n < products; ++n) {
      const int head = Columns<products>::head(8 * n + 2 * c);
      const unsigned char* at = scales + g * kScaleStride + head * 4 * kTileTokens + 2 * (field & 4);
      __half2 scale[2], zero[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        scale[r] = both_sides(at + 16 * r);
        zero[r] = both_sides(at + 16 * r + 2 * kTileTokens);
      }
      if (!all_valid) {  // what lies there may be no numbers
        const auto keep = [&](__half2& x, int r) {
          x = as_half2(as_bits(x) & ((is_valid(0, r) ? 0xffffu : 0u) | (is_valid(1, r) ? 0xffff0000u : 0u)));
        };
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          keep(scale[r], r);
          keep(zero[r], r);
        }
      }
#pragma unroll
      for (int side = 0; side < kSides; ++side) {
        const float unit = weight_unit(field) * (side == 0 ? 1.0f : 0.0625f), inverse = 1.0f / unit;
        const auto part = [side](__half2 x) { return side == 0 ? __low2float(x) : __high2float(x); };
        const float a = part(scale[0]) * unit, b = part(scale[1]) * -unit;
        const float zero0 = part(zero[0]) * inverse, zero1 = fmaf(part(zero[1]), -inverse, 3.0f * inverse);
        uint32_t parts[2];  // of rows g and g + 8
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float weight0 = exp2_fast(scores[side][n][2 * r] - reference[2 * n]);
          const float weight1 = exp2_fast(scores[side][n][2 * r + 1] - reference[2 * n + 1]);
          weights[2 * n] += weight0;
          weights[2 * n + 1] += weight1;
          const __half2 w = __floats2half2_rn(weight0 * (r == 0 ? a : b), weight1 * (r == 0 ? a : b));
          zeros[2 * n] = fmaf(__low2float(w), r == 0 ? zero0 : zero1, zeros[2 * n]);
          zeros[2 * n + 1] = fmaf(__high2float(w), r == 0 ? zero0 : zero1, zeros[2 * n + 1]);
          parts[r] = transpose8x8(as_bits(w));
        }
        const uint32_t operand[2] = {__byte_perm(parts[0], parts[1], 0x5410), __byte_perm(parts[0], parts[1], 0x7632)};
        operands[field + kSideStep * side][n][lane] = make_uint2(operand[0], operand[1]);
      }
      if (g == 0) {
        *reinterpret_cast<float2*>(&references[quarter_of(field)][8 * n + 2 * c]) =
            make_float2(reference[2 * n], reference[2 * n + 1]);
      }
    }
  }
};

/// Bits of a warp's 2 x 16 tokens, of tile g bits g (token field + 2 side) and g + 8 (token 8 later): those below `end`
/// that are no sinks. sink: of each lane, -1: none.
__device__ __forceinline__ uint2 valid_rows(int group, int field, int end, int sink) {
  uint32_t valid[kSides] = {};
#pragma unroll 1
  for (int i = 0; i < 16 * kSides; ++i) {
    const int token = group * kGroupTokens + i % 8 * kTileTokens + i / 8 % 2 * 8 + field + i / 16 * kSideStep;
    const uint32_t bit = (token < end ? 1u : 0u) << (i % 16);
    valid[0] |= i < 16 ? bit : 0u;
    valid[1] |= i < 16 ? 0u : bit;
  }
#pragma unroll 1
  for (uint32_t left = __ballot_sync(0xffffffffu, sink >= 0 && sink / kGroupTokens == group); left != 0;
       left &= left - 1) {
    const int place = __shfl_sync(0xffffffffu, sink, __ffs(static_cast<int>(left)) - 1) % kGroupTokens;
    const int side = place % 8 - field;
    const uint32_t keep = ~(1u << (place / kTileTokens + place / 8 % 2 * 8));
    if (side == 0) valid[0] &= keep;
    if (side == kSideStep) valid[1] &= keep;
  }
  return make_uint2(valid[0], valid[1]);
}

/// Cosines and sines of the places of warps' rows in 128 tokens, as KeyWarp has them: of rows g and g + 8 and pairs
/// 16 i + 2 c, + 8.
__device__ __forceinline__ void fill_angles(const CacheView& cache, uint32_t (&angles)[4][32][kWarp]) {
  const int at = threadIdx.x % 64, g = at / 8, second = at / 4 % 2, quarter = at % 4;
#pragma unroll
  for (int step = 0; step < kPairs * 32 / kKeyThreads; ++step) {
    const int i = threadIdx.x / 64 + step * (kKeyThreads / 64);
    const int place = g * kTileTokens + second * 8 + first_token(quarter);
    const float2 a = rope_angle(cache, place, 2 * i), b = rope_angle(cache, place, 2 * i + 1);
    const int word = i / 8 * 4 + i / 4 % 2 * 2 + second, lane = g * 4 + i % 4;
    angles[quarter][word][lane] = pack_halves(a.x, b.x);
    angles[quarter][16 + word][lane] = pack_halves(a.y, b.y);
  }
}

/// The share of stored heads in the heads of columns 2 c, 2 c + 1 of each product.
template <int products>
__device__ __forceinline__ void fill_mixing(const CacheView& cache, SharedState<products>& state) {
  if (threadIdx.x >= kRotatedHeads * products * 4) return;
  const int c = threadIdx.x % 4, n = threadIdx.x / 4 % products, head = threadIdx.x / (4 * products);
  const int own = Columns<products>::head(8 * n + 2 * c), heads = cache.keys.rotation_heads;
  state.mixing[head][n][c] = own / heads == head / heads ? mixing(heads, own % heads, head % heads) : 0.0f;
}

/// How to find the scales of channels 4 c to 4 c + 3 of each 16 among those of 4 groups.
template <int products>
__device__ __forceinline__ void fill_selectors(const CacheView& cache, int first_head, SharedState<products>& state) {
  if (threadIdx.x >= kRotatedHeads * 4 * 4) return;
  const int c = threadIdx.x % 4, i = threadIdx.x / 4 % 4, head = threadIdx.x / 16;
  uint32_t words[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int channel = (first_head + head) * kDim + (2 * i + j / 2) * 16 + 4 * c + j % 2 * 2;
    const uint32_t low = (cache.keys.group(channel) - first_head) & 3,
                   high = (cache.keys.group(channel + 1) - first_head) & 3;
    words[j] = (low * 0x22u + 0x10u) | (high * 0x22u + 0x10u) << 8;
  }
  state.selectors[head][i][c] = make_uint4(words[0], words[1], words[2], words[3]);
}

}  // namespace kvquant::cuda
