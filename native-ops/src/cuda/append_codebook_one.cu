/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append while decoding, kvquant2, 3 and 4 with head_dim 128: the same bytes as append_tokens.cu leaves, for one token
// per sequence.
//
// There the time goes to instructions that are fetched once and to barriers, so this is short code. A block takes a
// side of a token, a thread four channels. Outliers are the extreme elements of all heads, in order: a bound that as
// many groups of elements reach as there are slots rules most elements out, and those that are left find their slots by
// counting. An H100, batch 32 and 8 kv heads: 6.7 us instead of 32; batch 16 and 32 kv heads: 11 instead of 156.
#include "append.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "outlier_rank.cuh"
#include "tile_rows.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = 128, kOwn = 4, kMostThreads = 1024, kMostGroups = 128;

/// An element that may become an outlier: its rank, how early its channel comes, and its 16 bits. The largest is the
/// first.
__device__ __forceinline__ uint64_t candidate(uint32_t rank, int channel, uint16_t element) {
  return static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(0xffff - channel) << 16 | element;
}

/// Shared memory of a block, beside a list of [channels].
struct __align__(16) Choice {
  uint32_t best[kMostGroups + 4], bound, count, low, high;
  uint64_t last;
};

/// One side of a token.
struct TokenAt {
  const SideView& side;
  uint8_t* page;
  int tile, lane;  // of the token

  __device__ __half* slot(int index) const {
    return reinterpret_cast<__half*>(page + side.outlier_slot(tile, index)) + lane;
  }
};

/// Moves the `most` elements of highest rank, but rank 0, to slots from `first` on; returns how many there were. They
/// get rank 0. A block's work.
__device__ __forceinline__ int take_outliers(const TokenAt& t, int first, int most, uint32_t (&rank)[kOwn],
                                             const uint16_t (&x)[kOwn], Choice& choice, uint64_t* list) {
  const int thread = threadIdx.x, threads = blockDim.x;
  uint32_t best = max(max(rank[0], rank[1]), max(rank[2], rank[3]));
  int groups = threads;
#pragma unroll 1
  for (int step = 1; groups > kMostGroups || (groups / 2 >= 2 * most && groups > kWarp); step *= 2, groups /= 2) {
    best = max(best, __shfl_xor_sync(0xffffffffu, best, step));
  }
  const int together = threads / groups;
  if (thread % together == 0 && thread / together < groups) choice.best[thread / together] = best;
  if (thread < 4) choice.best[groups + thread] = 0;
  if (thread == 0) {
    choice.count = 0;
    choice.bound = 1;
  }
  __syncthreads();
  if (thread < groups && most <= groups) {
    const uint32_t own = choice.best[thread];
    int above = 0, reached = 0;
#pragma unroll 1
    for (int i = 0; i < groups; i += 4) {
      const uint4 others = *reinterpret_cast<const uint4*>(choice.best + i);
      above +=
          (others.x > own ? 1 : 0) + (others.y > own ? 1 : 0) + (others.z > own ? 1 : 0) + (others.w > own ? 1 : 0);
      reached +=
          (others.x >= own ? 1 : 0) + (others.y >= own ? 1 : 0) + (others.z >= own ? 1 : 0) + (others.w >= own ? 1 : 0);
    }
    if (above < most && most <= reached && own > 0) choice.bound = own;  // the same by whomever
  }
  __syncthreads();
  const uint32_t bound = choice.bound;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (rank[i] >= bound) list[atomicAdd(&choice.count, 1u)] = candidate(rank[i], kOwn * thread + i, x[i]);
  }
  __syncthreads();
  const int count = static_cast<int>(choice.count), taken = min(count, most);
#pragma unroll 1
  for (int i = thread; i < count; i += threads) {
    const uint64_t own = list[i];
    int place = 0;
#pragma unroll 4
    for (int j = 0; j < count; ++j) place += list[j] > own ? 1 : 0;
    if (place >= most) continue;
    __half* to = t.slot(first + place);
    to[0] = limited_half(__ushort_as_half(static_cast<uint16_t>(own)));
    reinterpret_cast<uint16_t*>(to)[kTileTokens] = static_cast<uint16_t>(0xffffu - (own >> 16 & 0xffffu));
    if (place == taken - 1) choice.last = own;
  }
  __syncthreads();
  if (taken == 0) return 0;
  const uint64_t last = choice.last;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (candidate(rank[i], kOwn * thread + i, x[i]) >= last) rank[i] = 0;
  }
  return taken;
}

/// Step and start of values: those of what are no outliers. A block's work.
__device__ __forceinline__ float2 range_of_rest(const TokenAt& t, const uint32_t (&rank)[kOwn],
                                                const uint16_t (&x)[kOwn], Choice& choice) {
  if (threadIdx.x == 0) {
    choice.low = ~0u;
    choice.high = 0;
  }
  __syncthreads();
  // Ranks, then the lowest of several channels, and whether the element is minus zero.
  uint32_t low = ~0u, high = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (rank[i] == 0) continue;
    const uint32_t channel = kOwn * threadIdx.x + i, minus_zero = x[i] == 0x8000u ? 1 : 0;
    low = min(low, rank[i] << 14 | channel << 1 | minus_zero);
    high = max(high, rank[i] << 14 | (0x1fffu - channel) << 1 | minus_zero);
  }
  low = __reduce_min_sync(0xffffffffu, low);
  high = __reduce_max_sync(0xffffffffu, high);
  if (threadIdx.x % kWarp == 0) {
    atomicMin(&choice.low, low);
    atomicMax(&choice.high, high);
  }
  __syncthreads();
  low = choice.low;
  high = choice.high;
  float2 range = make_float2(0.0f, 0.0f);
  if (high > 0) {
    const auto element = [](uint32_t x) {
      return (x & 1u) != 0 ? __ushort_as_half(static_cast<uint16_t>(0x8000)) : half_at(x >> 14);
    };
    range = range_between(element(low), element(high));
  }
  if (threadIdx.x == 0) {
    auto* to = reinterpret_cast<__half*>(t.page + t.side.scales(t.tile, 0)) + t.lane;
    to[0] = __float2half_rn(range.x);
    to[kTileTokens] = __float2half_rn(range.y);
  }
  return range;
}

/// Four elements of a side of a token, new or from the window, as halves.
__device__ __forceinline__ void load_own(const CacheView& cache, const NewRows& rows, int b, int token, bool keys,
                                         uint16_t (&x)[kOwn]) {
  const int fresh = token - cache.length(b), first = kOwn * static_cast<int>(threadIdx.x);
  if (fresh >= 0) {
    const int64_t from = rows.key(cache, b, fresh, 0) + (keys ? 0 : cache.kv_heads * kDim) + first;
    const uint2 pairs = four_halves(rows.tokens.type, rows.tokens.qkv, from);
    x[0] = static_cast<uint16_t>(pairs.x);
    x[1] = static_cast<uint16_t>(pairs.x >> 16);
    x[2] = static_cast<uint16_t>(pairs.y);
    x[3] = static_cast<uint16_t>(pairs.y >> 16);
    return;
  }
  const int head = first / kDim, channel = first % kDim;
  const int64_t at = keys ? cache.exact_key(head, channel) : cache.exact_value(head, channel);
  const auto* from = reinterpret_cast<const uint16_t*>(cache.window_page(b, token) + at) + token % kExactTokens;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) x[i] = from[i * kExactTokens];
}

template <int bits>
__device__ __forceinline__ void put_side(const CacheView& cache, const SideView& side, const NewRows& rows, int b,
                                         int token, Choice& choice, uint64_t* list) {
  constexpr int kMiddles = (1 << bits) - 1;
  const bool keys = &side == &cache.keys;
  const int first = kOwn * static_cast<int>(threadIdx.x);
  const TokenAt t{side, cache.page(b, token / kPageTokens), token % kPageTokens / kTileTokens, token % kTileTokens};
  const int bit = t.lane * bits, shift = bit % 8;
  const bool two = bits == 3 && shift + bits > 8;  // bytes
  uint8_t* field = t.page + side.tile(first / kDim, t.tile) + first % kDim * 2 * bits + bit / 8;
  uint16_t x[kOwn];
  uint32_t rank[kOwn];
  float relative[kOwn], step[kOwn], start[kOwn];
  unsigned old[kOwn];
  float middles[kMiddles];
#pragma unroll
  for (int i = 0; i < kMiddles; ++i) middles[i] = __fmul_rn(0.5f, __fadd_rn(side.levels[i], side.levels[i + 1]));
  load_own(cache, rows, b, token, keys, x);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    old[i] = field[i * 2 * bits];
    if (two) old[i] |= static_cast<unsigned>(field[i * 2 * bits + 1]) << 8;
  }
  const auto find_relative = [&] {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      relative[i] = divide(__fsub_rn(__half2float(__ushort_as_half(x[i])), start[i]), step[i]);
    }
  };
  if (keys) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      start[i] = side.steps[2 * (first + i)];
      step[i] = side.steps[2 * (first + i) + 1];
    }
    find_relative();
#pragma unroll
    for (int i = 0; i < kOwn; ++i) rank[i] = rank_beyond(relative[i], step[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) rank[i] = rank_of(__ushort_as_half(x[i]));
  }
  const int ends = keys ? 1 : 2, most = side.outliers / ends;
  int slot = 0;
#pragma unroll 1
  for (int end = 0; end < ends && most > 0; ++end) {  // of values the smallest, then the largest
    if (!keys) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) rank[i] = reversed(rank[i]);
    }
    slot += take_outliers(t, slot, most, rank, x, choice, list);
  }
  for (int i = slot + static_cast<int>(threadIdx.x); i < side.outliers; i += blockDim.x) {
    __half* to = t.slot(i);
    to[0] = __ushort_as_half(0);
    reinterpret_cast<uint16_t*>(to)[kTileTokens] = kNoChannel;
  }
  if (!keys) {
    const float2 range = range_of_rest(t, rank, x, choice);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      step[i] = range.x;
      start[i] = range.y;
    }
    find_relative();
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const unsigned mask = ((1u << bits) - 1u) << shift;
    const unsigned now = (old[i] & ~mask) | static_cast<unsigned>(nearest_level_of(relative[i], middles)) << shift;
    field[i * 2 * bits] = static_cast<uint8_t>(now);
    if (two) field[i * 2 * bits + 1] = static_cast<uint8_t>(now >> 8);
  }
}

/// Exact copies of a side of a new token.
__device__ __forceinline__ void keep_side(const CacheView& cache, const NewRows& rows, int b, int i, bool keys) {
  const int before = cache.length(b), token = before + i, length = before + rows.count(b);
  const bool recent = cache.window > 0 && token >= length - cache.ring * kExactTokens;
  const bool sink = cache.sink_policy == SinkPolicy::kFirst && token < cache.max_sinks;
  if (!recent && !sink) return;
  const int first = kOwn * static_cast<int>(threadIdx.x), head = first / kDim, channel = first % kDim;
  uint16_t x[kOwn];
  load_own(cache, rows, b, token, keys, x);
  const int64_t at = keys ? cache.exact_key(head, channel) : cache.exact_value(head, channel);
#pragma unroll 1
  for (int copy = 0; copy < 2; ++copy) {
    if (!(copy == 0 ? recent : sink)) continue;
    uint8_t* page = copy == 0 ? cache.window_page(b, token) : cache.sink_page(b, token / kExactTokens);
    auto* to = reinterpret_cast<uint16_t*>(page + at) + token % kExactTokens;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) to[j * kExactTokens] = x[j];
  }
}

/// A block per side and sequence.
template <int bits>
__global__ void __launch_bounds__(kMostThreads)
    append_codebook_one_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows) {
  KVQUANT_DYNAMIC_SHARED(shared);
  __shared__ Choice choice;
  const bool keys = blockIdx.x == 0;
  const int b = blockIdx.y, length = cache.length(b), added = rows.count(b);
  if (added == 0) return;
  const int end = cache.quantized(b, length + added);
#pragma unroll 1
  for (int token = cache.quantized(b, length); token < end; ++token) {
    put_side<bits>(cache, keys ? cache.keys : cache.values, rows, b, token, choice,
                   reinterpret_cast<uint64_t*>(shared));
    __syncthreads();
  }
#pragma unroll 1
  for (int i = 0; i < added; ++i) keep_side(cache, rows, b, i, keys);
  if (keys && cache.sink_policy == SinkPolicy::kFirst) {
#pragma unroll 1
    for (int page = 0; page < cache.sink_pages; ++page) update_sink_header(cache, b, added, page, threadIdx.x);
  }
}

}  // namespace

bool append_codebook_one_supports(const CacheView& cache, const NewTokens& tokens) {
  const SideView &keys = cache.keys, &values = cache.values;
  const auto side = [](const SideView& x) {
    return x.format == Format::kCodebook && x.mean == nullptr && x.rotation_heads == 0 && x.basis_heads == 0;
  };
  return side(keys) && side(values) && keys.bits == values.bits && keys.bits >= 2 && keys.bits <= 4 &&
         keys.steps != nullptr && values.steps == nullptr && values.outliers % 2 == 0 && cache.keys_pre_rope != 0 &&
         cache.head_dim == kDim && cache.kv_heads * kDim <= kOwn * kMostThreads && aligned_rows(tokens);
}

void append_codebook_one(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  const int channels = cache.kv_heads * kDim;
  const LaunchShape shape{dim3(2, static_cast<unsigned>(cache.batch)), static_cast<unsigned>(channels / kOwn),
                          sizeof(uint64_t) * static_cast<size_t>(channels), stream};
  const NewRows rows{tokens};
  if (cache.keys.bits == 2) launch("append", append_codebook_one_kernel<2>, shape, cache, rows);
  if (cache.keys.bits == 3) launch("append", append_codebook_one_kernel<3>, shape, cache, rows);
  if (cache.keys.bits == 4) launch("append", append_codebook_one_kernel<4>, shape, cache, rows);
}

}  // namespace kvquant::cuda
