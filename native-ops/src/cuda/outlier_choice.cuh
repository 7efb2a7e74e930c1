/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Which elements of a token become kvquant's outliers, found by a warp in rows of halves in shared memory.
//
// A bound that as many of the lanes' extreme elements reach as there are slots rules most elements out; those that are
// left find their slots by counting. Where too many are left or the ends meet, outliers are found one after another.
#pragma once
#include "fp16_tile.cuh"
#include "outlier_rank.cuh"

namespace kvquant::cuda {

constexpr int kList = 192;       // elements that are ranked for an end at most; else the slow way
constexpr int kMostSlots = 100;  // of an end
constexpr int kLaneGroups = 4;   // whose extremes make the bound
constexpr int kMostLimits = 15;

/// A block's shared memory, in bytes.
struct TokensLayout {
  int channels, limits, slots, ranges, lists, counts, beyond, bytes;
  static constexpr int kListBytes = kList * 8;

  __host__ __device__ TokensLayout(int channels, int outliers, int warps)
      : channels(channels),
        limits(kTileTokens * channels * 2),
        slots(limits + max(channels * 4, kTileTokens * (kMostLimits + 1) * 4)),
        ranges(slots + outliers * 4 * kTileTokens),
        lists(ranges + 4 * kTileTokens),
        counts(lists + warps * kListBytes),
        beyond(counts + warps * 16),
        bytes(beyond + warps * most_beyond() * 2) {}

  /// Channels of a token whose elements lie beyond their range, else the slow way.
  __host__ __device__ int most_beyond() const { return channels / 4; }

 private:
  static __host__ __device__ int max(int a, int b) { return a > b ? a : b; }
};

/// A side of a tile.
struct TileSide {
  const float *steps, *levels;
  int outliers;
  TokensLayout layout;
  unsigned char* shared;
  int first, last;  // tokens of the tile

  __device__ __half* row(int token) const { return reinterpret_cast<__half*>(shared) + token * layout.channels; }
  __device__ void put_slot(int slot, int token, int channel) const {
    auto* to = reinterpret_cast<uint16_t*>(shared + layout.slots) + slot * (2 * kTileTokens) + token;
    to[0] = __half_as_ushort(limited_half(row(token)[channel]));
    to[kTileTokens] = static_cast<uint16_t>(channel);
  }
  /// What distances beyond ranges may be off by, as a float's bits.
  __device__ uint32_t* margin() const { return reinterpret_cast<uint32_t*>(shared + layout.ranges); }
  __device__ __half* range(int token) const { return reinterpret_cast<__half*>(shared + layout.ranges) + token; }
};

/// What a warp needs for a token's outliers.
struct WarpLists {
  uint32_t *low, *high;  // [kList] each, or:
  uint64_t* far;         // [kList]
  uint16_t* beyond;
  uint32_t* counts;  // of two lists, then what is found of the rest

  __device__ WarpLists(const TokensLayout& layout, unsigned char* shared, int warp)
      : low(reinterpret_cast<uint32_t*>(shared + layout.lists + warp * TokensLayout::kListBytes)),
        high(low + kList),
        far(reinterpret_cast<uint64_t*>(low)),
        beyond(reinterpret_cast<uint16_t*>(shared + layout.beyond) + warp * layout.most_beyond()),
        counts(reinterpret_cast<uint32_t*>(shared + layout.counts) + warp * 4) {}
};

/// A number that at least `most` of the warp's are not less than, and rarely many more.
__device__ __forceinline__ uint32_t bound_of(const uint32_t (&own)[kLaneGroups], int most, int bits) {
  uint32_t bound = 0;
#pragma unroll 1
  for (int bit = bits - 1; bit >= 0; --bit) {
    const uint32_t higher = bound | 1u << bit;
    int count = 0;
#pragma unroll
    for (int i = 0; i < kLaneGroups; ++i) count += __popc(__ballot_sync(0xffffffffu, own[i] >= higher));
    if (count < most) continue;
    bound = higher;
    if (count == most) break;
  }
  return bound;
}

__device__ __forceinline__ uint64_t warp_max(uint64_t x) {
  for (int step = 1; step < kWarp; step *= 2) {
    const uint64_t other = __shfl_xor_sync(0xffffffffu, x, step);
    x = other > x ? other : x;
  }
  return x;
}

/// The largest of candidates below `below`; candidate(channel): 0: it is none.
template <class Candidate>
__device__ __forceinline__ uint64_t next_candidate(int channels, uint64_t below, int lane, Candidate candidate) {
  uint64_t best = 0;
  for (int c = lane; c < channels; c += kWarp) {
    const uint64_t x = candidate(c);
    if (x < below && x > best) best = x;
  }
  return warp_max(best);
}

__device__ __forceinline__ uint64_t candidate_of(uint32_t rank, int channel) {
  return rank > 0 ? static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(0xffff - channel) : 0;
}
__device__ __forceinline__ int channel_of(uint64_t candidate) { return 0xffff - static_cast<int>(candidate & 0xffffu); }

static __device__ __noinline__ uint32_t rank_in_channel(const float* steps, __half x, int channel) {
  const float2 range = __ldg(reinterpret_cast<const float2*>(steps) + channel);
  return rank_beyond(__fdiv_rn(__fsub_rn(__half2float(x), range.x), range.y), range.y);
}

/// Outliers of keys, one after another.
static __device__ __noinline__ void choose_far_slowly(const TileSide& t, int token, int lane) {
  const __half* row = t.row(token);
  uint64_t last = ~0ull;
  for (int slot = 0; slot < t.outliers; ++slot) {
    last = next_candidate(t.layout.channels, last, lane,
                          [&](int c) { return candidate_of(rank_in_channel(t.steps, row[c], c), c); });
    if (last == 0) break;
    if (lane == 0) t.put_slot(slot, token, channel_of(last));
  }
}

/// Outliers of values, one after another; returns the range of the rest.
static __device__ __noinline__ float2 choose_ends_slowly(const TileSide& t, int token, int lane) {
  const __half* row = t.row(token);
  const int channels = t.layout.channels, most = t.outliers / 2;
  uint64_t last_low = ~0ull, last_high = ~0ull;
  const auto low = [&](int c) { return candidate_of(reversed(rank_of(row[c])), c); };
  const auto high = [&](int c) { return candidate_of(low(c) >= last_low ? 0 : rank_of(row[c]), c); };
  int slot = 0;
  for (int i = 0; i < most; ++i) {
    const uint64_t next = next_candidate(channels, last_low, lane, low);
    if (next == 0) break;
    last_low = next;
    if (lane == 0) t.put_slot(slot, token, channel_of(next));
    ++slot;
  }
  for (int i = 0; i < most; ++i) {
    const uint64_t next = next_candidate(channels, last_high, lane, high);
    if (next == 0) break;
    last_high = next;
    if (lane == 0) t.put_slot(slot, token, channel_of(next));
    ++slot;
  }
  const uint64_t first_rest =
      next_candidate(channels, last_low, lane, [&](int c) { return high(c) >= last_high ? 0 : low(c); });
  const uint64_t last_rest = next_candidate(channels, last_high, lane, high);
  if (last_rest == 0) return make_float2(0.0f, 0.0f);
  return range_between(row[channel_of(first_rest)], row[channel_of(last_rest)]);
}

/// Outliers of keys of a token: a warp's work.
__device__ __forceinline__ void choose_far(const TileSide& t, int token, const WarpLists& lists, int lane) {
  const __half* row = t.row(token);
  const int channels = t.layout.channels, most = t.outliers;
  if (most == 0) return;
  if (lane < 2) lists.counts[lane] = 0;
  __syncwarp();
  const auto* upper = reinterpret_cast<const uint4*>(t.shared + t.layout.limits);
  const uint4* lower = upper + channels / 8;
  const auto distance = [](uint32_t x, uint32_t high, uint32_t low) {
    return __hmax2(__hsub2(as_half2(x), as_half2(high)), __hsub2(as_half2(low), as_half2(x)));
  };
  const __half2 lowest = __half2half2(__ushort_as_half(0xfc00));
  __half2 best[2] = {lowest, lowest};
#pragma unroll 2
  for (int i = lane; i < channels / 8; i += kWarp) {
    const uint4 x = reinterpret_cast<const uint4*>(row)[i], high = upper[i], low = lower[i];
    best[0] = __hmax2(best[0], __hmax2(distance(x.x, high.x, low.x), distance(x.y, high.y, low.y)));
    best[1] = __hmax2(best[1], __hmax2(distance(x.z, high.z, low.z), distance(x.w, high.w, low.w)));
  }
  // Distances in halves are off by less than the margin, what they are compared with has it taken off.
  const uint32_t farthest[kLaneGroups] = {rank_of(__low2half(best[0])), rank_of(__high2half(best[0])),
                                          rank_of(__low2half(best[1])), rank_of(__high2half(best[1]))};
  const float reached = __half2float(half_at(max(bound_of(farthest, most, 16), 0x400u)));
  const float margin = __uint_as_float(*t.margin());
  const __half2 limit = __half2half2(__float2half_rd(fmaxf(reached - fabsf(reached) * 0x1p-8f, 0.0f) - margin));
#pragma unroll 1
  for (int i = lane; i < channels / 8; i += kWarp) {
    const uint4 x = reinterpret_cast<const uint4*>(row)[i], high = upper[i], low = lower[i];
    const uint32_t far[4] = {
        __hge2_mask(distance(x.x, high.x, low.x), limit), __hge2_mask(distance(x.y, high.y, low.y), limit),
        __hge2_mask(distance(x.z, high.z, low.z), limit), __hge2_mask(distance(x.w, high.w, low.w), limit)};
    if ((far[0] | far[1] | far[2] | far[3]) == 0) continue;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      if ((far[k / 2] >> (16 * (k % 2)) & 1u) == 0) continue;
      const uint32_t at = atomicAdd(lists.counts, 1u);
      if (at < static_cast<uint32_t>(t.layout.most_beyond())) lists.beyond[at] = static_cast<uint16_t>(8 * i + k);
    }
  }
  __syncwarp();
  const int found = static_cast<int>(lists.counts[0]);
  if (found > t.layout.most_beyond()) return choose_far_slowly(t, token, lane);
  uint32_t bound = 1;
  if (found > kList) {
    uint32_t best[kLaneGroups] = {};
#pragma unroll 1
    for (int i = lane; i < found; i += kLaneGroups * kWarp) {
#pragma unroll
      for (int k = 0; k < kLaneGroups; ++k) {
        if (i + k * kWarp >= found) break;
        const int c = lists.beyond[i + k * kWarp];
        best[k] = max(best[k], rank_in_channel(t.steps, row[c], c));
      }
    }
    bound = max(bound, bound_of(best, most, 32));
  }
#pragma unroll 1
  for (int i = lane; i < found; i += kWarp) {
    const int c = lists.beyond[i];
    const uint32_t rank = rank_in_channel(t.steps, row[c], c);
    if (rank < bound) continue;
    const uint32_t at = atomicAdd(lists.counts + 1, 1u);
    if (at < kList) lists.far[at] = candidate_of(rank, c);
  }
  __syncwarp();
  const int count = static_cast<int>(lists.counts[1]);
  if (count > kList) return choose_far_slowly(t, token, lane);
#pragma unroll 1
  for (int i = lane; i < count; i += kWarp) {
    const uint64_t own = lists.far[i];
    int slot = 0;
    for (int j = 0; j < count; ++j) slot += lists.far[j] > own ? 1 : 0;
    if (slot < most) t.put_slot(slot, token, channel_of(own));
  }
  __syncwarp();
}

/// Outliers of values of a token, and its range: a warp's work.
__device__ __forceinline__ void choose_ends(const TileSide& t, int token, const WarpLists& lists, int lane) {
  const __half* row = t.row(token);
  const int channels = t.layout.channels, most = t.outliers / 2;
  if (lane < 4) lists.counts[lane] = 0;
  const __half2 infinity = __half2half2(__ushort_as_half(0x7c00));
  __half2 low[2] = {infinity, infinity}, high[2] = {__hneg2(infinity), __hneg2(infinity)};
  for (int i = lane; i < channels / 8; i += kWarp) {
    const uint4 x = reinterpret_cast<const uint4*>(row)[i];
    const uint32_t pairs[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      low[k % 2] = __hmin2(low[k % 2], as_half2(pairs[k]));
      high[k % 2] = __hmax2(high[k % 2], as_half2(pairs[k]));
    }
  }
  uint32_t lowest[kLaneGroups], highest[kLaneGroups];
#pragma unroll
  for (int k = 0; k < kLaneGroups; ++k) {
    lowest[k] = reversed(rank_of(k % 2 == 0 ? __low2half(low[k / 2]) : __high2half(low[k / 2])));
    highest[k] = rank_of(k % 2 == 0 ? __low2half(high[k / 2]) : __high2half(high[k / 2]));
  }
  const uint32_t below = max(bound_of(lowest, most + 1, 16), 1u), above = max(bound_of(highest, most + 1, 16), 1u);
  const __half2 limit_low = __half2half2(half_at(reversed(below))), limit_high = __half2half2(half_at(above));
  __syncwarp();
#pragma unroll 1
  for (int i = lane; i < channels / 8; i += kWarp) {
    const uint4 x = reinterpret_cast<const uint4*>(row)[i];
    const uint32_t pairs[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint32_t is_low = __hle2_mask(as_half2(pairs[k]), limit_low);
      const uint32_t is_high = __hge2_mask(as_half2(pairs[k]), limit_high);
      if ((is_low | is_high) == 0) continue;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const uint32_t rank = rank_of(__ushort_as_half(static_cast<uint16_t>(pairs[k] >> (16 * j))));
        const uint32_t channel = 0xffffu - static_cast<uint32_t>(8 * i + 2 * k + j);
        if ((is_low >> (16 * j) & 1u) != 0) {
          const uint32_t at = atomicAdd(lists.counts, 1u);
          if (at < kList) lists.low[at] = reversed(rank) << 16 | channel;
        }
        if ((is_high >> (16 * j) & 1u) != 0) {
          const uint32_t at = atomicAdd(lists.counts + 1, 1u);
          if (at < kList) lists.high[at] = rank << 16 | channel;
        }
      }
    }
  }
  __syncwarp();
  const int lows = static_cast<int>(lists.counts[0]), highs = static_cast<int>(lists.counts[1]);
  bool clear = lows > most && lows <= kList && highs > most && highs <= kList;  // the ends do not meet
  if (clear) {
    const auto settle = [&](const uint32_t* list, int count, int first, uint32_t* rest) {
#pragma unroll 1
      for (int i = lane; i < count; i += kWarp) {
        const uint32_t own = list[i];
        int place = 0;
        for (int j = 0; j < count; ++j) place += list[j] > own ? 1 : 0;
        if (place < most) t.put_slot(first + place, token, static_cast<int>(0xffffu - (own & 0xffffu)));
        if (place == most) *rest = own >> 16;
      }
    };
    settle(lists.low, lows, 0, lists.counts + 2);
    settle(lists.high, highs, most, lists.counts + 3);
  }
  __syncwarp();
  const uint32_t first = reversed(lists.counts[2]), last = lists.counts[3];
  clear &= first < last;
  __syncwarp();
  const float2 range = clear ? range_between(half_at(first), half_at(last)) : choose_ends_slowly(t, token, lane);
  if (lane == 0) {
    __half* to = t.range(token);
    to[0] = __float2half_rn(range.x);
    to[kTileTokens] = __float2half_rn(range.y);
  }
}

}  // namespace kvquant::cuda
