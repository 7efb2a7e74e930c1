/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "codec.h"

#include <limits>
#include <vector>

namespace kvquant {
namespace {

void encode_affine(const LayerParams& params, const SideParams& side, const SideLayout& layout, const uint16_t* groups,
                   const float* x, uint8_t* page, int token) {
  const int tile = token / kTileTokens, lane = token % kTileTokens;
  std::vector<float> low(layout.groups(), std::numeric_limits<float>::infinity());
  std::vector<float> high(layout.groups(), -std::numeric_limits<float>::infinity());
  for (int c = 0; c < params.channels(); ++c) {
    low[groups[c]] = std::min(low[groups[c]], x[c]);
    high[groups[c]] = std::max(high[groups[c]], x[c]);
  }
  std::vector<AffineGroup> affine(layout.groups());
  for (int g = 0; g < layout.groups(); ++g) {
    affine[g] = affine_group(low[g], high[g], side);
    store_half(page + layout.scales(tile, g) + 2 * lane, affine[g].scale);
    store_half(page + layout.zeros(tile, g) + 2 * lane, affine[g].zero);
  }
  for (int c = 0; c < params.channels(); ++c) {
    uint8_t* field = page + layout.codes(c / params.head_dim, tile, c % params.head_dim);
    put_code(field, lane, side.bits, affine_code(x[c], affine[groups[c]], side));
  }
}

}  // namespace

void encode_token(const LayerParams& params, const SideParams& side, const SideLayout& layout, const uint16_t* groups,
                  const float* x, uint8_t* page, int token) {
  if (side.format == Format::kAffine) {
    encode_affine(params, side, layout, groups, x, page, token);
    return;
  }
  for (int c = 0; c < params.channels(); ++c) {
    uint8_t* field = page + layout.codes(c / params.head_dim, token / kTileTokens, c % params.head_dim);
    uint8_t* element = field + token % kTileTokens * (side.bits / 8);
    if (side.format == Format::kFloat16) {
      store_half(element, x[c]);
    } else {
      std::memcpy(element, x + c, sizeof(float));
    }
  }
}

void decode_token(const LayerParams& params, const SideParams& side, const SideLayout& layout, const uint16_t* groups,
                  const uint8_t* page, int token, float* x) {
  const int tile = token / kTileTokens, lane = token % kTileTokens;
  for (int c = 0; c < params.channels(); ++c) {
    const uint8_t* field = page + layout.codes(c / params.head_dim, tile, c % params.head_dim);
    if (side.format == Format::kAffine) {
      const float scale = load_half(page + layout.scales(tile, groups[c]) + 2 * lane);
      const float zero = load_half(page + layout.zeros(tile, groups[c]) + 2 * lane);
      x[c] = (static_cast<float>(get_code(field, lane, side.bits)) - zero) * scale;
    } else if (side.format == Format::kFloat16) {
      x[c] = load_half(field + 2 * lane);
    } else {
      std::memcpy(x + c, field + 4 * lane, sizeof(float));
    }
  }
}

}  // namespace kvquant
