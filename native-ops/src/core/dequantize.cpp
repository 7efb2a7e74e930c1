/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "dequantize.h"

#include "parallel.h"

namespace kvquant {

void read_into_rows(const LayerCache& cache, const TokenReader& reader, int64_t token, const TokenRows& rows,
                    float* k_scratch, float* v_scratch) {
  const int head_dim = cache.params->head_dim;
  reader.read(token, k_scratch, v_scratch);
  for (int h = 0; h < cache.params->num_kv_heads; ++h) {
    const int64_t row = (h * (rows.end - rows.begin) + token - rows.begin) * head_dim;
    std::copy_n(k_scratch + h * head_dim, head_dim, rows.k + row);
    std::copy_n(v_scratch + h * head_dim, head_dim, rows.v + row);
  }
}

void dequantize_portable(const LayerCache& cache, int64_t b, const TokenRows& rows) {
  const TokenReader reader(cache, b, cache.length(b));
  const int64_t first = rows.begin / kPageTokens, last = (rows.end - 1) / kPageTokens;
  parallel_for(last - first + 1, [&](int64_t i) {
    std::vector<float> k(cache.params->channels()), v(cache.params->channels());
    const int64_t page = (first + i) * kPageTokens;
    for (int64_t t = std::max(rows.begin, page); t < std::min(rows.end, page + kPageTokens); ++t) {
      read_into_rows(cache, reader, t, rows, k.data(), v.data());
    }
  });
}

}  // namespace kvquant
