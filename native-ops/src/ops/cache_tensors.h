/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The tensors of a layer's cache as operators are given them, and what their shapes must be, on the CPU and on CUDA.
#pragma once
#include "../core/layout.h"
#include "tensor.h"

namespace kvquant {

/// Fails unless lengths is INT32 [batch, 2].
void check_lengths(const char* op, const Tensor& lengths, DeviceType device);

/// Fails unless rope is FLOAT32 [rows, 2, head_dim / 2] with the rows of at least one page.
void check_rope(const char* op, const Tensor& rope, const LayerParams& params, DeviceType device);

struct CacheTensors {
  Tensor lengths, page_table, exact_table, pages, exact, rope, params;

  /// Takes the seven tensors at stack[0 .. 7).
  explicit CacheTensors(const StableIValue* stack);

  /// Fails unless all but params are on a device, with the dtypes and shapes of a layer.
  void check(const char* op, const LayerParams& layer, DeviceType device) const;
};

}  // namespace kvquant
