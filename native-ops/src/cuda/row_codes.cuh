/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// A token's head in the registers of a thread or of two lanes: its transform, and how codes of 2 bits of 16 threads,
// tokens of a tile, become the words of channels.
#pragma once
#include "tile_rows.cuh"

namespace kvquant::cuda {

constexpr int kRowHalf = kRowDim / 2;

/// Reads a row of halves in shared memory, or a part of it.
template <int n>
__device__ __forceinline__ void load_row(const __half* row, float (&x)[n]) {
#pragma unroll
  for (int i = 0; i < n; i += 8) {
    const uint4 eight = *reinterpret_cast<const uint4*>(row + i);
    const uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 two = __half22float2(*reinterpret_cast<const __half2*>(&words[j]));
      x[i + 2 * j] = two.x;
      x[i + 2 * j + 1] = two.y;
    }
  }
}

/// The steps of core/rotation.h's transform between elements of an array in registers, or of each `length` of them.
template <int n, int length = n>
__device__ __forceinline__ void butterflies(float (&x)[n]) {
#pragma unroll
  for (int half = 1; half < length; half *= 2) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if (i & half) continue;
      const float a = x[i], b = x[i + half];
      x[i] = __fadd_rn(a, b);
      x[i + half] = __fsub_rn(a, b);
    }
  }
}

/// core/rotation.h's transform of a head in registers.
__device__ __forceinline__ void transform_row(float (&x)[kRowDim]) {
  butterflies(x);
  const float scale = __fdiv_rn(1.0f, __fsqrt_rn(static_cast<float>(kRowDim)));
#pragma unroll
  for (int i = 0; i < kRowDim; ++i) x[i] = __fmul_rn(x[i], scale);
}

/// The same of a head that two lanes hold, 16 lanes apart.
__device__ __forceinline__ void transform_half(float (&x)[kRowHalf], int lane) {
  butterflies(x);
  const float sign = lane < kTileTokens ? 1.0f : -1.0f;
  const float scale = __fdiv_rn(1.0f, __fsqrt_rn(static_cast<float>(kRowDim)));
#pragma unroll
  for (int i = 0; i < kRowHalf; ++i) {
    // A product with one or minus one is exact.
    x[i] = __fmul_rn(fmaf(sign, x[i], __shfl_xor_sync(0xffffffffu, x[i], kTileTokens)), scale);
  }
}

/// Transposes 16 x 16 codes of 2 bits within each half of a warp: a lane gives the codes of a token and gets those of a
/// channel.
__device__ __forceinline__ uint32_t transpose_codes(uint32_t x, int lane) {
  uint32_t y = __shfl_xor_sync(0xffffffffu, x, 8);
  x = __byte_perm(x, y, (lane & 8) != 0 ? 0x3276 : 0x5410);
  y = __shfl_xor_sync(0xffffffffu, x, 4);
  x = __byte_perm(x, y, (lane & 4) != 0 ? 0x3715 : 0x6240);
  y = __shfl_xor_sync(0xffffffffu, x, 2);
  const uint32_t own4 = (lane & 2) != 0 ? 0xf0f0f0f0u : 0x0f0f0f0fu;
  y = __funnelshift_l(y, y, (lane & 2) != 0 ? 28 : 4);
  x = (x & own4) | (y & ~own4);
  y = __shfl_xor_sync(0xffffffffu, x, 1);
  const uint32_t own2 = (lane & 1) != 0 ? 0xccccccccu : 0x33333333u;
  y = __funnelshift_l(y, y, (lane & 1) != 0 ? 30 : 2);
  return (x & own2) | (y & ~own2);
}

/// Words of four channels of a tile; of tokens outside [first, last) they stay.
__device__ __forceinline__ void store_words(uint4 words, int first, int last, uint8_t* to) {
  auto* at = reinterpret_cast<uint4*>(to);
  if (first != 0 || last != kTileTokens) {
    const uint32_t ones = (last == kTileTokens ? ~0u : (1u << (2 * last)) - 1u) & ~((1u << (2 * first)) - 1u);
    const uint4 old = *at;
    words.x = (words.x & ones) | (old.x & ~ones);
    words.y = (words.y & ones) | (old.y & ~ones);
    words.z = (words.z & ones) | (old.z & ~ones);
    words.w = (words.w & ones) | (old.w & ~ones);
  }
  *at = words;
}

/// Blocks that append_exact has for an exact page.
template <int D>
__host__ __device__ constexpr int exact_groups(int kv_heads) {
  return (kv_heads + 2 * kRowHeads<D> - 1) / (2 * kRowHeads<D>);
}

/// Exact pages: a block of four warps takes k and v of two rows.
template <int D = kRowDim>
__device__ __forceinline__ void append_exact(const CacheView& cache, const NewRows& rows, int block) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, columns = exact_columns(cache);
  const int groups = exact_groups<D>(cache.kv_heads), group = block % groups, column = block / groups % columns;
  const int b = block / groups / columns, kv_head = (group * 2 + warp / 2) * kRowHeads<D>;
  if (rows.count(b) <= 0) return;
  if (kv_head < cache.kv_heads) keep_page<D>(cache, rows, b, column, kv_head, warp % 2 == 0, lane);
  if (group == 0 && column < cache.sink_pages && cache.sink_policy == SinkPolicy::kFirst) {
    update_sink_header(cache, b, rows.count(b), column, threadIdx.x);
  }
}

}  // namespace kvquant::cuda
