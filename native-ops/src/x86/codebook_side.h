/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Keys or values in codes of a codebook (Format::kCodebook), read with tokens in vector lanes.
#pragma once
#include "../core/basis.h"
#include "../core/layout.h"
#include "simd.h"

namespace kvquant {
namespace KVQUANT_ISA {

/// A bit per lane: whether channel - first < count for the UINT16 channels at p.
inline uint32_t channels_within(const uint8_t* p, int first, int count) {
#if defined(__AVX512F__)
  const __m256i channels = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i places = _mm256_sub_epi16(channels, _mm256_set1_epi16(static_cast<int16_t>(first)));
  return _mm256_cmplt_epu16_mask(places, _mm256_set1_epi16(static_cast<int16_t>(count)));
#else
  const __m128i channels = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i places = _mm_sub_epi16(channels, _mm_set1_epi16(static_cast<int16_t>(first)));
  const __m128i limited = _mm_min_epu16(places, _mm_set1_epi16(static_cast<int16_t>(count - 1)));
  const __m128i within = _mm_packs_epi16(_mm_cmpeq_epi16(places, limited), _mm_setzero_si128());
  return static_cast<uint32_t>(_mm_movemask_epi8(within));
#endif
}

/// Calls use(channel of the head, lane, value) for the outliers of a head among tokens [part * kLanes, (part + 1) *
/// kLanes) of a tile. Tokens that are not stored may have any channels and values.
template <typename Use>
inline void for_each_outlier(const SideLayout& layout, const uint8_t* page, int tile, int part, int head, int head_dim,
                             Use&& use) {
  for (int slot = 0; slot < layout.outliers(); ++slot) {
    const uint8_t* values = page + layout.outlier_values(tile, slot) + part * kLanes * 2;
    const uint8_t* channels = page + layout.outlier_channels(tile, slot) + part * kLanes * 2;
    for (uint32_t left = channels_within(channels, head * head_dim, head_dim); left != 0; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      uint16_t channel, value;
      std::memcpy(&channel, channels + 2 * lane, sizeof(channel));
      std::memcpy(&value, values + 2 * lane, sizeof(value));
      use(channel - head * head_dim, lane, _cvtsh_ss(value));
    }
  }
}

/// Reads a head of tokens [part * kLanes, (part + 1) * kLanes) of a tile: x [head_dim, kLanes].
template <int bits, int head_dim>
inline void read_codebook(const LayerParams& params, const SideParams& side, const SideLayout& layout,
                          const uint8_t* page, int tile, int part, int head, float* x) {
  const CodeTable<bits> level(packed_array<float>(params, side.levels_offset) + (1 << bits));
  const uint8_t* field = page + layout.codes(head, tile, 0);
  if (side.steps_offset != 0) {
    const float* steps = packed_array<float>(params, side.steps_offset) + 2 * head * head_dim;
    for (int c = 0; c < head_dim; ++c, field += 2 * bits) {
      store(x + c * kLanes, fma(level(field, part), broadcast(steps[2 * c + 1]), broadcast(steps[2 * c])));
    }
  } else {
    const Vec step = load_halves(page + layout.scales(tile, 0) + part * kLanes * 2);
    const Vec start = load_halves(page + layout.zeros(tile, 0) + part * kLanes * 2);
    for (int c = 0; c < head_dim; ++c, field += 2 * bits) store(x + c * kLanes, fma(level(field, part), step, start));
  }
  for_each_outlier(layout, page, tile, part, head, head_dim,
                   [x](int channel, int lane, float value) { x[channel * kLanes + lane] = value; });
}

}  // namespace KVQUANT_ISA
}  // namespace kvquant
