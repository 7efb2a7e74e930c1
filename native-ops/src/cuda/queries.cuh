/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Queries of decode attention as products want them.
#pragma once
#include "block_merge.cuh"
#include "elements.cuh"
#include "token_reader.cuh"

namespace kvquant::cuda {

/// A query as projected, a lane's channels as token_reader.cuh deals them; zeros for heads beyond the block's.
template <int n>
struct RawQuery {
  uint32_t bits[n];

  /// Starts to load it: nothing here waits.
  __device__ __forceinline__ void load(const CacheView& cache, const Attention& p, const BlockHeads& heads, int head,
                                       int lane) {
    const int64_t row = static_cast<int64_t>(heads.b) * (cache.heads + 2 * cache.kv_heads) + heads.first + head;
    const int64_t at = row * (n * kWarp) + lane * n;
    const bool mine = head < heads.count;
    if (p.type == ElementType::kFloat32) {
      const auto* from = static_cast<const uint32_t*>(p.qkv) + at;
#pragma unroll
      for (int i = 0; i < n; ++i) bits[i] = mine ? from[i] : 0;
    } else {
      const auto* from = static_cast<const uint16_t*>(p.qkv) + at;
#pragma unroll
      for (int i = 0; i < n; ++i) bits[i] = mine ? from[i] : 0;
    }
  }

  __device__ __forceinline__ void convert(ElementType type, float (&q)[n]) const {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float half = __half2float(__ushort_as_half(static_cast<unsigned short>(bits[i])));
      const float other = __uint_as_float(type == ElementType::kBFloat16 ? bits[i] << 16 : bits[i]);
      q[i] = type == ElementType::kFloat16 ? half : other;
    }
  }
};

template <int n>
__device__ __forceinline__ void load_query(const CacheView& cache, const Attention& p, const BlockHeads& heads,
                                           int head, int lane, float (&q)[n]) {
  RawQuery<n> raw;
  raw.load(cache, p, heads, head, lane);
  raw.convert(p.type, q);
}

/// The first queries of a block after RoPE, times the score's factor and log2(e): FP32 [8, D] in shared memory, zeros
/// beyond the block's heads.
template <int D>
__device__ __forceinline__ void turn_queries(const CacheView& cache, const Attention& p, const BlockHeads& heads,
                                             float* out, int count = kHeads) {
  constexpr int n = D / kWarp;
  const int lane = threadIdx.x % kWarp, position = cache.length(heads.b);
  const float scale = cache.score_scale * kLog2e;
  for (int head = threadIdx.x / kWarp; head < count; head += blockDim.x / kWarp) {
    float q[n];
    load_query(cache, p, heads, head, lane, q);
    turn_head(cache, position, lane, q);
#pragma unroll
    for (int i = 0; i < n; ++i) out[head * D + lane * n + i] = q[i] * scale;
  }
}

/// Second operands for Fp16Tile::score: lane 4 g + c holds channels 16 i + 2 c, + 1 and + 8, + 9 of head g.
template <int D>
__device__ __forceinline__ void load_operands(const float* queries, int lane, uint32_t (&q)[D / 8]) {
  const float* head = queries + lane / 4 * D + 2 * (lane % 4);
#pragma unroll
  for (int i = 0; i < D / 8; ++i) q[i] = pack_halves(head[8 * i], head[8 * i + 1]);
}

/// Fills the table of Fp16Tile::score_turned: cosines and sines of positions 0 to 15.
template <int D>
__device__ __forceinline__ void fill_angles(const CacheView& cache, float4* angles) {
  for (int i = threadIdx.x; i < D / 8 * kWarp; i += blockDim.x) {
    const int lane = i % kWarp, pair = i / (2 * kWarp) * 8 + 2 * (lane % 4), token = i / kWarp % 2 * 8 + lane / 4;
    const float *cosines = cache.rope + pair * kPageTokens + token, *sines = cosines + D / 2 * kPageTokens;
    angles[i] = make_float4(cosines[0], cosines[kPageTokens], sines[0], sines[kPageTokens]);
  }
}

}  // namespace kvquant::cuda
