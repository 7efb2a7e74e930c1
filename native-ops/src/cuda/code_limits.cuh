/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Borders between codes that have a scale and a whole zero.
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

}  // namespace kvquant::cuda
