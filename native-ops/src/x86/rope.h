/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// RoPE of kLanes consecutive tokens, tokens in vector lanes; rounds as kvquant::RopeTable does.
#pragma once
#include "../core/aligned.h"
#include "../core/rope.h"
#include "simd.h"

namespace kvquant {
namespace KVQUANT_ISA {

template <int head_dim>
class RunAngles {
 public:
  RunAngles() : cos_(half), sin_(half) {}

  /// The angles of positions [position, position + kLanes), all of one page.
  void set(const RopeTable& rope, int64_t position) {
    const float *base_cos = rope.base_cos(position / kPageTokens), *base_sin = rope.base_sin(position / kPageTokens);
    const int64_t step = position % kPageTokens;
    for (int i = 0; i < head_dim / 2; ++i) {
      const Vec c0 = broadcast(base_cos[i]), s0 = broadcast(base_sin[i]);
      const Vec c1 = load(rope.step_cos(i) + step), s1 = load(rope.step_sin(i) + step);
      store(cos_.data() + i * kLanes, sub(mul(c0, c1), mul(s0, s1)));
      store(sin_.data() + i * kLanes, add(mul(s0, c1), mul(c0, s1)));
    }
  }

  /// Turns x [heads, head_dim, kLanes] to these positions.
  void turn(float* x, int heads) const {
    for (const float* end = x + heads * 2 * half; x < end; x += 2 * half) {
      for (int i = 0; i < half; i += kLanes) {
        const Vec a = load(x + i), b = load(x + half + i), c = load(cos_.data() + i), s = load(sin_.data() + i);
        store(x + i, sub(mul(a, c), mul(b, s)));
        store(x + half + i, add(mul(b, c), mul(a, s)));
      }
    }
  }

  /// Adds to x [heads, head_dim, kLanes] a vector per head, [heads, head_dim], turned to these positions.
  void add_turned(const float* vectors, int heads, float* x) const {
    for (int h = 0; h < heads; ++h, vectors += head_dim, x += 2 * half) {
      for (int i = 0; i < half; i += kLanes) {
        const Vec a = broadcast(vectors[i / kLanes]), b = broadcast(vectors[i / kLanes + head_dim / 2]);
        const Vec c = load(cos_.data() + i), s = load(sin_.data() + i);
        store(x + i, add(load(x + i), sub(mul(a, c), mul(b, s))));
        store(x + half + i, add(load(x + half + i), add(mul(b, c), mul(a, s))));
      }
    }
  }

 private:
  static constexpr int half = head_dim / 2 * kLanes;
  AlignedFloats cos_, sin_;
};

}  // namespace KVQUANT_ISA
}  // namespace kvquant
