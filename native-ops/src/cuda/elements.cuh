/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Conversions between float and the types that projections and outputs may have.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels.h"

namespace kvquant::cuda {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class Element>
__device__ __forceinline__ Element from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

/// An element of an array whose type is only known here: where there are few loads, and kernels of their own for each
/// type would be large.
__device__ __forceinline__ float load_element(ElementType type, const void* data, int64_t index) {
  if (type == ElementType::kFloat16) return to_float(static_cast<const __half*>(data)[index]);
  if (type == ElementType::kBFloat16) return to_float(static_cast<const __nv_bfloat16*>(data)[index]);
  return static_cast<const float*>(data)[index];
}

__device__ __forceinline__ void store_element(ElementType type, void* data, int64_t index, float x) {
  if (type == ElementType::kFloat16) {
    static_cast<__half*>(data)[index] = from_float<__half>(x);
  } else if (type == ElementType::kBFloat16) {
    static_cast<__nv_bfloat16*>(data)[index] = from_float<__nv_bfloat16>(x);
  } else {
    static_cast<float*>(data)[index] = x;
  }
}

}  // namespace kvquant::cuda
