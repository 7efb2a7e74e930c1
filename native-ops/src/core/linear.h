/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Linear layers for few rows: 16-bit weights are widened in registers, sums are fp32; the speed is that of memory.
#pragma once
#include <cstdint>

namespace kvquant {

enum class WeightType { kFloat32, kFloat16, kBFloat16 };

/// A weight [rows, columns], row-major, with an optional bias [rows] of the same type.
struct Weight {
  const void* data;
  const void* bias;  // nullptr: none
  WeightType type;
  int64_t rows, columns;
};

/// out[r, 0 .. weight.rows) = x[r] weight' + bias, for r < rows; out rows are stride apart. With add, the result is
/// added to what out holds.
void linear(const float* x, int64_t rows, const Weight& weight, float* out, int64_t stride, bool add);

/// x / sqrt(mean(x^2) + eps) * weight for every row of x [rows, columns].
void rms_norm(const float* x, int64_t rows, const Weight& weight, float eps, float* out);

/// out = silu(gate) * up, elementwise over n; silu(x) = x / (1 + exp(-x)).
void silu_mul(const float* gate, const float* up, int64_t n, float* out);

}  // namespace kvquant
