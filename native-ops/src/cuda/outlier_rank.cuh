/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// How kvquant orders the elements of a token that may become outliers, as numbers that compare faster than elements.
#pragma once
#include "codes.cuh"

namespace kvquant::cuda {

/// A half's place among all, from 1 on; 0: it is no number. Both zeros have the same.
__device__ __forceinline__ uint32_t rank_of(__half x) {
  const uint32_t bits = __half_as_ushort(__hadd(x, __ushort_as_half(0)));
  if ((bits & 0x7fffu) > 0x7c00u) return 0;
  return ((bits & 0x8000u) != 0 ? ~bits & 0xffffu : bits | 0x8000u) + 1;
}
/// The place from the other end.
__device__ __forceinline__ uint32_t reversed(uint32_t rank) { return rank > 0 ? 0x10000u - rank : 0; }

/// The half of a place.
__device__ __forceinline__ __half half_at(uint32_t rank) {
  const uint32_t bits = rank - 1;
  return __ushort_as_half(static_cast<uint16_t>((bits & 0x8000u) != 0 ? bits & 0x7fffu : ~bits));
}

/// A float's place.
__device__ __forceinline__ uint32_t rank_of(float x) {
  const uint32_t bits = __float_as_int(x + 0.0f);
  return isnan(x) ? 0 : (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

/// The place of how far an element of keys lies beyond its channel's range, given how many steps it lies from the
/// start; 0: it does not.
__device__ __forceinline__ uint32_t rank_beyond(float relative, float step) {
  const float distance = fabsf(relative);
  return distance > 1.0f ? rank_of(__fmul_rn(__fsub_rn(distance, 1.0f), step)) : 0;
}

__device__ __forceinline__ __half limited_half(__half x) {
  return __float2half_rn(clamped(__half2float(x), -kLargestHalf, kLargestHalf));
}

/// Step and start of a token of values whose other elements lie between two.
__device__ __forceinline__ float2 range_between(__half low, __half high) {
  const float a = __half2float(limited_half(low)), b = __half2float(limited_half(high));
  return make_float2(round_to_half(__fmul_rn(0.5f, __fsub_rn(b, a))), round_to_half(__fmul_rn(0.5f, __fadd_rn(b, a))));
}

}  // namespace kvquant::cuda
