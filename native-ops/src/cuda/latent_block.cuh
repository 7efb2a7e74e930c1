/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// What the warps of a block of attend_latent.cu share, and what each does beside rebuilding keys: copies, queries,
// softmax, values.
#pragma once
#include "elements.cuh"
#include "latent_keys.cuh"

namespace kvquant::cuda {

constexpr int kLatentWarps = 8, kLatentThreads = kLatentWarps * kWarp, kTiles = 8;
constexpr int kWarpBits = 3;
constexpr int kLatentStages = 4;

struct LatentLayer {
  LatentKeys keys;
  int key_stride;  // bytes from one tile of keys to the next in shared memory
  int stage_bytes, basis_bytes;
  float level_step;
};

struct LatentShared {
  __half queries[2][kHeads * kTurnedStride<kDim>];  // of a group of tokens and the next one
  uint2 weights[2][kProducts][kWarp];               // second operands
  float maxima[kLatentWarps][kHeads], norms[kLatentWarps], bias[kLatentWarps][2];
  float weight_sums[kLatentWarps][kHeads], one_sums[kLatentWarps][kHeads];
};

constexpr int kOutBytes = kHeads * kMergeStride<kDim> * 4;  // sums of values, at last, from the beginning on
constexpr int kScratchAt = (kTurnBytes + 127) / 128 * 128;
constexpr int kSharedAt = (kScratchAt + static_cast<int>(sizeof(MergeScratch<kLatentWarps>)) + 127) / 128 * 128;
constexpr int kBasisAt = (kSharedAt + static_cast<int>(sizeof(LatentShared)) + 127) / 128 * 128;
constexpr int kExactStride = 2 * Fp16Tile<kDim>::kBytes;  // a warp's tiles of exact tokens, from the basis on
static_assert(kOutBytes <= kScratchAt, "sums fit where angles were");

/// A thread's part of queries: a pair of channels of two columns, turned, times the score's factor.
struct PairQueries {
  float2 x[2];

  __device__ __forceinline__ PairQueries(const CacheView& cache, const Attention& p, const BlockHeads& heads) {
    const int pair = threadIdx.x % (kDim / 2);
    const float2 angle = rope_angle(cache, cache.length(heads.b), pair);
    const float scale = cache.score_scale * kLog2e;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int head = threadIdx.x / (kDim / 2) * 2 + i;
      const int64_t row = static_cast<int64_t>(heads.b) * (cache.heads + 2 * cache.kv_heads) + heads.first + head;
      x[i] = make_float2(0.0f, 0.0f);
      if (head >= heads.count) continue;
      const float2 y = turn(load_element(p.type, p.qkv, row * kDim + pair),
                            load_element(p.type, p.qkv, row * kDim + pair + kDim / 2), angle);
      x[i] = make_float2(y.x * scale, y.y * scale);
    }
  }

  /// Turned back, in halves.
  __device__ __forceinline__ void store(float2 angle, __half* to) const {
    to += threadIdx.x / (kDim / 2) * 2 * kTurnedStride<kDim> + threadIdx.x % (kDim / 2);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      to[i * kTurnedStride<kDim>] = __float2half_rn(fmaf(x[i].x, angle.x, x[i].y * angle.y));
      to[i * kTurnedStride<kDim> + kDim / 2] = __float2half_rn(fmaf(x[i].y, angle.x, -x[i].x * angle.y));
    }
  }
};

/// A warp's part in softmax and in sums of values: columns 2 c and 2 c + 1.
struct LatentWarp {
  float reference[2] = {kLowest, kLowest}, weights[2] = {}, ones[2] = {}, sums[4] = {};
  float norm_scale = 0.0f, limit = -1.0f;

  __device__ __forceinline__ void multiply(float factor0, float factor1) {
    ones[0] *= factor0;
    ones[1] *= factor1;
    sums[0] *= factor0;
    sums[1] *= factor1;
    sums[2] *= factor0;
    sums[3] *= factor1;
  }

  __device__ __forceinline__ bool must_raise(const float (&scores)[4], float norm) const {
    return fmaxf(fmaxf(scores[0], scores[2]) - reference[0], fmaxf(scores[1], scores[3]) - reference[1]) > kSlack ||
           norm > limit;
  }

  /// All warps of a block agree on references and on the scale of norms.
  __device__ __forceinline__ void raise(LatentShared& shared, float maximum0, float maximum1, float norm, int warp,
                                        int lane) {
#pragma unroll
    for (int step = 4; step < kWarp; step *= 2) {
      maximum0 = fmaxf(maximum0, __shfl_xor_sync(0xffffffffu, maximum0, step));
      maximum1 = fmaxf(maximum1, __shfl_xor_sync(0xffffffffu, maximum1, step));
      norm = fmaxf(norm, __shfl_xor_sync(0xffffffffu, norm, step));
    }
    if (lane < 4) {
      shared.maxima[warp][2 * lane] = maximum0;
      shared.maxima[warp][2 * lane + 1] = maximum1;
      shared.norms[warp] = norm;
    }
    __syncthreads();
    for (int w = 0; w < kLatentWarps; ++w) {
      maximum0 = fmaxf(maximum0, shared.maxima[w][lane % 4 * 2]);
      maximum1 = fmaxf(maximum1, shared.maxima[w][lane % 4 * 2 + 1]);
      norm = fmaxf(norm, shared.norms[w]);
    }
    const float raised0 = fmaxf(reference[0], maximum0), raised1 = fmaxf(reference[1], maximum1);
    const float keep0 = exp2_fast(reference[0] - raised0), keep1 = exp2_fast(reference[1] - raised1);
    reference[0] = raised0;
    reference[1] = raised1;
    weights[0] *= keep0;
    weights[1] *= keep1;
    multiply(keep0, keep1);
    if (norm > limit) {  // as ValueSums::make_room
      const int exponent = norm > 0.0f ? ((__float_as_int(norm) >> 23) & 0xff) - 127 : 0;
      const float wanted = __int_as_float((127 - min(max(exponent, -40), 20)) << 23);
      const float keep = norm_scale > 0.0f ? wanted / norm_scale : 0.0f;
      multiply(keep, keep);
      norm_scale = wanted;
      limit = 8.0f / wanted;
    }
    __syncthreads();
  }

  /// Weights of product f times norms, as operands. Tokens of rows g + 8 are negative, their codes 3 - code.
  __device__ __forceinline__ uint2 weigh(const float (&scores)[4], float norm0, float norm1, int f) {
    const float unit = norm_scale * static_cast<float>(1 << (6 - field_position(f)));
    const float one = 1.0f / static_cast<float>(1 << (24 - field_position(f)));
    const float a = norm0 * unit, b = -norm1 * unit;
    float w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float weight = exp2_fast(scores[i] - reference[i % 2]);
      weights[i % 2] += weight;
      w[i] = round_to_half(weight * (i < 2 ? a : b));
      ones[i % 2] = fmaf(w[i], one, ones[i % 2]);
    }
    uint32_t operand[2];
    weight_operand(operand, w[0], w[1], w[2], w[3]);
    return make_uint2(operand[0], operand[1]);
  }

  /// Adds 16 channels of the values of a group: row g channel 32 (warp / 2) + 4 g + warp % 2 * 2, row g + 8 the next.
  __device__ __forceinline__ void add_values(const unsigned char* values, const uint2 (&operands)[kProducts][kWarp],
                                             int warp, int lane) {
    const int c = lane % 4;
    const unsigned char* from =
        values + c * 2 * kValueTileBytes + ((lane / 4 * 16) ^ value_swizzle(2 * c)) + warp / 2 * 128 + warp % 2 * 8;
    uint2 x = *reinterpret_cast<const uint2*>(from), y = *reinterpret_cast<const uint2*>(from + kValueTileBytes);
    float other[4] = {};
#pragma unroll
    for (int f = 0; f < kProducts; ++f) {
      if (f == 4) {
        x = make_uint2(x.x >> 8, x.y >> 8);
        y = make_uint2(y.x >> 8, y.y >> 8);
      }
      const uint32_t mask = 0x00030003u << field_position(f);
      const uint2 b = operands[f][lane];
      const auto field = [&](uint32_t word) { return flip_and_mask(word, 0xffff0000u, mask); };
      mma(f % 2 == 0 ? sums : other, field(x.x), field(x.y), field(y.x), field(y.y), b.x, b.y);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] += other[i];
  }
};

/// Copies of groups of tokens to stages: a warp a tile.
struct LatentStream {
  const CacheView& cache;
  const LatentLayer& layer;
  const int32_t* table;
  unsigned char* stages;
  int kv_head, begin, end, pages, warp, lane;

  __device__ __forceinline__ unsigned char* stage(int group) const {
    return stages + (group - begin) % kLatentStages * layer.stage_bytes;
  }
  __device__ __forceinline__ unsigned char* values(int group) const { return stage(group) + kTiles * layer.key_stride; }
  __device__ __forceinline__ unsigned char* norms(int group) const { return values(group) + kTiles * kValueTileBytes; }
  __device__ __forceinline__ int load_id(int group) const { return table[min(2 * group + warp / 4, pages - 1)]; }

  __device__ __forceinline__ void start(int group, int id) const {
    if (group < end) {
      const uint8_t* page = cache.pages + id * cache.page_bytes;
      const uint8_t* from = page + cache.keys.tile(kv_head, warp % kPageTiles);
      unsigned char* to = stage(group) + warp * layer.key_stride;
      for (int at = lane * 16; at < cache.keys.tile_bytes; at += kWarp * 16) {
        copy_async(to + (at ^ key_swizzle(warp)), from + at);
      }
      copy_async(values(group) + warp * kValueTileBytes + ((lane * 16) ^ value_swizzle(warp)),
                 page + cache.values.tile(kv_head, warp % kPageTiles) + lane * 16);
      if (lane < 2) {
        copy_async(norms(group) + warp * kNormBytes + lane * 16, page + cache.values.norms +
                                                                     warp % kPageTiles * cache.values.norm_tile_bytes +
                                                                     kv_head * kNormBytes + lane * 16);
      }
    }
    commit_copies();
  }
};

}  // namespace kvquant::cuda
