/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The cache of one layer as the operators see it: parameters, pools and tables, and which token is stored where.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "codec.h"
#include "layout.h"
#include "rope.h"

namespace kvquant {

/// State of one layer for a batch of sequences. A token t of a sequence of length L is stored
/// - in its page (always, once it has left the window): page_table[t / 64], slot t % 64;
/// - exactly, while L - t <= window: exact_table[sink_pages + (t / 16) % ring], slot t % 16;
/// - exactly, if it is a sink of this layer: in a slot of the sink pages, exact_table[0 .. sink_pages).
/// Everything exact is k and v as the projections made them, rounded to fp16.
struct LayerCache {
  const LayerParams* params;
  PageLayout page_layout;
  ExactLayout exact_layout;
  RopeTable rope;
  uint8_t* pages = nullptr;  // [num_pages, page_layout.bytes]
  uint8_t* exact = nullptr;  // [num_exact, exact_layout.bytes]
  int64_t batch = 0;
  const int32_t* lengths = nullptr;  // [batch, 2]: tokens before this call; tokens from the start without an exact copy
  const int32_t* page_table = nullptr;   // [batch, page_columns]
  const int32_t* exact_table = nullptr;  // [batch, exact_columns]
  int64_t page_columns = 0, exact_columns = 0;
  std::vector<uint16_t> key_groups{}, value_groups{};

  int64_t length(int64_t b) const { return lengths[2 * b]; }

  /// Tokens of a sequence of the given length that are read from pages; the rest is in the window.
  int64_t quantized(int64_t b, int64_t length) const {
    if (params->window == 0) return length;
    return std::max<int64_t>({0, length - params->window, std::min<int64_t>(lengths[2 * b + 1], length)});
  }
  uint8_t* page(int64_t b, int64_t token) const {
    return pages + page_table[b * page_columns + token / kPageTokens] * page_layout.bytes;
  }
  int64_t ring() const { return exact_columns - params->sink_pages(); }
  uint8_t* window_page(int64_t b, int64_t token) const {
    const int64_t column = params->sink_pages() + token / kExactTokens % ring();
    return exact + exact_table[b * exact_columns + column] * exact_layout.bytes;
  }
  uint8_t* sink_page(int64_t b, int index) const {
    return exact + exact_table[b * exact_columns + index] * exact_layout.bytes;
  }
};

/// A sink of one sequence: its position and where its exact keys and values are.
struct Sink {
  int64_t token;
  const uint8_t* page;
  int slot;
};

/// The sinks of a sequence that is length tokens long, in slot order.
std::vector<Sink> find_sinks(const LayerCache& cache, int64_t b, int64_t length);

/// Reads slot of an exact page: k and v, [channels] each, natural basis, before RoPE.
void load_exact(const LayerCache& cache, const uint8_t* page, int slot, float* k, float* v);

/// Writes k and v, [channels] each, into a slot of an exact page.
void store_exact(const LayerCache& cache, uint8_t* page, int slot, const float* k, const float* v);

/// What kvquant::append gets besides the cache: the fused projections of the new tokens, and the prompt's largest
/// entries.
struct NewTokens {
  const float* qkv;                  // [tokens, num_heads + 2 num_kv_heads, head_dim]
  const int32_t* starts;             // [batch + 1]: rows of qkv that belong to each sequence
  const float* massive_values;       // [batch, kMassiveEntries], descending; nullptr while decoding
  const int32_t* massive_positions;  // [batch, kMassiveEntries], row within the sequence's new tokens; -1: none

  int64_t count(int64_t b) const { return starts[b + 1] - starts[b]; }
};

/// Appends the new tokens of every sequence: chooses sinks, quantizes what leaves the window, fills the window.
void append(const LayerCache& cache, const NewTokens& tokens);

/// Attention of one new token per sequence, already appended, over its whole history:
/// q from qkv [batch, num_heads + 2 num_kv_heads, head_dim], out [batch, num_heads, head_dim].
void attend(const LayerCache& cache, const float* qkv, float* out);

/// Tokens [begin, end) of sequence b as attention sees them, after RoPE, natural basis: k and v [num_kv_heads, end -
/// begin, head_dim]; sinks and window are exact.
void dequantize(const LayerCache& cache, int64_t b, int64_t begin, int64_t end, float* k, float* v);

}  // namespace kvquant
