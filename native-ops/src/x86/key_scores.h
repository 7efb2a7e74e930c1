/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Scores of a run of tokens against the queries of a group of kv heads; tokens are in vector lanes throughout.
#pragma once
#include "simd.h"

namespace kvquant {
namespace KVQUANT_ISA {

/// Most query heads that one pass over a key keeps in registers.
constexpr int kQueriesAtOnce = 4;

/// Scores of one head's queries: q [queries, head_dim] against x [head_dim, kLanes]; cos and sin [head_dim / 2,
/// stride], or nullptr for keys that are already rotated to their positions. out [queries, out_stride].
template <int head_dim, int queries, bool rope>
inline void dot(const float* q, const float* x, const float* cos, const float* sin, int stride, float* out,
                int out_stride) {
  constexpr int half = head_dim / 2;
  Vec even[queries], odd[queries];
  for (int g = 0; g < queries; ++g) even[g] = odd[g] = zero();
  for (int i = 0; i < half; ++i) {
    Vec a = load(x + i * kLanes), b = load(x + (i + half) * kLanes);
    if constexpr (rope) {
      const Vec c = load(cos + i * stride), s = load(sin + i * stride);
      const Vec rotated = fnma(b, s, mul(a, c));
      b = fma(a, s, mul(b, c));
      a = rotated;
    }
    for (int g = 0; g < queries; ++g) {
      even[g] = fma(broadcast(q[g * head_dim + i]), a, even[g]);
      odd[g] = fma(broadcast(q[g * head_dim + i + half]), b, odd[g]);
    }
  }
  for (int g = 0; g < queries; ++g) store(out + g * out_stride, add(even[g], odd[g]));
}

template <int head_dim, bool rope>
inline void dot_all(const float* q, int queries, const float* x, const float* cos, const float* sin, int stride,
                    float* out, int out_stride) {
  while (queries >= kQueriesAtOnce) {
    dot<head_dim, kQueriesAtOnce, rope>(q, x, cos, sin, stride, out, out_stride);
    q += kQueriesAtOnce * head_dim;
    out += kQueriesAtOnce * out_stride;
    queries -= kQueriesAtOnce;
  }
  if (queries == 3) dot<head_dim, 3, rope>(q, x, cos, sin, stride, out, out_stride);
  if (queries == 2) dot<head_dim, 2, rope>(q, x, cos, sin, stride, out, out_stride);
  if (queries == 1) dot<head_dim, 1, rope>(q, x, cos, sin, stride, out, out_stride);
}

}  // namespace KVQUANT_ISA
}  // namespace kvquant
