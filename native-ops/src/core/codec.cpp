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
      affine_(layout.groups()),
      codebook_(params, side, layout) {}

void SideEncoder::operator()(const float* x, uint8_t* page, int token) {
  if (side_.format == Format::kAffine) {
    choose_scales(x, page, token);
    encode_affine(x, page, token);
  } else if (side_.format == Format::kStatic) {
    encode_static(x, page, token);
  } else if (side_.format == Format::kNorm) {
    encode_norm(x, page, token);
  } else if (side_.format == Format::kCodebook) {
    codebook_(x, page, token);
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

void SideEncoder::encode_static(const float* x, uint8_t* page, int token) const {
  const float* steps = packed_array<float>(params_, side_.steps_offset);
  for (int h = 0; h < params_.num_kv_heads; ++h) {
    for (int p = 0; p < params_.head_dim; ++p, ++x, steps += 2) {
      const int width = layout_.width(p);
      if (width == 0) continue;
      put_code(page + layout_.place(h, token / kTileTokens, p), token % kTileTokens, width,
               static_code(*x, steps[0], steps[1], width));
    }
  }
}

void SideEncoder::encode_norm(const float* x, uint8_t* page, int token) const {
  const float* levels = packed_array<float>(params_, side_.levels_offset);
  const int tile = token / kTileTokens, lane = token % kTileTokens, n = params_.head_dim;
  for (int h = 0; h < params_.num_kv_heads; ++h, x += n) {
    float square = 0, product = 0;
    for (int c = 0; c < n; ++c) square += x[c] * x[c];
    const float rms = std::sqrt(square / static_cast<float>(n));
    uint8_t* field = page + layout_.codes(h, tile, 0);
    for (int c = 0; c < n; ++c, field += layout_.code_bytes()) {
      const int code = nearest_level(rms > 0 ? x[c] / rms : 0.0f, levels, 1 << side_.bits);
      put_code(field, lane, side_.bits, code);
      product += x[c] * levels[code];
    }
    store_half(page + layout_.norms(tile, h) + 2 * lane, unbiased_norm(square, product));
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

namespace {

void decode_static(const LayerParams& params, const SideParams& side, const SideLayout& layout, const uint8_t* page,
                   int token, float* x) {
  const float* steps = packed_array<float>(params, side.steps_offset);
  for (int h = 0; h < params.num_kv_heads; ++h) {
    for (int p = 0; p < params.head_dim; ++p, ++x, steps += 2) {
      const int width = layout.width(p);
      const uint8_t* field = page + layout.place(h, token / kTileTokens, p);
      *x = width == 0 ? 0.0f : steps[0] + steps[1] * static_cast<float>(get_code(field, token % kTileTokens, width));
    }
  }
}

void decode_norm(const LayerParams& params, const SideParams& side, const SideLayout& layout, const uint8_t* page,
                 int token, float* x) {
  const float* levels = packed_array<float>(params, side.levels_offset);
  const int tile = token / kTileTokens, lane = token % kTileTokens;
  for (int h = 0; h < params.num_kv_heads; ++h) {
    const uint8_t* field = page + layout.codes(h, tile, 0);
    const float norm = load_half(page + layout.norms(tile, h) + 2 * lane);
    for (int c = 0; c < params.head_dim; ++c, ++x, field += layout.code_bytes()) {
      *x = norm * levels[get_code(field, lane, side.bits)];
    }
  }
}

}  // namespace

void decode_token(const LayerParams& params, const SideParams& side, const SideLayout& layout, const uint16_t* groups,
                  const uint8_t* page, int token, float* x) {
  if (side.format == Format::kStatic) return decode_static(params, side, layout, page, token, x);
  if (side.format == Format::kNorm) return decode_norm(params, side, layout, page, token, x);
  if (side.format == Format::kCodebook) return decode_codebook(params, side, layout, page, token, x);
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
