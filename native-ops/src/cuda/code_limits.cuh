/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Borders between codes that have a scale and a whole zero, and between those of values with a norm.
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

/// Codes of values x of a norm: 0 up to low, else 1 up to zero, else 2 up to high, else 3; what dividing by the norm
/// and comparing with the middles between levels (-middle, 0, middle) gives.
struct Limits {
  float low, zero, high;
};

__device__ __forceinline__ Limits find_limits(float rms, float middle) {
  if (!(rms > 0.0f)) return {NAN, NAN, NAN};                     // 1
  if (!(rms < INFINITY)) return {INFINITY, INFINITY, INFINITY};  // 0
  int at = __float_as_int(middle * rms) - 4;
  while (__fdiv_rn(__int_as_float(at), rms) < middle) ++at;
  const float low = -__int_as_float(at);
  while (__fdiv_rn(__int_as_float(at), rms) <= middle) ++at;
  return {low, 0.0f, __int_as_float(at - 1)};
}

}  // namespace kvquant::cuda
