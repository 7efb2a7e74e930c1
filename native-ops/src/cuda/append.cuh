/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Where the tokens of an append come from, and how one of them is copied exactly.
#pragma once
#include "cache_view.cuh"
#include "elements.cuh"

namespace kvquant::cuda {

/// New tokens, as kernels see them.
struct NewRows {
  NewTokens tokens;

  __device__ int start(int b) const { return tokens.starts[b]; }
  __device__ int count(int b) const { return start(b + 1) - start(b); }

  /// Where in qkv k of a kv head of row number i of a sequence begins; its v is kv_heads * head_dim elements ahead.
  __device__ int64_t key(const CacheView& cache, int b, int i, int kv_head) const {
    const int64_t row = static_cast<int64_t>(start(b) + i) * (cache.heads + 2 * cache.kv_heads);
    return (row + cache.heads + kv_head) * cache.head_dim;
  }
  __device__ float load(int64_t index) const { return load_element(tokens.type, tokens.qkv, index); }
};

/// Tokens [begin, end) of a sequence, all of one tile.
struct TileRun {
  int b, begin, end, kv_head;

  __device__ int first() const { return begin % kTileTokens; }
  __device__ int last() const { return first() + end - begin; }
  __device__ int tile() const { return begin % kPageTokens / kTileTokens; }
};

/// Tokens of a sequence that leave the window, tile by tile.
__device__ inline bool tile_run(const CacheView& cache, int b, int count, int kv_head, int index, TileRun* run) {
  const int length = cache.length(b), begin = cache.quantized(b, length), end = cache.quantized(b, length + count);
  const int tile = begin / kTileTokens + index;
  *run = {b, max(begin, tile * kTileTokens), min(end, (tile + 1) * kTileTokens), kv_head};
  return count > 0 && run->begin < run->end;
}

/// Tokens [begin, end) of a sequence.
struct TokenRun {
  int b, begin, end;
};

/// The last sequence of a batch that begins at or before an index; first(b): where sequence b begins.
template <class First>
__device__ int find_sequence(int batch, int index, First first) {
  int low = 0, high = batch - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (first(middle) <= index) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

/// Of blocks for tiles: the blocks of a sequence of n new tokens are n / 16 + 2 or one more, whatever its tiles'
/// number: which sequence a block belongs to follows from starts alone.
__device__ inline bool block_run(const CacheView& cache, const NewRows& rows, int block, int kv_head, TileRun* run) {
  const auto first = [&](int b) { return rows.start(b) / kTileTokens + 2 * b; };
  const int b = find_sequence(cache.batch, block, first);
  return tile_run(cache, b, rows.count(b), kv_head, block - first(b), run);
}

/// The latest of the first `length` tokens that a slot of a page of the ring is for; negative: none.
__device__ inline int slot_token(const CacheView& cache, int length, int ring_page, int slot) {
  const int last = (length - 1) / kExactTokens, tile = last - (last - ring_page + cache.ring) % cache.ring;
  const int token = tile * kExactTokens + slot;
  return token < length ? token : token - cache.ring * kExactTokens;
}

/// Exact pages of a sequence that append writes.
__host__ __device__ inline int exact_columns(const CacheView& cache) {
  return cache.sink_pages + (cache.window > 0 ? cache.ring : 0);
}

/// Copies one head of new token number i of a sequence to where it is kept exactly: into the window, if it is among the
/// tokens that the ring holds, and into the slot of a first sinks, token t in slot t. Massive sinks: massive.cu.
__device__ inline void store_exact(const CacheView& cache, const NewRows& rows, int b, int i, int kv_head,
                                   int channel) {
  const int before = cache.length(b), token = before + i, length = before + rows.count(b);
  const bool recent = cache.window > 0 && token >= length - cache.ring * kExactTokens;
  const bool sink = cache.sink_policy == SinkPolicy::kFirst && token < cache.max_sinks;
  if (!recent && !sink) return;
  const int64_t index = rows.key(cache, b, i, kv_head) + channel;
  const __half k = __float2half_rn(rows.load(index));
  const __half v = __float2half_rn(rows.load(index + cache.kv_heads * cache.head_dim));
  const int slot = token % kExactTokens;
  const auto store = [&](uint8_t* page) {
    reinterpret_cast<__half*>(page + cache.exact_key(kv_head, channel))[slot] = k;
    reinterpret_cast<__half*>(page + cache.exact_value(kv_head, channel))[slot] = v;
  };
  if (recent) store(cache.window_page(b, token));
  if (sink) store(cache.sink_page(b, token / kExactTokens));
}

/// Brings the header of a sequence's sink page up to date, a thread a slot: what core/sinks.cpp does for sinks that are
/// the first tokens. Tokens that were truncated are forgotten; massive entries have no part in this policy but are
/// cleared and forgotten alike.
__device__ inline void update_sink_header(const CacheView& cache, int b, int count, int page, int slot) {
  const int before = cache.length(b), token = page * kExactTokens + slot;
  auto* header = reinterpret_cast<ExactHeader*>(cache.sink_page(b, page));
  if (slot < kExactTokens) {
    const int held = header->tokens[slot];
    int now = before == 0 || held >= before ? -1 : held;
    if (before < cache.max_sinks && token >= before && token < min(before + count, cache.max_sinks)) now = token;
    if (now != held) header->tokens[slot] = now;
  }
  if (slot < kMassiveEntries && before == 0) header->massive_tokens[slot] = -1;
}

}  // namespace kvquant::cuda
