/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Which elements of a token become kvquant's outliers, found by a warp in rows of halves in shared memory.
//
// A bound that as many of the lanes' extreme elements reach as there are slots rules most elements out. Those that are
// left find their slots by counting. Where too many are left or the ends meet, outliers are found one after another.
#pragma once
#include "fp16_tile.cuh"
#include "outlier_rank.cuh"

namespace kvquant::cuda {

constexpr int kList = 192;       // elements that are ranked for an end at most; else the slow way
constexpr int kMostSlots = 100;  // of an end
constexpr int kLaneGroups = 4;   // of a lane's elements, whose extremes make the bound of many slots
constexpr int kAtOnce = 4;       // times 8 elements that a lane has in registers
constexpr int kMostLimits = 15;

/// A block's shared memory, in bytes.
struct TokensLayout {
  int channels, limits, slots, ranges, lists, rest, beyond, bytes;
  static constexpr int kListBytes = (kList + 4) * 8;

  __host__ __device__ TokensLayout(int channels, int outliers, int warps)
      : channels(channels),
        limits(kTileTokens * channels * 2),
        slots(limits + max(channels * 4, kTileTokens * (kMostLimits + 1) * 4)),
        ranges(slots + outliers * 4 * kTileTokens),
        lists(ranges + 4 * kTileTokens),
        rest(lists + warps * kListBytes),
        beyond(rest + warps * 16),
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
  uint64_t* far;         // [kList]; 4 more to read
  uint16_t* beyond;
  uint32_t* rest;  // the first behind the outliers of an end, of two

  __device__ WarpLists(const TokensLayout& layout, unsigned char* shared, int warp)
      : low(reinterpret_cast<uint32_t*>(shared + layout.lists + warp * TokensLayout::kListBytes)),
        high(low + kList + 4),
        far(reinterpret_cast<uint64_t*>(low)),
        beyond(reinterpret_cast<uint16_t*>(shared + layout.beyond) + warp * layout.most_beyond()),
        rest(reinterpret_cast<uint32_t*>(shared + layout.rest) + warp * 4) {}
};

/// The count-th smallest of the lanes' numbers below 2^26.
__device__ __forceinline__ uint32_t smallest_of(uint32_t own, int count, int lane) {
  own = own << 5 | static_cast<uint32_t>(lane);  // no two are equal
  uint32_t next = 0;
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
    next = __reduce_min_sync(0xffffffffu, own);
    if (own == next) own = ~0u;
  }
  return next >> 5;
}

__device__ __forceinline__ __half2 swapped(__half2 x) { return as_half2(__byte_perm(as_bits(x), 0, 0x1032)); }

/// Elements of the lane's 8 kAtOnce, a bit each: of the first of pair i bit i, of the second bit i + 16.
struct LaneBits {
  uint32_t bits = 0;

  __device__ __forceinline__ void add(int pair, uint32_t mask) { bits |= mask & (0x00010001u << pair); }

  /// Lists the elements of all lanes from count on; returns the place behind the last. first: the vector of 8 channels
  /// of lane 0 and pair 0.
  template <class Place>
  __device__ __forceinline__ int list(Place* list, int count, int most, int first, int lane) {
    const uint32_t own = static_cast<uint32_t>((first + lane) * 32);
#pragma unroll 1
    for (unsigned lanes = __ballot_sync(0xffffffffu, bits != 0); lanes != 0;
         lanes = __ballot_sync(0xffffffffu, bits != 0)) {
      const int place = count + __popc(lanes & ((1u << lane) - 1u));
      if (bits != 0 && place < most) list[place] = static_cast<Place>(own + __ffs(static_cast<int>(bits)) - 1);
      bits &= bits - 1;
      count += __popc(lanes);
    }
    return count;
  }
  /// The channel of what was listed.
  static __device__ __forceinline__ int channel(uint32_t listed) {
    return static_cast<int>(listed / 32 * 8 + (listed & 12u) * (kWarp * 2) + (listed & 3u) * 2 + (listed >> 4 & 1u));
  }
};

/// How many of a list, which has three zeros behind it, are above a number. None has its highest bit set: that of a
/// difference tells.
__device__ __forceinline__ int count_above(const uint32_t* list, int count, uint32_t own) {
  uint32_t above = 0;
#pragma unroll 1
  for (int i = 0; i < count; i += 4) {
    const uint4 x = *reinterpret_cast<const uint4*>(list + i);
    above += (own - x.x) >> 31;
    above += (own - x.y) >> 31;
    above += (own - x.z) >> 31;
    above += (own - x.w) >> 31;
  }
  return static_cast<int>(above);
}
__device__ __forceinline__ int count_above(const uint64_t* list, int count, uint64_t own) {
  uint32_t above = 0;
#pragma unroll 1
  for (int i = 0; i < count; i += 4) {
    const ulonglong2 x = *reinterpret_cast<const ulonglong2*>(list + i);
    const ulonglong2 y = *reinterpret_cast<const ulonglong2*>(list + i + 2);
    above += static_cast<uint32_t>((own - x.x) >> 63);
    above += static_cast<uint32_t>((own - x.y) >> 63);
    above += static_cast<uint32_t>((own - y.x) >> 63);
    above += static_cast<uint32_t>((own - y.y) >> 63);
  }
  return static_cast<int>(above);
}

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
static __device__ __noinline__ void choose_far_slowly(TileSide t, int token, int lane) {
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
static __device__ __noinline__ float2 choose_ends_slowly(TileSide t, int token, int lane) {
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
  const int vectors = t.layout.channels / 8, most = t.outliers;
  if (most == 0) return;
  const auto* middles = reinterpret_cast<const uint4*>(t.shared + t.layout.limits);
  const uint4* reaches = middles + vectors;
  __half2 x[4 * kAtOnce];  // distances beyond ranges
  const auto load_vectors = [&](int first, bool all) {
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = first + k * kWarp + lane;
      uint4 own = make_uint4(0x7fff7fffu, 0x7fff7fffu, 0x7fff7fffu, 0x7fff7fffu), middle = {}, reach = {};
      if (all || i < vectors) {
        own = reinterpret_cast<const uint4*>(row)[i];
        middle = middles[i];
        reach = reaches[i];
      }
      const auto distance = [](uint32_t x, uint32_t middle, uint32_t reach) {
        return __hsub2(__habs2(__hsub2(as_half2(x), as_half2(middle))), as_half2(reach));
      };
      x[4 * k] = distance(own.x, middle.x, reach.x);
      x[4 * k + 1] = distance(own.y, middle.y, reach.y);
      x[4 * k + 2] = distance(own.z, middle.z, reach.z);
      x[4 * k + 3] = distance(own.w, middle.w, reach.w);
    }
  };
  // Where all vectors exist none is looked at first.
  const auto load = [&](int first) {
    if (first + kAtOnce * kWarp <= vectors) {
      load_vectors(first, true);
    } else {
      load_vectors(first, false);
    }
  };
  const __half2 lowest = __half2half2(__ushort_as_half(0xfc00));
  __half2 best[2] = {lowest, lowest};
#pragma unroll 1
  for (int first = 0; first < vectors; first += kAtOnce * kWarp) {
    load(first);
#pragma unroll
    for (int i = 0; i < 4 * kAtOnce; ++i) best[i % 2] = __hmax2(best[i % 2], x[i]);
  }
  // Distances in halves are off by less than the margin, what they are compared with has it taken off.
  float reached;
  if (most <= kWarp) {
    const __half2 own = __hmax2(best[0], best[1]);
    const uint32_t rank = rank_of(__low2half(__hmax2(own, swapped(own))));
    reached = __half2float(half_at(0x10000u - smallest_of(0x10000u - rank, most, lane)));
  } else {
    const uint32_t farthest[kLaneGroups] = {rank_of(__low2half(best[0])), rank_of(__high2half(best[0])),
                                            rank_of(__low2half(best[1])), rank_of(__high2half(best[1]))};
    reached = __half2float(half_at(max(bound_of(farthest, most, 16), 0x400u)));
  }
  const float margin = __uint_as_float(*t.margin());
  const __half2 limit = __half2half2(__float2half_rd(fmaxf(reached - fabsf(reached) * 0x1p-8f, 0.0f) - margin));
  int found = 0;
#pragma unroll 1
  for (int first = 0; first < vectors; first += kAtOnce * kWarp) {
    if (vectors > kAtOnce * kWarp) load(first);
    LaneBits far;
#pragma unroll
    for (int i = 0; i < 4 * kAtOnce; ++i) far.add(i, __hge2_mask(x[i], limit));
    found = far.list(lists.beyond, found, t.layout.most_beyond(), first, lane);
  }
  __syncwarp();
  if (found > t.layout.most_beyond()) return choose_far_slowly(t, token, lane);
  uint32_t bound = 1;
  if (found > kList) {
    uint32_t best[kLaneGroups] = {};
#pragma unroll 1
    for (int i = lane; i < found; i += kLaneGroups * kWarp) {
#pragma unroll
      for (int k = 0; k < kLaneGroups; ++k) {
        if (i + k * kWarp >= found) break;
        const int c = LaneBits::channel(lists.beyond[i + k * kWarp]);
        best[k] = max(best[k], rank_in_channel(t.steps, row[c], c));
      }
    }
    bound = max(bound, bound_of(best, most, 32));
  }
  int count = 0;
#pragma unroll 1
  for (int first = 0; first < found; first += kWarp) {
    uint64_t own = 0;
    if (first + lane < found) {
      const int c = LaneBits::channel(lists.beyond[first + lane]);
      const uint32_t rank = rank_in_channel(t.steps, row[c], c);
      if (rank >= bound) own = candidate_of(rank, c) & ~(1ull << 63);  // all ranks have this bit
    }
    const unsigned lanes = __ballot_sync(0xffffffffu, own != 0);
    const int place = count + __popc(lanes & ((1u << lane) - 1u));
    if (own != 0 && place < kList) lists.far[place] = own;
    count += __popc(lanes);
  }
  if (count > kList) return choose_far_slowly(t, token, lane);
  if (lane < 3) lists.far[count + lane] = 0;
  __syncwarp();
#pragma unroll 1
  for (int i = lane; i < count; i += kWarp) {
    const uint64_t own = lists.far[i];
    const int slot = count_above(lists.far, count, own);
    if (slot < most) t.put_slot(slot, token, channel_of(own));
  }
  __syncwarp();
}

/// Outliers of values of a token, and its range: a warp's work.
__device__ __forceinline__ void choose_ends(const TileSide& t, int token, const WarpLists& lists, int lane) {
  const __half* row = t.row(token);
  const int vectors = t.layout.channels / 8, most = t.outliers / 2;
  uint32_t x[4 * kAtOnce];
  const auto load_vectors = [&](int first, bool all) {
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = first + k * kWarp + lane;
      uint4 own = make_uint4(0x7fff7fffu, 0x7fff7fffu, 0x7fff7fffu, 0x7fff7fffu);
      if (all || i < vectors) own = reinterpret_cast<const uint4*>(row)[i];
      x[4 * k] = own.x;
      x[4 * k + 1] = own.y;
      x[4 * k + 2] = own.z;
      x[4 * k + 3] = own.w;
    }
  };
  // Where all vectors exist none is looked at first.
  const auto load = [&](int first) {
    if (first + kAtOnce * kWarp <= vectors) {
      load_vectors(first, true);
    } else {
      load_vectors(first, false);
    }
  };
  const __half2 infinity = __half2half2(__ushort_as_half(0x7c00));
  __half2 low[2] = {infinity, infinity}, high[2] = {__hneg2(infinity), __hneg2(infinity)};
#pragma unroll 1
  for (int first = 0; first < vectors; first += kAtOnce * kWarp) {
    load(first);
#pragma unroll
    for (int i = 0; i < 4 * kAtOnce; ++i) {
      low[i % 2] = __hmin2(low[i % 2], as_half2(x[i]));
      high[i % 2] = __hmax2(high[i % 2], as_half2(x[i]));
    }
  }
  __half2 limit_low, limit_high;
  if (most < kWarp) {
    const __half2 own_low = __hmin2(low[0], low[1]), own_high = __hmax2(high[0], high[1]);
    const __half2 lowest = __hmin2(own_low, swapped(own_low)), highest = __hmax2(own_high, swapped(own_high));
    const uint32_t below = smallest_of(rank_of(__low2half(lowest)), most + 1, lane);
    const uint32_t above = smallest_of(reversed(rank_of(__low2half(highest))), most + 1, lane);
    limit_low = __half2half2(half_at(below));
    limit_high = __half2half2(half_at(reversed(above)));
  } else {
    uint32_t lowest[kLaneGroups], highest[kLaneGroups];
#pragma unroll
    for (int k = 0; k < kLaneGroups; ++k) {
      lowest[k] = reversed(rank_of(k % 2 == 0 ? __low2half(low[k / 2]) : __high2half(low[k / 2])));
      highest[k] = rank_of(k % 2 == 0 ? __low2half(high[k / 2]) : __high2half(high[k / 2]));
    }
    const uint32_t below = max(bound_of(lowest, most + 1, 16), 1u), above = max(bound_of(highest, most + 1, 16), 1u);
    limit_low = __half2half2(half_at(reversed(below)));
    limit_high = __half2half2(half_at(above));
  }
  int lows = 0, highs = 0;
#pragma unroll 1
  for (int first = 0; first < vectors; first += kAtOnce * kWarp) {
    if (vectors > kAtOnce * kWarp) load(first);
    LaneBits are_low, are_high;
#pragma unroll
    for (int i = 0; i < 4 * kAtOnce; ++i) {
      are_low.add(i, __hle2_mask(as_half2(x[i]), limit_low));
      are_high.add(i, __hge2_mask(as_half2(x[i]), limit_high));
    }
    lows = are_low.list(lists.low, lows, kList, first, lane);
    highs = are_high.list(lists.high, highs, kList, first, lane);
  }
  bool clear = lows > most && lows <= kList && highs > most && highs <= kList;  // the ends do not meet
  if (clear) {
    __syncwarp();
    const auto own = [&](int i) { return i < lows ? lists.low + i : lists.high + (i - lows); };
#pragma unroll 1
    for (int i = lane; i < lows + highs; i += kWarp) {
      uint32_t* at = own(i);
      const int channel = LaneBits::channel(*at);
      const uint32_t rank = rank_of(row[channel]);
      *at = (i < lows ? 0x10000u - rank : rank) << 14 | (0x3fffu - static_cast<uint32_t>(channel));
    }
    if (lane < 3) lists.low[lows + lane] = lists.high[highs + lane] = 0;
    __syncwarp();
#pragma unroll 1
    for (int i = lane; i < lows + highs; i += kWarp) {
      const uint32_t key = *own(i);
      const int place = count_above(i < lows ? lists.low : lists.high, i < lows ? lows : highs, key);
      if (place < most) t.put_slot(i < lows ? place : most + place, token, static_cast<int>(0x3fffu - (key & 0x3fffu)));
      if (place == most) lists.rest[i < lows ? 0 : 1] = key >> 14;
    }
  }
  __syncwarp();
  const uint32_t first = reversed(lists.rest[0]), last = lists.rest[1];
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
