/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// What kernels share that append a prompt's chunk in tiles: rows of new tokens as halves in shared memory, angles of a
// tile, and exact copies of recent tokens and of sinks. A row is a head of 128 channels or, where a D of 64 is named,
// two heads, one behind the other: kv_head is the first of them, and the second may be missing.
#pragma once
#include <type_traits>

#include "append.cuh"
#include "elements.cuh"
#include "ptx.cuh"

namespace kvquant::cuda {

constexpr int kRowDim = 128, kRowPairs = kRowDim / 2;
/// From one row to the next, halves: lanes that read rows then read different banks.
constexpr int kRowStride = kRowDim + 8;

/// Heads of a row, and lanes that have four channels each of one.
template <int D>
constexpr int kRowHeads = kRowDim / D;
template <int D>
constexpr int kHeadLanes = D / 4;

/// Whether the head of a channel of a row is there.
template <int D>
__device__ __forceinline__ bool present(const CacheView& cache, int kv_head, int channel) {
  return D == kRowDim || kv_head + channel / D < cache.kv_heads;
}

/// A channel to read in place of one that is missing.
template <int D>
__device__ __forceinline__ int present_channel(const CacheView& cache, int kv_head, int channel) {
  return present<D>(cache, kv_head, channel) ? channel : channel - D;
}

__device__ __forceinline__ uint32_t two_halves(float low, float high) {
  const __half2 x = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&x);
}

/// Four elements, aligned to their size, rounded to halves.
__device__ __forceinline__ uint2 four_halves(ElementType type, const void* data, int64_t index) {
  if (type == ElementType::kFloat16) return *reinterpret_cast<const uint2*>(static_cast<const __half*>(data) + index);
  if (type == ElementType::kBFloat16) {
    const uint2 x = *reinterpret_cast<const uint2*>(static_cast<const __nv_bfloat16*>(data) + index);
    const auto low = [](uint32_t word) { return __uint_as_float(word << 16); };
    const auto high = [](uint32_t word) { return __uint_as_float(word & 0xffff0000u); };
    return make_uint2(two_halves(low(x.x), high(x.x)), two_halves(low(x.y), high(x.y)));
  }
  const float4 x = *reinterpret_cast<const float4*>(static_cast<const float*>(data) + index);
  return make_uint2(two_halves(x.x, x.y), two_halves(x.z, x.w));
}

/// Of blocks for units: see block_run.
template <int unit_tokens>
__device__ inline TokenRun unit_run(const CacheView& cache, const NewRows& rows, int block) {
  const auto first = [&](int b) { return rows.start(b) / unit_tokens + 2 * b; };
  const int b = find_sequence(cache.batch, block, first), count = rows.count(b), length = cache.length(b);
  if (count <= 0) return {b, 0, 0};
  const int begin = cache.quantized(b, length), end = cache.quantized(b, length + count);
  const int unit = begin / unit_tokens + block - first(b);
  return {b, max(begin, unit * unit_tokens), min(end, (unit + 1) * unit_tokens)};
}

/// Rows of halves in shared memory, kStride from one to the next, and the place of a channel, which others of the same
/// eight follow.
struct PlainRows {
  static constexpr int kStride = kRowStride;
  static __device__ __forceinline__ int place(int channel) { return channel; }
};

/// The same of two heads: lanes of the second one then read other banks than those of the first.
struct TwoHeadRows {
  static constexpr int kStride = kRowStride + 32;
  static __device__ __forceinline__ int place(int channel) { return channel + (channel & 64) / 2; }
};
template <int D>
using KeyRows = std::conditional_t<D == kRowDim, PlainRows, TwoHeadRows>;

/// From the angles of one token to the next.
template <int D>
constexpr int kAngles = D / 2 + 2;

/// Copies k or v of tokens [begin, end) of a row, token t to row t - first, as halves; raw: as the 16 bits that they
/// are. A warp's work; what need not be converted is on its way (commit_copies, wait_copies). Layout: of rows.
template <bool raw = false, class Layout = PlainRows, int D = kRowDim>
__device__ __forceinline__ void stage_rows(const CacheView& cache, const NewRows& rows, const TokenRun& run,
                                           int kv_head, bool keys, int first, __half* to, int lane) {
  constexpr int kAtOnce = 8;
  const int length = cache.length(run.b), side = keys ? 0 : cache.kv_heads * D;
  const auto at = [&](int token, int channel) {
    return to + (token - first) * Layout::kStride + Layout::place(channel);
  };
  if (raw || rows.tokens.type == ElementType::kFloat16) {
    const int channel = lane % 16 * 8, begin = max(run.begin, length) + lane / 16;
    const int64_t stride = 2 * static_cast<int64_t>(cache.heads + 2 * cache.kv_heads) * D;
    const __half* from = static_cast<const __half*>(rows.tokens.qkv) + rows.key(cache, run.b, begin - length, kv_head) +
                         side + present_channel<D>(cache, kv_head, channel);
    __half* own = at(begin, channel);
#pragma unroll 4
    for (int token = begin; token < run.end; token += 2, from += stride, own += 2 * Layout::kStride)
      copy_async(own, from);
  } else {
    const int channel = lane * 4, source = side + present_channel<D>(cache, kv_head, channel);
    for (int begin = max(run.begin, length); begin < run.end; begin += kAtOnce) {
      uint2 x[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int fresh = min(begin + i, run.end - 1) - length;
        x[i] = four_halves(rows.tokens.type, rows.tokens.qkv, rows.key(cache, run.b, fresh, kv_head) + source);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (begin + i < run.end) *reinterpret_cast<uint2*>(at(begin + i, channel)) = x[i];
      }
    }
  }
  for (int token = run.begin; token < min(run.end, length); ++token) {
    const uint8_t* page = cache.window_page(run.b, token);
#pragma unroll
    for (int i = 0; i < kRowDim / kWarp; ++i) {
      const int channel = i * kWarp + lane, source = present_channel<D>(cache, kv_head, channel);
      const int64_t offset = keys ? cache.exact_key(kv_head, source) : cache.exact_value(kv_head, source);
      *at(token, channel) = reinterpret_cast<const __half*>(page + offset)[token % kExactTokens];
    }
  }
}

/// Cosines and sines of the 16 positions of a tile, [16][kAngles]; a block's work.
template <int D = kRowDim>
__device__ __forceinline__ void tile_angles(const CacheView& cache, int tile, float2* angles) {
  const int in_tile = threadIdx.x % kTileTokens;
#pragma unroll 4
  for (int pair = threadIdx.x / kTileTokens; pair < D / 2; pair += blockDim.x / kTileTokens) {
    angles[in_tile * kAngles<D> + pair] = rope_angle(cache, tile * kTileTokens + in_tile, pair);
  }
}

/// Copies k or v of new tokens to those slots of an exact page that have their bit set: token(slot) is the slot's, one
/// that is new. A warp's work.
template <int D, class Token>
__device__ __forceinline__ void keep_exact(const CacheView& cache, const NewRows& rows, int b, int kv_head, bool keys,
                                           uint8_t* page, unsigned slots, int lane, Token token) {
  const int channel = lane * 4, last = rows.count(b) - 1, before = cache.length(b);
  if (!present<D>(cache, kv_head, channel)) return;
  const int64_t side = channel + (keys ? 0 : cache.kv_heads * D);
  uint2 x[kExactTokens];
#pragma unroll
  for (int i = 0; i < kExactTokens; ++i) {
    const int fresh = min(max(token(i) - before, 0), last);
    x[i] = four_halves(rows.tokens.type, rows.tokens.qkv, rows.key(cache, b, fresh, kv_head) + side);
  }
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    uint32_t words[kExactTokens / 2];
#pragma unroll
    for (int i = 0; i < kExactTokens; i += 2) {
      words[i / 2] =
          __byte_perm(c < 2 ? x[i].x : x[i].y, c < 2 ? x[i + 1].x : x[i + 1].y, c % 2 == 0 ? 0x5410 : 0x7632);
    }
    auto* to = page + (keys ? cache.exact_key(kv_head, channel + c) : cache.exact_value(kv_head, channel + c));
    if (slots == 0xffffu) {
      reinterpret_cast<uint4*>(to)[0] = make_uint4(words[0], words[1], words[2], words[3]);
      reinterpret_cast<uint4*>(to)[1] = make_uint4(words[4], words[5], words[6], words[7]);
      continue;
    }
#pragma unroll
    for (int i = 0; i < kExactTokens; ++i) {
      if ((slots >> i & 1u) == 0) continue;
      reinterpret_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
    }
  }
}

/// Fills those slots of a page of the ring that have their bit set and are for new tokens.
template <int D>
static __device__ __noinline__ void fill_slots(const CacheView& cache, const NewRows& rows, int b, int ring_page,
                                               unsigned slots, int kv_head, bool keys, int lane) {
  const int before = cache.length(b), length = before + rows.count(b);
  unsigned fresh = 0;
  for (int i = 0; i < kExactTokens; ++i) fresh |= slot_token(cache, length, ring_page, i) >= before ? 1u << i : 0u;
  if ((slots & fresh) == 0) return;
  keep_exact<D>(cache, rows, b, kv_head, keys, cache.exact_page(b, cache.sink_pages + ring_page), slots & fresh, lane,
                [&](int i) { return slot_token(cache, length, ring_page, i); });
}

/// When tokens of a tile have been coded from the window: their slots take new tokens. run: what was coded of the tile.
template <int D = kRowDim>
__device__ inline void refill(const CacheView& cache, const NewRows& rows, const TokenRun& run, int tile, int kv_head,
                              bool keys, int lane) {
  const int first = tile * kExactTokens, begin = max(run.begin - first, 0);
  const int end = min(min(run.end, cache.length(run.b)) - first, kExactTokens);
  if (begin >= end) return;
  fill_slots<D>(cache, rows, run.b, tile % cache.ring, (1u << end) - (1u << begin), kv_head, keys, lane);
}

/// Exact copies that wait for nothing, of one exact page and row: sinks, and slots of the ring that no token is
/// coded from; see refill. A warp's work.
template <int D = kRowDim>
__device__ inline void keep_page(const CacheView& cache, const NewRows& rows, int b, int column, int kv_head, bool keys,
                                 int lane) {
  const int before = cache.length(b), length = before + rows.count(b);
  if (column < cache.sink_pages) {
    const int first = column * kExactTokens;
    const int begin = max(before - first, 0), end = min(min(length, cache.max_sinks) - first, kExactTokens);
    if (cache.sink_policy != SinkPolicy::kFirst || begin >= end) return;
    keep_exact<D>(cache, rows, b, kv_head, keys, cache.exact_page(b, column), (1u << end) - (1u << begin), lane,
                  [&](int i) { return first + i; });
    return;
  }
  const int ring_page = column - cache.sink_pages;
  const int begin = cache.quantized(b, before), end = min(before, cache.quantized(b, length));
  unsigned slots = 0;
  for (int i = 0; i < kExactTokens; ++i) {
    const int held = before > 0 ? slot_token(cache, before, ring_page, i) : -1;
    slots |= held >= begin && held < end ? 0u : 1u << i;
  }
  fill_slots<D>(cache, rows, b, ring_page, slots, kv_head, keys, lane);
}

/// Whether rows can be read 16 bytes at a time.
inline bool aligned_rows(const NewTokens& tokens) { return reinterpret_cast<uintptr_t>(tokens.qkv) % 16 == 0; }

}  // namespace kvquant::cuda
