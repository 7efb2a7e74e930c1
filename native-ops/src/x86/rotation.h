/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The rotation of core/rotation.h over channels that are vectors of tokens.
#pragma once
#include <cmath>

#include "simd.h"
#include "transpose.h"

namespace kvquant {
namespace KVQUANT_ISA {

/// Walsh-Hadamard transform of radix vectors, without its scale.
template <int radix>
inline void butterflies(Vec* v) {
  for (int half = 1; half < radix; half *= 2) {
    for (int block = 0; block < radix; block += 2 * half) {
      for (int i = block; i < block + half; ++i) {
        const Vec a = v[i], b = v[i + half];
        v[i] = add(a, b);
        v[i + half] = sub(a, b);
      }
    }
  }
}

template <int radix>
inline void butterflies(float* x, int stride) {
  Vec v[radix];
  for (int i = 0; i < radix; ++i) v[i] = load(x + i * stride * kLanes);
  butterflies<radix>(v);
  for (int i = 0; i < radix; ++i) store(x + i * stride * kLanes, v[i]);
}

/// The rest of a Walsh-Hadamard transform over the channels of x [head_dim, kLanes], whose runs of 8 are transformed
/// already; without its scale.
template <int head_dim>
inline void finish_walsh_hadamard(float* x) {
  for (int block = 0; block < head_dim; block += 64) {
    for (int i = 0; i < 8; ++i) butterflies<8>(x + (block + i) * kLanes, 8);
  }
  if constexpr (head_dim == 128) {
    for (int i = 0; i < 64; ++i) butterflies<2>(x + i * kLanes, 64);
  }
}

/// Mixes the heads of x [heads, vectors, kLanes] like kvquant::mix_heads, without its scale.
template <int vectors>
inline void mix_heads(float* x, int heads) {
  constexpr int head = vectors * kLanes;
  if (heads == 3) {
    const Vec two_thirds = broadcast(0.66666666666666667f);
    for (int i = 0; i < head; i += kLanes) {
      const Vec a = load(x + i), b = load(x + head + i), c = load(x + 2 * head + i);
      const Vec mean = mul(add(add(a, b), c), two_thirds);
      store(x + i, sub(a, mean));
      store(x + head + i, sub(b, mean));
      store(x + 2 * head + i, sub(c, mean));
    }
  } else if (heads == 2) {
    for (int i = 0; i < head; i += kLanes) {
      const Vec a = load(x + i), b = load(x + head + i);
      store(x + i, add(a, b));
      store(x + head + i, sub(a, b));
    }
  } else if (heads == 4) {
    for (int i = 0; i < head; i += kLanes) {
      const Vec a = load(x + i), b = load(x + head + i), c = load(x + 2 * head + i), d = load(x + 3 * head + i);
      const Vec ab = add(a, b), cd = add(c, d), a_b = sub(a, b), c_d = sub(c, d);
      store(x + i, add(ab, cd));
      store(x + head + i, add(a_b, c_d));
      store(x + 2 * head + i, sub(ab, cd));
      store(x + 3 * head + i, sub(a_b, c_d));
    }
  }
}

/// The factor that mix_heads leaves out.
inline float mix_scale(int heads) { return heads == 2 ? 0.70710678118654752f : heads == 4 ? 0.5f : 1.0f; }

/// The factor that finish_walsh_hadamard and mix_heads leave out.
inline float rotation_scale(int head_dim, int rotation_heads) {
  if (rotation_heads == 0) return 1.0f;
  return mix_scale(rotation_heads) / std::sqrt(static_cast<float>(head_dim));
}

inline void multiply(float* x, int vectors, float factor) {
  for (int i = 0; i < vectors; ++i) store(x + i * kLanes, mul(load(x + i * kLanes), broadcast(factor)));
}

/// Mixes heads whose Walsh-Hadamard transforms, without their scale, are x [heads, vectors, kLanes]; scales and rounds
/// as kvquant::rotate_heads does.
template <int vectors>
inline void finish_exactly(float* x, int heads, int head_dim) {
  multiply(x, heads * vectors, 1.0f / std::sqrt(static_cast<float>(head_dim)));
  mix_heads<vectors>(x, heads);
  if (mix_scale(heads) != 1.0f) multiply(x, heads * vectors, mix_scale(heads));
}

/// kvquant::rotate_heads, to the bit, of one group of heads of kLanes tokens: x [heads, head_dim, kLanes].
template <int head_dim>
inline void rotate_run(float* x, int heads) {
  for (int c = 0; c < heads * head_dim; c += 8) butterflies<8>(x + c * kLanes, 1);
  for (int h = 0; h < heads; ++h) finish_walsh_hadamard<head_dim>(x + h * head_dim * kLanes);
  finish_exactly<head_dim>(x, heads, head_dim);
}

/// kvquant::rotate_heads, to the bit, of one token: x [num_kv_heads, head_dim], up to the next multiple of kLanes *
/// kLanes values scratch.
template <int head_dim>
inline void rotate_token(float* x, int num_kv_heads, int rotation_heads) {
  constexpr int vectors = head_dim / kLanes;
  for (int c = 0; c < num_kv_heads * head_dim; c += kLanes * kLanes) {
    // Transposed, neighbouring channels lie in neighbouring vectors.
    Vec block[kLanes];
    for (int i = 0; i < kLanes; ++i) block[i] = load(x + c + i * kLanes);
    transpose(block);
    butterflies<kLanes>(block);
    transpose(block);
    for (int i = 0; i < kLanes; ++i) store(x + c + i * kLanes, block[i]);
  }
  for (int h = 0; h < num_kv_heads; ++h) butterflies<vectors>(x + h * head_dim, 1);
  for (int h = 0; h < num_kv_heads; h += rotation_heads) {
    finish_exactly<vectors>(x + h * head_dim, rotation_heads, head_dim);
  }
}

}  // namespace KVQUANT_ISA
}  // namespace kvquant
