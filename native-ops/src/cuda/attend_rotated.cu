/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Decode attention over rotatekv2, head_dim 128, on tensor cores: 2-bit codes with a scale and zero per token and head,
// keys rotated over groups of heads before RoPE, values head by head. Keys are never rebuilt.
//
// A block takes a part of a sequence for 4 kv heads, 128 tokens (8 tiles) at a time; all its warps copy, all meet once
// per 128 tokens. Then warp w finds the scores of tokens w and w + 8 of each tile for all heads, and adds the values of
// the 128 tokens before for half the channels of one head. The last part is what is kept exactly, by plain code.
//
//   k_h = sum over heads g of mixing(h, g) s_g (H c_g - 128 z_g e_0) / sqrt(128), turned to its position. H, 128 x 128,
//   is a product of transforms of the bits of the channel:
//   - bits 0 to 3: a product of codes (subnormal halves, see static_keys.cuh) with H_16, exact in halves;
//   - bits 4 and 5: additions of halves, exact;
//   - bit 6, which is what RoPE pairs: y_i + j y_(i + 64) = (1 + j) (x0 - j x1), with x0, x1 the transforms of both
//     halves; 1 - j goes into the query;
//   - zeros: a constant only meets element 0 of x0 and x1;
//   - heads: every stored head meets all queries of the block; scales and mixing are factors of the sums.
//   In an order of channels, elements have their groups' scales before they are transformed: products of scales with
//   one-hot columns spread them over channels, which costs two products more for each of H_16's (for 16 groups).
//   RoPE turns keys by their place in the 128 tokens, constants that a warp keeps; the query is turned back by the
//   first token's position.
#include "block_merge.cuh"
#include "elements.cuh"
#include "launch.cuh"
#include "mean_term.cuh"
#include "norm_values.cuh"
#include "query_state.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = 128, kPairs = kDim / 2, kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kKeyStride = 512 + 64;  // of a tile in shared memory: quarter warps then read different banks
constexpr int kScaleBytes = kRotatedHeads * 4 * kTileTokens;  // of a tile: 16 scales, 16 zeros of each head
/// Weights are halves with this factor and fields are codes times 2^(p - 24): sums have a factor of 2^-21.
__device__ __forceinline__ float weight_unit(int product) {
  return 8.0f / static_cast<float>(1 << field_position(product));
}
constexpr float kSumFactor = 2097152.0f;

/// A stage of the ring, in bytes; keys' scales, of as many groups as they need, are its end.
struct Stage {
  static constexpr int kValues = kRotatedHeads * 8 * kKeyStride;
  static constexpr int kValueScales = kValues + kRotatedHeads * 8 * kValueStride;
  static constexpr int kKeyScales = kValueScales + 8 * kScaleBytes;
};

/// What depends on the order of channels. In natural order each head has a group of its own; else any channel may be in
/// any group of the layer.
struct RotatedLayout {
  int groups, steps;  // of keys' scales that a block reads; products of 16 groups each
  int stages, stage_bytes;
  int one_hot_bytes;  // [4 heads][8][steps][32 lanes] of 16 bytes

  __host__ __device__ int key_scale_bytes() const { return groups * 4 * kTileTokens; }  // of a tile
};

/// Columns are query heads: with two products of 8 columns each, head h of the block has column 4 (h % 2) + r of
/// product h / 2; with one, column 4 (h % 2) + 2 (h / 2) + r.
template <int products>
struct Columns {
  static __device__ int head(int column) {
    return products == 2 ? column / 8 * 2 + column / 4 % 2 : column / 4 + column / 2 % 2 * 2;
  }
  static __device__ int query(int column) { return products == 2 ? column % 4 : column % 2; }
  static __device__ int of(int head, int query) {
    return products == 2 ? head / 2 * 8 + head % 2 * 4 + query : head % 2 * 4 + head / 2 * 2 + query;
  }
};

template <int products>
struct SharedState {
  uint32_t queries[2][products][4][kWarp]
                  [4];                        // second operands: words 2 i, 2 i + 1 of 16 pairs i, real, then imaginary
  uint2 weights[2][kWarps][products][kWarp];  // second operands for values
  float references[2][kWarps][8 * products];
  float sums[kWarps][8 * products], zeros[kWarps][8 * products];
  float value_references[kRotatedHeads][8];
};

/// Copies 128 tokens.
__device__ __forceinline__ void copy_group(const CacheView& cache, const RotatedLayout& layout, int first_head,
                                           int2 ids, unsigned char* stage) {
  const int thread = threadIdx.x;
  const uint8_t *page0 = cache.pages + ids.x * cache.page_bytes, *page1 = cache.pages + ids.y * cache.page_bytes;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int chunk = i * kThreads + thread, head = chunk / 256, tile = chunk / 32 % 8, at = chunk % 32 * 16;
    const uint8_t* page = tile < kPageTiles ? page0 : page1;
    copy_async(stage + (head * 8 + tile) * kKeyStride + at,
               page + cache.keys.tile(first_head + head, tile % kPageTiles) + at);
    copy_async(stage + Stage::kValues + (head * 8 + tile) * kValueStride + at,
               page + cache.values.tile(first_head + head, tile % kPageTiles) + at);
  }
  if (thread < 128) {
    const int tile = thread / 16, at = thread % 16 * 16;
    copy_async(stage + Stage::kValueScales + tile * kScaleBytes + at,
               (tile < kPageTiles ? page0 : page1) + cache.values.scales(tile % kPageTiles, first_head) + at);
  }
  const int chunks = layout.groups * 4, first_group = cache.keys.order == nullptr ? first_head : 0;
  for (int i = thread; i < 8 * chunks; i += kThreads) {
    const int tile = i / chunks, at = i % chunks * 16;
    copy_async(stage + Stage::kKeyScales + tile * layout.key_scale_bytes() + at,
               (tile < kPageTiles ? page0 : page1) + cache.keys.scales(tile % kPageTiles, first_group) + at);
  }
}

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
    // 2^9: in natural order products with H_16 have a factor of 2^-9.
    const float unit = cache.keys.order == nullptr ? 512.0f : 1.0f;
    const float scale = cache.score_scale * kLog2e * unit * 0.08838834764831845f;
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
template <int products, bool kOrdered>
struct KeyWarp {
  uint32_t cosines[16], sines[16];  // of rows g, g + 8 and pairs 16 i + 2 c, + 8
  uint32_t h[4];                    // H_16: two words for columns 0 to 7, two for 8 to 15
  uint32_t select_low, select_high, mask;
  float mixing_of[kRotatedHeads][products];
  float reference[2 * products], weights[2 * products], zeros[2 * products];

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
    const float unit = kOrdered ? 1.0f : static_cast<float>(1 << (15 - field_position(warp)));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int channel = 4 * c + i % 2 * 2, column = g + i / 2 * 8;
      h[i] = pack_halves((__popc(channel & column) & 1) != 0 ? -unit : unit,
                         (__popc((channel + 1) & column) & 1) != 0 ? -unit : unit);
    }
    select_low = warp < 4 ? 0x5410u : 0x6521u;   // bytes 0 (or 1) of both words
    select_high = warp < 4 ? 0x7632u : 0x7763u;  // bytes 2 (or 3)
    mask = 0x00030003u << field_position(warp);
    const int heads = cache.keys.rotation_heads;
#pragma unroll
    for (int n = 0; n < products; ++n) {
      const int own = Columns<products>::head(8 * n + 2 * c);
#pragma unroll
      for (int head = 0; head < kRotatedHeads; ++head) {
        mixing_of[head][n] = own / heads == head / heads ? mixing(heads, own % heads, head % heads) : 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * products; ++i) {
      reference[i] = kLowest;
      weights[i] = zeros[i] = 0.0f;
    }
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

  /// The 16 tokens' elements of 16 channels, as first operand: codes as they are, or, in an order, times their groups'
  /// scales, which products with one-hot columns spread over channels.
  __device__ __forceinline__ void load_elements(uint32_t (&a)[4], const uint4& w, const uint32_t (&scales)[2][4],
                                                const uint32_t (&offsets)[2][4], const uint4* one_hot, int steps,
                                                int lane) const {
    a[0] = __byte_perm(w.x, w.y, select_low) & mask;
    a[1] = __byte_perm(w.x, w.y, select_high) & mask;
    a[2] = __byte_perm(w.z, w.w, select_low) & mask;
    a[3] = __byte_perm(w.z, w.w, select_high) & mask;
    if constexpr (kOrdered) {
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
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
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

  /// Scores (base 2) of 16 tokens.
  __device__ __forceinline__ void score(float (&scores)[products][4], const unsigned char* stage,
                                        const uint32_t (&queries)[products][4][kWarp][4], const RotatedLayout& layout,
                                        const uint4* one_hot, int warp, int lane) const {
    uint32_t scales_of[2][4] = {}, offsets[2][4] = {};
    if constexpr (kOrdered) {
      load_scales(scales_of[0], offsets[0], stage, layout, 0, warp, lane);
      if (layout.steps > 1) load_scales(scales_of[1], offsets[1], stage, layout, 1, warp, lane);
    }
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
    // Element 0 of a half of the channels is in the lanes with c = 0. -64 z 2^-9.
    const __half2 element0 = __floats2half2_rn(lane % 4 == 0 ? -0.125f : 0.0f, 0.0f);
#pragma unroll
    for (int head = 0; head < kRotatedHeads; ++head) {
      const auto* scales =
          reinterpret_cast<const __half*>(stage + Stage::kKeyScales + lane / 4 * kScaleBytes + head * 4 * kTileTokens) +
          warp;
      uint32_t x[8][4];
      transform(x, stage + head * 8 * kKeyStride, scales_of, offsets, one_hot + head * 8 * layout.steps * kWarp,
                layout.steps, lane);
#pragma unroll
      for (int r = 0; r < 2 && !kOrdered; ++r) {
        const __half2 zero = __half2half2(scales[kTileTokens + 8 * r]);
        x[0][r] = as_bits(__hfma2(zero, element0, as_half2(x[0][r])));
        x[4][r] = as_bits(__hfma2(zero, element0, as_half2(x[4][r])));
      }
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
      const float s0 = kOrdered ? 1.0f : __half2float(scales[0]), s1 = kOrdered ? 1.0f : __half2float(scales[8]);
#pragma unroll
      for (int n = 0; n < products; ++n) {
        const float f0 = s0 * mixing_of[head][n], f1 = s1 * mixing_of[head][n];
        scores[n][0] = fmaf(f0, sums[n][0], scores[n][0]);
        scores[n][1] = fmaf(f0, sums[n][1], scores[n][1]);
        scores[n][2] = fmaf(f1, sums[n][2], scores[n][2]);
        scores[n][3] = fmaf(f1, sums[n][3], scores[n][3]);
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
      state.references[0][warp][column] = reference[i];
    }
  }
};

/// Sums of weighted codes: 64 channels of a head, 8 columns.
struct ValueWarp {
  float sums[4][4] = {}, reference[2] = {kLowest, kLowest}, own_reference = kLowest;  // columns 2 c, 2 c + 1; g

  /// codes: those of a head; operands, references: of the head's columns, `stride` apart for each of 8 products.
  template <int products>
  __device__ __forceinline__ void add(const unsigned char* codes, const uint2 (&operands)[kWarps][products][kWarp],
                                      const float (&references)[kWarps][8 * products], int n, int half, int lane) {
    const int g = lane / 4, c = lane % 4;
    const unsigned char* first = codes + c * 2 * kValueStride + g * 16 + half * 256;
    uint32_t words[2][8];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const uint4 x = *reinterpret_cast<const uint4*>(first + 128 * m);
      const uint4 y = *reinterpret_cast<const uint4*>(first + 128 * m + kValueStride);
      const uint32_t all[8] = {x.x, x.y, x.z, x.w, y.x, y.y, y.z, y.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) words[m][i] = all[i] ^ 0xffff0000u;
    }
#pragma unroll
    for (int f = 0; f < kProducts; ++f) {
      const float theirs = references[f][8 * n + g];
      if (__any_sync(0xffffffffu, theirs > own_reference)) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float raised = fmaxf(reference[i], references[f][8 * n + 2 * c + i]);
          const float keep = exp2_fast(reference[i] - raised);
          reference[i] = raised;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            sums[j][i] *= keep;
            sums[j][2 + i] *= keep;
          }
        }
        own_reference = fmaxf(own_reference, theirs);
      }
      const __half2 factor = __float2half2_rn(exp2_fast(theirs - own_reference));
      const uint2 b = operands[f][n][lane];
      const uint32_t b0 = as_bits(__hmul2(as_half2(b.x), factor)), b1 = as_bits(__hmul2(as_half2(b.y), factor));
      const uint32_t mask = 0x00030003u << field_position(f);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        uint32_t a[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) a[i] = (f < 4 ? words[m][i] : words[m][i] >> 8) & mask;
        mma(sums[2 * m], a[0], a[1], a[4], a[5], b0, b1);
        mma(sums[2 * m + 1], a[2], a[3], a[6], a[7], b0, b1);
      }
    }
  }
};

/// The exact part, a warp a query head: sinks, wherever they are, then the window.
__device__ __noinline__ void attend_exact_heads(const CacheView& cache, const Attention& p, int b, int first_head,
                                                int part) {
  constexpr int n = kDim / kWarp;
  const int lane = threadIdx.x % kWarp, per_head = cache.heads / cache.kv_heads;
  const int position = cache.length(b), quantized = cache.quantized(b, position + 1);
  const float scale = cache.score_scale * kLog2e;
  for (int i = threadIdx.x / kWarp; i < kRotatedHeads * per_head; i += kWarps) {
    const int head = first_head * per_head + i, kv_head = first_head + i / per_head;
    float q[n];
    const int64_t row = static_cast<int64_t>(b) * (cache.heads + 2 * cache.kv_heads) + head;
#pragma unroll
    for (int j = 0; j < n; ++j) q[j] = load_element(p.type, p.qkv, row * kDim + lane * n + j) * scale;
    turn_head(cache, position, lane, q);
    QueryState<n> state;
    const auto add = [&](const Place& place, int token) {
      float k[n], v[n];
      read_exact(cache, place, kv_head, true, lane, k);
      read_exact(cache, place, kv_head, false, lane, v);
      turn_head(cache, token, lane, k);
      state.add(dot(q, k), v, false);
    };
    for (int slot = 0; slot < cache.sink_pages * kExactTokens; ++slot) {
      const uint8_t* page = cache.sink_page(b, slot / kExactTokens);
      const int token = reinterpret_cast<const ExactHeader*>(page)->tokens[slot % kExactTokens];
      if (token >= 0 && token <= position) add({page, slot % kExactTokens}, token);
    }
    for (int token = quantized; token <= position; ++token) {
      const Place place = find_token(cache, b, token, quantized);
      if (place.exact == cache.window_page(b, token)) add(place, token);  // else it is a sink
    }
    const int64_t to = (static_cast<int64_t>(b) * cache.heads + head) * p.parts + part;
#pragma unroll
    for (int j = 0; j < n; ++j) p.sums[to * kDim + lane * n + j] = state.natural[j];
    if (lane == 0) p.ranges[to] = make_float2(state.maximum, state.weights);
  }
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

template <int products, bool kOrdered>
__global__ void __launch_bounds__(kThreads, 1)
    attend_rotated_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Attention p,
                          const __grid_constant__ RotatedLayout layout) {
  KVQUANT_DYNAMIC_SHARED(shared);
  auto* one_hot = reinterpret_cast<uint4*>(shared + layout.stages * layout.stage_bytes);
  auto& state =
      *reinterpret_cast<SharedState<products>*>(shared + layout.stages * layout.stage_bytes + layout.one_hot_bytes);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int first_head = blockIdx.x * kRotatedHeads, b = blockIdx.y, part = blockIdx.z;
  const int per_head = cache.heads / cache.kv_heads;
  release_next_kernel();
  const int parts = p.parts - (cache.window > 0 || cache.sink_pages > 0 ? 1 : 0);
  if (part == parts) return attend_exact_heads(cache, p, b, first_head, part);
  const int length = cache.length(b) + 1, tokens = cache.quantized(b, length);
  const int groups = (tokens + kGroupTokens - 1) / kGroupTokens;
  const int begin = static_cast<int>(static_cast<int64_t>(groups) * part / parts);
  const int end = static_cast<int>(static_cast<int64_t>(groups) * (part + 1) / parts);
  if (begin == end) {
    for (int i = threadIdx.x; i < kRotatedHeads * per_head; i += kThreads) {
      const int64_t row = static_cast<int64_t>(b) * cache.heads + first_head * per_head + i;
      p.ranges[row * p.parts + part] = make_float2(kLowest, 0.0f);
    }
    return;
  }

  const int pages = (tokens + kPageTokens - 1) / kPageTokens;
  const int32_t* table = cache.page_table + static_cast<int64_t>(b) * cache.page_columns;
  const auto stage_of = [&](int group) { return shared + (group - begin) % layout.stages * layout.stage_bytes; };
  const auto copy = [&](int group) {
    if (group < end) {
      const int2 ids = make_int2(table[2 * group], table[min(2 * group + 1, pages - 1)]);
      copy_group(cache, layout, first_head, ids, stage_of(group));
    }
    commit_copies();
  };
  const auto angle = [&](int group) {
    return rope_angle(cache, min(group, end - 1) * kGroupTokens, threadIdx.x % kPairs);
  };
  int sink = -1;  // a lane a slot
  if (lane < cache.sink_pages * kExactTokens) {
    const auto* header = reinterpret_cast<const ExactHeader*>(cache.sink_page(b, lane / kExactTokens));
    sink = header->tokens[lane % kExactTokens];
    if (sink >= length) sink = -1;
  }
  const Queries<products> queries(cache, p, b, first_head);
  KeyWarp<products, kOrdered> keys(cache, warp, lane);
  ValueWarp values;
  float2 next = angle(begin + 1);
  queries.store(angle(begin), state.queries[begin % 2]);
  if constexpr (kOrdered) fill_one_hot(cache, layout, first_head, one_hot);
  const int ahead = layout.stages - 2;
  copy(begin);
  if (ahead > 1) copy(begin + 1);

  const int head = warp / 2, column = Columns<products>::of(head, 0);
  const auto add_values = [&](int group) {
    const unsigned char* stage = stage_of(group);
    values.add<products>(stage + Stage::kValues + head * 8 * kValueStride, state.weights[group % 2],
                         state.references[group % 2], column / 8, warp % 2, lane);
  };
  for (int group = begin; group < end; ++group) {
    if (ahead > 1) {
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    __syncthreads();
    copy(group + ahead);  // where group - 2 was, whose values all have added
    if (group + 1 < end) {
      queries.store(next, state.queries[(group + 1) % 2]);
      next = angle(group + 2);
    }
    const unsigned char* stage = stage_of(group);
    const uint32_t valid = valid_rows(group, warp, tokens, sink);
    float scores[products][4] = {};
    keys.score(scores, stage, state.queries[group % 2], layout, one_hot, warp, lane);
    keys.weigh(scores, valid, stage + Stage::kValueScales, state.weights[group % 2][warp],
               state.references[group % 2][warp], warp, lane);
    if (group > begin) add_values(group - 1);
  }
  __syncthreads();
  add_values(end - 1);
  __syncthreads();

  // The warps' sums: references are those that keys' warps had last.
  keys.publish_sums(state, warp, lane);
  auto* out = reinterpret_cast<float*>(shared);
  const int g = lane / 4, c = lane % 4;
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int channel = (warp % 2 * 2 + m / 2) * 32 + 4 * g + m % 2 * 2 + j / 2;
      out[(head * 8 + 2 * c + j % 2) * kMergeStride<kDim> + channel] = values.sums[m][j] * kSumFactor;
    }
  }
  if (lane < 4 && warp % 2 == 0) {
    state.value_references[head][2 * lane] = values.reference[0];
    state.value_references[head][2 * lane + 1] = values.reference[1];
  }
  __syncthreads();
  for (int i = warp; i < kRotatedHeads * per_head; i += kWarps) {
    const int own = i / per_head, at = Columns<products>::of(own, i % per_head);
    const float reference = state.value_references[own][at % 8];
    float weights = 0.0f, zeros = 0.0f, x[kDim / kWarp];
    for (int w = 0; w < kWarps; ++w) {
      const float factor = exp2_fast(state.references[0][w][at] - reference);
      weights = fmaf(state.sums[w][at], factor, weights);
      zeros = fmaf(state.zeros[w][at], factor, zeros);
    }
#pragma unroll
    for (int j = 0; j < kDim / kWarp; ++j) {
      x[j] = out[(own * 8 + at % 8) * kMergeStride<kDim> + lane * (kDim / kWarp) + j] - zeros;
    }
    if (cache.values.rotated) walsh_hadamard(x, lane);
    const int64_t to = (static_cast<int64_t>(b) * cache.heads + first_head * per_head + i) * p.parts + part;
#pragma unroll
    for (int j = 0; j < kDim / kWarp; ++j) p.sums[to * kDim + lane * (kDim / kWarp) + j] = x[j];
    if (lane == 0) p.ranges[to] = make_float2(reference, weights);
  }
}

RotatedLayout describe(const CacheView& cache) {
  const bool ordered = cache.keys.order != nullptr;
  RotatedLayout layout = {};
  layout.groups = ordered ? cache.kv_heads : kRotatedHeads;
  layout.steps = (layout.groups + 15) / 16;
  layout.stages = layout.groups > 16 ? 3 : 4;
  layout.stage_bytes = Stage::kKeyScales + 8 * layout.key_scale_bytes();
  layout.one_hot_bytes = ordered ? kRotatedHeads * 8 * layout.steps * kWarp * 16 : 0;
  return layout;
}

template <int products, bool kOrdered>
void launch_rotated(const CacheView& cache, const Attention& p, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(cache.kv_heads / kRotatedHeads), static_cast<unsigned>(cache.batch),
                    static_cast<unsigned>(p.parts));
  const LaunchShape shape{blocks, kThreads, static_cast<size_t>(attend_rotated_shape(cache).shared_bytes), stream};
  launch("attend", attend_rotated_kernel<products, kOrdered>, shape, cache, p, describe(cache));
}

template <int products>
void launch_order(const CacheView& cache, const Attention& p, cudaStream_t stream) {
  if (cache.keys.order != nullptr) {
    launch_rotated<products, true>(cache, p, stream);
  } else {
    launch_rotated<products, false>(cache, p, stream);
  }
}

}  // namespace

bool attend_rotated_supports(const CacheView& cache) {
  const auto side = [](const SideView& x) {
    return x.format == Format::kAffine && x.bits == 2 && x.group_size == kDim;
  };
  const int heads = cache.keys.rotation_heads, most = cache.keys.order != nullptr ? 32 : cache.kv_heads;
  return cache.head_dim == kDim && side(cache.keys) && side(cache.values) && cache.keys_pre_rope != 0 &&
         cache.kv_heads % kRotatedHeads == 0 && cache.kv_heads <= most && (heads == 1 || heads == 2 || heads == 4) &&
         cache.heads / cache.kv_heads <= 4 && cache.sink_pages * kExactTokens <= kWarp &&
         cache.rope_rows >= kPageTokens + 2;  // 128 positions, which keys are turned by
}

AttentionShape attend_rotated_shape(const CacheView& cache) {
  const bool two = cache.heads / cache.kv_heads > 2;
  const size_t state = two ? sizeof(SharedState<2>) : sizeof(SharedState<1>);
  const RotatedLayout layout = describe(cache);
  const int bytes = layout.stages * layout.stage_bytes + layout.one_hot_bytes + static_cast<int>(state);
  // A block's warps work on the same tokens: as one warp that takes them one after another.
  return {1, bytes, 1, kGroupTokens};
}

void attend_rotated(const CacheView& cache, const Attention& p, cudaStream_t stream) {
  if (cache.heads / cache.kv_heads > 2) {
    launch_order<2>(cache, p, stream);
  } else {
    launch_order<1>(cache, p, stream);
  }
}

}  // namespace kvquant::cuda
