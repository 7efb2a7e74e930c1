/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Keys of rotatekv2 in an order across the layer: from codes to weights of 16 tokens, by a warp; see
// attend_reordered.cu.
#pragma once
#include "column_sums.cuh"
#include "elements.cuh"
#include "reordered_layout.cuh"
#include "token_reader.cuh"

namespace kvquant::cuda::reordered {

/// Bits of the 16 tokens of a warp, of tile g bits g (token w) and g + 8 (token w + 8): those that are in codes.
__device__ __forceinline__ uint32_t valid_rows(int group, int warp, int tokens, int sink) {
  uint32_t valid = 0;
  for (int g = 0; g < 8; ++g) {
    const int token = group * kGroupTokens + g * kTileTokens + warp;
    valid |= (token < tokens ? 1u : 0u) << g | (token + 8 < tokens ? 1u : 0u) << (g + 8);
  }
  for (uint32_t left = __ballot_sync(0xffffffffu, sink >= 0 && sink / kGroupTokens == group); left != 0;
       left &= left - 1) {
    const int place = __shfl_sync(0xffffffffu, sink, __ffs(static_cast<int>(left)) - 1) % kGroupTokens;
    if (place % 8 == warp) valid &= ~(1u << (place / kTileTokens + place / 8 % 2 * 8));
  }
  return valid;
}

/// What a thread knows of queries: a pair of channels of some columns, turned, times the score's factor.
template <int products>
struct Queries {
  static constexpr int kOwn = 2 * products;
  float2 x[kOwn];

  __device__ Queries(const CacheView& cache, const Attention& p, int b, int first_head) {
    const int pair = threadIdx.x % kPairs, per_head = cache.heads / cache.kv_heads;
    const float2 angle = rope_angle(cache, cache.length(b), pair);
    const float scale = cache.score_scale * kLog2e * 0.08838834764831845f;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int column = threadIdx.x / kPairs * kOwn + i, r = Columns<products>::query(column);
      const int64_t row = static_cast<int64_t>(b) * (cache.heads + 2 * cache.kv_heads) +
                          (first_head + Columns<products>::head(column)) * per_head + r;
      x[i] = make_float2(0.0f, 0.0f);
      if (r >= per_head) continue;
      const float2 y = turn(load_element(p.type, p.qkv, row * kDim + pair),
                            load_element(p.type, p.qkv, row * kDim + pair + kPairs), angle);
      x[i] = make_float2(y.x * scale, y.y * scale);
    }
  }

  /// Turned back, times 1 - j, as operands.
  __device__ void store(float2 angle, uint32_t (&to)[products][4][kWarp][4]) const {
    const int pair = threadIdx.x % kPairs, k = pair % 16, word = pair / 16 * 2 + k / 8;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int column = threadIdx.x / kPairs * kOwn + i, lane = column % 8 * 4 + k % 8 / 2;
      const float re = fmaf(x[i].x, angle.x, x[i].y * angle.y), im = fmaf(x[i].y, angle.x, -x[i].x * angle.y);
      reinterpret_cast<__half*>(&to[column / 8][word / 4][lane][word % 4])[k % 2] = __float2half_rn(re + im);
      reinterpret_cast<__half*>(&to[column / 8][word / 4 + 2][lane][word % 4])[k % 2] = __float2half_rn(im - re);
    }
  }
};

/// A warp's constants and its share of softmax.
template <int products>
struct KeyWarp : ColumnSums<products> {
  using Sums = ColumnSums<products>;
  using Sums::reference, Sums::weights, Sums::zeros;
  uint32_t cosines[16], sines[16];  // of rows g, g + 8 and pairs 16 i + 2 c, + 8
  uint32_t h[4];                    // H_16: two words for columns 0 to 7, two for 8 to 15
  uint32_t select_low, select_high, mask;

  __device__ KeyWarp(const CacheView& cache, int warp, int lane) {
    const int g = lane / 4, c = lane % 4;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int place = g * kTileTokens + warp + i % 2 * 8, pair = i / 4 * 16 + i % 4 / 2 * 8 + 2 * c;
      const float2 a = rope_angle(cache, place, pair), b = rope_angle(cache, place, pair + 1);
      cosines[i] = pack_halves(a.x, b.x);
      sines[i] = pack_halves(a.y, b.y);
    }
    // Rows 2 c, 2 c + 1, 2 c + 8 and 2 c + 9 of the operand are channels 4 c to 4 c + 3: a lane reads 16 bytes.
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int channel = 4 * c + i % 2 * 2, column = g + i / 2 * 8;
      h[i] = pack_halves((__popc(channel & column) & 1) != 0 ? -1.0f : 1.0f,
                         (__popc((channel + 1) & column) & 1) != 0 ? -1.0f : 1.0f);
    }
    select_low = warp < 4 ? 0x5410u : 0x6521u;   // bytes 0 (or 1) of both words
    select_high = warp < 4 ? 0x7632u : 0x7763u;  // bytes 2 (or 3)
    mask = 0x00030003u << field_position(warp);
    Sums::clear();
  }

  /// Scales and minus scales times zeros of the 16 tokens, groups 16 step to 16 step + 15, as first operands. Scales
  /// are those of codes times 2^p.
  __device__ __forceinline__ void load_scales(uint32_t (&scales)[4], uint32_t (&offsets)[4], const unsigned char* stage,
                                              const RotatedLayout& layout, int step, int warp, int lane) const {
    const float unit = 1.0f / static_cast<float>(1 << field_position(warp));
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      float scale[2], offset[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int group = 16 * step + 2 * (lane % 4) + r / 2 * 8 + j;
        const auto* at =
            reinterpret_cast<const __half*>(stage + Stage::kKeyScales + lane / 4 * layout.key_scale_bytes() +
                                            group * 4 * kTileTokens) +
            warp + r % 2 * 8;
        const bool there = group < layout.groups;
        scale[j] = there ? __half2float(at[0]) : 0.0f;
        offset[j] = there ? -scale[j] * __half2float(at[kTileTokens]) : 0.0f;
      }
      scales[r] = pack_halves(scale[0] * unit, scale[1] * unit);
      offsets[r] = pack_halves(offset[0], offset[1]);
    }
  }

  /// The 16 tokens' elements of 16 channels, as first operand: codes times their groups' scales, which
  /// products with one-hot columns spread over channels.
  __device__ __forceinline__ void load_elements(uint32_t (&a)[4], const uint4& w, const uint32_t (&scales)[2][4],
                                                const uint32_t (&offsets)[2][4], const uint4* one_hot, int steps,
                                                int lane) const {
    a[0] = __byte_perm(w.x, w.y, select_low) & mask;
    a[1] = __byte_perm(w.x, w.y, select_high) & mask;
    a[2] = __byte_perm(w.z, w.w, select_low) & mask;
    a[3] = __byte_perm(w.z, w.w, select_high) & mask;
    uint32_t factor[4] = {}, offset[4] = {};
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      if (step >= steps) break;
      const uint4 hot = one_hot[step * kWarp + lane];
      const auto spread = [&](uint32_t(&to)[4], const uint32_t(&from)[4]) {
        uint32_t x[4];
        mma_halves(x[0], x[1], from[0], from[1], from[2], from[3], hot.x, hot.y);
        mma_halves(x[2], x[3], from[0], from[1], from[2], from[3], hot.z, hot.w);
#pragma unroll
        for (int r = 0; r < 4; ++r) to[r] = step == 0 ? x[r] : as_bits(__hadd2(as_half2(to[r]), as_half2(x[r])));
      };
      spread(factor, scales[step]);
      spread(offset, offsets[step]);
    }
    const __half2 magic = __float2half2_rn(1024.0f);  // with bits of codes in its mantissa: 1024 + code 2^p
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const __half2 code = __hsub2(as_half2(a[r] | 0x64006400u), magic);
      a[r] = as_bits(__hfma2(code, as_half2(factor[r]), as_half2(offset[r])));
    }
  }

  /// The transform of a head, but for bit 6: words of 16 channels each, rows g, g + 8, g, g + 8.
  __device__ __forceinline__ void transform(uint32_t (&x)[8][4], const unsigned char* codes,
                                            const uint32_t (&scales)[2][4], const uint32_t (&offsets)[2][4],
                                            const uint4* one_hot, int steps, int lane) const {
    const unsigned char* from = codes + lane / 4 * kKeyStride + lane % 4 * 16;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      uint32_t a[4];
      load_elements(a, *reinterpret_cast<const uint4*>(from + 64 * i), scales, offsets, one_hot + i * steps * kWarp,
                    steps, lane);
      mma_halves(x[i][0], x[i][1], a[0], a[1], a[2], a[3], h[0], h[1]);
      mma_halves(x[i][2], x[i][3], a[0], a[1], a[2], a[3], h[2], h[3]);
    }
    transform_blocks(x);
  }

  /// Scores (base 2) of 16 tokens.
  __device__ __forceinline__ void score(float (&scores)[products][4], const unsigned char* stage,
                                        const uint32_t (&queries)[products][4][kWarp][4], const RotatedLayout& layout,
                                        const uint4* one_hot, const float (&mixing_of)[kRotatedHeads][products][4],
                                        int warp, int lane) const {
    uint32_t scales_of[2][4] = {}, offsets[2][4] = {};
    load_scales(scales_of[0], offsets[0], stage, layout, 0, warp, lane);
    if (layout.steps > 1) load_scales(scales_of[1], offsets[1], stage, layout, 1, warp, lane);
    uint32_t q[products][16];
#pragma unroll
    for (int n = 0; n < products; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint4 words = *reinterpret_cast<const uint4*>(queries[n][i][lane]);
        q[n][4 * i] = words.x;
        q[n][4 * i + 1] = words.y;
        q[n][4 * i + 2] = words.z;
        q[n][4 * i + 3] = words.w;
      }
    }
#pragma unroll 1
    for (int head = 0; head < kRotatedHeads; ++head) {
      uint32_t x[8][4];
      transform(x, stage + head * 8 * kKeyStride, scales_of, offsets, one_hot + head * 8 * layout.steps * kWarp,
                layout.steps, lane);
      float sums[products][4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t re[4], im[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const __half2 a = as_half2(x[i][r]), b = as_half2(x[i + 4][r]);
          const __half2 cosine = as_half2(cosines[4 * i + r]), sine = as_half2(sines[4 * i + r]);
          re[r] = as_bits(__hfma2(a, cosine, __hmul2(b, sine)));
          im[r] = as_bits(__hfma2(a, sine, __hneg2(__hmul2(b, cosine))));
        }
#pragma unroll
        for (int n = 0; n < products; ++n) {
          mma(sums[n], re[0], re[1], re[2], re[3], q[n][2 * i], q[n][2 * i + 1]);
          mma(sums[n], im[0], im[1], im[2], im[3], q[n][8 + 2 * i], q[n][9 + 2 * i]);
        }
      }
#pragma unroll
      for (int n = 0; n < products; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[n][i] = fmaf(mixing_of[head][n][lane % 4], sums[n][i], scores[n][i]);
      }
    }
  }

  /// Weights of 16 tokens, times values' scales, as operands. References are whole numbers: what follows from a change
  /// of one is exact. Tokens of rows g + 8 are negative, their codes 3 - code, as in norm_values.cuh.
  __device__ __forceinline__ void weigh(float (&scores)[products][4], uint32_t valid, const unsigned char* scales,
                                        uint2 (&operands)[products][kWarp], float* references, int warp, int lane) {
    const int g = lane / 4, c = lane % 4;
    const bool first = (valid >> g & 1u) != 0, second = (valid >> (g + 8) & 1u) != 0;
    const float unit = weight_unit(warp), inverse = 1.0f / unit;
#pragma unroll
    for (int n = 0; n < products; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!(i < 2 ? first : second)) scores[n][i] = -INFINITY;
      }
      const float high0 = fmaxf(scores[n][0], scores[n][2]), high1 = fmaxf(scores[n][1], scores[n][3]);
      if (__any_sync(0xffffffffu, fmaxf(high0 - reference[2 * n], high1 - reference[2 * n + 1]) > kSlack)) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float high = i == 0 ? high0 : high1;
#pragma unroll
          for (int step = 4; step < kWarp; step *= 2) high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, step));
          const float raised = fmaxf(reference[2 * n + i], high > kLowest ? ceilf(high) : kLowest);
          const float keep = exp2_fast(reference[2 * n + i] - raised);
          reference[2 * n + i] = raised;
          weights[2 * n + i] *= keep;
          zeros[2 * n + i] *= keep;
        }
      }
      const int head = Columns<products>::head(8 * n + 2 * c);
      const auto* range = reinterpret_cast<const __half*>(scales + g * kScaleBytes + head * 4 * kTileTokens) + warp;
      const float a = first ? __half2float(range[0]) * unit : 0.0f;
      const float b = second ? __half2float(range[8]) * -unit : 0.0f;
      const float zero0 = first ? __half2float(range[kTileTokens]) : 0.0f;
      const float zero1 = second ? 3.0f - __half2float(range[kTileTokens + 8]) : 0.0f;
      float w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float weight = exp2_fast(scores[n][i] - reference[2 * n + i % 2]);
        weights[2 * n + i % 2] += weight;
        w[i] = round_to_half(weight * (i < 2 ? a : b));
        zeros[2 * n + i % 2] = fmaf(w[i] * inverse, i < 2 ? zero0 : zero1, zeros[2 * n + i % 2]);
      }
      uint32_t operand[2];
      weight_operand(operand, w[0], w[1], w[2], w[3]);
      operands[n][lane] = make_uint2(operand[0], operand[1]);
      if (g == 0) {
        references[8 * n + 2 * c] = reference[2 * n];
        references[8 * n + 2 * c + 1] = reference[2 * n + 1];
      }
    }
  }
};

/// The share of stored heads in the heads of columns 2 c, 2 c + 1 of each product.
template <int products>
__device__ __forceinline__ void fill_mixing(const CacheView& cache, SharedState<products>& state) {
  if (threadIdx.x >= kRotatedHeads * products * 4) return;
  const int c = threadIdx.x % 4, n = threadIdx.x / 4 % products, head = threadIdx.x / (4 * products);
  const int own = Columns<products>::head(8 * n + 2 * c), heads = cache.keys.rotation_heads;
  state.mixing[head][n][c] = own / heads == head / heads ? mixing(heads, own % heads, head % heads) : 0.0f;
}

/// The one-hot columns of channels: in which of 16 groups a channel is. Columns g of two products are channels
/// 4 (g / 2) + g % 2 and 2 more, where codes are in operands.
__device__ __forceinline__ void fill_one_hot(const CacheView& cache, const RotatedLayout& layout, int first_head,
                                             uint4* one_hot) {
  for (int i = threadIdx.x; i < kRotatedHeads * 8 * layout.steps * kWarp; i += kThreads) {
    const int lane = i % kWarp, step = i / kWarp % layout.steps, block = i / kWarp / layout.steps;
    const int channel = first_head * kDim + block * 16 + lane / 8 * 4 + lane / 4 % 2, row = 16 * step + 2 * (lane % 4);
    const auto word = [](int at) { return at == 0 ? 0x3c00u : at == 1 ? 0x3c000000u : 0u; };
    const int low = cache.keys.group(channel) - row, high = cache.keys.group(channel + 2) - row;
    one_hot[i] = make_uint4(word(low), word(low - 8), word(high), word(high - 8));
  }
}

}  // namespace kvquant::cuda::reordered
