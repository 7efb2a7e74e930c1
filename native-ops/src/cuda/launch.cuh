/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Launches a kernel and turns CUDA's errors into exceptions.
#pragma once
#include <cuda_runtime.h>

#include <string>

#include "ops/tensor.h"

namespace kvquant::cuda {

struct LaunchShape {
  dim3 blocks;
  unsigned threads;
  size_t shared_bytes;
  cudaStream_t stream;
  bool early = false;  ///< may start before the kernel ahead of it has ended: it calls wait_for_previous_kernel
};

inline void check_cuda(const char* op, cudaError_t error) {
  if (error != cudaSuccess) fail(op, std::string("CUDA: ") + cudaGetErrorString(error));
}

/// Whether the GPU can start a kernel before the one ahead of it has ended.
inline bool can_start_early(const char* op) {
  int device = 0, major = 0;
  check_cuda(op, cudaGetDevice(&device));
  check_cuda(op, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major >= 9;
}

/// Blocks get more shared memory than this only on request.
constexpr size_t kFreeSharedBytes = 48 << 10;

template <class... Parameters, class... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), const LaunchShape& shape, const Arguments&... arguments) {
  if (shape.shared_bytes > kFreeSharedBytes) {
    check_cuda(op,
               cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shape.shared_bytes)));
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.blocks;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = shape.stream;
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early;
  config.numAttrs = shape.early ? 1 : 0;
  check_cuda(op, cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

}  // namespace kvquant::cuda
