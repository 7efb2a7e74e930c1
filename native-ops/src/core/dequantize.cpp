/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "cache.h"
#include "parallel.h"
#include "rotation.h"
#include "token_reader.h"

namespace kvquant {

void dequantize(const LayerCache& cache, int64_t b, int64_t begin, int64_t end, float* k, float* v) {
  const LayerParams& params = *cache.params;
  const TokenReader reader(cache, b, cache.length(b));
  const int64_t first = begin / kPageTokens, last = (end - 1) / kPageTokens;
  parallel_for(end > begin ? last - first + 1 : 0, [&](int64_t i) {
    std::vector<float> token_k(params.channels()), token_v(params.channels());
    const int64_t page = (first + i) * kPageTokens;
    for (int64_t t = std::max(begin, page); t < std::min(end, page + kPageTokens); ++t) {
      reader.read(t, token_k.data(), token_v.data());
      for (int h = 0; h < params.num_kv_heads; ++h) {
        const int64_t row = (h * (end - begin) + t - begin) * params.head_dim;
        std::copy_n(token_k.data() + h * params.head_dim, params.head_dim, k + row);
        std::copy_n(token_v.data() + h * params.head_dim, params.head_dim, v + row);
      }
    }
  });
}

}  // namespace kvquant
