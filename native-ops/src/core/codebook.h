/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// One token in codes of a codebook with its outliers kept apart (Format::kCodebook; KVQuant's dense and sparse parts).
#pragma once
#include <cstdint>
#include <vector>

#include "layout.h"

namespace kvquant {

/// How far an element lies beyond a range, given how many steps it lies from the start: what a code would be wrong by.
inline float distance_beyond(float steps, float step) { return (steps - 1.0f) * step; }

/// What a token's codes stand for: start + step * level.
struct TokenRange {
  float start, step;
};

/// The range of a token whose elements, apart from outliers, are between low and high.
TokenRange token_range(float low, float high);

/// An element of a token that is kept as it is.
struct Outlier {
  float distance;  ///< beyond its channel's range (keys)
  float value;
  int channel;
};

/// Keeps the farthest outliers, one for each slot, and sorts them: farthest first, then by channel.
void keep_farthest(std::vector<Outlier>& outliers, int slots);

/// Fills the slots of a token of a page.
void store_outliers(const SideLayout& layout, const std::vector<Outlier>& outliers, uint8_t* page, int token);

/// Stores tokens of one side in pages; holds the scratch that this takes.
class CodebookEncoder {
 public:
  CodebookEncoder(const LayerParams& params, const SideParams& side, const SideLayout& layout);

  /// Stores x, [channels], as a token of a page.
  void operator()(const float* x, uint8_t* page, int token);

 private:
  /// Ranges of channels: outliers are what lies beyond them, the farthest, then the lowest channels.
  void encode_by_channel(const float* x, uint8_t* page, int token);
  /// A range of the token: outliers are its smallest and largest elements, equally many, the range is that of the rest.
  void encode_by_token(const float* x, uint8_t* page, int token);
  void put_level(uint8_t* page, int channel, int token, float x) const;
  void choose_extremes(const float* x);
  /// The channel of the smallest (sign 1) or largest (sign -1) element that is not chosen, the lowest channel of
  /// several; -1: none.
  int extreme(const float* x, float sign) const;
  void choose(const float* x, float sign);
  /// How much narrower the range of what is not chosen gets without its extreme.
  float narrowing(const float* x, float sign);
  TokenRange range_of_rest(const float* x) const;

  const LayerParams& params_;
  const SideParams& side_;
  const SideLayout& layout_;
  std::vector<Outlier> outliers_;
  std::vector<uint8_t> chosen_;
};

/// Reads a token of a page into x, [channels].
void decode_codebook(const LayerParams& params, const SideParams& side, const SideLayout& layout, const uint8_t* page,
                     int token, float* x);

}  // namespace kvquant
