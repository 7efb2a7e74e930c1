/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "arguments.h"
#include "device_params.h"
#include "fused_ops.h"
#include "launch.cuh"

namespace kvquant::cuda {
namespace {

/// norm as in fused.cpp; x and weight are FLOAT32, FLOAT16 or BFLOAT16, as is the result.
void norm_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "norm";
  Tensor x(stack[0]), weight(stack[1]);
  const ElementType type = element_type(op, "x", x);
  x.expect(op, "x", x.dtype(), 2, kDeviceType);
  weight.expect(op, "weight", x.dtype(), 1, kDeviceType);
  expect_size(op, "weight", weight.size(0), x.size(1), "entries");
  expect_range(op, "x's rows", x.size(0), 0, int64_t{1} << 30);
  const DeviceScope scope(op, x.device().index);
  Tensor out = Tensor::empty(x.dtype(), {x.size(0), x.size(1)}, x.device());
  const auto eps = static_cast<float>(as_double(stack[2]));
  norm({x.data<void>(), weight.data<void>(), type, x.size(0), x.size(1), eps, out.data<void>()},
       current_stream(x.device().index));
  stack[0] = out.release();
}

/// gate as in fused.cpp; the result has the type of x.
void gate_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "gate";
  Tensor x(stack[0]);
  const ElementType type = element_type(op, "x", x);
  x.expect(op, "x", x.dtype(), 2, kDeviceType);
  if (x.size(1) % 2 != 0) fail(op, "x has " + std::to_string(x.size(1)) + " columns; allowed: an even number");
  expect_range(op, "x's rows", x.size(0), 0, 65535);
  const DeviceScope scope(op, x.device().index);
  Tensor out = Tensor::empty(x.dtype(), {x.size(0), x.size(1) / 2}, x.device());
  gate({x.data<void>(), type, x.size(0), x.size(1) / 2, out.data<void>()}, current_stream(x.device().index));
  stack[0] = out.release();
}

/// hold_params(params UINT8 [bytes], on the CPU, device any tensor there) -> INT64 [1], the number of the copy.
void hold_params_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "hold_params";
  Tensor params(stack[0]), device(stack[1]);
  const LayerParams& layer = *read_params(op, params);
  const DeviceScope scope(op, device.device().index);
  Tensor out = Tensor::empty(DType::kInt64, {1});
  *out.data<int64_t>() = hold_params(op, layer, device.device().index);
  stack[0] = out.release();
}

/// drop_params(number INT64 [1], on the CPU)
void drop_params_op(StableIValue* stack, uint64_t, uint64_t) {
  Tensor number(stack[0]);
  drop_params(*number.expect("drop_params", "number", DType::kInt64, 1).data<int64_t>());
}

/// device_info(device any tensor on it) -> INT64 [7] on the CPU: CUDA's error code, 0 for none; the CUDA version of the
/// driver, and of this library; compute capability times 10; free bytes, all bytes; multiprocessors.
void device_info_op(StableIValue* stack, uint64_t, uint64_t) {
  Tensor device(stack[0]);
  const int index = device.device().index;
  int previous = 0, driver = 0, runtime = 0, major = 0, minor = 0, multiprocessors = 0;
  size_t free_bytes = 0, all_bytes = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  cudaError_t error = cudaGetDevice(&previous);
  if (error == cudaSuccess) error = cudaSetDevice(index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, index);
  if (error == cudaSuccess) error = cudaMemGetInfo(&free_bytes, &all_bytes);
  if (error == cudaSuccess) error = cudaSetDevice(previous);
  const int64_t values[] = {error,
                            driver,
                            runtime,
                            10 * major + minor,
                            static_cast<int64_t>(free_bytes),
                            static_cast<int64_t>(all_bytes),
                            multiprocessors};
  Tensor out = Tensor::empty(DType::kInt64, {7});
  for (int i = 0; i < 7; ++i) out.data<int64_t>()[i] = values[i];
  stack[0] = out.release();
}

}  // namespace

AOTITorchError register_fused(TorchLibraryHandle cuda_kernels) {
  TorchLibraryHandle cpu_kernels = nullptr;
  // Its argument is on the CPU, where there is always a place for a number.
  AOTITorchError error = aoti_torch_library_init_impl(kNamespace, "CPU", __FILE__, __LINE__, &cpu_kernels);
  error |= aoti_torch_library_impl(cpu_kernels, "drop_params", drop_params_op);
  error |= aoti_torch_library_impl(cuda_kernels, "norm", norm_op);
  error |= aoti_torch_library_impl(cuda_kernels, "gate", gate_op);
  error |= aoti_torch_library_impl(cuda_kernels, "hold_params", hold_params_op);
  error |= aoti_torch_library_impl(cuda_kernels, "device_info", device_info_op);
  return error;
}

}  // namespace kvquant::cuda
