/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Which pages of a sequence a decoding step reads: see core/landmarks.h.
#pragma once
#include "kernels.h"

namespace kvquant::cuda {

/// Pages among which a step of a sequence chooses, and how many: select_pages of core/landmarks.h.
struct Candidates {
  int all, pages, wanted;

  __device__ Candidates(const CacheView& cache, int b) {
    const int quantized = cache.quantized(b, cache.length(b) + 1);
    all = (quantized + kPageTokens - 1) / kPageTokens;
    pages = max(0, quantized - static_cast<int>(kRecentCoded)) / kPageTokens;
    wanted = cache.sparse_pages();
  }
  /// Whether there is a choice; else all pages are read.
  __device__ bool some() const { return wanted > 0 && wanted < pages; }
};

/// The pages that a kv head of a sequence reads, ascending.
struct ReadPages {
  const int32_t* pages;  // nullptr: all
  int count;

  __device__ ReadPages(const CacheView& cache, const PageChoice& choice, int b, int kv_head) {
    if (choice.lists == nullptr) {
      pages = nullptr;
      count = Candidates(cache, b).all;
    } else {
      const int groups = cache.kv_heads / choice.heads;
      pages = choice.lists + (static_cast<int64_t>(b) * groups + kv_head / choice.heads) * choice.stride + 1;
      count = pages[-1];
    }
  }
  __device__ int operator[](int i) const { return pages == nullptr ? i : pages[i]; }
};

}  // namespace kvquant::cuda
