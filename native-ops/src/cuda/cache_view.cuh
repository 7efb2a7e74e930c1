/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// A layer's cache as kernels see it: what core/cache.h and core/layout.h say, as plain numbers that are passed by
// value, with device pointers. Nothing here is a format of its own.
#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "core/layout.h"

namespace kvquant::cuda {

constexpr int kWarp = 32;

/// One side of stored tokens: SideParams and SideLayout. Arrays are in device memory; nullptr: absent.
struct SideView {
  Format format;
  int bits;
  int rotation_heads, group_size, basis_heads, outliers;
  float clip;
  bool float_zero;
  bool rotated;      // by whatever number of heads
  bool rounded;      // to fp16 before it is stored; see core/append.h
  bool local_order;  // kAffine: an order that leaves channels within the kv heads that attend_rotated.cu takes together
  int tile_bytes;    // of a head
  int64_t begin;
  int64_t norms, norm_tile_bytes;  // kNorm; kAffine, kCodebook of values: scales
  int64_t outliers_begin;          // kCodebook
  const float *mean, *steps, *levels, *noise, *basis, *inverse;
  const int16_t* order;
  const uint16_t* groups;     // kAffine with an order: the group of each channel
  const uint8_t* latent;      // kStatic in a basis of a head: latent_basis.h
  float level_step;           // kNorm: of levels that are equally spaced around 0; of others 0
  int run_begin[kWidthRuns];  // kStatic: bytes from the beginning of a tile
  int width[kWidthRuns];

  __device__ int64_t tile(int kv_head, int tile) const {
    return begin + (static_cast<int64_t>(kv_head) * kPageTiles + tile) * tile_bytes;
  }
  /// kAffine: the scales of a group for a tile. kCodebook of values: its steps. Zeros or starts are 16 halves behind.
  __device__ int64_t scales(int tile, int group) const {
    return norms + tile * norm_tile_bytes + group * (4 * kTileTokens);
  }
  /// kCodebook: 16 values of a slot, then 16 channels.
  __device__ int64_t outlier_slot(int tile, int slot) const {
    return outliers_begin + (static_cast<int64_t>(tile) * outliers + slot) * (4 * kTileTokens);
  }
  /// kAffine.
  __device__ int group(int channel) const { return groups != nullptr ? groups[channel] : channel / group_size; }
};

struct CacheView {
  int heads, kv_heads, head_dim, window, sink_pages, max_sinks, keys_pre_rope, ring;
  SinkPolicy sink_policy;
  float score_scale;
  SideView keys, values;
  int64_t page_bytes, exact_bytes, exact_values;  // exact_values: where values begin in an exact page
  uint8_t *pages, *exact;
  const int32_t *lengths, *page_table, *exact_table;
  const float* rope;
  int64_t rope_rows;
  int batch, page_columns, exact_columns;
  int page_count;     // of the pool
  int sparse_tokens;  // LayerParams::sparse_tokens
  int64_t landmarks;  // where they begin in a page

  /// Pages that a decoding step chooses; 0: it reads all.
  __host__ __device__ int sparse_pages() const {
    return sparse_tokens / kPageTokens + (sparse_tokens % kPageTokens != 0);
  }

  __device__ int length(int b) const { return lengths[2 * b]; }

  /// LayerCache::quantized.
  __device__ int quantized(int b, int length) const {
    return window == 0 ? length : stored(length, lengths[2 * b + 1]);
  }
  /// The same with a window, given the second of a sequence's lengths.
  __device__ int stored(int length, int least) const { return max(0, max(length - window, min(least, length))); }
  /// Runs of 16 tokens that a sequence keeps exactly: sink pages, then those of the window, from the run on that the
  /// first token without codes is in.
  __device__ int exact_runs(int quantized, int length) const {
    const int runs = window > 0 ? (length + kTileTokens - 1) / kTileTokens - quantized / kTileTokens : 0;
    return sink_pages + max(0, runs);
  }
  __device__ uint8_t* page(int b, int page_index) const {
    return pages + page_table[static_cast<int64_t>(b) * page_columns + page_index] * page_bytes;
  }
  __device__ uint8_t* exact_page(int b, int column) const {
    return exact + exact_table[static_cast<int64_t>(b) * exact_columns + column] * exact_bytes;
  }
  __device__ uint8_t* window_page(int b, int token) const {
    return exact_page(b, sink_pages + token / kExactTokens % ring);
  }
  __device__ uint8_t* sink_page(int b, int index) const { return exact_page(b, index); }

  /// Byte offsets within an exact page of the 16 halves of a channel.
  __device__ int64_t exact_key(int kv_head, int channel) const {
    return static_cast<int64_t>(sizeof(ExactHeader)) + (kv_head * head_dim + channel) * (kExactTokens * 2);
  }
  __device__ int64_t exact_value(int kv_head, int channel) const {
    return exact_values + (kv_head * head_dim + channel) * (kExactTokens * 2);
  }
};

/// Cosine and sine of RopeTable::angle, to the bit.
__device__ __forceinline__ float2 rope_angle(const CacheView& cache, int position, int pair) {
  const int half = cache.head_dim / 2;
  const float* base = cache.rope + (static_cast<int64_t>(kPageTokens) + position / kPageTokens) * cache.head_dim;
  const float c0 = base[pair], s0 = base[half + pair];
  const float c1 = cache.rope[pair * kPageTokens + position % kPageTokens];
  const float s1 = cache.rope[(half + pair) * kPageTokens + position % kPageTokens];
  return make_float2(__fsub_rn(__fmul_rn(c0, c1), __fmul_rn(s0, s1)), __fadd_rn(__fmul_rn(s0, c1), __fmul_rn(c0, s1)));
}

/// What a pair of channels, a and b, becomes when it is turned by an angle, to the bit of RopeTable::apply.
__device__ __forceinline__ float2 turn(float a, float b, float2 angle) {
  return make_float2(__fsub_rn(__fmul_rn(a, angle.x), __fmul_rn(b, angle.y)),
                     __fadd_rn(__fmul_rn(b, angle.x), __fmul_rn(a, angle.y)));
}

/// core/rotation.h's transform, to the bit, of a head that a warp holds, lane l elements l n .. l n + n - 1.
template <int n>
__device__ __forceinline__ void walsh_hadamard(float (&x)[n], int lane) {
#pragma unroll
  for (int half = 1; half < n; half *= 2) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if (i & half) continue;
      const float a = x[i], b = x[i + half];
      x[i] = __fadd_rn(a, b);
      x[i + half] = __fsub_rn(a, b);
    }
  }
#pragma unroll
  for (int half = 1; half < kWarp; half *= 2) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float other = __shfl_xor_sync(0xffffffffu, x[i], half);
      x[i] = (lane & half) != 0 ? __fsub_rn(other, x[i]) : __fadd_rn(x[i], other);
    }
  }
  const float scale = __fdiv_rn(1.0f, __fsqrt_rn(static_cast<float>(n * kWarp)));
#pragma unroll
  for (int i = 0; i < n; ++i) x[i] = __fmul_rn(x[i], scale);
}

__device__ __forceinline__ float round_to_half(float x) { return __half2float(__float2half_rn(x)); }

/// The code of a token in the 2 * bits bytes of a channel; see core/codec.h.
__device__ __forceinline__ int get_code(const uint8_t* field, int token, int bits) {
  const int bit = token * bits, shift = bit % 8;
  const uint8_t* p = field + bit / 8;
  unsigned value = p[0] >> shift;
  if (shift + bits > 8) value |= static_cast<unsigned>(p[1]) << (8 - shift);
  return static_cast<int>(value & ((1u << bits) - 1u));
}

}  // namespace kvquant::cuda
