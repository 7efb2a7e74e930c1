/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Massive sinks (RotateKV, section 3.3): the largest entries of a prompt's input, and the exact copies of the tokens
// that own them; what core/massive.cpp and core/sinks.cpp do. A block takes a sequence. Written for reading.
#include <limits>

#include "append.cuh"
#include "launch.cuh"

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

/// The headers of a sequence's sink pages, in the hands of one thread.
struct SinkHeaders {
  const CacheView& cache;
  int b;

  __device__ ExactHeader* header(int page) const { return reinterpret_cast<ExactHeader*>(cache.sink_page(b, page)); }
  __device__ int slots() const { return cache.sink_pages * kExactTokens; }
  __device__ int32_t& slot(int i) const { return header(i / kExactTokens)->tokens[i % kExactTokens]; }

  __device__ void clear() const {
    for (int i = 0; i < slots(); ++i) slot(i) = -1;
    for (int page = 0; page < cache.sink_pages; ++page) {
      for (int e = 0; e < kMassiveEntries; ++e) header(page)->massive_tokens[e] = -1;
    }
  }

  /// Writes only what changes: while decoding, sink pages may be shared with other sequences.
  __device__ void forget_from(int length) const {
    for (int i = 0; i < slots(); ++i) {
      if (slot(i) >= length) slot(i) = -1;
    }
    for (int page = 0; page < cache.sink_pages; ++page) {
      int32_t* tokens = header(page)->massive_tokens;
      float* values = header(page)->massive_values;
      int kept = 0;
      for (int e = 0; e < kMassiveEntries && tokens[e] >= 0; ++e) {
        if (tokens[e] >= length) continue;
        if (kept != e) {
          tokens[kept] = tokens[e];
          values[kept] = values[e];
        }
        ++kept;
      }
      if (kept == kMassiveEntries || tokens[kept] < 0) continue;
      for (int e = kept; e < kMassiveEntries; ++e) tokens[e] = -1;
    }
  }

  /// Merges the entries of new tokens into those of the header.
  __device__ void merge(int length, const float* values, const int32_t* rows, EntryList& all) const {
    ExactHeader* first = header(0);
    for (int e = 0; e < kMassiveEntries && first->massive_tokens[e] >= 0; ++e) {
      all.add({first->massive_values[e], first->massive_tokens[e]});
    }
    for (int e = 0; e < kMassiveEntries && rows[e] >= 0; ++e) all.add({values[e], length + rows[e]});
    for (int e = 0; e < kMassiveEntries; ++e) {
      first->massive_values[e] = e < all.count ? all.entries[e].value : 0.0f;
      first->massive_tokens[e] = e < all.count ? all.entries[e].owner : -1;
    }
  }

  /// Tokens that own nothing give up their slots; owners that are new get one, in the order of their positions.
  __device__ void assign(int length, const EntryList& all) const {
    const auto owns = [&](int32_t token) {
      for (int e = 0; e < all.count; ++e) {
        if (all.entries[e].owner == token) return true;
      }
      return false;
    };
    for (int i = 0; i < slots(); ++i) {
      if (!owns(slot(i))) slot(i) = -1;
    }
    for (int32_t last = length - 1;;) {
      int32_t token = kNoOwner;
      for (int e = 0; e < all.count; ++e) {
        if (all.entries[e].owner > last) token = min(token, all.entries[e].owner);
      }
      if (token == kNoOwner) return;
      int i = 0;
      while (i < slots() && slot(i) >= 0) ++i;
      if (i < slots()) slot(i) = token;
      last = token;
    }
  }
};

__global__ void __launch_bounds__(kThreads)
    massive_sinks_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows) {
  const int b = blockIdx.x, length = cache.length(b), channels = cache.kv_heads * cache.head_dim;
  if (rows.count(b) == 0) return;
  const SinkHeaders headers{cache, b};
  if (threadIdx.x == 0) {
    if (length == 0) {
      headers.clear();
    } else {
      headers.forget_from(length);
    }
    if (rows.tokens.massive_values != nullptr) {
      EntryList all;
      const int64_t first = static_cast<int64_t>(b) * kMassiveEntries;
      headers.merge(length, rows.tokens.massive_values + first, rows.tokens.massive_rows + first, all);
      headers.assign(length, all);
    }
  }
  __syncthreads();
  for (int i = 0; i < headers.slots() && rows.tokens.massive_values != nullptr; ++i) {
    const int token = headers.slot(i);
    if (token < length) continue;
    uint8_t* page = cache.sink_page(b, i / kExactTokens);
    for (int c = threadIdx.x; c < channels; c += kThreads) {
      const int head = c / cache.head_dim, channel = c % cache.head_dim;
      const int64_t index = rows.key(cache, b, token - length, head) + channel;
      reinterpret_cast<__half*>(page + cache.exact_key(head, channel))[i % kExactTokens] =
          __float2half_rn(rows.load(index));
      reinterpret_cast<__half*>(page + cache.exact_value(head, channel))[i % kExactTokens] =
          __float2half_rn(rows.load(index + channels));
    }
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
  launch("append", massive_sinks_kernel, {dim3(static_cast<unsigned>(cache.batch)), kThreads, 0, stream}, cache,
         NewRows{tokens});
}

}  // namespace kvquant::cuda
