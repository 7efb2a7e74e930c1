/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Weighted sums of the values of a run of tokens. Lanes are tokens: sums [queries, head_dim, kLanes] stay in vectors
// and are reduced once at the end of a task (but see level_pairs.h). Scales go into the weights and zeros into one sum
// per group, so that codes are multiplied as they are.
#pragma once
#include "../core/cache.h"
#include "elements.h"
#include "level_pairs.h"

namespace kvquant {
namespace KVQUANT_ISA {

constexpr int kValueQueries = 4;

/// Most groups that the values of one head can have.
constexpr int kMaxValueGroups = kMaxHeadDim / 16;

/// Whether the sums of a side's pages are [queries, head_dim].
inline bool sums_are_reduced(const SideParams& side) {
  return kHasLevelPairs && side.format == Format::kNorm && side.bits == 2;
}

/// sums[g, c] += weights[g] * value[c] over the vectors of a page for channels [begin, end) of one head, which share a
/// group; weights [queries, kPageTokens] include the scales. valid: a bit per token; tokens outside are read as zero.
/// Plain elements of the next page, ahead bytes away, are asked for meanwhile.
template <Format format, int bits, int queries, bool masked>
inline void add_channels(const uint8_t* head_codes, int64_t ahead, int64_t tile_bytes, int head_dim, int begin, int end,
                         const float* weights, uint64_t valid, float* sums) {
  constexpr int vectors = kPageTokens / kLanes;
  for (int c = begin; c < end; ++c) {
    Vec total[queries];
    for (int g = 0; g < queries; ++g) total[g] = load(sums + (g * head_dim + c) * kLanes);
    const uint8_t* codes = head_codes + c * 2 * bits;
    for (int v = 0; v < vectors; ++v) {
      const uint8_t* field = codes + v / kParts * tile_bytes;
      const int part = v % kParts;
      if constexpr (format != Format::kAffine) {
        if (part == 0) prefetch(field + ahead);
      }
      Vec value = load_element<format, bits>(field, part);
      if constexpr (masked && format != Format::kAffine) {
        value = select(static_cast<uint32_t>(valid >> (v * kLanes)), value, zero());
      }
      for (int g = 0; g < queries; ++g) {
        total[g] = fma(load(weights + g * kPageTokens + v * kLanes), value, total[g]);
      }
    }
    for (int g = 0; g < queries; ++g) store(sums + (g * head_dim + c) * kLanes, total[g]);
  }
}

/// sums[g, c] += weights[g] * level[code of c] over the vectors of a page, all channels of one head; weights include
/// the norms and are zero where there is no token.
template <int bits, int queries>
inline void add_levels(const uint8_t* head_codes, int64_t tile_bytes, int head_dim, const CodeTable<bits>& table,
                       const float* weights, float* sums) {
  constexpr int vectors = kPageTokens / kLanes;
  for (int c = 0; c < head_dim; ++c) {
    Vec total[queries];
    for (int g = 0; g < queries; ++g) total[g] = load(sums + (g * head_dim + c) * kLanes);
    const uint8_t* codes = head_codes + c * 2 * bits;
    for (int v = 0; v < vectors; ++v) {
      const Vec value = table(codes + v / kParts * tile_bytes, v % kParts);
      for (int g = 0; g < queries; ++g) {
        total[g] = fma(load(weights + g * kPageTokens + v * kLanes), value, total[g]);
      }
    }
    for (int g = 0; g < queries; ++g) store(sums + (g * head_dim + c) * kLanes, total[g]);
  }
}

/// add_levels for 8 bits, whose levels are equally spaced: as codes with a scale and a zero, which goes into the first
/// of zero_sums [queries, kMaxValueGroups, kLanes].
template <int queries>
inline void add_uniform_levels(const uint8_t* head_codes, int64_t tile_bytes, int head_dim, const float* levels,
                               float* weights, float* sums, float* zero_sums) {
  const Vec step = broadcast((levels[255] - levels[0]) / 255), zero_point = broadcast(127.5f);
  for (int g = 0; g < queries; ++g) {
    Vec total = load(zero_sums + g * kMaxValueGroups * kLanes);
    for (int i = g * kPageTokens; i < (g + 1) * kPageTokens; i += kLanes) {
      const Vec weight = mul(load(weights + i), step);
      store(weights + i, weight);
      total = fma(weight, zero_point, total);
    }
    store(zero_sums + g * kMaxValueGroups * kLanes, total);
  }
  add_channels<Format::kAffine, 8, queries, false>(head_codes, 0, tile_bytes, head_dim, 0, head_dim, weights, 0, sums);
}

/// Scales the weights by the norms of a head.
inline void apply_norms(const SideLayout& layout, const uint8_t* page, int head, const float* weights, int queries,
                        uint64_t valid, float* scaled) {
  for (int v = 0; v < kPageTokens / kLanes; ++v) {
    const uint8_t* norms = page + layout.norms(v / kParts, head) + v % kParts * kLanes * 2;
    const Vec norm = select(static_cast<uint32_t>(valid >> (v * kLanes)), load_halves(norms), zero());
    for (int g = 0; g < queries; ++g) {
      store(scaled + g * kPageTokens + v * kLanes, mul(load(weights + g * kPageTokens + v * kLanes), norm));
    }
  }
}

/// Scales the weights by the group's scales and adds weight * scale * zero to zero_sums [queries, kMaxValueGroups,
/// kLanes].
inline void apply_scales(const SideLayout& layout, const uint8_t* page, int group, int slot, const float* weights,
                         int queries, uint64_t valid, float* scaled, float* zero_sums) {
  for (int v = 0; v < kPageTokens / kLanes; ++v) {
    const int tile = v / kParts, offset = v % kParts * kLanes * 2;
    const uint32_t bits = static_cast<uint32_t>(valid >> (v * kLanes));
    const Vec scale = select(bits, load_halves(page + layout.scales(tile, group) + offset), zero());
    const Vec zero_point = select(bits, load_halves(page + layout.zeros(tile, group) + offset), zero());
    for (int g = 0; g < queries; ++g) {
      const Vec weight = mul(load(weights + g * kPageTokens + v * kLanes), scale);
      store(scaled + g * kPageTokens + v * kLanes, weight);
      float* sum = zero_sums + (g * kMaxValueGroups + slot) * kLanes;
      store(sum, fma(weight, zero_point, load(sum)));
    }
  }
}

template <Format format, int bits, int queries>
void add_values(const LayerCache& cache, const uint8_t* page, int64_t ahead, int head, const float* weights,
                uint64_t valid, float* sums, float* zero_sums) {
  const SideLayout& layout = cache.page_layout.values;
  const int head_dim = cache.params->head_dim;
  const uint8_t* codes = page + layout.codes(head, 0, 0);
  const int64_t tile_bytes = layout.codes(head, 1, 0) - layout.codes(head, 0, 0);
  if constexpr (format == Format::kAffine) {
    const int group_size = cache.params->values.group_size, first = head * head_dim;
    alignas(64) float scaled[kValueQueries * kPageTokens];
    for (int c = 0; c < head_dim;) {
      const int group = (first + c) / group_size, end = std::min(head_dim, (group + 1) * group_size - first);
      apply_scales(layout, page, group, group - first / group_size, weights, queries, valid, scaled, zero_sums);
      add_channels<format, bits, queries, false>(codes, ahead, tile_bytes, head_dim, c, end, scaled, valid, sums);
      c = end;
    }
  } else if constexpr (format == Format::kNorm) {
    alignas(64) float scaled[kValueQueries * kPageTokens];
    apply_norms(layout, page, head, weights, queries, valid, scaled);
    const float* levels = packed_array<float>(*cache.params, cache.params->values.levels_offset);
    if constexpr (bits == 8) {
      add_uniform_levels<queries>(codes, tile_bytes, head_dim, levels, scaled, sums, zero_sums);
    } else if constexpr (kHasLevelPairs && bits == 2) {
      add_level_pairs<queries>(codes, ahead, tile_bytes, head_dim, levels, scaled, sums);
    } else {
      add_levels<bits, queries>(codes, tile_bytes, head_dim, CodeTable<bits>(levels), scaled, sums);
    }
  } else if (valid == ~uint64_t{0}) {
    add_channels<format, bits, queries, false>(codes, ahead, tile_bytes, head_dim, 0, head_dim, weights, valid, sums);
  } else {
    add_channels<format, bits, queries, true>(codes, ahead, tile_bytes, head_dim, 0, head_dim, weights, valid, sums);
  }
}

template <Format format, int bits>
void add_values_all(const LayerCache& cache, const uint8_t* page, int64_t ahead, int head, const float* weights,
                    int queries, uint64_t valid, float* sums, float* zero_sums) {
  const int head_dim = cache.params->head_dim;
  const int width = sums_are_reduced(cache.params->values) ? 1 : kLanes;
  while (queries >= kValueQueries) {
    add_values<format, bits, kValueQueries>(cache, page, ahead, head, weights, valid, sums, zero_sums);
    weights += kValueQueries * kPageTokens;
    sums += kValueQueries * head_dim * width;
    zero_sums += kValueQueries * kMaxValueGroups * kLanes;
    queries -= kValueQueries;
  }
  if (queries == 3) add_values<format, bits, 3>(cache, page, ahead, head, weights, valid, sums, zero_sums);
  if (queries == 2) add_values<format, bits, 2>(cache, page, ahead, head, weights, valid, sums, zero_sums);
  if (queries == 1) add_values<format, bits, 1>(cache, page, ahead, head, weights, valid, sums, zero_sums);
}

using AddValues = void (*)(const LayerCache&, const uint8_t* page, int64_t ahead, int head, const float* weights,
                           int queries, uint64_t valid, float* sums, float* zero_sums);

inline AddValues value_adder(const SideParams& side) {
  if (side.format == Format::kFloat32) return add_values_all<Format::kFloat32, 32>;
  if (side.format == Format::kFloat16) return add_values_all<Format::kFloat16, 16>;
  if (side.format == Format::kNorm) {
    if (side.bits == 2) return add_values_all<Format::kNorm, 2>;
    if (side.bits == 3) return add_values_all<Format::kNorm, 3>;
    if (side.bits == 4) return add_values_all<Format::kNorm, 4>;
    return add_values_all<Format::kNorm, 8>;
  }
  if (side.bits == 2) return add_values_all<Format::kAffine, 2>;
  if (side.bits == 3) return add_values_all<Format::kAffine, 3>;
  if (side.bits == 4) return add_values_all<Format::kAffine, 4>;
  return add_values_all<Format::kAffine, 8>;
}

}  // namespace KVQUANT_ISA
}  // namespace kvquant
