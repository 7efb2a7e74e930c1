/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Written for reading: on the CPU layers use norm_qkv and norm_mlp, and these are what CUDA's are tested against.
#include "fused.h"

#include <vector>

#include "schemas.h"
#include "tensor.h"
#include "weight_tensors.h"

namespace kvquant {
namespace {

/// norm(x FLOAT32 [rows, hidden], weight [hidden], eps) -> FLOAT32 [rows, hidden]: RMS norm.
void norm_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "norm";
  Tensor x(stack[0]), weight(stack[1]);
  x.expect(op, "x", DType::kFloat, 2);
  Tensor out = Tensor::empty(DType::kFloat, {x.size(0), x.size(1)});
  const auto eps = static_cast<float>(as_double(stack[2]));
  rms_norm(x.data<float>(), x.size(0), read_norm(op, weight, x.size(1)), eps, out.data<float>());
  stack[0] = out.release();
}

/// gate(x FLOAT32 [rows, 2 n]) -> FLOAT32 [rows, n]: silu of the first half of a row, times the second.
void gate_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "gate";
  Tensor x(stack[0]);
  x.expect(op, "x", DType::kFloat, 2);
  if (x.size(1) % 2 != 0) fail(op, "x has " + std::to_string(x.size(1)) + " columns; allowed: an even number");
  const int64_t n = x.size(1) / 2;
  Tensor out = Tensor::empty(DType::kFloat, {x.size(0), n});
  for (int64_t row = 0; row < x.size(0); ++row) {
    const float* from = x.data<float>() + 2 * n * row;
    silu_mul(from, from + n, n, out.data<float>() + n * row);
  }
  stack[0] = out.release();
}

struct Operator {
  const char* name;
  const char* schema;
  BoxedKernel kernel;  // nullptr: in the CUDA library only
};

const Operator kFused[] = {
    {"norm", kNormSchema, norm_op},
    {"gate", kGateSchema, gate_op},
    {"device_info", kDeviceInfoSchema, nullptr},
    {"hold_params", kHoldParamsSchema, nullptr},
    {"drop_params", kDropParamsSchema, nullptr},
};

}  // namespace

AOTITorchError define_fused(TorchLibraryHandle definitions, TorchLibraryHandle kernels) {
  AOTITorchError error = 0;
  for (const Operator& op : kFused) {
    error |= aoti_torch_library_def(definitions, op.schema);
    if (op.kernel != nullptr) error |= aoti_torch_library_impl(kernels, op.name, op.kernel);
  }
  return error;
}

}  // namespace kvquant
