/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Codes that have a scale and a whole zero without a division for each: of 2 bits by comparisons with borders between
// them; of 3 and 4 bits of a product with the reciprocal of the scale, rounded as it is added to a large number. What
// is left of the element then, which is exact, tells whether that was right.
#pragma once
#include "codes.cuh"

namespace kvquant::cuda {

/// The largest x whose code is below the given one: for which rint(x / scale) < code - zero. A scale is a half and a
/// zero small, so that the border is a number, and x / scale is rounded to where x lies beside it; a tie goes to the
/// even one.
__device__ __forceinline__ float code_limit(float2 range, int code) {
  const float above = static_cast<float>(code) - range.y;
  const float border = __fmul_rn(above - 0.5f, range.x);  // exact: 13 bits times 11
  if ((static_cast<int>(above) & 1) != 0) return border;
  return __int_as_float(__float_as_int(border) + (border > 0.0f ? -1 : 1));
}

/// How elements become codes of 3 or 4 bits: sums end in them.
template <int bits>
struct alignas(16) RoundedCode {
  static constexpr uint32_t kBits = 0x4b400000u;  // of 1.5 2^23: its sum with a small number ends in that, rounded
  static constexpr float kRound = 12582912.0f, kLevels = static_cast<float>((1 << bits) - 1);

  float scale, inverse, zero, half;  // half the scale; kRound and the zero

  /// Elements are size times, a power of two, as large.
  __device__ __forceinline__ RoundedCode(float2 range, float size)
      : scale(range.x * size), inverse(1.0f / scale), zero(kRound + range.y), half(0.5f * scale) {}

  __device__ __forceinline__ float sum(float x) const { return fmaf(x, inverse, zero); }
  /// Below half where the sum is right.
  __device__ __forceinline__ float left(float x, float sum) const { return fabsf(fmaf(zero - sum, scale, x)); }

  /// The right sum: of the two next to each other that it can be, or of two that are as near the even code before zero.
  __device__ __forceinline__ float right_sum(float x) const {
    const float near = rintf(x * inverse), rest = fmaf(-near, scale, x), away = fabsf(rest);
    const bool odd = (static_cast<int>(near) & 1) != 0;
    return zero + (away > half || (away == half && odd) ? near + copysignf(1.0f, rest) : near);
  }

  /// The code, limited, and kBits.
  static __device__ __forceinline__ uint32_t code(float sum) {
    return __float_as_uint(fminf(fmaxf(sum, kRound), kRound + kLevels));
  }
};

}  // namespace kvquant::cuda
