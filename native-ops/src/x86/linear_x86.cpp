/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Dot products of few input rows with 16-bit or fp32 weight rows, widened in registers. Four weight rows at a time keep
// enough loads in flight to run at the speed of memory; up to four input rows share each widened weight.
#include "../core/linear_isa.h"
#include "simd.h"

namespace kvquant {
namespace KVQUANT_ISA {
namespace {

template <WeightType type>
inline Vec load_weights(const void* data, int64_t i) {
  if constexpr (type == WeightType::kFloat32) {
    return load(static_cast<const float*>(data) + i);
  } else if constexpr (type == WeightType::kFloat16) {
    return load_halves(static_cast<const uint16_t*>(data) + i);
  } else {
    return load_bfloats(static_cast<const uint16_t*>(data) + i);
  }
}

/// Asks for the weights some rows ahead: rows are too short for the processor to find the pattern by itself.
template <WeightType type>
inline void prefetch_weights(const void* data, int64_t i) {
  constexpr int bytes = type == WeightType::kFloat32 ? 4 : 2, distance = 8192;
  prefetch(static_cast<const char*>(data) + i * bytes + distance);
}

template <WeightType type>
inline float load_one(const void* data, int64_t i) {
  if constexpr (type == WeightType::kFloat32) {
    return static_cast<const float*>(data)[i];
  } else {
    const uint16_t bits = static_cast<const uint16_t*>(data)[i];
    if constexpr (type == WeightType::kFloat16) return _cvtsh_ss(bits);
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
  }
}

template <WeightType type, int x_rows, int w_rows>
void dot_block(const float* x, const Weight& weight, int64_t first, float* out, int64_t stride) {
  const int64_t columns = weight.columns;
  Vec sums[x_rows][w_rows];
  for (int r = 0; r < x_rows; ++r) {
    for (int i = 0; i < w_rows; ++i) sums[r][i] = zero();
  }
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
    Vec w[w_rows];
    for (int i = 0; i < w_rows; ++i) {
      prefetch_weights<type>(weight.data, (first + i) * columns + c);
      w[i] = load_weights<type>(weight.data, (first + i) * columns + c);
    }
    for (int r = 0; r < x_rows; ++r) {
      const Vec input = load(x + r * columns + c);
      for (int i = 0; i < w_rows; ++i) sums[r][i] = fma(input, w[i], sums[r][i]);
    }
  }
  for (int r = 0; r < x_rows; ++r) {
    for (int i = 0; i < w_rows; ++i) {
      float total = sum(sums[r][i]);
      for (int64_t t = c; t < columns; ++t) {
        total += x[r * columns + t] * load_one<type>(weight.data, (first + i) * columns + t);
      }
      out[r * stride + i] = total;
    }
  }
}

template <WeightType type, int x_rows>
void dot_weight_rows(const float* x, const Weight& weight, int64_t begin, int64_t end, float* out, int64_t stride) {
  int64_t i = begin;
  for (; i + 4 <= end; i += 4) dot_block<type, x_rows, 4>(x, weight, i, out + i - begin, stride);
  for (; i < end; ++i) dot_block<type, x_rows, 1>(x, weight, i, out + i - begin, stride);
}

template <WeightType type>
void dot_all(const float* x, int64_t rows, const Weight& weight, int64_t begin, int64_t end, float* out,
             int64_t stride) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    dot_weight_rows<type, 4>(x + r * weight.columns, weight, begin, end, out + r * stride, stride);
  }
  for (; r + 2 <= rows; r += 2) {
    dot_weight_rows<type, 2>(x + r * weight.columns, weight, begin, end, out + r * stride, stride);
  }
  for (; r < rows; ++r) {
    dot_weight_rows<type, 1>(x + r * weight.columns, weight, begin, end, out + r * stride, stride);
  }
}

}  // namespace
}  // namespace KVQUANT_ISA

void KVQUANT_FN(dot_rows)(const float* x, int64_t rows, const Weight& weight, int64_t begin, int64_t end, float* out,
                          int64_t stride) {
  using namespace KVQUANT_ISA;
  switch (weight.type) {
    case WeightType::kFloat32:
      return dot_all<WeightType::kFloat32>(x, rows, weight, begin, end, out, stride);
    case WeightType::kFloat16:
      return dot_all<WeightType::kFloat16>(x, rows, weight, begin, end, out, stride);
    case WeightType::kBFloat16:
      return dot_all<WeightType::kBFloat16>(x, rows, weight, begin, end, out, stride);
  }
}

}  // namespace kvquant
