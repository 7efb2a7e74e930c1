/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Keys or values of a run of tokens, read from a page; tokens are in vector lanes.
#pragma once
#include "../core/cache.h"
#include "codebook_side.h"
#include "elements.h"
#include "rotation.h"

namespace kvquant {
namespace KVQUANT_ISA {

/// How one side of a layer is stored in pages.
struct StoredSide {
  const SideParams& params;
  const SideLayout& layout;
  const uint16_t* groups;  ///< of each channel (kAffine)
  const LayerParams& layer;
};

inline StoredSide stored_keys(const LayerCache& cache) {
  return {cache.params->keys, cache.page_layout.keys, cache.key_groups.data(), *cache.params};
}

inline StoredSide stored_values(const LayerCache& cache) {
  return {cache.params->values, cache.page_layout.values, cache.value_groups.data(), *cache.params};
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

/// Reads tokens [part * kLanes, (part + 1) * kLanes) of a tile: x [heads, head_dim, kLanes], in the stored basis; what
/// is rotated gets the first three steps of the transform back, runs of 8 channels, on the way. affine is scratch for
/// [groups, 2, kLanes].
template <Format format, int bits, int head_dim, bool rotated>
void load_side(const StoredSide& side, const uint8_t* page, int64_t ahead, int tile, int part, int first_head,
               int heads, float* affine, float* x) {
  constexpr int run = 8;
  const SideLayout& layout = side.layout;
  const uint16_t* groups = side.groups + first_head * head_dim;
  if constexpr (format == Format::kAffine) {
    const bool natural = side.params.order_offset == 0;
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

/// load_side of a side with a codebook.
template <int bits, int head_dim>
void load_codebook(const StoredSide& side, const uint8_t* page, int64_t /*ahead*/, int tile, int part, int first_head,
                   int heads, float* /*affine*/, float* x) {
  for (int h = 0; h < heads; ++h) {
    read_codebook<bits, head_dim>(side.layer, side.params, side.layout, page, tile, part, first_head + h,
                                  x + h * head_dim * kLanes);
  }
}

using LoadSide = void (*)(const StoredSide&, const uint8_t* page, int64_t ahead, int tile, int part, int first_head,
                          int heads, float* affine, float* x);

template <int head_dim, bool rotated>
LoadSide side_loader(const SideParams& side) {
  if (side.format == Format::kFloat32) return load_side<Format::kFloat32, 32, head_dim, rotated>;
  if (side.format == Format::kFloat16) return load_side<Format::kFloat16, 16, head_dim, rotated>;
  if (side.bits == 2) return load_side<Format::kAffine, 2, head_dim, rotated>;
  if (side.bits == 3) return load_side<Format::kAffine, 3, head_dim, rotated>;
  if (side.bits == 4) return load_side<Format::kAffine, 4, head_dim, rotated>;
  return load_side<Format::kAffine, 8, head_dim, rotated>;
}

template <int head_dim>
LoadSide side_loader(const SideParams& side) {
  if (side.format == Format::kCodebook) {
    return side.bits == 2   ? load_codebook<2, head_dim>
           : side.bits == 3 ? load_codebook<3, head_dim>
                            : load_codebook<4, head_dim>;
  }
  return side.rotation_heads > 0 ? side_loader<head_dim, true>(side) : side_loader<head_dim, false>(side);
}

/// What load_side leaves of the rotation of x [heads, head_dim, kLanes], but for rotation_scale.
template <int head_dim>
inline void finish_rotation(const SideParams& side, int heads, float* x) {
  if (side.rotation_heads == 0) return;
  for (int h = 0; h < heads; ++h) finish_walsh_hadamard<head_dim>(x + h * head_dim * kLanes);
  mix_heads<head_dim>(x, heads);
}

}  // namespace KVQUANT_ISA
}  // namespace kvquant
