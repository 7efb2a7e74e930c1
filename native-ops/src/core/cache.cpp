/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "cache.h"

namespace kvquant {

std::vector<Sink> find_sinks(const LayerCache& cache, int64_t b, int64_t length) {
  std::vector<Sink> sinks;
  for (int i = 0; i < cache.params->sink_pages(); ++i) {
    const uint8_t* page = cache.sink_page(b, i);
    const auto* header = reinterpret_cast<const ExactHeader*>(page);
    for (int slot = 0; slot < kExactTokens; ++slot) {
      const int64_t token = header->tokens[slot];
      if (token >= 0 && token < length) sinks.push_back({token, page, slot});
    }
  }
  return sinks;
}

void load_exact(const LayerCache& cache, const uint8_t* page, int slot, float* k, float* v) {
  for (int h = 0; h < cache.params->num_kv_heads; ++h) {
    for (int c = 0; c < cache.params->head_dim; ++c) {
      *k++ = load_half(page + cache.exact_layout.keys(h, c) + 2 * slot);
      *v++ = load_half(page + cache.exact_layout.values(h, c) + 2 * slot);
    }
  }
}

void store_exact(const LayerCache& cache, uint8_t* page, int slot, const float* k, const float* v) {
  for (int h = 0; h < cache.params->num_kv_heads; ++h) {
    for (int c = 0; c < cache.params->head_dim; ++c) {
      store_half(page + cache.exact_layout.keys(h, c) + 2 * slot, *k++);
      store_half(page + cache.exact_layout.values(h, c) + 2 * slot, *v++);
    }
  }
}

}  // namespace kvquant
