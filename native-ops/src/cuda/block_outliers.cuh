/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Outliers of a token of kvquant, found by a block whose threads have some channels each, in registers: the extreme
// elements of all heads, in order. A bound that as many groups of elements reach as there are slots rules most elements
// out, and those that are left find their slots by counting; both ends of values at once, with the first elements
// behind, which are the range of the others.
#pragma once
#include "append.cuh"
#include "outlier_rank.cuh"
#include "tile_rows.cuh"

namespace kvquant::cuda {

constexpr int kMostGroups = 256;
/// Channels of a thread, n below, where there are few kv heads and where there are many.
constexpr int kFew = 4, kMany = 8;

/// An element that may become an outlier: its rank, how early its channel comes, and its 16 bits. The largest is the
/// first.
__device__ __forceinline__ uint64_t candidate(uint32_t rank, int channel, uint16_t element) {
  return static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(0xffff - channel) << 16 | element;
}

/// What a block finds out about an end, beside a list of [channels].
struct __align__(16) End {
  uint32_t best[kMostGroups + 4], bound, count;
  uint64_t next;  // the first behind the outliers
};

/// Shared memory of a block.
struct __align__(16) Choice {
  End ends[2];
  uint32_t low, high;
};

/// One side of a token.
struct TokenAt {
  const SideView& side;
  uint8_t* page;
  int tile, lane;  // of the token

  __device__ __half* slot(int index) const {
    return reinterpret_cast<__half*>(page + side.outlier_slot(tile, index)) + lane;
  }
  /// Puts a candidate into a slot.
  __device__ __forceinline__ void put(int index, uint64_t candidate) const {
    __half* to = slot(index);
    to[0] = limited_half(__ushort_as_half(static_cast<uint16_t>(candidate)));
    reinterpret_cast<uint16_t*>(to)[kTileTokens] = static_cast<uint16_t>(0xffffu - (candidate >> 16 & 0xffffu));
  }
};

/// The highest rank of each group of neighbouring threads' elements, of every end. Returns how many groups there are.
template <int ends, int n>
__device__ __forceinline__ int find_best(int wanted, const uint32_t (&rank)[ends][n], Choice& choice) {
  const int thread = threadIdx.x, threads = blockDim.x;
  uint32_t best[ends];
#pragma unroll
  for (int e = 0; e < ends; ++e) {
    uint32_t highest[n / 2];
#pragma unroll
    for (int i = 0; i < n / 2; ++i) highest[i] = max(rank[e][i], rank[e][i + n / 2]);
    best[e] = max(highest[0], highest[1]);
    if (n == kMany) best[e] = max(best[e], max(highest[n / 2 - 2], highest[n / 2 - 1]));
  }
  int groups = threads;
#pragma unroll 1
  for (int step = 1; groups > kMostGroups || (groups / 2 >= 2 * wanted && groups > kWarp); step *= 2, groups /= 2) {
#pragma unroll
    for (int e = 0; e < ends; ++e) best[e] = max(best[e], __shfl_xor_sync(0xffffffffu, best[e], step));
  }
  const int together = threads / groups;
#pragma unroll
  for (int e = 0; e < ends; ++e) {
    End& end = choice.ends[e];
    if (thread % together == 0 && thread / together < groups) end.best[thread / together] = best[e];
    if (thread < 4) end.best[groups + thread] = 0;
    if (thread == 0) {
      end.count = 0;
      end.bound = 1;
    }
  }
  return groups;
}

/// The rank that `wanted` groups reach and fewer exceed, of every end; elements below it are no outliers.
template <int ends>
__device__ __forceinline__ void find_bounds(int wanted, int groups, Choice& choice) {
#pragma unroll 1
  for (int at = threadIdx.x; at < ends * groups; at += static_cast<int>(blockDim.x)) {
    End& end = choice.ends[at / groups];
    const uint32_t own = end.best[at % groups];
    int above = 0, reached = 0;
#pragma unroll 1
    for (int i = 0; i < groups; i += 4) {
      const uint4 others = *reinterpret_cast<const uint4*>(end.best + i);
      above +=
          (others.x > own ? 1 : 0) + (others.y > own ? 1 : 0) + (others.z > own ? 1 : 0) + (others.w > own ? 1 : 0);
      reached +=
          (others.x >= own ? 1 : 0) + (others.y >= own ? 1 : 0) + (others.z >= own ? 1 : 0) + (others.w >= own ? 1 : 0);
    }
    if (above < wanted && wanted <= reached && own > 0) end.bound = own;  // the same by whomever
  }
}

/// Lists the elements that reach the bound of an end.
template <int ends, int n>
__device__ __forceinline__ void list_candidates(const uint32_t (&rank)[ends][n], const uint16_t (&x)[n], Choice& choice,
                                                uint64_t* lists) {
  const int thread = threadIdx.x, channels = n * static_cast<int>(blockDim.x);
#pragma unroll
  for (int e = 0; e < ends; ++e) {
    End& end = choice.ends[e];
    const uint32_t bound = end.bound;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if (rank[e][i] < bound) continue;
      lists[e * channels + atomicAdd(&end.count, 1u)] = candidate(rank[e][i], n * thread + i, x[i]);
    }
  }
}

/// Puts listed elements into the slots that they find by counting the larger ones. Returns how many there were.
template <int ends>
__device__ __forceinline__ int put_listed(const TokenAt& t, int most, int channels, Choice& choice,
                                          const uint64_t* lists) {
  const int counts[2] = {static_cast<int>(choice.ends[0].count), ends > 1 ? static_cast<int>(choice.ends[1].count) : 0};
  const int before = min(counts[0], most);
#pragma unroll 1
  for (int at = threadIdx.x; at < counts[0] + counts[1]; at += static_cast<int>(blockDim.x)) {
    const bool second = at >= counts[0];
    const int i = second ? at - counts[0] : at, count = second ? counts[1] : counts[0];
    const uint64_t* list = lists + (second ? channels : 0);
    const uint64_t own = list[i];
    int place = 0;
#pragma unroll 2
    for (int j = 0; j < count; j += 2) {
      const ulonglong2 two = *reinterpret_cast<const ulonglong2*>(list + j);
      place += (two.x > own ? 1 : 0) + (j + 1 < count && two.y > own ? 1 : 0);
    }
    if (ends > 1 && place == most) choice.ends[second ? 1 : 0].next = own;
    if (place < most) t.put(second ? before + place : place, own);
  }
  return before + min(counts[1], most);
}

/// Puts, of each of `ends` ends, the `most` elements of highest rank, but rank 0, into slots, an end's behind those of
/// the one before it; of two ends also finds the next one of each. Returns how many there were. A block's work.
template <int ends, int n>
__device__ __forceinline__ int put_outliers(const TokenAt& t, int most, const uint32_t (&rank)[ends][n],
                                            const uint16_t (&x)[n], Choice& choice, uint64_t* lists) {
  const int wanted = most + ends - 1, groups = find_best(wanted, rank, choice);
  __syncthreads();
  if (wanted <= groups) find_bounds<ends>(wanted, groups, choice);
  __syncthreads();
  list_candidates(rank, x, choice, lists);
  __syncthreads();
  const int count = put_listed<ends>(t, most, n * static_cast<int>(blockDim.x), choice, lists);
  if (ends > 1) __syncthreads();
  return count;
}

}  // namespace kvquant::cuda
