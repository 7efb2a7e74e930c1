/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Scores of a run of tokens against the queries of a group of kv heads; tokens are in vector lanes throughout.
#pragma once
#include "../core/cache.h"
#include "elements.h"

namespace kvquant {
namespace KVQUANT_ISA {

/// Most query heads that one pass over a key keeps in registers.
constexpr int kQueriesAtOnce = 4;

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

/// Mixes the heads of x [heads, head_dim, kLanes] like kvquant::mix_heads, without its scale.
template <int head_dim>
inline void mix_heads(float* x, int heads) {
  constexpr int head = head_dim * kLanes;
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

/// The factor that finish_walsh_hadamard and mix_heads leave out.
inline float rotation_scale(int head_dim, int rotation_heads) {
  if (rotation_heads == 0) return 1.0f;
  const float mix = rotation_heads == 2 ? 0.70710678118654752f : rotation_heads == 4 ? 0.5f : 1.0f;
  return mix / std::sqrt(static_cast<float>(head_dim));
}

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

/// Scale and -scale * zero of the groups [first, last] of a vector of tokens: affine [groups, 2, kLanes], indexed by
/// group.
inline void load_affine(const SideLayout& layout, const uint8_t* page, int tile, int part, int first, int last,
                        float* affine) {
  for (int g = first; g <= last; ++g) {
    const Vec scale = load_halves(page + layout.scales(tile, g) + part * kLanes * 2);
    const Vec zero_point = load_halves(page + layout.zeros(tile, g) + part * kLanes * 2);
    store(affine + 2 * g * kLanes, scale);
    store(affine + (2 * g + 1) * kLanes, fnma(scale, zero_point, zero()));
  }
}

/// Reads the keys of tokens [part * kLanes, (part + 1) * kLanes) of a tile: x [heads, head_dim, kLanes], in the stored
/// basis; rotated keys get the first three steps of the transform back, runs of 8 channels, on the way. affine is
/// scratch for [groups, 2, kLanes].
template <Format format, int bits, int head_dim, bool rotated>
void load_keys(const LayerCache& cache, const uint8_t* page, int64_t ahead, int tile, int part, int first_head,
               int heads, float* affine, float* x) {
  constexpr int run = 8;
  const SideLayout& layout = cache.page_layout.keys;
  const uint16_t* groups = cache.key_groups.data() + first_head * head_dim;
  if constexpr (format == Format::kAffine) {
    const bool natural = cache.params->keys.order_offset == 0;
    const int first = natural ? groups[0] : 0;
    const int last = natural ? groups[heads * head_dim - 1] : layout.groups() - 1;
    load_affine(layout, page, tile, part, first, last, affine);
  }
  for (int h = 0; h < heads; ++h, groups += head_dim) {
    const uint8_t* codes = page + layout.codes(first_head + h, tile, 0);
    for (int c = 0; c < head_dim; c += run, codes += 2 * bits * run, x += run * kLanes) {
      Vec v[run];
      if constexpr (format != Format::kAffine) {
        if (part == 0) prefetch_run<2 * bits * run>(codes + ahead);
      }
      for (int i = 0; i < run; ++i) v[i] = load_element<format, bits>(codes + 2 * bits * i, part);
      if constexpr (format == Format::kAffine) {
        for (int i = 0; i < run; ++i) {
          const float* pair = affine + 2 * groups[c + i] * kLanes;
          v[i] = fma(v[i], load(pair), load(pair + kLanes));
        }
      }
      if constexpr (rotated) butterflies<run>(v);
      for (int i = 0; i < run; ++i) store(x + i * kLanes, v[i]);
    }
  }
}

using LoadKeys = void (*)(const LayerCache&, const uint8_t* page, int64_t ahead, int tile, int part, int first_head,
                          int heads, float* affine, float* x);

template <int head_dim, bool rotated>
LoadKeys affine_key_loader(int bits) {
  if (bits == 2) return load_keys<Format::kAffine, 2, head_dim, rotated>;
  if (bits == 3) return load_keys<Format::kAffine, 3, head_dim, rotated>;
  if (bits == 4) return load_keys<Format::kAffine, 4, head_dim, rotated>;
  return load_keys<Format::kAffine, 8, head_dim, rotated>;
}

template <int head_dim>
LoadKeys key_loader(const SideParams& side) {
  if (side.format == Format::kFloat32) return load_keys<Format::kFloat32, 32, head_dim, false>;
  if (side.format == Format::kFloat16) return load_keys<Format::kFloat16, 16, head_dim, false>;
  return side.rotation_heads > 0 ? affine_key_loader<head_dim, true>(side.bits)
                                 : affine_key_loader<head_dim, false>(side.bits);
}

}  // namespace KVQUANT_ISA
}  // namespace kvquant
