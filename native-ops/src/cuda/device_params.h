/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Copies of packed layer parameters in device memory.
#pragma once
#include <cuda_runtime.h>

#include "core/layout.h"

namespace kvquant::cuda {

/// The packed parameters on the current device. The first call with parameters of some content copies them, which waits
/// for the device and can not happen while a graph is being captured; later ones find the copy by its content. Copies
/// stay for the life of the process: a graph may hold their address.
/// Behind the parameters lies the group of each channel of keys, if they have an order (kAffine).
const uint8_t* device_params(const char* op, const LayerParams& params);

/// UINT16 [channels] at group_table_offset.
inline bool has_group_table(const LayerParams& params) {
  return params.keys.format == Format::kAffine && params.keys.order_offset != 0;
}
inline size_t group_table_offset(const LayerParams& params) {
  return (static_cast<size_t>(params.bytes) + 15) / 16 * 16;
}

}  // namespace kvquant::cuda
