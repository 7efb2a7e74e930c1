/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "codec.h"

#include <limits>

namespace kvquant {

SideEncoder::SideEncoder(const LayerParams& params, const SideParams& side, const SideLayout& layout,
                         const uint16_t* groups)
    : params_(params),
      side_(side),
      layout_(layout),
      groups_(groups),
      low_(layout.groups()),
      high_(layout.groups()),
      affine_(layout.groups()) {}

void SideEncoder::operator()(const float* x, uint8_t* page, int token) {
  if (side_.format == Format::kAffine) {
    choose_scales(x, page, token);
    encode_affine(x, page, token);
  } else {
    store_plain(x, page, token);
  }
}

void SideEncoder::choose_scales(const float* x, uint8_t* page, int token) {
  const int tile = token / kTileTokens, lane = token % kTileTokens;
  std::fill(low_.begin(), low_.end(), std::numeric_limits<float>::infinity());
  std::fill(high_.begin(), high_.end(), -std::numeric_limits<float>::infinity());
  for (int c = 0; c < params_.channels(); ++c) {
    low_[groups_[c]] = std::min(low_[groups_[c]], x[c]);
    high_[groups_[c]] = std::max(high_[groups_[c]], x[c]);
  }
  for (int g = 0; g < layout_.groups(); ++g) {
    affine_[g] = affine_group(low_[g], high_[g], side_);
    store_half(page + layout_.scales(tile, g) + 2 * lane, affine_[g].scale);
    store_half(page + layout_.zeros(tile, g) + 2 * lane, affine_[g].zero);
  }
}

void SideEncoder::encode_affine(const float* x, uint8_t* page, int token) const {
  const uint16_t* groups = groups_;
  for (int h = 0; h < params_.num_kv_heads; ++h) {
    uint8_t* field = page + layout_.codes(h, token / kTileTokens, 0);
    for (int c = 0; c < params_.head_dim; ++c, field += layout_.code_bytes()) {
      put_code(field, token % kTileTokens, side_.bits, affine_code(*x++, affine_[*groups++], side_));
    }
  }
}

void SideEncoder::store_plain(const float* x, uint8_t* page, int token) const {
  for (int h = 0; h < params_.num_kv_heads; ++h) {
    uint8_t* element = page + layout_.codes(h, token / kTileTokens, 0) + token % kTileTokens * (side_.bits / 8);
    for (int c = 0; c < params_.head_dim; ++c, ++x, element += layout_.code_bytes()) {
      if (side_.format == Format::kFloat16) {
        store_half(element, *x);
      } else {
        std::memcpy(element, x, sizeof(float));
      }
    }
  }
}

void decode_token(const LayerParams& params, const SideParams& side, const SideLayout& layout, const uint16_t* groups,
                  const uint8_t* page, int token, float* x) {
  const int tile = token / kTileTokens, lane = token % kTileTokens;
  for (int h = 0; h < params.num_kv_heads; ++h) {
    const uint8_t* field = page + layout.codes(h, tile, 0);
    for (int c = 0; c < params.head_dim; ++c, ++x, ++groups, field += layout.code_bytes()) {
      if (side.format == Format::kAffine) {
        const float scale = load_half(page + layout.scales(tile, *groups) + 2 * lane);
        const float zero = load_half(page + layout.zeros(tile, *groups) + 2 * lane);
        *x = (static_cast<float>(get_code(field, lane, side.bits)) - zero) * scale;
      } else if (side.format == Format::kFloat16) {
        *x = load_half(field + 2 * lane);
      } else {
        std::memcpy(x, field + 4 * lane, sizeof(float));
      }
    }
  }
}

}  // namespace kvquant
