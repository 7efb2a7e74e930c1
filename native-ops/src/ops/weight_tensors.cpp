/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "weight_tensors.h"

namespace kvquant {
namespace {

WeightType weight_type(const char* op, const char* name, DType dtype) {
  if (dtype == DType::kFloat) return WeightType::kFloat32;
  if (dtype == DType::kHalf) return WeightType::kFloat16;
  if (dtype == DType::kBFloat16) return WeightType::kBFloat16;
  fail(op, std::string(name) + " must be FLOAT32, FLOAT16 or BFLOAT16, not " + dtype_name(dtype));
}

}  // namespace

Weight read_weight(const char* op, const char* name, const Tensor& weight, const Tensor* bias) {
  const DType dtype = weight.dtype();
  const WeightType type = weight_type(op, name, dtype);
  weight.expect(op, name, dtype, 2);
  expect_range(op, (std::string(name) + "'s columns").c_str(), weight.size(1), 1, int64_t{1} << 31);
  Weight w{weight.data<void>(), nullptr, type, weight.size(0), weight.size(1)};
  if (bias != nullptr && bias->numel() > 0) {
    bias->expect(op, "a bias", dtype, 1);
    expect_size(op, "a bias", bias->size(0), w.rows, "entries");
    w.bias = bias->data<void>();
  }
  return w;
}

Weight read_norm(const char* op, const Tensor& norm, int64_t columns) {
  const char* name = "a norm's weight";
  const WeightType type = weight_type(op, name, norm.dtype());
  norm.expect(op, name, norm.dtype(), 1);
  expect_size(op, name, norm.size(0), columns, "entries");
  return Weight{norm.data<void>(), nullptr, type, 1, columns};
}

}  // namespace kvquant
