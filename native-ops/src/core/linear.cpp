/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "linear.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "dispatch.h"
#include "half.h"
#include "linear_isa.h"
#include "parallel.h"

namespace kvquant {
namespace {

/// Bytes of weights that make a chunk of work worth handing to another thread.
constexpr int64_t kChunkBytes = 64 << 10;

float load_weight(const void* data, WeightType type, int64_t i) {
  if (type == WeightType::kFloat32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  if (type == WeightType::kFloat16) return half_to_float(bits);
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

DotRows dot_rows() {
#ifdef KVQUANT_HAVE_AVX2
  if (current_variant() == Variant::kAvx512) return dot_rows_avx512;
  if (current_variant() == Variant::kAvx2) return dot_rows_avx2;
#endif
  return dot_rows_portable;
}

}  // namespace

void dot_rows_portable(const float* x, int64_t rows, const Weight& weight, int64_t begin, int64_t end, float* out,
                       int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = begin; i < end; ++i) {
      float sum = 0;
      for (int64_t c = 0; c < weight.columns; ++c) {
        sum += x[r * weight.columns + c] * load_weight(weight.data, weight.type, i * weight.columns + c);
      }
      out[r * stride + i - begin] = sum;
    }
  }
}

void linear(const float* x, int64_t rows, const Weight& weight, float* out, int64_t stride, bool add) {
  const DotRows dot = dot_rows();
  const int64_t bytes = weight.columns * (weight.type == WeightType::kFloat32 ? 4 : 2);
  const int64_t per_chunk = std::max<int64_t>(8, kChunkBytes / bytes / 8 * 8);
  parallel_for((weight.rows + per_chunk - 1) / per_chunk, [&](int64_t chunk) {
    const int64_t begin = chunk * per_chunk, end = std::min(weight.rows, begin + per_chunk), n = end - begin;
    std::vector<float> sums(static_cast<size_t>(rows * n));
    dot(x, rows, weight, begin, end, sums.data(), n);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < n; ++i) {
        float& target = out[r * stride + begin + i];
        float sum = sums[r * n + i];
        if (weight.bias != nullptr) sum += load_weight(weight.bias, weight.type, begin + i);
        target = add ? target + sum : sum;
      }
    }
  });
}

void rms_norm(const float* x, int64_t rows, const Weight& weight, float eps, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * weight.columns;
    double sum = 0;
    for (int64_t c = 0; c < weight.columns; ++c) sum += static_cast<double>(row[c]) * row[c];
    const float factor = 1.0f / std::sqrt(static_cast<float>(sum / static_cast<double>(weight.columns)) + eps);
    for (int64_t c = 0; c < weight.columns; ++c) {
      out[r * weight.columns + c] = row[c] * factor * load_weight(weight.data, weight.type, c);
    }
  }
}

void silu_mul(const float* gate, const float* up, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

}  // namespace kvquant
