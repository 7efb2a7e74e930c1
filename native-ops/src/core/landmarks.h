/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Key sparsity while decoding: of the tokens that are stored as codes, a step reads the recent ones and the pages whose
// landmarks promise most. The landmark of a page and kv head is the mean of its keys as attention reads them, after
// RoPE, sinks left out (these are always read); it is written once, when the page has become full.
#pragma once
#include "cache.h"

namespace kvquant {

/// Writes the landmarks of the pages that have become full since [begin, end) were stored.
void store_landmarks(const LayerCache& cache, int64_t b, int64_t begin, int64_t end, int64_t length);

/// The pages, ascending, that some queries of sequence b read, of those that hold its first `quantized` tokens: all
/// without sparsity. The queries [per kv head of [first_head, first_head + heads)] are after RoPE, scale is the factor
/// that they have still to be multiplied by. A page is worth the largest share, over the queries, of a softmax over the
/// landmarks; of equal ones the earlier page comes first.
std::vector<int64_t> select_pages(const LayerCache& cache, int64_t b, int first_head, int heads, const float* roped_q,
                                  float scale, int64_t quantized);

}  // namespace kvquant
