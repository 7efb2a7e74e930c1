/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "codebook.h"

#include "codec.h"

namespace kvquant {
namespace {

float limited(float x) { return std::clamp(x, -kLargestHalf, kLargestHalf); }

}  // namespace

TokenRange token_range(float low, float high) {
  return {round_to_half(0.5f * (limited(high) + limited(low))), round_to_half(0.5f * (limited(high) - limited(low)))};
}

void keep_farthest(std::vector<Outlier>& outliers, int slots) {
  std::sort(outliers.begin(), outliers.end(), [](const Outlier& a, const Outlier& b) {
    return a.distance != b.distance ? a.distance > b.distance : a.channel < b.channel;
  });
  if (static_cast<int>(outliers.size()) > slots) outliers.resize(slots);
}

void store_outliers(const SideLayout& layout, const std::vector<Outlier>& outliers, uint8_t* page, int token) {
  const int tile = token / kTileTokens, lane = token % kTileTokens;
  for (int slot = 0; slot < layout.outliers(); ++slot) {
    const bool used = slot < static_cast<int>(outliers.size());
    const uint16_t channel = used ? static_cast<uint16_t>(outliers[slot].channel) : kNoChannel;
    store_half(page + layout.outlier_values(tile, slot) + 2 * lane, used ? limited(outliers[slot].value) : 0.0f);
    std::memcpy(page + layout.outlier_channels(tile, slot) + 2 * lane, &channel, sizeof(channel));
  }
}

CodebookEncoder::CodebookEncoder(const LayerParams& params, const SideParams& side, const SideLayout& layout)
    : params_(params), side_(side), layout_(layout) {}

void CodebookEncoder::operator()(const float* x, uint8_t* page, int token) {
  outliers_.clear();
  if (side_.steps_offset != 0) {
    encode_by_channel(x, page, token);
  } else {
    encode_by_token(x, page, token);
  }
  store_outliers(layout_, outliers_, page, token);
}

void CodebookEncoder::encode_by_channel(const float* x, uint8_t* page, int token) {
  const float* steps = packed_array<float>(params_, side_.steps_offset);
  for (int c = 0; c < params_.channels(); ++c, steps += 2) {
    const float relative = (x[c] - steps[0]) / steps[1];
    put_level(page, c, token, relative);
    const float distance = std::fabs(relative);
    if (distance > 1.0f) outliers_.push_back({distance_beyond(distance, steps[1]), x[c], c});
  }
  keep_farthest(outliers_, layout_.outliers());
}

void CodebookEncoder::encode_by_token(const float* x, uint8_t* page, int token) {
  choose_extremes(x);
  const TokenRange range = range_of_rest(x);
  const int tile = token / kTileTokens, lane = token % kTileTokens;
  store_half(page + layout_.scales(tile, 0) + 2 * lane, range.step);
  store_half(page + layout_.zeros(tile, 0) + 2 * lane, range.start);
  for (int c = 0; c < params_.channels(); ++c) put_level(page, c, token, (x[c] - range.start) / range.step);
}

void CodebookEncoder::put_level(uint8_t* page, int channel, int token, float x) const {
  const float* levels = packed_array<float>(params_, side_.levels_offset);
  uint8_t* field = page + layout_.codes(channel / params_.head_dim, token / kTileTokens, channel % params_.head_dim);
  put_code(field, token % kTileTokens, side_.bits, nearest_level(x, levels, 1 << side_.bits));
}

void CodebookEncoder::choose_extremes(const float* x) {
  chosen_.assign(params_.channels(), 0);
  for (int i = 0; i < layout_.outliers() / 2; ++i) choose(x, 1.0f);
  for (int i = 0; i < layout_.outliers() / 2; ++i) choose(x, -1.0f);
  if (layout_.outliers() % 2 != 0) choose(x, narrowing(x, -1.0f) > narrowing(x, 1.0f) ? -1.0f : 1.0f);
}

int CodebookEncoder::extreme(const float* x, float sign) const {
  int best = -1;
  for (int c = 0; c < params_.channels(); ++c) {
    if (chosen_[c] == 0 && !std::isnan(x[c]) && (best < 0 || sign * x[c] < sign * x[best])) best = c;
  }
  return best;
}

void CodebookEncoder::choose(const float* x, float sign) {
  const int channel = extreme(x, sign);
  if (channel < 0) return;
  chosen_[channel] = 1;
  outliers_.push_back({0.0f, x[channel], channel});
}

float CodebookEncoder::narrowing(const float* x, float sign) {
  const int first = extreme(x, sign);
  if (first < 0) return 0;
  chosen_[first] = 1;
  const int next = extreme(x, sign);
  chosen_[first] = 0;
  return next < 0 ? 0.0f : sign * (x[next] - x[first]);
}

TokenRange CodebookEncoder::range_of_rest(const float* x) const {
  const int low = extreme(x, 1.0f), high = extreme(x, -1.0f);
  if (low < 0) return {0.0f, 0.0f};
  return token_range(x[low], x[high]);
}

void decode_codebook(const LayerParams& params, const SideParams& side, const SideLayout& layout, const uint8_t* page,
                     int token, float* x) {
  const float* levels = packed_array<float>(params, side.levels_offset) + (1 << side.bits);
  const float* steps = side.steps_offset == 0 ? nullptr : packed_array<float>(params, side.steps_offset);
  const int tile = token / kTileTokens, lane = token % kTileTokens;
  TokenRange range{};
  if (steps == nullptr) {
    range = {load_half(page + layout.zeros(tile, 0) + 2 * lane), load_half(page + layout.scales(tile, 0) + 2 * lane)};
  }
  for (int c = 0; c < params.channels(); ++c) {
    if (steps != nullptr) range = {steps[2 * c], steps[2 * c + 1]};
    const int code = get_code(page + layout.codes(c / params.head_dim, tile, c % params.head_dim), lane, side.bits);
    x[c] = range.start + range.step * levels[code];
  }
  for (int slot = 0; slot < layout.outliers(); ++slot) {
    uint16_t channel;
    std::memcpy(&channel, page + layout.outlier_channels(tile, slot) + 2 * lane, sizeof(channel));
    if (channel < params.channels()) x[channel] = load_half(page + layout.outlier_values(tile, slot) + 2 * lane);
  }
}

}  // namespace kvquant
