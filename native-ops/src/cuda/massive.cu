/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Massive sinks (RotateKV, section 3.3): the largest entries of a prompt's input, and the exact copies of the tokens
// that own them; what core/massive.cpp and core/sinks.cpp do. Headers are a warp's work, a lane an entry or a slot.
// An H100, rotatekv2: append of 8192 tokens takes 29 us with them (26 without sinks), since tiles are coded meanwhile;
// 40 when they waited, 183 with a thread for each header. A step of 32 sequences: 6 us instead of 12.8.
#include <limits>

#include "append.cuh"
#include "launch.cuh"
#include "ptx.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kNoOwner = std::numeric_limits<int>::max();

/// A large entry and the token, or row, that owns it.
struct Entry {
  float value;
  int32_t owner;
};

__device__ inline bool before(const Entry& a, const Entry& b) {
  return a.value > b.value || (a.value == b.value && a.owner < b.owner);
}

/// Sorted; at most kMassiveEntries.
struct EntryList {
  Entry entries[kMassiveEntries];
  int count = 0;

  __device__ void add(const Entry& entry) {
    if (count == kMassiveEntries && !before(entry, entries[count - 1])) return;
    int place = count < kMassiveEntries ? count++ : kMassiveEntries - 1;
    for (; place > 0 && before(entry, entries[place - 1]); --place) entries[place] = entries[place - 1];
    entries[place] = entry;
  }
};

/// The block takes the largest of what its threads have, one after another, and writes them.
__device__ void write_largest(const EntryList& own, float* values, int32_t* owners) {
  __shared__ Entry warp_best[kWarps];
  __shared__ int warp_from[kWarps];
  const int lane = threadIdx.x % kWarp;
  int next = 0;  // of own that is not taken yet
  for (int i = 0; i < kMassiveEntries; ++i) {
    Entry best = next < own.count ? own.entries[next] : Entry{-1.0f, kNoOwner};
    int from = threadIdx.x;
    for (int step = 1; step < kWarp; step *= 2) {
      const Entry other{__shfl_xor_sync(0xffffffffu, best.value, step), __shfl_xor_sync(0xffffffffu, best.owner, step)};
      const int other_from = __shfl_xor_sync(0xffffffffu, from, step);
      if (before(other, best) || (!before(best, other) && other_from < from)) {
        best = other;
        from = other_from;
      }
    }
    if (lane == 0) {
      warp_best[threadIdx.x / kWarp] = best;
      warp_from[threadIdx.x / kWarp] = from;
    }
    __syncthreads();
    best = warp_best[0];
    from = warp_from[0];
    for (int warp = 1; warp < kWarps; ++warp) {
      if (before(warp_best[warp], best)) {
        best = warp_best[warp];
        from = warp_from[warp];
      }
    }
    __syncthreads();
    if (from == static_cast<int>(threadIdx.x)) ++next;
    if (threadIdx.x == 0) {
      const bool found = best.owner != kNoOwner;
      values[i] = found ? best.value : 0.0f;
      owners[i] = found ? best.owner : -1;
    }
  }
}

/// The largest entries of a part of a sequence's rows: a block a part.
__global__ void __launch_bounds__(kThreads) massive_parts_kernel(MassiveEntries p) {
  const int b = blockIdx.y, part = blockIdx.x;
  const int64_t first = p.starts[b] * p.hidden, count = p.starts[b + 1] * p.hidden - first;
  const int64_t begin = count * part / p.parts, end = count * (part + 1) / p.parts;
  EntryList own;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const float value = fabsf(load_element(p.type, p.x, first + i));
    if (value == value) own.add({value, static_cast<int32_t>(i / p.hidden)});
  }
  const int64_t to = (static_cast<int64_t>(b) * p.parts + part) * kMassiveEntries;
  write_largest(own, p.part_values + to, p.part_owners + to);
}

/// The largest of all parts.
__global__ void __launch_bounds__(kThreads) massive_entries_kernel(MassiveEntries p) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * p.parts * kMassiveEntries;
  EntryList own;
  for (int i = threadIdx.x; i < p.parts * kMassiveEntries; i += kThreads) {
    if (p.part_owners[first + i] >= 0) own.add({p.part_values[first + i], p.part_owners[first + i]});
  }
  const int64_t to = static_cast<int64_t>(blockIdx.x) * kMassiveEntries;
  write_largest(own, p.values + to, p.owners + to);
}

/// The headers of a sequence's sink pages, in the hands of a warp.
struct SinkHeaders {
  const CacheView& cache;
  int b, lane;

  __device__ ExactHeader* header(int page) const { return reinterpret_cast<ExactHeader*>(cache.sink_page(b, page)); }
  __device__ int slots() const { return cache.sink_pages * kExactTokens; }
  __device__ int32_t& slot(int i) const { return header(i / kExactTokens)->tokens[i % kExactTokens]; }

  __device__ void clear() const {
    for (int i = lane; i < slots(); i += kWarp) slot(i) = -1;
    for (int page = 0; page < cache.sink_pages; ++page) {
      if (lane < kMassiveEntries) header(page)->massive_tokens[lane] = -1;
    }
  }

  /// Writes only what changes: while decoding, sink pages may be shared with other sequences.
  __device__ void forget_from(int length) const {
    for (int i = lane; i < slots(); i += kWarp) {
      if (slot(i) >= length) slot(i) = -1;
    }
    for (int page = 0; page < cache.sink_pages; ++page) {
      int32_t* tokens = header(page)->massive_tokens;
      float* values = header(page)->massive_values;
      const int32_t token = lane < kMassiveEntries ? tokens[lane] : -1;
      const unsigned held = first_ones(token >= 0);
      const unsigned kept = __ballot_sync(0xffffffffu, token < length) & held;
      if (kept == held) continue;
      const float value = lane < kMassiveEntries ? values[lane] : 0.0f;
      __syncwarp();
      const int place = __popc(kept & below(lane));
      if ((kept >> lane & 1u) != 0 && place != lane) {
        tokens[place] = token;
        values[place] = value;
      }
      if (lane >= __popc(kept) && lane < kMassiveEntries) tokens[lane] = -1;
    }
  }

  /// Merges the entries of new tokens into those of the header; returns how many there are.
  __device__ int merge(int length, const float* values, const int32_t* rows, Entry (&all)[kMassiveEntries]) const {
    __shared__ Entry entries[2 * kMassiveEntries];
    ExactHeader* first = header(0);
    const bool there = lane < kMassiveEntries;
    const Entry old{there ? first->massive_values[lane] : 0.0f, there ? first->massive_tokens[lane] : -1};
    const Entry fresh{there ? values[lane] : 0.0f, there ? rows[lane] : -1};
    const int held = __popc(first_ones(old.owner >= 0)), added = __popc(first_ones(fresh.owner >= 0));
    if (lane < held) entries[lane] = old;
    if (lane < added) entries[held + lane] = {fresh.value, length + fresh.owner};
    __syncwarp();
    for (int i = lane; i < held + added; i += kWarp) {
      int rank = 0;
      for (int j = 0; j < held + added; ++j) {
        rank += before(entries[j], entries[i]) || (j < i && !before(entries[i], entries[j])) ? 1 : 0;
      }
      if (rank < kMassiveEntries) all[rank] = entries[i];
    }
    __syncwarp();
    const int count = min(held + added, kMassiveEntries);
    if (there) {
      first->massive_values[lane] = lane < count ? all[lane].value : 0.0f;
      first->massive_tokens[lane] = lane < count ? all[lane].owner : -1;
    }
    return count;
  }

  /// Tokens that own nothing give up their slots; owners that are new get one, in the order of their positions.
  __device__ void assign(int length, const Entry (&all)[kMassiveEntries], int count) const {
    __shared__ int32_t owners[kMassiveEntries];
    bool fresh = lane < count && all[lane].owner >= length;
    for (int e = 0; e < lane && fresh; ++e) fresh = all[e].owner != all[lane].owner;
    const unsigned all_fresh = __ballot_sync(0xffffffffu, fresh);
    int rank = 0;
    for (int e = 0; e < count && fresh; ++e)
      rank += (all_fresh >> e & 1u) != 0 && all[e].owner < all[lane].owner ? 1 : 0;
    if (fresh) owners[rank] = all[lane].owner;
    __syncwarp();
    int taken = 0;
    for (int begin = 0; begin < slots(); begin += kWarp) {
      const int i = begin + lane;
      bool free = i < slots();
      const int32_t token = free ? slot(i) : -1;
      for (int e = 0; e < count && free; ++e) free = all[e].owner != token;
      const unsigned all_free = __ballot_sync(0xffffffffu, free);
      const int place = taken + __popc(all_free & below(lane));
      if (free) slot(i) = place < __popc(all_fresh) ? owners[place] : -1;
      taken += __popc(all_free);
    }
  }

 private:
  __device__ static unsigned below(int lane) { return (1u << lane) - 1u; }
  /// Lanes ahead of the first for which a condition does not hold.
  __device__ static unsigned first_ones(bool condition) {
    const unsigned others = ~__ballot_sync(0xffffffffu, condition);
    return others != 0 ? (others & (0u - others)) - 1u : ~0u;
  }
};

/// A warp a sequence.
__global__ void __launch_bounds__(kWarp)
    massive_sinks_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows) {
  __shared__ Entry all[kMassiveEntries];
  release_next_kernel();
  const int b = blockIdx.x, length = cache.length(b);
  if (rows.count(b) == 0) return;
  const SinkHeaders headers{cache, b, static_cast<int>(threadIdx.x)};
  if (length == 0) {
    headers.clear();
  } else {
    headers.forget_from(length);
  }
  if (rows.tokens.massive_values == nullptr) return;
  __syncwarp();
  const int64_t first = static_cast<int64_t>(b) * kMassiveEntries;
  const int count = headers.merge(length, rows.tokens.massive_values + first, rows.tokens.massive_rows + first, all);
  headers.assign(length, all, count);
}

/// Copies new tokens to their slots, a block a slot.
__global__ void __launch_bounds__(kThreads)
    massive_copies_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows) {
  release_next_kernel();
  wait_for_previous_kernel();
  const int i = blockIdx.x, b = blockIdx.y, length = cache.length(b), channels = cache.kv_heads * cache.head_dim;
  if (rows.count(b) == 0) return;
  uint8_t* page = cache.sink_page(b, i / kExactTokens);
  const int token = reinterpret_cast<const ExactHeader*>(page)->tokens[i % kExactTokens];
  if (token < length) return;
#pragma unroll 4
  for (int c = threadIdx.x; c < channels; c += kThreads) {
    const int head = c / cache.head_dim, channel = c % cache.head_dim;
    const int64_t index = rows.key(cache, b, token - length, head) + channel;
    reinterpret_cast<__half*>(page + cache.exact_key(head, channel))[i % kExactTokens] =
        __float2half_rn(rows.load(index));
    reinterpret_cast<__half*>(page + cache.exact_value(head, channel))[i % kExactTokens] =
        __float2half_rn(rows.load(index + channels));
  }
}

}  // namespace

void massive_entries(const MassiveEntries& entries, cudaStream_t stream) {
  if (entries.batch == 0) return;
  const auto batch = static_cast<unsigned>(entries.batch);
  const dim3 blocks(static_cast<unsigned>(entries.parts), batch);
  launch("massive_entries", massive_parts_kernel, {blocks, kThreads, 0, stream}, entries);
  launch("massive_entries", massive_entries_kernel, {dim3(batch), kThreads, 0, stream}, entries);
}

void update_massive_sinks(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  const auto batch = static_cast<unsigned>(cache.batch);
  launch("append", massive_sinks_kernel, {dim3(batch), kWarp, 0, stream}, cache, NewRows{tokens});
  if (tokens.massive_values == nullptr) return;
  const dim3 slots(static_cast<unsigned>(cache.sink_pages * kExactTokens), batch);
  launch("append", massive_copies_kernel, {slots, kThreads, 0, stream, can_start_early("append")}, cache,
         NewRows{tokens});
}

}  // namespace kvquant::cuda
