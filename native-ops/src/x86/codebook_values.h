/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Weighted sums of values in codes of a codebook (Format::kCodebook): levels are summed up with the steps in the
// weights, the starts in one sum per query, and each outlier adds what its code lacks.
#pragma once
#include "codebook_side.h"
#include "value_sums.h"

namespace kvquant {
namespace KVQUANT_ISA {

/// A token's step and start, [kPageTokens] each; 0 where there is no token.
struct PageRanges {
  PageRanges(const SideLayout& layout, const uint8_t* page, uint64_t valid) {
    for (int v = 0; v < kPageTokens / kLanes; ++v) {
      const int tile = v / kParts, offset = v % kParts * kLanes * 2;
      const uint32_t bits = static_cast<uint32_t>(valid >> (v * kLanes));
      store(steps + v * kLanes, select(bits, load_halves(page + layout.scales(tile, 0) + offset), zero()));
      store(starts + v * kLanes, select(bits, load_halves(page + layout.zeros(tile, 0) + offset), zero()));
    }
  }
  alignas(64) float steps[kPageTokens];
  alignas(64) float starts[kPageTokens];
};

/// sums[g, c] += weights[g] * (outlier - what its code says) for the outliers of a head.
template <int bits, int queries>
inline void add_outliers(const SideLayout& layout, const uint8_t* page, int head, int head_dim, const float* levels,
                         const PageRanges& ranges, const float* weights, uint64_t valid, float* sums) {
  for (int v = 0; v < kPageTokens / kLanes; ++v) {
    const uint8_t* codes = page + layout.codes(head, v / kParts, 0);
    for_each_outlier(layout, page, v / kParts, v % kParts, head, head_dim, [&](int channel, int lane, float value) {
      const int token = v * kLanes + lane;
      if ((valid >> token & 1) == 0) return;
      uint64_t fields;
      std::memcpy(&fields, codes + channel * 2 * bits, sizeof(fields));
      const float level = levels[fields >> (token % kTileTokens * bits) & ((1u << bits) - 1u)];
      const float lacking = value - (ranges.starts[token] + ranges.steps[token] * level);
      float* sum = sums + channel * kLanes + lane;
      for (int g = 0; g < queries; ++g) sum[g * head_dim * kLanes] += weights[g * kPageTokens + token] * lacking;
    });
  }
}

/// zero_sums [queries, kMaxValueGroups, kLanes], of which the first are used, are subtracted in the end.
template <int bits, int queries>
void add_codebook_values(const LayerCache& cache, const uint8_t* page, int64_t /*ahead*/, int head,
                         const float* weights, uint64_t valid, float* sums, float* zero_sums) {
  const SideLayout& layout = cache.page_layout.values;
  const int head_dim = cache.params->head_dim;
  const PageRanges ranges(layout, page, valid);
  alignas(64) float scaled[queries * kPageTokens];
  for (int g = 0; g < queries; ++g) {
    Vec total = load(zero_sums + g * kMaxValueGroups * kLanes);
    for (int i = 0; i < kPageTokens; i += kLanes) {
      const Vec weight = load(weights + g * kPageTokens + i);
      store(scaled + g * kPageTokens + i, mul(weight, load(ranges.steps + i)));
      total = fnma(weight, load(ranges.starts + i), total);
    }
    store(zero_sums + g * kMaxValueGroups * kLanes, total);
  }
  const float* levels = packed_array<float>(*cache.params, cache.params->values.levels_offset) + (1 << bits);
  const int64_t tile_bytes = layout.tile(head, 1) - layout.tile(head, 0);
  add_levels<bits, queries>(page + layout.tile(head, 0), tile_bytes, head_dim, CodeTable<bits>(levels), scaled, sums);
  add_outliers<bits, queries>(layout, page, head, head_dim, levels, ranges, weights, valid, sums);
}

template <int bits>
void add_codebook_values_all(const LayerCache& cache, const uint8_t* page, int64_t ahead, int head,
                             const float* weights, int queries, uint64_t valid, float* sums, float* zero_sums) {
  const int head_dim = cache.params->head_dim;
  while (queries >= kValueQueries) {
    add_codebook_values<bits, kValueQueries>(cache, page, ahead, head, weights, valid, sums, zero_sums);
    weights += kValueQueries * kPageTokens;
    sums += kValueQueries * head_dim * kLanes;
    zero_sums += kValueQueries * kMaxValueGroups * kLanes;
    queries -= kValueQueries;
  }
  if (queries == 3) add_codebook_values<bits, 3>(cache, page, ahead, head, weights, valid, sums, zero_sums);
  if (queries == 2) add_codebook_values<bits, 2>(cache, page, ahead, head, weights, valid, sums, zero_sums);
  if (queries == 1) add_codebook_values<bits, 1>(cache, page, ahead, head, weights, valid, sums, zero_sums);
}

/// value_adder of values with a codebook.
inline AddValues codebook_value_adder(const SideParams& side) {
  return side.bits == 2   ? add_codebook_values_all<2>
         : side.bits == 3 ? add_codebook_values_all<3>
                          : add_codebook_values_all<4>;
}

}  // namespace KVQUANT_ISA
}  // namespace kvquant
