/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Attention of a block over what a sequence keeps exactly, sinks and the recent window, 16 tokens at a time. Queries
// are turned back to the first of them once for all heads, keys by their place among the 16, in fp32.
#pragma once
#include "queries.cuh"

namespace kvquant::cuda {

/// Tokens among which sinks may be.
constexpr int kSinkBits = 32;

/// Where it is written whether token `lane` of a sequence is a sink: an exact page, or -1.
__device__ __forceinline__ int sink_page_of(const CacheView& cache, int b, int lane) {
  const int page = lane / kExactTokens;
  return page < cache.sink_pages ? cache.exact_table[static_cast<int64_t>(b) * cache.exact_columns + page] : -1;
}

/// Whether it is one; length: with the newest token.
__device__ __forceinline__ bool is_sink(const CacheView& cache, int page, int length, int lane) {
  if (page < 0) return false;
  const auto* header = reinterpret_cast<const ExactHeader*>(cache.exact + page * cache.exact_bytes);
  return header->tokens[lane % kExactTokens] == lane && lane < length;
}

/// Tokens 0 to 31 of a sequence that are sinks, a bit each.
__device__ __forceinline__ uint32_t find_sinks(const CacheView& cache, int b, int lane) {
  return __ballot_sync(0xffffffffu, is_sink(cache, sink_page_of(cache, b, lane), cache.length(b) + 1, lane));
}

/// Bits of the 16 tokens from first on that are in [0, end) and no sinks.
__device__ __forceinline__ uint32_t valid_tokens(int first, int end, uint32_t sinks) {
  const int left = end - first;
  uint32_t valid = left >= kTileTokens ? 0xffffu : left > 0 ? (1u << left) - 1u : 0u;
  if (first < kSinkBits) valid &= ~(sinks >> first);
  return valid;
}

/// Halves from one head's query to the next; the excess keeps heads in different banks.
template <int D>
constexpr int kTurnedStride = D + 8;

/// Queries of a warp's 16 tokens in shared memory, turned back by the position of the first: halves [8 heads][D]. from:
/// FP32 [8, D]; heads beyond the block's were cleared.
template <int D>
__device__ __forceinline__ void turn_back(const CacheView& cache, const float* from, int heads, int position, int lane,
                                          __half* to) {
#pragma unroll
  for (int pair = lane; pair < D / 2; pair += kWarp) {
    const float2 angle = rope_angle(cache, position, pair);
#pragma unroll 4
    for (int head = 0; head < heads; ++head) {
      const float x = from[head * D + pair], y = from[head * D + pair + D / 2];
      to[head * kTurnedStride<D> + pair] = __float2half_rn(fmaf(x, angle.x, y * angle.y));
      to[head * kTurnedStride<D> + pair + D / 2] = __float2half_rn(fmaf(y, angle.x, -x * angle.y));
    }
  }
}

/// The warps of a block that work for one kv head: which of the block's it is, this warp's place among them, how many.
struct Team {
  int own, place, size, size_bits;
};

#ifdef KVQUANT_BULK_COPIES
constexpr bool kWholeTiles = true;
#else
constexpr bool kWholeTiles = false;
#endif

/// 16 tokens each: sink pages, then those of the window. A warp takes every `size`-th, through a tile of keys and one
/// of values. barriers_at: two of each warp's, at this place in shared memory, tell the ends of copies of whole tiles,
/// where the GPU has such copies; 0: there are none.
template <int D, int barriers_at = 0>
struct ExactUnits {
  static constexpr bool kBulk = barriers_at > 0 && kWholeTiles;
  using Tile = Fp16Tile<D, kBulk>;
  const CacheView& cache;
  const BlockHeads& heads;
  Team team;
  unsigned char *keys, *values;
  int lane, length, quantized, first_run, units;
  int ids;  // exact pages of 32 of the warp's units, a lane one

  __device__ __forceinline__ ExactUnits(const CacheView& cache, const BlockHeads& heads, Team team, unsigned char* keys,
                                        unsigned char* values, int lane)
      : ExactUnits(cache, heads, team, keys, values, lane, cache.length(heads.b) + 1,
                   cache.quantized(heads.b, cache.length(heads.b) + 1)) {
    find();
  }

  /// Without their pages.
  __device__ __forceinline__ ExactUnits(const CacheView& cache, const BlockHeads& heads, Team team, unsigned char* keys,
                                        unsigned char* values, int lane, int length, int quantized)
      : cache(cache), heads(heads), team(team), keys(keys), values(values), lane(lane) {
    count(length, quantized);
  }

  /// Sets up the barriers, before all else.
  __device__ __forceinline__ void set_up() const {
    if constexpr (kBulk) {
      if (lane == 0) {
        set_arrivals(copied(false), 1);
        set_arrivals(copied(true), 1);
        publish_operands();
      }
      __syncwarp();
    }
  }

  /// length: with the newest token; quantized: tokens in codes.
  __device__ __forceinline__ void count(int length, int quantized) {
    this->length = length;
    this->quantized = quantized;
    first_run = quantized / kTileTokens;
    const int runs = cache.window > 0 ? (length + kTileTokens - 1) / kTileTokens : 0;
    units = cache.sink_pages + max(0, runs - first_run);
  }

  /// Loads what says where the first units are.
  __device__ __forceinline__ void find() { ids = load_ids(team.place); }

  __device__ __forceinline__ int token(int unit) const {
    return (unit < cache.sink_pages ? unit : first_run + unit - cache.sink_pages) * kTileTokens;
  }

  __device__ __forceinline__ uint32_t valid(int unit, uint32_t sinks) const {
    const int first = token(unit);
    if (unit < cache.sink_pages) return (sinks >> first) & 0xffffu;
    const uint32_t all = valid_tokens(first, length, sinks);
    return first < quantized ? all & ~((1u << (quantized - first)) - 1u) : all;
  }

  /// Starts copying keys of a unit, if there is one, or then its values; units come in order. The warp has met since it
  /// used the place they go to.
  __device__ __forceinline__ void start(int unit, bool side) {
    if (unit < units) {
      if (!side && index(unit) == 0 && unit > team.place) ids = load_ids(unit);
      const int64_t begin = side ? cache.exact_value(heads.kv_head, 0) : cache.exact_key(heads.kv_head, 0);
      copy(side ? values : keys, page(unit) + begin, side);
    }
    commit_copies();
  }

  /// Waits for them.
  __device__ __forceinline__ void wait(int unit, bool side) const {
    if constexpr (kBulk) {
      wait_arrivals(copied(side), index(unit) & 1);
    } else {
      wait_copies<1>();
    }
    __syncwarp();
  }

 private:
  /// Found anew each time: registers are short.
  static __device__ __forceinline__ uint64_t* copied(bool side) {
    KVQUANT_DYNAMIC_SHARED(shared);
    return reinterpret_cast<uint64_t*>(shared + barriers_at + threadIdx.x / kWarp * 16) + side;
  }

  __device__ __forceinline__ void copy(unsigned char* to, const uint8_t* from, bool side) const {
#ifdef KVQUANT_BULK_COPIES
    if constexpr (kBulk) {
      if (lane != 0) return;
      publish_operands();
      expect_bytes(copied(side), Tile::kBytes);
      return copy_bulk(shared_address(to), from, Tile::kBytes, copied(side));
    }
#endif
    Tile::copy(to, from, lane);
  }

  /// Of 32 of the warp's units.
  __device__ __forceinline__ int index(int unit) const { return ((unit - team.place) >> team.size_bits) % kWarp; }

  __device__ __forceinline__ int load_ids(int from) const {
    const int unit = min(from + lane * team.size, units - 1);
    if (unit < 0) return 0;
    const int column =
        unit < cache.sink_pages ? unit : cache.sink_pages + (first_run + unit - cache.sink_pages) % cache.ring;
    return cache.exact_table[static_cast<int64_t>(heads.b) * cache.exact_columns + column];
  }

  __device__ __forceinline__ const uint8_t* page(int unit) const {
    return cache.exact + __shfl_sync(0xffffffffu, ids, index(unit)) * cache.exact_bytes;
  }
};

/// Attention of a block over units, after each warp has started its first; leaves the warps' sums where their
/// tiles of keys were and the scratch for merge_head. block: heads of all teams; kept: their queries as turn_queries
/// leaves them, or nullptr. What lies before scratch_at in shared memory is free, once all warps are here.
template <int D, int warps, int scratch_at, int barriers_at>
__device__ __forceinline__ void attend_exact(const Attention& p, const BlockHeads& block,
                                             ExactUnits<D, barriers_at>& exact, uint32_t sinks, unsigned char* shared,
                                             const float* kept = nullptr) {
  using Tile = typename ExactUnits<D, barriers_at>::Tile;
  constexpr int kAngles = D / 8 * kWarp * 16, kQueries = kHeads * D * 4, kTurned = kHeads * kTurnedStride<D> * 2;
  static_assert(kAngles + kQueries + warps * kTurned <= scratch_at, "queries fit before the scratch");
  const CacheView& cache = exact.cache;
  const int lane = exact.lane, warp = threadIdx.x / kWarp, count = exact.heads.count;
  auto* angles = reinterpret_cast<float4*>(shared);
  auto* queries = reinterpret_cast<float*>(shared + kAngles);
  auto* turned = reinterpret_cast<__half*>(shared + kAngles + kQueries + warp * kTurned);
  auto& scratch = *reinterpret_cast<MergeScratch<warps>*>(shared + scratch_at);
  __syncthreads();
  if (kept == nullptr) turn_queries<D>(cache, p, block, queries, block.count);
  fill_angles<D>(cache, angles);
  for (int i = count * kTurnedStride<D> / 2 + lane; i < kTurned / 4; i += kWarp) {
    reinterpret_cast<uint32_t*>(turned)[i] = 0;
  }
  __syncthreads();
  const float* own = (kept == nullptr ? queries : kept) + exact.team.own * count * D;

  Softmax softmax;
  float sums[Tile::kBlocks][4] = {};
#pragma unroll 1
  for (int unit = exact.team.place; unit < exact.units; unit += exact.team.size) {
    uint32_t q[D / 8];
    turn_back<D>(cache, own, count, exact.token(unit), lane, turned);
    __syncwarp();
    const auto* words = reinterpret_cast<const uint32_t*>(turned + lane / 4 * kTurnedStride<D>) + lane % 4;
#pragma unroll
    for (int i = 0; i < D / 8; ++i) q[i] = words[4 * i];
    const uint32_t valid = exact.valid(unit, sinks);
    float scores[4] = {};
    exact.wait(unit, false);
    if (valid != 0) Tile::score_turned(scores, exact.keys, q, angles, lane);
    __syncwarp();
    exact.start(unit + exact.team.size, false);
    exact.wait(unit, true);
    if (valid != 0) {
      Tile::weigh(softmax, sums, scores, valid, lane);
      Tile::add_values(sums, exact.values, scores, valid, lane);
    }
    __syncwarp();
    exact.start(unit + exact.team.size, true);
  }
  put_sums<D>(reinterpret_cast<float*>(exact.keys), sums, lane);
  publish(scratch, softmax, warp, lane);
  __syncthreads();
}

}  // namespace kvquant::cuda
