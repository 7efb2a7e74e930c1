/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The variants of dequantize; which one runs is chosen once, by dispatch.h.
#pragma once
#include "cache.h"
#include "token_reader.h"

namespace kvquant {

/// Where the tokens of one call go: k and v [num_kv_heads, end - begin, head_dim].
struct TokenRows {
  int64_t begin, end;
  float *k, *v;
};

/// Reads one token into its rows; k_scratch and v_scratch hold [num_kv_heads, head_dim] each.
void read_into_rows(const LayerCache& cache, const TokenReader& reader, int64_t token, const TokenRows& rows,
                    float* k_scratch, float* v_scratch);

void dequantize_portable(const LayerCache& cache, int64_t b, const TokenRows& rows);
void dequantize_avx2(const LayerCache& cache, int64_t b, const TokenRows& rows);
void dequantize_avx512(const LayerCache& cache, int64_t b, const TokenRows& rows);

}  // namespace kvquant
