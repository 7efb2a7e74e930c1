/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The inner parts of append, which have a version per instruction set; dispatch.h chooses once.
#pragma once
#include "cache.h"

namespace kvquant {

/// Where the k and v of a sequence's tokens come from while tokens are being appended: new ones from the projections,
/// earlier ones from the window.
class TokenSource {
 public:
  TokenSource(const LayerCache& cache, const NewTokens& tokens, int64_t b)
      : cache_(cache),
        b_(b),
        stride_(static_cast<int64_t>(cache.params->num_heads + 2 * cache.params->num_kv_heads) *
                cache.params->head_dim),
        k_(tokens.qkv + tokens.starts[b] * stride_ +
           static_cast<int64_t>(cache.params->num_heads) * cache.params->head_dim) {}

  bool is_new(int64_t token) const { return token >= cache_.length(b_); }
  /// k, then v, [channels] each, of a new token; the next token's are stride() floats ahead.
  const float* row(int64_t token) const { return k_ + (token - cache_.length(b_)) * stride_; }
  int64_t stride() const { return stride_; }
  /// The exact page that holds a token of the window, in slot token % kExactTokens.
  const uint8_t* window_page(int64_t token) const { return cache_.window_page(b_, token); }

 private:
  const LayerCache& cache_;
  int64_t b_, stride_;
  const float* k_;
};

/// Whether a side is rounded to what an exact copy holds: where codes are made of it or a window may have held it. What
/// is stored does not depend on whether the token passed through the window.
inline bool rounded_like_exact(const LayerParams& params, const SideParams& side) {
  return is_quantized(side) || params.window > 0;
}

struct AppendKernels {
  /// Stores tokens [begin, end), all of one page.
  void (*encode_page)(const LayerCache& cache, const TokenSource& source, int64_t b, int64_t begin, int64_t end);
  /// kvquant::store_exact.
  void (*store_exact)(const LayerCache& cache, uint8_t* page, int slot, const float* k, const float* v);
};

/// The kernels of the selected variant.
AppendKernels append_kernels(const LayerParams& params);

void encode_page_portable(const LayerCache& cache, const TokenSource& source, int64_t b, int64_t begin, int64_t end);
void encode_page_avx2(const LayerCache& cache, const TokenSource& source, int64_t b, int64_t begin, int64_t end);
void encode_page_avx512(const LayerCache& cache, const TokenSource& source, int64_t b, int64_t begin, int64_t end);
void store_exact_avx2(const LayerCache& cache, uint8_t* page, int slot, const float* k, const float* v);
void store_exact_avx512(const LayerCache& cache, uint8_t* page, int slot, const float* k, const float* v);

}  // namespace kvquant
