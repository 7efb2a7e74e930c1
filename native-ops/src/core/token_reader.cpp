/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "token_reader.h"

#include "rotation.h"

namespace kvquant {

TokenReader::TokenReader(const LayerCache& cache, int64_t b, int64_t length)
    : cache_(cache), b_(b), quantized_(cache.quantized(b, length)), sinks_(find_sinks(cache, b, length)) {}

void TokenReader::read(int64_t token, float* k, float* v) const {
  for (const Sink& sink : sinks_) {
    if (sink.token == token) {
      load_exact(cache_, sink.page, sink.slot, k, v);
      rope(token, k);
      return;
    }
  }
  if (token < quantized_) {
    read_page(token, k, v);
    return;
  }
  load_exact(cache_, cache_.window_page(b_, token), static_cast<int>(token % kExactTokens), k, v);
  rope(token, k);
}

void TokenReader::read_page(int64_t token, float* k, float* v) const {
  const LayerParams& params = *cache_.params;
  const uint8_t* page = cache_.page(b_, token);
  const int slot = static_cast<int>(token % kPageTokens);
  decode_token(params, params.keys, cache_.page_layout.keys, cache_.key_groups.data(), page, slot, k);
  decode_token(params, params.values, cache_.page_layout.values, cache_.value_groups.data(), page, slot, v);
  rotate_heads(k, params.num_kv_heads, params.head_dim, params.keys.rotation_heads);
  rotate_heads(v, params.num_kv_heads, params.head_dim, params.values.rotation_heads);
  if (params.keys_pre_rope != 0) rope(token, k);
}

void TokenReader::rope(int64_t token, float* k) const {
  for (int h = 0; h < cache_.params->num_kv_heads; ++h) {
    float* head = k + h * cache_.params->head_dim;
    cache_.rope.apply(head, token, head);
  }
}

}  // namespace kvquant
