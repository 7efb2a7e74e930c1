/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The quantizer of core/codec.h for a vector of groups or of elements, to the bit.
#pragma once
#include "../core/codec.h"
#include "simd.h"

namespace kvquant {
namespace KVQUANT_ISA {

/// kvquant::affine_group, lane by lane.
inline void affine_groups(Vec low, Vec high, const SideParams& side, Vec* scale, Vec* zero_point) {
  const Vec smallest = broadcast(kSmallestHalf), largest = broadcast(kLargestHalf), one = broadcast(1.0f);
  const Vec most = broadcast(kMaxZero), levels = broadcast(static_cast<float>((1 << side.bits) - 1));
  Vec constant_scale = min(largest, max(smallest, round_to_half(absolute(low))));
  constant_scale = where_equal(low, zero(), one, constant_scale);
  const Vec constant_zero = where_less(low, zero(), one, zero());

  const Vec l = mul(low, broadcast(side.clip)), h = mul(high, broadcast(side.clip)), far = absolute(l);
  Vec s = min(largest, max(smallest, round_to_half(div(sub(h, l), levels))));
  const Vec larger = min(largest, round_to_half(mul(div(far, most), broadcast(1.001f))));
  s = where_less(mul(most, s), far, larger, s);
  Vec z = div(negative(l), s);
  z = side.float_zero != 0 ? round_to_half(z) : round_even(z);
  z = add(min(most, max(negative(most), z)), zero());
  *scale = where_equal(low, high, constant_scale, s);
  *zero_point = where_equal(low, high, constant_zero, z);
}

/// kvquant::affine_code, lane by lane, as floats.
class Quantizer {
 public:
  explicit Quantizer(const SideParams& side)
      : levels_(broadcast(static_cast<float>((1 << side.bits) - 1))), float_zero_(side.float_zero != 0) {}

  Vec operator()(Vec x, Vec scale, Vec zero_point) const {
    const Vec steps = div(x, scale);
    const Vec code = float_zero_ ? round_even(add(steps, zero_point)) : add(round_even(steps), zero_point);
    return min(levels_, max(code, zero()));
  }

 private:
  Vec levels_;
  bool float_zero_;
};

/// Codes as integers, one byte each; in the first kLanes bytes.
inline __m128i code_bytes(Vec codes) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(codes));
#else
  const __m256i words = _mm256_cvtps_epi32(codes);
  const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  return _mm_packus_epi16(halves, halves);
#endif
}

/// Stores the codes of kLanes tokens side by side, bits wide each: kLanes * bits / 8 bytes.
template <int bits>
inline void store_codes(uint8_t* p, Vec codes) {
  __m128i fields = code_bytes(codes);
  if constexpr (bits == 1) {
    // A code is the lowest bit of its byte; the mask takes the highest.
    const int mask = _mm_movemask_epi8(_mm_slli_epi16(fields, 7));
    std::memcpy(p, &mask, kLanes / 8);
    return;
  }
  // Neighbours join by multiplication: two, four, eight codes in a field that is wide enough.
  if constexpr (bits < 8) fields = _mm_maddubs_epi16(fields, _mm_set1_epi16(1 | 1 << (bits + 8)));
  if constexpr (bits < 4) fields = _mm_madd_epi16(fields, _mm_set1_epi32(1 | 1 << (2 * bits + 16)));
  if constexpr (bits == 2) fields = _mm_packus_epi32(fields, fields);
  if constexpr (bits == 2 || bits == 4) fields = _mm_packus_epi16(fields, fields);
  if constexpr (bits == 3) {
    const uint64_t low = static_cast<uint64_t>(_mm_cvtsi128_si64(fields));
    const uint64_t high = static_cast<uint64_t>(_mm_extract_epi64(fields, 1));
    const uint64_t codes_of_16 = ((low | low >> 20) & 0xffffff) | (high | high >> 20) << 24;
    std::memcpy(p, &codes_of_16, kLanes * bits / 8);
  } else {
    std::memcpy(p, &fields, kLanes * bits / 8);
  }
}

}  // namespace KVQUANT_ISA
}  // namespace kvquant
