/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#pragma once
#include "../core/layout.h"
#include "tensor.h"

namespace kvquant {

/// Reads and checks packed layer parameters, a CPU tensor; they stay valid as long as the tensor.
const LayerParams* read_params(const char* op, const Tensor& params);

}  // namespace kvquant
