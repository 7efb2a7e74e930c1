/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Reads a token as attention sees it, wherever it is stored: the definition that the fast readers are measured against.
#pragma once
#include "cache.h"

namespace kvquant {

class TokenReader {
 public:
  /// Reads sequence b as it is at the given length.
  TokenReader(const LayerCache& cache, int64_t b, int64_t length);

  /// k and v of a token, [num_kv_heads, head_dim] each, natural basis, k after RoPE; returns whether they come from
  /// codes.
  bool read(int64_t token, float* k, float* v) const;

 private:
  void read_page(int64_t token, float* k, float* v) const;
  /// Adds the mean, turned to the token's position, and turns what is stored before RoPE.
  void finish_key(int64_t token, float* k) const;
  void add(const float* x, float* k) const;
  void rope(int64_t token, float* k) const;

  const LayerCache& cache_;
  int64_t b_;
  int64_t quantized_;
  std::vector<Sink> sinks_;
};

}  // namespace kvquant
