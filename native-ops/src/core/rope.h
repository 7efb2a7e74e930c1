/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Rotary position embedding from a two-level table: angle(t) = angle(t - t % 64) + angle(t % 64).
#pragma once
#include <cstdint>

#include "layout.h"

namespace kvquant {

/// FLOAT32 [rows, 2, head_dim / 2]. The first 64 rows, read as [2, head_dim / 2, 64], hold cosine and sine of the angle
/// of positions 0 to 63, positions last, so that a reader with tokens in its lanes loads them as they are. Row 64 + i
/// holds cosines, then sines, of position 64 i. Channel i is paired with channel i + head_dim / 2, as HuggingFace's
/// LLaMA does.
class RopeTable {
 public:
  RopeTable(const float* data, int64_t rows, int head_dim) : data_(data), rows_(rows), half_(head_dim / 2) {}

  /// Positions that the table covers.
  int64_t positions() const { return (rows_ - kPageTokens) * kPageTokens; }
  int half() const { return half_; }
  /// Cosines of positions 0 to 63 for a pair of channels.
  const float* step_cos(int pair) const { return data_ + static_cast<int64_t>(pair) * kPageTokens; }
  const float* step_sin(int pair) const { return step_cos(half_ + pair); }
  const float* base_cos(int64_t page) const { return data_ + (kPageTokens + page) * 2 * half_; }
  const float* base_sin(int64_t page) const { return base_cos(page) + half_; }

  void angle(int64_t position, int pair, float* cos, float* sin) const {
    const float c0 = base_cos(position / kPageTokens)[pair], s0 = base_sin(position / kPageTokens)[pair];
    const float c1 = step_cos(pair)[position % kPageTokens], s1 = step_sin(pair)[position % kPageTokens];
    *cos = c0 * c1 - s0 * s1;
    *sin = s0 * c1 + c0 * s1;
  }

  /// Rotates one head, [head_dim], to its position; out may be x.
  void apply(const float* x, int64_t position, float* out) const {
    for (int i = 0; i < half_; ++i) {
      float cos, sin;
      angle(position, i, &cos, &sin);
      const float a = x[i], b = x[i + half_];
      out[i] = a * cos - b * sin;
      out[i + half_] = b * cos + a * sin;
    }
  }

  /// Rotates heads, [heads, head_dim], to their token's position, in place.
  void apply_all(float* x, int heads, int64_t position) const {
    for (int h = 0; h < heads; ++h) apply(x + 2 * h * half_, position, x + 2 * h * half_);
  }

 private:
  const float* data_;
  int64_t rows_;
  int half_;
};

}  // namespace kvquant
