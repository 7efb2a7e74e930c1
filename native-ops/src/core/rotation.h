/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The rotation of RotateKV (sections 3.1 and 3.2): a normalised Walsh-Hadamard transform of every head, combined with
// an orthogonal matrix over the heads of a group. Symmetric and orthogonal, hence its own inverse.
#pragma once
#include <cmath>

namespace kvquant {

/// Walsh-Hadamard transform in natural order of n values (a power of two), scaled by 1 / sqrt(n), in place.
inline void walsh_hadamard(float* x, int n) {
  for (int half = 1; half < n; half *= 2) {
    for (int block = 0; block < n; block += 2 * half) {
      for (int i = block; i < block + half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
    }
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(n));
  for (int i = 0; i < n; ++i) x[i] *= scale;
}

/// Mixes the heads of a group, [heads, n] in place: Hadamard for 1, 2 and 4 heads, I - (2/3) J for 3.
inline void mix_heads(float* x, int heads, int n) {
  for (int i = 0; i < n; ++i) {
    if (heads == 2) {
      const float a = x[i], b = x[n + i];
      x[i] = (a + b) * 0.70710678118654752f;
      x[n + i] = (a - b) * 0.70710678118654752f;
    } else if (heads == 3) {
      const float mean = (x[i] + x[n + i] + x[2 * n + i]) * 0.66666666666666667f;
      x[i] -= mean;
      x[n + i] -= mean;
      x[2 * n + i] -= mean;
    } else if (heads == 4) {
      const float a = x[i] + x[n + i], b = x[i] - x[n + i];
      const float c = x[2 * n + i] + x[3 * n + i], d = x[2 * n + i] - x[3 * n + i];
      x[i] = (a + c) * 0.5f;
      x[n + i] = (b + d) * 0.5f;
      x[2 * n + i] = (a - c) * 0.5f;
      x[3 * n + i] = (b - d) * 0.5f;
    }
  }
}

/// Rotates [num_kv_heads, head_dim] in place, in groups of rotation_heads heads; 0 heads: nothing.
inline void rotate_heads(float* x, int num_kv_heads, int head_dim, int rotation_heads) {
  if (rotation_heads == 0) return;
  for (int h = 0; h < num_kv_heads; ++h) walsh_hadamard(x + h * head_dim, head_dim);
  for (int h = 0; h < num_kv_heads; h += rotation_heads) mix_heads(x + h * head_dim, rotation_heads, head_dim);
}

}  // namespace kvquant
