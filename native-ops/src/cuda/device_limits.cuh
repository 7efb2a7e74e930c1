/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// What the GPU has, for hosts.
#pragma once
#include "launch.cuh"

namespace kvquant::cuda {

inline int device_limit(const char* op, cudaDeviceAttr name) {
  int device = 0, value = 0;
  check_cuda(op, cudaGetDevice(&device));
  check_cuda(op, cudaDeviceGetAttribute(&value, name, device));
  return value;
}

/// Of a block at most.
inline int most_shared_bytes(const char* op) { return device_limit(op, cudaDevAttrMaxSharedMemoryPerBlockOptin); }

}  // namespace kvquant::cuda
