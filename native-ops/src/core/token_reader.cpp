/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "token_reader.h"

#include "basis.h"

namespace kvquant {

TokenReader::TokenReader(const LayerCache& cache, int64_t b, int64_t length)
    : cache_(cache), b_(b), quantized_(cache.quantized(b, length)), sinks_(find_sinks(cache, b, length)) {}

bool TokenReader::read(int64_t token, float* k, float* v) const {
  for (const Sink& sink : sinks_) {
    if (sink.token == token) {
      load_exact(cache_, sink.page, sink.slot, k, v);
      rope(token, k);
      return false;
    }
  }
  if (token < quantized_) {
    read_page(token, k, v);
    return true;
  }
  load_exact(cache_, cache_.window_page(b_, token), static_cast<int>(token % kExactTokens), k, v);
  rope(token, k);
  return false;
}

void TokenReader::read_page(int64_t token, float* k, float* v) const {
  const LayerParams& params = *cache_.params;
  const uint8_t* page = cache_.page(b_, token);
  const int slot = static_cast<int>(token % kPageTokens);
  decode_token(params, params.keys, cache_.page_layout.keys, cache_.key_groups.data(), page, slot, k);
  decode_token(params, params.values, cache_.page_layout.values, cache_.value_groups.data(), page, slot, v);
  from_stored_basis(params, params.keys, k);
  from_stored_basis(params, params.values, v);
  finish_key(token, k);
}

void TokenReader::finish_key(int64_t token, float* k) const {
  const LayerParams& params = *cache_.params;
  const float* mean = side_mean(params, params.keys);
  if (params.keys_pre_rope != 0) {
    if (mean != nullptr) add(mean, k);
    rope(token, k);
  } else if (mean != nullptr) {
    std::vector<float> turned(mean, mean + params.channels());
    rope(token, turned.data());
    add(turned.data(), k);
  }
}

void TokenReader::add(const float* x, float* k) const {
  for (int c = 0; c < cache_.params->channels(); ++c) k[c] += x[c];
}

void TokenReader::rope(int64_t token, float* k) const { cache_.rope.apply_all(k, cache_.params->num_kv_heads, token); }

}  // namespace kvquant
