/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "weight_tensors.h"

namespace kvquant {

Weight read_weight(const char* op, const char* name, const Tensor& weight, const Tensor* bias) {
  const DType dtype = weight.dtype();
  if (dtype != DType::kFloat && dtype != DType::kHalf && dtype != DType::kBFloat16) {
    fail(op, std::string(name) + " must be FLOAT32, FLOAT16 or BFLOAT16, not " + dtype_name(dtype));
  }
  weight.expect(op, name, dtype, 2);
  expect_range(op, (std::string(name) + "'s columns").c_str(), weight.size(1), 1, int64_t{1} << 31);
  Weight w{weight.data<void>(), nullptr, WeightType::kFloat32, weight.size(0), weight.size(1)};
  if (dtype == DType::kHalf) w.type = WeightType::kFloat16;
  if (dtype == DType::kBFloat16) w.type = WeightType::kBFloat16;
  if (bias != nullptr && bias->numel() > 0) {
    bias->expect(op, "a bias", dtype, 1);
    expect_size(op, "a bias", bias->size(0), w.rows, "entries");
    w.bias = bias->data<void>();
  }
  return w;
}

Weight read_norm(const char* op, const Tensor& norm, int64_t columns) {
  const DType dtype = norm.dtype();
  if (dtype != DType::kFloat && dtype != DType::kHalf && dtype != DType::kBFloat16) {
    fail(op, std::string("a norm's weight must be FLOAT32, FLOAT16 or BFLOAT16, not ") + dtype_name(dtype));
  }
  norm.expect(op, "a norm's weight", dtype, 1);
  expect_size(op, "a norm's weight", norm.size(0), columns, "entries");
  WeightType type = dtype == DType::kHalf       ? WeightType::kFloat16
                    : dtype == DType::kBFloat16 ? WeightType::kBFloat16
                                                : WeightType::kFloat32;
  return Weight{norm.data<void>(), nullptr, type, 1, columns};
}

}  // namespace kvquant
