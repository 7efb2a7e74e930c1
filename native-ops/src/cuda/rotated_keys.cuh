/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Keys of rotatekv2: from codes to weights of 2 x 16 tokens, by a warp; see attend_rotated.cu.
#pragma once
#include "elements.cuh"
#include "rotated_layout.cuh"
#include "token_reader.cuh"

namespace kvquant::cuda {

/// What a helper's thread turns of queries: two neighbouring pairs of channels of a column of each product, and those
/// 32 pairs on.
template <int products>
struct Queries {
  static constexpr int kShares = 2, kStep = 32;
  int thread, pair, column;

  __device__ explicit Queries(int thread) : thread(thread) {
    pair = thread / 64 * 16 + thread % 8 * 2;
    column = thread / 8 % 8;
  }

  /// Two neighbouring elements.
  template <class Element>
  static __device__ __forceinline__ float2 two(const void* data, int64_t index) {
    const auto* x = static_cast<const Element*>(data) + index;
    return make_float2(to_float(x[0]), to_float(x[1]));
  }
  template <class Element>
  __device__ __forceinline__ void load_elements(const CacheView& cache, const Attention& p, int b, int first_head,
                                                int pair, float2 (&x)[products][2]) const {
    const int per_head = cache.heads / cache.kv_heads;
#pragma unroll
    for (int n = 0; n < products; ++n) {
      const int at = 8 * n + column, r = Columns<products>::query(at);
      const int64_t row = static_cast<int64_t>(b) * (cache.heads + 2 * cache.kv_heads) +
                          (first_head + Columns<products>::head(at)) * per_head + min(r, per_head - 1);
#pragma unroll
      for (int i = 0; i < 2; ++i) x[n][i] = two<Element>(p.qkv, row * kDim + pair + i * kPairs);
      if (r >= per_head) x[n][0] = x[n][1] = make_float2(0.0f, 0.0f);
    }
  }

  /// Leaves the thread's queries, turned to their position and back by a side's token, times the score's factor.
  __device__ void load(const CacheView& cache, const Attention& p, int b, int first_head, bool ordered,
                       SharedState<products>& state) const {
    const int position = cache.length(b);
#pragma unroll
    for (int share = 0; share < kShares; ++share) {
      const int first = pair + share * kStep;
      float2 angles[kSides][2], x[products][2];
#pragma unroll
      for (int i = 0; i < 2 * kSides; ++i) {
        angles[i / 2][i % 2] = rope_angle(cache, max(position - i / 2, 0), first + i % 2);
      }
      if (p.type == ElementType::kFloat16) {
        load_elements<__half>(cache, p, b, first_head, first, x);
      } else if (p.type == ElementType::kBFloat16) {
        load_elements<__nv_bfloat16>(cache, p, b, first_head, first, x);
      } else {
        load_elements<float>(cache, p, b, first_head, first, x);
      }
#pragma unroll
      for (int side = 0; side < kSides; ++side) {
        // In natural order products with H_16 have a factor of 2^-9, of side 1 2^-7.
        const float unit = ordered ? 1.0f : side == 0 ? 512.0f : 128.0f;
        const float scale = cache.score_scale * kLog2e * unit * 0.08838834764831845f;
#pragma unroll
        for (int n = 0; n < products; ++n) {
          const float2 a = turn(x[n][0].x, x[n][1].x, angles[side][0]);
          const float2 c = turn(x[n][0].y, x[n][1].y, angles[side][1]);
          state.turned[share][side][n][thread] = make_float4(a.x * scale, a.y * scale, c.x * scale, c.y * scale);
        }
      }
    }
  }

  static __device__ __forceinline__ const float* angle_row(const CacheView& cache, int group) {
    return cache.rope + (static_cast<int64_t>(kPageTokens) + group * (kGroupTokens / kPageTokens)) * kDim;
  }

  /// Of a group's first token, for both pairs: cosine - sine, cosine + sine.
  __device__ __forceinline__ float4 angles(const CacheView& cache, int group, int share) const {
    const float* row = angle_row(cache, group) + pair + share * kStep;
    const float2 cosines = *reinterpret_cast<const float2*>(row);
    const float2 sines = *reinterpret_cast<const float2*>(row + kPairs);
    return make_float4(cosines.x - sines.x, cosines.x + sines.x, cosines.y - sines.y, cosines.y + sines.y);
  }

  __device__ __forceinline__ void prefetch_angles(const CacheView& cache, int round, int last_group) const {
    if (thread >= 4 * kRoundGroups) return;
    prefetch(angle_row(cache, min(round * kRoundGroups + thread / 4, last_group)) + thread % 4 * 32);
  }

  /// Queries turned back by a round's groups' first positions, times 1 - j, as operands.
  __device__ __forceinline__ void store(const CacheView& cache, int round, int last_group, SharedState<products>& state,
                                        int turn) const {
    float4 turns[kRoundGroups][kShares];
#pragma unroll
    for (int i = 0; i < kRoundGroups * kShares; ++i) {
      turns[i / kShares][i % kShares] = angles(cache, min(round * kRoundGroups + i / kShares, last_group), i % kShares);
    }
    const int k = pair % 16, lane = column * 4 + k % 8 / 2;
#pragma unroll
    for (int group = 0; group < kRoundGroups; ++group) {
      auto& operands = state.queries[turn][group];
#pragma unroll
      for (int share = 0; share < kShares; ++share) {
        const float4 angle = turns[group][share];
        const auto& own = state.turned[share];
        float4 all[kSides][products];
#pragma unroll
        for (int i = 0; i < kSides * products; ++i)
          all[i / products][i % products] = own[i / products][i % products][thread];
#pragma unroll
        for (int i = 0; i < kSides * products; ++i) {
          const int side = i / products, n = i % products;
          const float4 x = all[side][n];
          uint32_t* to =
              reinterpret_cast<uint32_t*>(&operands[side][n][pair / 16 + share * (kStep / 16)][lane]) + k / 8;
          to[0] = pack_halves(fmaf(x.x, angle.x, x.y * angle.y), fmaf(x.z, angle.z, x.w * angle.w));
          to[2] = pack_halves(fmaf(x.y, angle.x, -x.x * angle.y), fmaf(x.w, angle.z, -x.z * angle.w));
        }
      }
    }
  }
};

/// With an order of channels, what a warp's rows need of the scales of the 4 groups: of codes' fields, and minus scales
/// times zeros, both in units of a power of 2 that suits the row.
struct RowScales {
  uint32_t scales[kSides][2][2], offsets[kSides][2][2];  // [side][row g or g + 8][groups 0 and 1, 2 and 3]
  float units[kSides][2];

  __device__ __forceinline__ RowScales(const unsigned char* stage, int field, int lane) {
    const int g = lane / 4, side = lane % 4 / 2, second = lane % 2;  // a lane does one row of four
    const auto* at =
        reinterpret_cast<const __half*>(stage + Stage::kKeyScales + g * kScaleStride) + field + side + 8 * second;
    float s[4], o[4], most = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[i] = __half2float(at[2 * kTileTokens * i]);
      o[i] = -s[i] * __half2float(at[2 * kTileTokens * i + kTileTokens]);
      most = fmaxf(most, fmaxf(s[i], fabsf(o[i]) * 0.015625f));
    }
    // Scales become less than 2^15, elements code * 2^(p - 24) * scale.
    const int exponent = max(__float_as_int(most) >> 23, 64), shift = 24 - field_position(field) - 2 * side;
    const float up = __int_as_float((254 + 14 - exponent) << 23), unit = __int_as_float((exponent - 14 + shift) << 23);
    const float down = __int_as_float((254 + 14 - exponent - shift) << 23);
    const uint32_t own[4] = {pack_halves(s[0] * up, s[1] * up), pack_halves(s[2] * up, s[3] * up),
                             pack_halves(o[0] * down, o[1] * down), pack_halves(o[2] * down, o[3] * down)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int from = (lane & ~3) + i;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        scales[i / 2][i % 2][j] = __shfl_sync(0xffffffffu, own[j], from);
        offsets[i / 2][i % 2][j] = __shfl_sync(0xffffffffu, own[2 + j], from);
      }
      units[i / 2][i % 2] = __shfl_sync(0xffffffffu, unit, from);
    }
  }
};
struct NoScales {
  __device__ __forceinline__ NoScales(const unsigned char*, int, int) {}
};

/// A warp's constants and its share of softmax.
template <int products, bool kOrdered>
struct KeyWarp {
  uint32_t cosines[16], sines[16];  // of rows g, g + 8 and pairs 16 i + 2 c, + 8
  uint32_t h[4];                    // H_16: two words for columns 0 to 7, two for 8 to 15
  uint32_t select_low, select_high, masks[kSides], zero_factors[kSides];
  float reference[2 * products], weights[2 * products], zeros[2 * products];

  /// field: of side 0; angles: see fill_angles.
  __device__ KeyWarp(const uint32_t (&angles)[4][32][kWarp], int field, int lane) {
    const int g = lane / 4, c = lane % 4;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      cosines[i] = angles[field / 2][i][lane];
      sines[i] = angles[field / 2][16 + i][lane];
    }
    // Rows 2 c, 2 c + 1, 2 c + 8 and 2 c + 9 of the operand are channels 4 c to 4 c + 3: a lane reads 16 bytes.
    const float unit = kOrdered ? 1.0f : static_cast<float>(1 << (15 - field_position(field)));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int channel = 4 * c + i % 2 * 2, column = g + i / 2 * 8;
      h[i] = pack_halves((__popc(channel & column) & 1) != 0 ? -unit : unit,
                         (__popc((channel + 1) & column) & 1) != 0 ? -unit : unit);
    }
    select_low = kept(field < 4 ? 0x5410u : 0x6521u);   // bytes 0 (or 1) of both words
    select_high = kept(field < 4 ? 0x7632u : 0x7763u);  // bytes 2 (or 3)
    masks[0] = kept(0x00030003u << field_position(field));
    masks[1] = kept(0x00030003u << (field_position(field) + 2));
    // Element 0 of a half of the channels is in the lanes with c = 0. -64 z 2^-9, of side 1 -64 z 2^-7.
    zero_factors[0] = kept(c == 0 ? pack_halves(-0.125f, 0.0f) : 0u);
    zero_factors[1] = kept(c == 0 ? pack_halves(-0.5f, 0.0f) : 0u);
#pragma unroll
    for (int i = 0; i < 2 * products; ++i) {
      reference[i] = kLowest;
      weights[i] = zeros[i] = 0.0f;
    }
  }

  /// The transform of a head, but for bit 6: words of 16 channels each, rows g, g + 8, g, g + 8. First operands are
  /// codes as they are or, in an order, times their groups' scales.
  template <class Scales>
  __device__ __forceinline__ void transform(uint32_t (&x)[kSides][8][4], const unsigned char* codes,
                                            const Scales& scales, const uint4* selectors) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint4 w = *reinterpret_cast<const uint4*>(codes + 64 * i);
      const uint32_t words[4] = {__byte_perm(w.x, w.y, select_low), __byte_perm(w.x, w.y, select_high),
                                 __byte_perm(w.z, w.w, select_low), __byte_perm(w.z, w.w, select_high)};
#pragma unroll
      for (int side = 0; side < kSides; ++side) {
        uint32_t a[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          a[r] = words[r] & masks[side];
          if constexpr (kOrdered) {
            const uint4 all = selectors[i / 2 * 4];
            const uint32_t select = i % 2 == 0 ? (r < 2 ? all.x : all.y) : (r < 2 ? all.z : all.w);
            const auto of = [&](const uint32_t(&of_groups)[2]) {
              return as_half2(permute_bytes(of_groups[0], of_groups[1], select));
            };
            a[r] = as_bits(__hfma2(as_half2(a[r]), of(scales.scales[side][r % 2]), of(scales.offsets[side][r % 2])));
          }
        }
        mma_halves(x[side][i][0], x[side][i][1], a[0], a[1], a[2], a[3], h[0], h[1]);
        mma_halves(x[side][i][2], x[side][i][3], a[0], a[1], a[2], a[3], h[2], h[3]);
      }
    }
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (i & step) continue;
#pragma unroll
        for (int j = 0; j < 4 * kSides; ++j) {
          uint32_t &low = x[j / 4][i][j % 4], &high = x[j / 4][i | step][j % 4];
          const __half2 a = as_half2(low), b = as_half2(high);
          low = as_bits(__hadd2(a, b));
          high = as_bits(__hsub2(a, b));
        }
      }
    }
  }

  /// Scores (base 2).
  __device__ __forceinline__ void score(float (&scores)[kSides][products][4], const unsigned char* stage,
                                        const uint4 (&all_queries)[kSides][products][4][kWarp],
                                        const SharedState<products>& state, int field, int lane) const {
    using Scales = std::conditional_t<kOrdered, RowScales, NoScales>;
    const Scales of_rows(stage, field, lane);
    const unsigned char* codes = kept(stage + lane / 4 * kKeyStride + lane % 4 * 16);
    const unsigned char* scales_at = kept(stage + Stage::kKeyScales + lane / 4 * kScaleStride + 2 * field);
    const uint4* queries = kept(&all_queries[0][0][0][lane]);
    const float* mixing = kept(&state.mixing[0][0][lane % 4]);
#pragma unroll 1  // code that fits the instruction cache is faster than overlapping heads
    for (int head = 0; head < kRotatedHeads; ++head) {
      uint32_t x[kSides][8][4];
      transform(x, codes, of_rows, &state.selectors[head][0][lane % 4]);
      codes += 8 * kKeyStride;
      // Of rows g, g + 8: both sides' scales and zeros.
      __half2 scales[2];
      if constexpr (!kOrdered) {
        const unsigned char* at = scales_at;
        scales_at += 4 * kTileTokens;
        const __half2 element0 = as_half2(zero_factors[0]), element1 = as_half2(zero_factors[1]);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          scales[r] = *reinterpret_cast<const __half2*>(at + 16 * r);
          const __half2 zeros_of = *reinterpret_cast<const __half2*>(at + 16 * r + 2 * kTileTokens);
#pragma unroll
          for (int i = 0; i < 8; i += 4) {
            x[0][i][r] = as_bits(__hfma2(__low2half2(zeros_of), element0, as_half2(x[0][i][r])));
            x[1][i][r] = as_bits(__hfma2(__high2half2(zeros_of), element1, as_half2(x[1][i][r])));
          }
        }
      }
      float sums[kSides][products][4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int side = 0; side < kSides; ++side) {
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
#pragma unroll
      for (int i = 0; i < kSides * products * 4; ++i) {
        scores[i / 4 / products][i / 4 % products][i % 4] *= of_rows.units[i / 4 / products][i % 4 / 2];
      }
    }
  }

  /// Raises references to scores, if any exceeds them by much. References are whole numbers: what follows from a change
  /// of one is exact.
  __device__ __forceinline__ void raise(const float (&scores)[kSides][products][4]) {
#pragma unroll
    for (int n = 0; n < products; ++n) {
      float high[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        high[i] = fmaxf(fmaxf(scores[0][n][i], scores[0][n][2 + i]), fmaxf(scores[1][n][i], scores[1][n][2 + i]));
      }
      const bool must = fmaxf(high[0] - reference[2 * n], high[1] - reference[2 * n + 1]) > kSlack;
      if (!__any_sync(0xffffffffu, must)) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int step = 4; step < kWarp; step *= 2)
          high[i] = fmaxf(high[i], __shfl_xor_sync(0xffffffffu, high[i], step));
        const float raised = fmaxf(reference[2 * n + i], high[i] > kLowest ? ceilf(high[i]) : kLowest);
        const float keep = exp2_fast(reference[2 * n + i] - raised);
        reference[2 * n + i] = raised;
        weights[2 * n + i] *= keep;
        zeros[2 * n + i] *= keep;
      }
    }
  }

  /// Weights of 2 x 16 tokens, times values' scales, as operands of products field and field + 1. Tokens of rows g + 8
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
      const unsigned char* at = scales + g * kScaleStride + head * 4 * kTileTokens + 2 * field;
      __half2 scale[2], zero[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        scale[r] = *reinterpret_cast<const __half2*>(at + 16 * r);
        zero[r] = *reinterpret_cast<const __half2*>(at + 16 * r + 2 * kTileTokens);
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
        const float unit = weight_unit(field) * (side == 0 ? 1.0f : 0.25f), inverse = 1.0f / unit;
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
        operands[field + side][n][lane] = make_uint2(operand[0], operand[1]);
      }
      if (g == 0) {
        *reinterpret_cast<float2*>(&references[field / 2][8 * n + 2 * c]) =
            make_float2(reference[2 * n], reference[2 * n + 1]);
      }
    }
  }

  __device__ void publish_sums(SharedState<products>& state, int warp, int lane) {
#pragma unroll
    for (int i = 0; i < 2 * products; ++i) {
#pragma unroll
      for (int step = 4; step < kWarp; step *= 2) {
        weights[i] += __shfl_xor_sync(0xffffffffu, weights[i], step);
        zeros[i] += __shfl_xor_sync(0xffffffffu, zeros[i], step);
      }
      if (lane >= 4) continue;
      const int column = i / 2 * 8 + 2 * lane + i % 2;
      state.sums[warp][column] = weights[i];
      state.zeros[warp][column] = zeros[i];
      state.last_references[warp][column] = reference[i];
    }
  }
};

/// Bits of a warp's 2 x 16 tokens, of tile g bits g (token field + side) and g + 8 (token 8 later): those below `end`
/// that are no sinks. sink: of each lane, -1: none.
__device__ __forceinline__ uint2 valid_rows(int group, int field, int end, int sink) {
  uint32_t valid[kSides] = {};
#pragma unroll 1
  for (int i = 0; i < 16 * kSides; ++i) {
    const int token = group * kGroupTokens + i % 8 * kTileTokens + i / 8 % 2 * 8 + field + i / 16;
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
    if (side == 1) valid[1] &= keep;
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
    const int place = 2 * at;
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
