/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Weights as operators are given them: FLOAT32, FLOAT16 or BFLOAT16 on the CPU.
#pragma once
#include "../core/linear.h"
#include "tensor.h"

namespace kvquant {

/// A matrix [out, in] with its bias, which may be nullptr or empty.
Weight read_weight(const char* op, const char* name, const Tensor& weight, const Tensor* bias);

/// A norm's weight [columns].
Weight read_norm(const char* op, const Tensor& norm, int64_t columns);

}  // namespace kvquant
