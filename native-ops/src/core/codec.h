/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// One token of one side, written and read: the definition of every stored format.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "basis.h"
#include "codebook.h"
#include "half.h"
#include "layout.h"

namespace kvquant {

/// Largest |zero| that is stored, in code units: integers up to here are exact in fp16.
constexpr float kMaxZero = 2048.0f;
constexpr float kSmallestHalf = 0x1p-24f;
constexpr float kLargestHalf = 65504.0f;

struct AffineGroup {
  float scale, zero;
};

/// Scale and zero of a group (RotateKV section 3.4, with 2^bits - 1 levels): both bounds are clipped, the scale is
/// rounded to fp16 before it is used; a constant group is stored exactly up to that rounding.
inline AffineGroup affine_group(float low, float high, const SideParams& side) {
  const float levels = static_cast<float>((1 << side.bits) - 1);
  if (low == high) {
    if (low == 0) return {1.0f, 0.0f};
    const float scale = std::clamp(round_to_half(std::fabs(low)), kSmallestHalf, kLargestHalf);
    return {scale, low > 0 ? 0.0f : 1.0f};
  }
  low *= side.clip;
  high *= side.clip;
  float scale = std::clamp(round_to_half((high - low) / levels), kSmallestHalf, kLargestHalf);
  // A group far from zero: a larger step keeps the zero exact in fp16.
  if (std::fabs(low) > kMaxZero * scale)
    scale = std::min(round_to_half(std::fabs(low) / kMaxZero * 1.001f), kLargestHalf);
  const float exact = -low / scale;
  const float zero = side.float_zero != 0 ? round_to_half(exact) : std::nearbyint(exact);
  // -0 becomes 0: in which order the minimum of zeros of both signs was found must not show.
  return {scale, std::clamp(zero, -kMaxZero, kMaxZero) + 0.0f};
}

/// round(x / scale) + zero, limited to the codes (NaN: 0); with a float zero the sum is rounded.
inline int affine_code(float x, const AffineGroup& group, const SideParams& side) {
  const float levels = static_cast<float>((1 << side.bits) - 1);
  const float code = side.float_zero != 0 ? std::nearbyint(x / group.scale + group.zero)
                                          : std::nearbyint(x / group.scale) + group.zero;
  return static_cast<int>(std::min(std::max(0.0f, code), levels));
}

/// round((x - start) / step), limited to the codes of a width (NaN: 0).
inline int static_code(float x, float start, float step, int width) {
  const float code = std::nearbyint((x - start) / step);
  return static_cast<int>(std::min(std::max(0.0f, code), static_cast<float>((1 << width) - 1)));
}

/// The code whose level is nearest, the lower of two (NaN: 0); levels ascend.
inline int nearest_level(float x, const float* levels, int count) {
  int code = 0;
  while (code + 1 < count && x > 0.5f * (levels[code] + levels[code + 1])) ++code;
  return code;
}

/// The norm for which a vector and its rebuilt one have the vector's length in common, <x, x> = <x, norm level>: errors
/// that are averaged over many tokens then vanish. Limited to fp16 (NaN: the largest).
inline float unbiased_norm(float square, float product) {
  return product > 0 ? std::min(kLargestHalf, square / product) : 0.0f;
}

/// Writes the code of a token into its channel's field; touches no other token's bytes but the shared ones.
inline void put_code(uint8_t* field, int token, int bits, int code) {
  const int bit = token * bits, shift = bit % 8;
  uint8_t* p = field + bit / 8;
  const unsigned mask = ((1u << bits) - 1u) << shift, value = static_cast<unsigned>(code) << shift;
  p[0] = static_cast<uint8_t>((p[0] & ~mask) | value);
  if (shift + bits > 8) p[1] = static_cast<uint8_t>((p[1] & ~(mask >> 8)) | (value >> 8));
}

inline int get_code(const uint8_t* field, int token, int bits) {
  const int bit = token * bits, shift = bit % 8;
  const uint8_t* p = field + bit / 8;
  unsigned value = p[0] >> shift;
  if (shift + bits > 8) value |= static_cast<unsigned>(p[1]) << (8 - shift);
  return static_cast<int>(value & ((1u << bits) - 1u));
}

/// The channel at each place of a side's order, INT16 [channels]; nullptr: natural order.
inline const int16_t* channel_order(const LayerParams& params, const SideParams& side) {
  return side.order_offset == 0 ? nullptr : packed_array<int16_t>(params, side.order_offset);
}

/// The group of each channel, UINT16 [channels].
inline void channel_groups(const LayerParams& params, const SideParams& side, uint16_t* groups) {
  const int16_t* order = channel_order(params, side);
  const int count = params.channels() / side.group_size;
  for (int group = 0, place = 0; group < count; ++group) {
    for (const int end = place + side.group_size; place < end; ++place) {
      groups[order != nullptr ? order[place] : place] = static_cast<uint16_t>(group);
    }
  }
}

/// Stores tokens of one side in pages; holds the scratch that this takes.
class SideEncoder {
 public:
  SideEncoder(const LayerParams& params, const SideParams& side, const SideLayout& layout, const uint16_t* groups);

  /// Stores x, [channels] in the stored basis, as a token of a page.
  void operator()(const float* x, uint8_t* page, int token);

 private:
  void choose_scales(const float* x, uint8_t* page, int token);
  void encode_affine(const float* x, uint8_t* page, int token) const;
  void encode_static(const float* x, uint8_t* page, int token) const;
  void encode_norm(const float* x, uint8_t* page, int token) const;
  void store_plain(const float* x, uint8_t* page, int token) const;

  const LayerParams& params_;
  const SideParams& side_;
  const SideLayout& layout_;
  const uint16_t* groups_;
  std::vector<float> low_, high_;
  std::vector<AffineGroup> affine_;
  CodebookEncoder codebook_;
};

/// Reads a token of a page into x, [channels] in the stored basis.
void decode_token(const LayerParams& params, const SideParams& side, const SideLayout& layout, const uint16_t* groups,
                  const uint8_t* page, int token, float* x);

}  // namespace kvquant
