/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Copies of packed layer parameters in device memory.
#pragma once
#include <cuda_runtime.h>

#include "core/layout.h"

namespace kvquant::cuda {

/// The packed parameters on the current device. The first call with parameters of some content copies them, which waits
/// for the device and can not happen while a graph is being captured; later ones find the copy by its content. Copies
/// stay for the life of the process: a graph may hold their address.
const uint8_t* device_params(const char* op, const LayerParams& params);

}  // namespace kvquant::cuda
