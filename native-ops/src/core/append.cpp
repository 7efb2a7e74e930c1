/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "cache.h"
#include "parallel.h"
#include "rotation.h"
#include "sinks.h"

namespace kvquant {
namespace {

/// Where a token's k and v come from while it is being appended.
class TokenSource {
 public:
  TokenSource(const LayerCache& cache, const NewTokens& tokens, int64_t b)
      : cache_(cache),
        k_(tokens.qkv +
           (static_cast<int64_t>(tokens.starts[b]) * row_heads() + cache.params->num_heads) * cache.params->head_dim),
        b_(b) {}

  /// k and v of a token, [channels] each, as new tokens came or, from the window, rounded to fp16.
  void load(int64_t token, float* k, float* v) const {
    if (token < cache_.length(b_)) {
      load_exact(cache_, cache_.window_page(b_, token), static_cast<int>(token % kExactTokens), k, v);
      return;
    }
    const float* row = k_ + (token - cache_.length(b_)) * row_heads() * cache_.params->head_dim;
    std::copy_n(row, cache_.params->channels(), k);
    std::copy_n(row + cache_.params->channels(), cache_.params->channels(), v);
  }

 private:
  int64_t row_heads() const { return cache_.params->num_heads + 2 * cache_.params->num_kv_heads; }

  const LayerCache& cache_;
  const float* k_;
  int64_t b_;
};

/// Rounds a side to what an exact copy holds, where codes are made of it or a window may have held it: what is stored
/// does not depend on whether the token passed through the window.
void round_like_exact(const LayerParams& params, const SideParams& side, float* x) {
  if (side.format != Format::kAffine && params.window == 0) return;
  for (int c = 0; c < params.channels(); ++c) x[c] = round_to_half(x[c]);
}

/// Stores tokens [begin, end), all of one page.
void encode_page(const LayerCache& cache, const TokenSource& source, int64_t b, int64_t begin, int64_t end) {
  const LayerParams& params = *cache.params;
  std::vector<float> k(params.channels()), v(params.channels());
  uint8_t* page = cache.page(b, begin);
  for (int64_t token = begin; token < end; ++token) {
    source.load(token, k.data(), v.data());
    round_like_exact(params, params.keys, k.data());
    round_like_exact(params, params.values, v.data());
    if (params.keys_pre_rope == 0) {
      for (int h = 0; h < params.num_kv_heads; ++h) {
        cache.rope.apply(k.data() + h * params.head_dim, token, k.data() + h * params.head_dim);
      }
    }
    rotate_heads(k.data(), params.num_kv_heads, params.head_dim, params.keys.rotation_heads);
    rotate_heads(v.data(), params.num_kv_heads, params.head_dim, params.values.rotation_heads);
    const int slot = static_cast<int>(token % kPageTokens);
    encode_token(params, params.keys, cache.page_layout.keys, cache.key_groups.data(), k.data(), page, slot);
    encode_token(params, params.values, cache.page_layout.values, cache.value_groups.data(), v.data(), page, slot);
  }
}

/// Stores the tokens that leave the window (all new ones without a window), page by page in parallel.
void encode_leaving(const LayerCache& cache, const NewTokens& tokens, int64_t b) {
  const int64_t begin = cache.quantized(b, cache.length(b));
  const int64_t end = cache.quantized(b, cache.length(b) + tokens.count(b));
  if (begin >= end) return;
  const TokenSource source(cache, tokens, b);
  const int64_t first = begin / kPageTokens, last = (end - 1) / kPageTokens;
  parallel_for(last - first + 1, [&](int64_t i) {
    const int64_t page = (first + i) * kPageTokens;
    encode_page(cache, source, b, std::max(begin, page), std::min(end, page + kPageTokens));
  });
}

/// Copies the new tokens that are still recent into the ring, oldest first: a later token may reuse an earlier one's
/// page.
void fill_window(const LayerCache& cache, const NewTokens& tokens, int64_t b) {
  if (cache.params->window == 0) return;
  const int64_t length = cache.length(b) + tokens.count(b);
  const int64_t held = (cache.ring() - 1) * kExactTokens;
  const TokenSource source(cache, tokens, b);
  std::vector<float> k(cache.params->channels()), v(cache.params->channels());
  for (int64_t token = std::max(cache.length(b), length - held); token < length; ++token) {
    source.load(token, k.data(), v.data());
    store_exact(cache, cache.window_page(b, token), static_cast<int>(token % kExactTokens), k.data(), v.data());
  }
}

}  // namespace

void append(const LayerCache& cache, const NewTokens& tokens) {
  parallel_for(cache.batch, [&](int64_t b) {
    if (tokens.count(b) == 0) return;
    update_sinks(cache, tokens, b);
    encode_leaving(cache, tokens, b);
    fill_window(cache, tokens, b);
  });
}

}  // namespace kvquant
