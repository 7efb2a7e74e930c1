/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Copies of packed layer parameters in device memory.
#pragma once
#include <cuda_runtime.h>

#include "core/layout.h"
#include "ops/tensor.h"

namespace kvquant::cuda {

/// The packed parameters on the current device: the copy that hold_params made of those at this address. Parameters
/// that nobody holds are found by their content: the first call copies them, which waits for the device and can not
/// happen while a graph is being captured, and such copies stay for the life of the process, since a graph may hold
/// their address. Behind the parameters lies the group of each channel of keys, if they have an order (kAffine),
/// or their basis (latent_basis.h).
const uint8_t* device_params(const char* op, const LayerParams& params);

/// Copies parameters to a device, where they stay until drop_params is called with the number that this returns. Until
/// then the tensor that they lie in must not be freed.
int64_t hold_params(const char* op, const LayerParams& params, int32_t device);

/// The packed parameters of a tensor. They are checked when they are held, and not again at every call: it takes longer
/// than the launches of a step.
const LayerParams* checked_params(const char* op, const Tensor& params);

/// Frees a copy; a number that is unknown is ignored.
void drop_params(int64_t number);

/// UINT16 [channels] at group_table_offset.
inline bool has_group_table(const LayerParams& params) {
  return params.keys.format == Format::kAffine && params.keys.order_offset != 0;
}
inline size_t group_table_offset(const LayerParams& params) {
  return (static_cast<size_t>(params.bytes) + 15) / 16 * 16;
}

}  // namespace kvquant::cuda
