/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append while decoding, kvquant2, 3 and 4 with head_dim 128: the same bytes as append_tokens.cu leaves, for one token
// per sequence.
//
// There the time goes to instructions that are fetched once and to barriers, so this is short code. A block takes a
// side of a token, a thread four channels or, of more than 32 kv heads, eight. Outliers are found by
// block_outliers.cuh. Parameters are read before the kernel ahead has ended.
//
// An H100, batch 32 and 8 kv heads: 4.9 us instead of 32 (an end after the other: 6.4); batch 16 and 32 kv heads: 8.7
// instead of 156; batch 8 and 40 kv heads: 13 instead of 34; batch 4 and 64 kv heads: 18.5.
#include "append.cuh"
#include "block_outliers.cuh"
#include "device_limits.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "tile_rows.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = 128, kMostThreads = 1024;

__device__ __forceinline__ void store_range(const TokenAt& t, float2 range) {
  if (threadIdx.x != 0) return;
  auto* to = reinterpret_cast<__half*>(t.page + t.side.scales(t.tile, 0)) + t.lane;
  to[0] = __float2half_rn(range.x);
  to[kTileTokens] = __float2half_rn(range.y);
}

/// Step and start of values: those of what are no outliers. A block's work.
template <int n>
__device__ __forceinline__ float2 range_of_rest(const uint32_t (&rank)[n], const uint16_t (&x)[n], Choice& choice) {
  if (threadIdx.x == 0) {
    choice.low = ~0u;
    choice.high = 0;
  }
  __syncthreads();
  // Ranks, then the lowest of several channels, and whether the element is minus zero.
  uint32_t low = ~0u, high = 0;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    if (rank[i] == 0) continue;
    const uint32_t channel = n * threadIdx.x + i, minus_zero = x[i] == 0x8000u ? 1 : 0;
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
  return range;
}

template <int n>
struct Elements {
  uint16_t x[n];
};

/// Range of values and how many outliers there were.
struct Ends {
  float2 range;
  int count;
};

/// Outliers of values one after another, the smallest, then the largest, where ends meet. A block's work.
template <int n>
__device__ __noinline__ Ends put_ends_slowly(TokenAt t, int most, Elements<n> elements, Choice* choice) {
  const auto& x = elements.x;
  uint32_t rank[n];
#pragma unroll
  for (int i = 0; i < n; ++i) rank[i] = rank_of(__ushort_as_half(x[i]));
  auto* best = reinterpret_cast<unsigned long long*>(&choice->ends[0].next);
  int slot = 0;
#pragma unroll 1
  for (int i = 0; i < 2 * most; ++i) {
    unsigned long long own = 0;
    int which = 0;
#pragma unroll
    for (int k = 0; k < n; ++k) {
      const uint32_t from_end = i < most ? reversed(rank[k]) : rank[k];
      const unsigned long long other = candidate(from_end, n * threadIdx.x + k, x[k]);
      if (from_end == 0 || other < own) continue;
      own = other;
      which = k;
    }
    if (threadIdx.x == 0) *best = 0;
    __syncthreads();
    if (own != 0) atomicMax(best, own);
    __syncthreads();
    const unsigned long long chosen = *best;
    __syncthreads();
    if (chosen == 0) continue;
    if (chosen == own) {
      t.put(slot, own);
#pragma unroll
      for (int k = 0; k < n; ++k) rank[k] = k == which ? 0 : rank[k];
    }
    ++slot;
  }
  return {range_of_rest(rank, x, *choice), slot};
}

/// Outliers of values, the smallest, then the largest, and the range of the others.
template <int n>
__device__ __forceinline__ Ends put_ends(const TokenAt& t, int most, const Elements<n>& elements, Choice& choice,
                                         uint64_t* lists) {
  const auto& x = elements.x;
  uint32_t rank[2][n];
#pragma unroll
  for (int i = 0; i < n; ++i) {
    rank[1][i] = rank_of(__ushort_as_half(x[i]));
    rank[0][i] = reversed(rank[1][i]);
  }
  Ends found;
  found.count = put_outliers<2>(t, most, rank, x, choice, lists);
  const uint64_t low = choice.ends[0].next, high = choice.ends[1].next;
  const bool apart = static_cast<int>(choice.ends[0].count) > most && static_cast<int>(choice.ends[1].count) > most &&
                     reversed(static_cast<uint32_t>(low >> 32)) < static_cast<uint32_t>(high >> 32);
  if (apart) {
    const auto element = [](uint64_t x) { return __ushort_as_half(static_cast<uint16_t>(x)); };
    found.range = range_between(element(low), element(high));
  } else {
    __syncthreads();
    found = put_ends_slowly(t, most, elements, &choice);
  }
  store_range(t, found.range);
  return found;
}

/// A thread's elements of a side of a token, new or from the window, as halves.
template <int n>
__device__ __forceinline__ void load_own(const CacheView& cache, const NewRows& rows, int b, int token, bool keys,
                                         uint16_t (&x)[n]) {
  const int fresh = token - cache.length(b), first = n * static_cast<int>(threadIdx.x);
  if (fresh >= 0) {
    const int64_t from = rows.key(cache, b, fresh, 0) + (keys ? 0 : cache.kv_heads * kDim) + first;
#pragma unroll
    for (int i = 0; i < n; i += 4) {
      const uint2 pairs = four_halves(rows.tokens.type, rows.tokens.qkv, from + i);
      x[i] = static_cast<uint16_t>(pairs.x);
      x[i + 1] = static_cast<uint16_t>(pairs.x >> 16);
      x[i + 2] = static_cast<uint16_t>(pairs.y);
      x[i + 3] = static_cast<uint16_t>(pairs.y >> 16);
    }
    return;
  }
  const int head = first / kDim, channel = first % kDim;
  const int64_t at = keys ? cache.exact_key(head, channel) : cache.exact_value(head, channel);
  const auto* from = reinterpret_cast<const uint16_t*>(cache.window_page(b, token) + at) + token % kExactTokens;
#pragma unroll
  for (int i = 0; i < n; ++i) x[i] = from[i * kExactTokens];
}

/// What a thread needs of a side's parameters.
template <int bits, int n>
struct SideParams {
  static constexpr int kMiddles = (1 << bits) - 1;
  float middles[kMiddles], step[n], start[n];

  __device__ __forceinline__ explicit SideParams(const SideView& side) {
#pragma unroll
    for (int i = 0; i < kMiddles; ++i) middles[i] = __fmul_rn(0.5f, __fadd_rn(side.levels[i], side.levels[i + 1]));
    if (side.steps == nullptr) return;
    const auto* steps = reinterpret_cast<const float4*>(side.steps) + n / 2 * threadIdx.x;
    float4 two[n / 2];
#pragma unroll
    for (int i = 0; i < n / 2; ++i) two[i] = steps[i];
#pragma unroll
    for (int i = 0; i < n / 2; ++i) {
      start[2 * i] = two[i].x;
      step[2 * i] = two[i].y;
      start[2 * i + 1] = two[i].z;
      step[2 * i + 1] = two[i].w;
    }
  }
};

template <int bits, int n>
__device__ __forceinline__ void put_side(const CacheView& cache, const SideView& side, const NewRows& rows, int b,
                                         int token, SideParams<bits, n>& own, Choice& choice, uint64_t* list) {
  const bool keys = &side == &cache.keys;
  const int first = n * static_cast<int>(threadIdx.x);
  const TokenAt t{side, cache.page(b, token / kPageTokens), token % kPageTokens / kTileTokens, token % kTileTokens};
  const int bit = t.lane * bits, shift = bit % 8;
  const bool two = bits == 3 && shift + bits > 8;  // bytes
  uint8_t* field = t.page + side.tile(first / kDim, t.tile) + first % kDim * 2 * bits + bit / 8;
  Elements<n> elements;
  const auto& x = elements.x;
  float relative[n];
  unsigned old[n];
  load_own(cache, rows, b, token, keys, elements.x);
#pragma unroll
  for (int i = 0; i < n; ++i) {
    old[i] = field[i * 2 * bits];
    if (two) old[i] |= static_cast<unsigned>(field[i * 2 * bits + 1]) << 8;
  }
  const auto find_relative = [&] {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      relative[i] = __fdiv_rn(__fsub_rn(__half2float(__ushort_as_half(x[i])), own.start[i]), own.step[i]);
    }
  };
  int slot = 0;
  if (keys) {
    find_relative();
    if (side.outliers > 0) {
      uint32_t far[1][n];
#pragma unroll
      for (int i = 0; i < n; ++i) far[0][i] = rank_beyond(relative[i], own.step[i]);
      slot = put_outliers<1>(t, side.outliers, far, x, choice, list);
    }
  } else {
    const Ends ends = put_ends(t, side.outliers / 2, elements, choice, list);
    slot = ends.count;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      own.step[i] = ends.range.x;
      own.start[i] = ends.range.y;
    }
    find_relative();
  }
  for (int i = slot + static_cast<int>(threadIdx.x); i < side.outliers; i += blockDim.x) {
    __half* to = t.slot(i);
    to[0] = __ushort_as_half(0);
    reinterpret_cast<uint16_t*>(to)[kTileTokens] = kNoChannel;
  }
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const unsigned mask = ((1u << bits) - 1u) << shift;
    const unsigned now = (old[i] & ~mask) | static_cast<unsigned>(nearest_level_of(relative[i], own.middles)) << shift;
    field[i * 2 * bits] = static_cast<uint8_t>(now);
    if (two) field[i * 2 * bits + 1] = static_cast<uint8_t>(now >> 8);
  }
}

/// Exact copies of a side of a new token.
template <int n>
__device__ __forceinline__ void keep_side(const CacheView& cache, const NewRows& rows, int b, int i, bool keys) {
  const int before = cache.length(b), token = before + i, length = before + rows.count(b);
  const bool recent = cache.window > 0 && token >= length - cache.ring * kExactTokens;
  const bool sink = cache.sink_policy == SinkPolicy::kFirst && token < cache.max_sinks;
  if (!recent && !sink) return;
  const int first = n * static_cast<int>(threadIdx.x), head = first / kDim, channel = first % kDim;
  uint16_t x[n];
  load_own(cache, rows, b, token, keys, x);
  const int64_t at = keys ? cache.exact_key(head, channel) : cache.exact_value(head, channel);
#pragma unroll 1
  for (int copy = 0; copy < 2; ++copy) {
    if (!(copy == 0 ? recent : sink)) continue;
    uint8_t* page = copy == 0 ? cache.window_page(b, token) : cache.sink_page(b, token / kExactTokens);
    auto* to = reinterpret_cast<uint16_t*>(page + at) + token % kExactTokens;
#pragma unroll
    for (int j = 0; j < n; ++j) to[j * kExactTokens] = x[j];
  }
}

/// A block per side and sequence.
template <int bits, int n>
__global__ void __launch_bounds__(kMostThreads)
    append_codebook_one_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows) {
  KVQUANT_DYNAMIC_SHARED(shared);
  auto& choice = *reinterpret_cast<Choice*>(shared);
  auto* lists = reinterpret_cast<uint64_t*>(shared + sizeof(Choice));
  const bool keys = blockIdx.x == 0;
  const SideView& side = keys ? cache.keys : cache.values;
  release_next_kernel();
  SideParams<bits, n> own(side);
  wait_for_previous_kernel();
  const int b = blockIdx.y, length = cache.length(b), added = rows.count(b);
  if (added == 0) return;
  const int end = cache.quantized(b, length + added);
#pragma unroll 1
  for (int token = cache.quantized(b, length); token < end; ++token) {
    put_side(cache, side, rows, b, token, own, choice, lists);
    __syncthreads();
  }
#pragma unroll 1
  for (int i = 0; i < added; ++i) keep_side<n>(cache, rows, b, i, keys);
  if (keys && cache.sink_policy == SinkPolicy::kFirst) {
#pragma unroll 1
    for (int page = 0; page < cache.sink_pages; ++page) update_sink_header(cache, b, added, page, threadIdx.x);
  }
}

}  // namespace

/// Channels of a thread.
static int thread_channels(const CacheView& cache) {
  return cache.kv_heads * kDim <= kFew * kMostThreads ? kFew : kMany;
}

static int block_bytes(const CacheView& cache) {
  return static_cast<int>(sizeof(Choice) + 2 * sizeof(uint64_t) * static_cast<size_t>(cache.kv_heads) * kDim);
}

bool append_codebook_one_supports(const CacheView& cache, const NewTokens& tokens) {
  const SideView &keys = cache.keys, &values = cache.values;
  const auto side = [](const SideView& x) {
    return x.format == Format::kCodebook && x.mean == nullptr && x.rotation_heads == 0 && x.basis_heads == 0;
  };
  const int channels = cache.kv_heads * kDim, n = thread_channels(cache);
  return side(keys) && side(values) && keys.bits == values.bits && keys.bits >= 2 && keys.bits <= 4 &&
         keys.steps != nullptr && values.steps == nullptr && values.outliers % 2 == 0 && cache.keys_pre_rope != 0 &&
         cache.head_dim == kDim && channels <= n * kMostThreads && channels % (n * kWarp) == 0 &&
         block_bytes(cache) <= most_shared_bytes("append") && aligned_rows(tokens);
}

template <int bits>
static void append_bits(const CacheView& cache, const NewRows& rows, cudaStream_t stream) {
  const int n = thread_channels(cache);
  const LaunchShape shape{dim3(2, static_cast<unsigned>(cache.batch)), static_cast<unsigned>(cache.kv_heads * kDim / n),
                          static_cast<size_t>(block_bytes(cache)), stream, can_start_early("append")};
  if (n == kFew) {
    launch("append", append_codebook_one_kernel<bits, kFew>, shape, cache, rows);
  } else {
    launch("append", append_codebook_one_kernel<bits, kMany>, shape, cache, rows);
  }
}

void append_codebook_one(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  const NewRows rows{tokens};
  if (cache.keys.bits == 2) append_bits<2>(cache, rows, stream);
  if (cache.keys.bits == 3) append_bits<3>(cache, rows, stream);
  if (cache.keys.bits == 4) append_bits<4>(cache, rows, stream);
}

}  // namespace kvquant::cuda
