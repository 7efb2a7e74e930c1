/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "append.h"

#include "landmarks.h"
#include "parallel.h"
#include "sinks.h"

namespace kvquant {
namespace {

/// k and v of a token, [channels] each, as new tokens came or, from the window, rounded to fp16.
void load_token(const LayerCache& cache, const TokenSource& source, int64_t token, float* k, float* v) {
  if (!source.is_new(token)) {
    load_exact(cache, source.window_page(token), static_cast<int>(token % kExactTokens), k, v);
    return;
  }
  std::copy_n(source.row(token), cache.params->channels(), k);
  std::copy_n(source.row(token) + cache.params->channels(), cache.params->channels(), v);
}

void round_like_exact(const LayerParams& params, const SideParams& side, float* x) {
  if (!rounded_like_exact(params, side)) return;
  for (int c = 0; c < params.channels(); ++c) x[c] = round_to_half(x[c]);
}

/// Stores the tokens that leave the window (all new ones without a window), page by page in parallel.
void encode_leaving(const LayerCache& cache, const AppendKernels& kernels, const NewTokens& tokens, int64_t b) {
  const int64_t begin = cache.quantized(b, cache.length(b));
  const int64_t end = cache.quantized(b, cache.length(b) + tokens.count(b));
  if (begin >= end) return;
  const TokenSource source(cache, tokens, b);
  const int64_t first = begin / kPageTokens, last = (end - 1) / kPageTokens;
  parallel_for(last - first + 1, [&](int64_t i) {
    const int64_t page = (first + i) * kPageTokens;
    kernels.encode_page(cache, source, b, std::max(begin, page), std::min(end, page + kPageTokens));
  });
  store_landmarks(cache, b, begin, end, cache.length(b) + tokens.count(b));
}

/// Copies the new tokens that are still recent into the ring, oldest first: a later token may reuse an earlier one's
/// page.
void fill_window(const LayerCache& cache, const AppendKernels& kernels, const NewTokens& tokens, int64_t b) {
  if (cache.params->window == 0) return;
  const int64_t length = cache.length(b) + tokens.count(b);
  const int64_t held = cache.ring() * kExactTokens;
  const TokenSource source(cache, tokens, b);
  for (int64_t token = std::max(cache.length(b), length - held); token < length; ++token) {
    const float* k = source.row(token);
    kernels.store_exact(cache, cache.window_page(b, token), static_cast<int>(token % kExactTokens), k,
                        k + cache.params->channels());
  }
}

}  // namespace

void encode_page_portable(const LayerCache& cache, const TokenSource& source, int64_t b, int64_t begin, int64_t end) {
  const LayerParams& params = *cache.params;
  std::vector<float> k(params.channels()), v(params.channels());
  SideEncoder encode_key(params, params.keys, cache.page_layout.keys, cache.key_groups.data());
  SideEncoder encode_value(params, params.values, cache.page_layout.values, cache.value_groups.data());
  const float* key_mean = side_mean(params, params.keys);
  uint8_t* page = cache.page(b, begin);
  for (int64_t token = begin; token < end; ++token) {
    load_token(cache, source, token, k.data(), v.data());
    round_like_exact(params, params.keys, k.data());
    round_like_exact(params, params.values, v.data());
    if (key_mean != nullptr) {
      for (int c = 0; c < params.channels(); ++c) k[c] -= key_mean[c];
    }
    if (params.keys_pre_rope == 0) cache.rope.apply_all(k.data(), params.num_kv_heads, token);
    to_stored_basis(params, params.keys, k.data());
    to_stored_basis(params, params.values, v.data());
    encode_key(k.data(), page, static_cast<int>(token % kPageTokens));
    encode_value(v.data(), page, static_cast<int>(token % kPageTokens));
  }
}

void append(const LayerCache& cache, const NewTokens& tokens) {
  const AppendKernels kernels = append_kernels(*cache.params);
  parallel_for(cache.batch, [&](int64_t b) {
    if (tokens.count(b) == 0) return;
    update_sinks(cache, tokens, b);
    encode_leaving(cache, kernels, tokens, b);
    fill_window(cache, kernels, tokens, b);
  });
}

}  // namespace kvquant
