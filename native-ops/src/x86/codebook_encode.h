/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Codes of a codebook (Format::kCodebook) for runs of kLanes tokens, tokens in vector lanes, to the bit as
// kvquant::CodebookEncoder makes them.
#pragma once
#include <array>
#include <limits>

#include "../core/aligned.h"
#include "../core/codec.h"
#include "encode.h"

namespace kvquant {
namespace KVQUANT_ISA {

/// A bit per lane: a < b.
inline uint32_t bits_less(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
#else
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)));
#endif
}

/// Stores runs of tokens of one side; holds the scratch that this takes.
class CodebookRunEncoder {
 public:
  CodebookRunEncoder(const LayerParams& params, const SideParams& side, const SideLayout& layout)
      : params_(params), side_(side), layout_(layout) {}

  /// Stores x, [channels, kLanes], as tokens slot to slot + kLanes - 1 of a page; false, and then nothing is stored, if
  /// elements beyond halves hide what the outliers are.
  bool operator()(const float* x, uint8_t* page, int slot) {
    for (std::vector<Outlier>& outliers : outliers_) outliers.clear();
    if (side_.steps_offset == 0 && !choose_extremes(x)) return false;
    if (side_.bits == 2) put_levels<2>(x, page, slot);
    if (side_.bits == 3) put_levels<3>(x, page, slot);
    if (side_.bits == 4) put_levels<4>(x, page, slot);
    if (layout_.outliers() == 0) return true;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (side_.steps_offset != 0) keep_farthest(outliers_[lane], layout_.outliers());
      store_outliers(layout_, outliers_[lane], page, slot + lane);
    }
    return true;
  }

 private:
  /// The smallest or largest elements of the tokens, and their channels.
  struct Extremes {
    alignas(64) float values[kLanes];
    alignas(64) float channels[kLanes];
  };

  template <int bits>
  void put_levels(const float* x, uint8_t* page, int slot) {
    const int tile = slot / kTileTokens, lane = slot % kTileTokens, head_dim = params_.head_dim;
    const float* levels = packed_array<float>(params_, side_.levels_offset);
    const float* steps = side_.steps_offset == 0 ? nullptr : packed_array<float>(params_, side_.steps_offset);
    Vec start = load(starts_), step = load(steps_);
    if (steps == nullptr) {
      store_halves(page + layout_.scales(tile, 0) + 2 * lane, step);
      store_halves(page + layout_.zeros(tile, 0) + 2 * lane, start);
    }
    for (int c = 0, h = 0; h < params_.num_kv_heads; ++h) {
      uint8_t* field = page + layout_.codes(h, tile, 0) + lane * bits / 8;
      for (const int end = c + head_dim; c < end; ++c, field += 2 * bits) {
        if (steps != nullptr) {
          start = broadcast(steps[2 * c]);
          step = broadcast(steps[2 * c + 1]);
        }
        const Vec relative = div(sub(load(x + c * kLanes), start), step);
        Vec code = zero();
        for (int i = 1; i < 1 << bits; ++i) {
          const Vec middle = broadcast(0.5f * (levels[i - 1] + levels[i]));
          code = where_less(middle, relative, broadcast(static_cast<float>(i)), code);
        }
        store_codes<bits>(field, code);
        if (steps != nullptr && layout_.outliers() > 0)
          collect(x + c * kLanes, c, absolute(relative), steps[2 * c + 1]);
      }
    }
  }

  /// Elements of a channel that lie outside of its range, so many steps from its start.
  void collect(const float* x, int channel, Vec from_start, float step) {
    uint32_t left = bits_less(broadcast(1.0f), from_start);
    if (left == 0) return;
    alignas(64) float steps[kLanes];
    store(steps, from_start);
    for (; left != 0; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      outliers_[lane].push_back({distance_beyond(steps[lane], step), x[lane], channel});
    }
  }

  /// Chooses the outliers of tokens with ranges of their own, and the ranges.
  bool choose_extremes(const float* x) {
    rest_.resize(static_cast<size_t>(params_.channels()) * kLanes);
    std::copy_n(x, rest_.size(), rest_.data());
    Extremes found, other;
    for (const bool largest : {false, true}) {
      for (int i = 0; i < layout_.outliers() / 2; ++i) {
        if (!find(largest, &found)) return false;
        for (int lane = 0; lane < kLanes; ++lane) take(found, lane);
      }
    }
    if (layout_.outliers() % 2 != 0) {
      alignas(64) float below[kLanes], above[kLanes];
      if (!find(false, &found) || !find(true, &other) || !find_narrowing(false, found, below) ||
          !find_narrowing(true, other, above)) {
        return false;
      }
      for (int lane = 0; lane < kLanes; ++lane) take(above[lane] > below[lane] ? other : found, lane);
    }
    if (!find(false, &found) || !find(true, &other)) return false;
    for (int lane = 0; lane < kLanes; ++lane) {
      const TokenRange range = token_range(found.values[lane], other.values[lane]);
      starts_[lane] = range.start;
      steps_[lane] = range.step;
    }
    return true;
  }

  /// The extremes of what is not taken (NaN), the lowest channels of several; false if there is none.
  bool find(bool largest, Extremes* extremes) const {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    Vec best = broadcast(largest ? -infinity : infinity), channel = broadcast(-1.0f);
    for (int c = 0; c < params_.channels(); ++c) {
      const Vec x = load(rest_.data() + c * kLanes), index = broadcast(static_cast<float>(c));
      const Vec smaller = largest ? best : x, larger = largest ? x : best;
      channel = where_less(smaller, larger, index, channel);
      best = where_less(smaller, larger, x, best);
    }
    store(extremes->values, best);
    store(extremes->channels, channel);
    return bits_less(channel, zero()) == 0;
  }

  float& at(const Extremes& extremes, int lane) {
    return rest_[static_cast<size_t>(extremes.channels[lane]) * kLanes + lane];
  }

  void take(const Extremes& extremes, int lane) {
    at(extremes, lane) = std::numeric_limits<float>::quiet_NaN();
    outliers_[lane].push_back({0.0f, extremes.values[lane], static_cast<int>(extremes.channels[lane])});
  }

  /// How much narrower ranges get without these extremes.
  bool find_narrowing(bool largest, const Extremes& extremes, float* narrowing) {
    Extremes next;
    for (int lane = 0; lane < kLanes; ++lane) at(extremes, lane) = std::numeric_limits<float>::quiet_NaN();
    const bool found = find(largest, &next);
    for (int lane = 0; lane < kLanes; ++lane) {
      at(extremes, lane) = extremes.values[lane];
      const float difference = next.values[lane] - extremes.values[lane];
      narrowing[lane] = largest ? -difference : difference;
    }
    return found;
  }

  const LayerParams& params_;
  const SideParams& side_;
  const SideLayout& layout_;
  AlignedFloats rest_;
  std::array<std::vector<Outlier>, kLanes> outliers_;
  alignas(64) float starts_[kLanes] = {};
  alignas(64) float steps_[kLanes] = {};
};

}  // namespace KVQUANT_ISA
}  // namespace kvquant
