/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Codes of numbers, to the bit of core/codec.h, without its divisions where they cannot matter.
#pragma once
#include "cache_view.cuh"

namespace kvquant::cuda {

constexpr float kLargestHalf = 65504.0f, kSmallestHalf = 0x1p-24f, kMaxZero = 2048.0f;

template <int count>
__device__ __forceinline__ int nearest_level_of(float x, const float (&middles)[count]) {
  int code = 0;  // middles ascend
#pragma unroll
  for (int i = 0; i < count; ++i) code += x > middles[i] ? 1 : 0;
  return code;
}

/// How near to a decision a quotient that is a product with a reciprocal, off by 2^-22 of its size, leaves it open.
constexpr float kDoubt = 1e-6f;

/// Correctly rounded; a function of its own, since it is long and rarely called.
static __device__ __noinline__ float divide(float x, float y) { return __fdiv_rn(x, y); }

/// kvquant::static_code; inverse is about 1 / step. Divides only where the product may round to another integer.
__device__ __forceinline__ int static_code(float x, float start, float step, float inverse, int bits) {
  const float centred = __fsub_rn(x, start), quotient = centred * inverse;
  float code = rintf(quotient);
  const float margin = 0.5f - fabsf(quotient - code);
  if (!(margin > kDoubt * (1.0f + fabsf(quotient)))) code = rintf(divide(centred, step));
  return static_cast<int>(fminf(fmaxf(0.0f, code), static_cast<float>((1 << bits) - 1)));
}

/// kvquant::nearest_level of x / rms; inverse is about 1 / rms. middles: between neighbouring levels.
template <int count>
__device__ __forceinline__ int nearest_level(float x, float rms, float inverse, const float (&middles)[count]) {
  if (!(rms > 0.0f)) return nearest_level_of(0.0f, middles);
  float quotient = x * inverse;
  bool doubt = !(fabsf(quotient) < 1e30f);
#pragma unroll
  for (int i = 0; i < count; ++i) doubt |= fabsf(quotient - middles[i]) <= kDoubt * (1.0f + fabsf(quotient));
  if (doubt) quotient = divide(x, rms);
  return nearest_level_of<count>(quotient, middles);
}

/// The norm of values in codes of their levels; square: the sum of their squares, product: of them times levels. A NaN
/// becomes the largest norm, as std::min has it there.
__device__ __forceinline__ float norm_of(float square, float product) {
  const float ratio = __fdiv_rn(square, product);
  return product > 0.0f ? (ratio < kLargestHalf ? ratio : kLargestHalf) : 0.0f;
}

/// std::clamp, also of NaN.
__device__ __forceinline__ float clamped(float x, float low, float high) { return x < low ? low : high < x ? high : x; }

/// kvquant::affine_group: scale and zero.
__device__ inline float2 affine_group(float low, float high, const SideView& side) {
  if (low == high) {
    if (low == 0.0f) return make_float2(1.0f, 0.0f);
    const float scale = clamped(round_to_half(fabsf(low)), kSmallestHalf, kLargestHalf);
    return make_float2(scale, low > 0.0f ? 0.0f : 1.0f);
  }
  low = __fmul_rn(low, side.clip);
  high = __fmul_rn(high, side.clip);
  const float levels = static_cast<float>((1 << side.bits) - 1);
  float scale = clamped(round_to_half(__fdiv_rn(__fsub_rn(high, low), levels)), kSmallestHalf, kLargestHalf);
  if (fabsf(low) > __fmul_rn(kMaxZero, scale)) {
    const float wide = round_to_half(__fmul_rn(__fdiv_rn(fabsf(low), kMaxZero), 1.001f));
    scale = kLargestHalf < wide ? kLargestHalf : wide;
  }
  const float exact = __fdiv_rn(-low, scale), zero = side.float_zero ? round_to_half(exact) : rintf(exact);
  return make_float2(scale, __fadd_rn(clamped(zero, -kMaxZero, kMaxZero), 0.0f));
}

__device__ __forceinline__ int affine_code(float x, float2 range, const SideView& side) {
  const float steps = __fdiv_rn(x, range.x);
  const float code = side.float_zero ? rintf(__fadd_rn(steps, range.y)) : __fadd_rn(rintf(steps), range.y);
  return static_cast<int>(fminf(fmaxf(0.0f, code), static_cast<float>((1 << side.bits) - 1)));
}

}  // namespace kvquant::cuda
