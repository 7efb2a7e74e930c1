/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "sinks.h"

namespace kvquant {
namespace {

struct Entry {
  float value;
  int32_t token;
};

bool larger(const Entry& a, const Entry& b) { return a.value != b.value ? a.value > b.value : a.token < b.token; }

/// The largest entries of the whole prompt so far: those kept from earlier chunks and those of the new tokens.
std::vector<Entry> merge_entries(const LayerCache& cache, const NewTokens& tokens, int64_t b) {
  std::vector<Entry> entries;
  if (cache.length(b) > 0) {
    const auto* header = reinterpret_cast<const ExactHeader*>(cache.sink_page(b, 0));
    for (int i = 0; i < kMassiveEntries && header->massive_tokens[i] >= 0; ++i) {
      entries.push_back({header->massive_values[i], header->massive_tokens[i]});
    }
  }
  for (int i = 0; i < kMassiveEntries; ++i) {
    const int32_t row = tokens.massive_positions[b * kMassiveEntries + i];
    if (row < 0) break;
    entries.push_back({tokens.massive_values[b * kMassiveEntries + i], static_cast<int32_t>(cache.length(b)) + row});
  }
  std::sort(entries.begin(), entries.end(), larger);
  if (entries.size() > kMassiveEntries) entries.resize(kMassiveEntries);
  return entries;
}

void store_entries(const LayerCache& cache, int64_t b, const std::vector<Entry>& entries) {
  auto* header = reinterpret_cast<ExactHeader*>(cache.sink_page(b, 0));
  for (int i = 0; i < kMassiveEntries; ++i) {
    const bool used = i < static_cast<int>(entries.size());
    header->massive_values[i] = used ? entries[i].value : 0.0f;
    header->massive_tokens[i] = used ? entries[i].token : -1;
  }
}

/// Tokens that are to be sinks after this call, ascending, each once.
std::vector<int64_t> wanted_sinks(const LayerCache& cache, const NewTokens& tokens, int64_t b) {
  std::vector<int64_t> wanted;
  const int64_t length = cache.length(b) + tokens.count(b);
  if (cache.params->sink_policy == SinkPolicy::kFirst) {
    for (int64_t t = 0; t < std::min<int64_t>(length, cache.params->max_sinks); ++t) wanted.push_back(t);
    return wanted;
  }
  const std::vector<Entry> entries = merge_entries(cache, tokens, b);
  store_entries(cache, b, entries);
  for (const Entry& entry : entries) wanted.push_back(entry.token);
  std::sort(wanted.begin(), wanted.end());
  wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
  return wanted;
}

void clear_sinks(const LayerCache& cache, int64_t b) {
  for (int i = 0; i < cache.params->sink_pages(); ++i) {
    auto* header = reinterpret_cast<ExactHeader*>(cache.sink_page(b, i));
    std::fill_n(header->tokens, kExactTokens, -1);
    std::fill_n(header->massive_tokens, kMassiveEntries, -1);
  }
}

/// Forgets what belongs to tokens that were truncated since. Writes nothing if there is nothing to forget: while
/// decoding, sink pages may be shared with other sequences.
void forget_truncated(const LayerCache& cache, int64_t b) {
  for (int i = 0; i < cache.params->sink_pages(); ++i) {
    auto* header = reinterpret_cast<ExactHeader*>(cache.sink_page(b, i));
    for (int32_t& token : header->tokens) {
      if (token >= cache.length(b)) token = -1;
    }
    int kept = 0;
    for (int e = 0; e < kMassiveEntries && header->massive_tokens[e] >= 0; ++e) {
      if (header->massive_tokens[e] >= cache.length(b)) continue;
      if (kept != e) {
        header->massive_tokens[kept] = header->massive_tokens[e];
        header->massive_values[kept] = header->massive_values[e];
      }
      ++kept;
    }
    if (kept < kMassiveEntries && header->massive_tokens[kept] >= 0) {
      std::fill_n(header->massive_tokens + kept, kMassiveEntries - kept, -1);
    }
  }
}

void add_sink(const LayerCache& cache, const NewTokens& tokens, int64_t b, int64_t token) {
  const LayerParams& params = *cache.params;
  for (int i = 0; i < params.sink_pages(); ++i) {
    uint8_t* page = cache.sink_page(b, i);
    auto* header = reinterpret_cast<ExactHeader*>(page);
    for (int slot = 0; slot < kExactTokens; ++slot) {
      if (header->tokens[slot] >= 0) continue;
      const int64_t row = tokens.starts[b] + token - cache.length(b);
      const float* k =
          tokens.qkv + (row * (params.num_heads + 2 * params.num_kv_heads) + params.num_heads) * params.head_dim;
      store_exact(cache, page, slot, k, k + params.channels());
      header->tokens[slot] = static_cast<int32_t>(token);
      return;
    }
  }
}

}  // namespace

void update_sinks(const LayerCache& cache, const NewTokens& tokens, int64_t b) {
  if (cache.params->sink_policy == SinkPolicy::kNone) return;
  const bool decoding = tokens.massive_values == nullptr;
  if (cache.length(b) == 0) {
    clear_sinks(cache, b);
  } else {
    forget_truncated(cache, b);
  }
  if (cache.params->sink_policy == SinkPolicy::kMassive && decoding) return;
  if (cache.params->sink_policy == SinkPolicy::kFirst && cache.length(b) >= cache.params->max_sinks) return;
  const std::vector<int64_t> wanted = wanted_sinks(cache, tokens, b);
  for (int i = 0; i < cache.params->sink_pages(); ++i) {
    for (int32_t& token : reinterpret_cast<ExactHeader*>(cache.sink_page(b, i))->tokens) {
      if (!std::binary_search(wanted.begin(), wanted.end(), token)) token = -1;
    }
  }
  for (int64_t token : wanted) {
    if (token >= cache.length(b)) add_sink(cache, tokens, b, token);
  }
}

}  // namespace kvquant
