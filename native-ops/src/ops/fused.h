/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// What a layer computes between its matrix products: operators of their own where those are libtorch's.
#pragma once
#include "torch_shim.h"

namespace kvquant {

/// Defines these operators, and those that only the CUDA library has, and registers kernels for the CPU; 0: done.
AOTITorchError define_fused(TorchLibraryHandle definitions, TorchLibraryHandle kernels);

}  // namespace kvquant
