/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Keys or values in codes of a codebook (Format::kCodebook), read with tokens in vector lanes.
#pragma once
#include "../core/basis.h"
#include "../core/half.h"
#include "../core/layout.h"
#include "simd.h"

namespace kvquant {
namespace KVQUANT_ISA {

/// Calls use(channel of the head, lane, value) for the outliers of a head among tokens [part * kLanes, (part + 1) *
/// kLanes) of a tile. Tokens that are not stored may have any channels and values.
template <typename Use>
inline void for_each_outlier(const SideLayout& layout, const uint8_t* page, int tile, int part, int head, int head_dim,
                             Use&& use) {
  for (int slot = 0; slot < layout.outliers(); ++slot) {
    const uint8_t* values = page + layout.outlier_values(tile, slot) + part * kLanes * 2;
    uint16_t channels[kLanes];
    std::memcpy(channels, page + layout.outlier_channels(tile, slot) + part * kLanes * 2, sizeof(channels));
    for (int lane = 0; lane < kLanes; ++lane) {
      const unsigned channel = channels[lane] - static_cast<unsigned>(head * head_dim);
      if (channel < static_cast<unsigned>(head_dim)) use(static_cast<int>(channel), lane, load_half(values + 2 * lane));
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
