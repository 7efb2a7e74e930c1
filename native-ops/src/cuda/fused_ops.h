/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Operators that do not work on a cache: a layer's norms and gates, copies of parameters, and what a device is.
#pragma once
#include "ops/torch_shim.h"

namespace kvquant::cuda {

/// Registers their kernels; 0: done.
AOTITorchError register_fused(TorchLibraryHandle cuda_kernels);

}  // namespace kvquant::cuda
