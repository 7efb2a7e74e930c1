/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The cache arguments that operators share, checked once, as ops/cache_arguments.h does on the CPU: all on the GPU but
// params. Contents of device tensors (lengths, tables) are not checked, since reading them would stop the stream.
#pragma once
#include "kernels.h"
#include "ops/cache_tensors.h"
#include "ops/layer_params.h"

namespace kvquant::cuda {

// Where tensors lie and what the operators are registered as. emulator/ runs them on the CPU, beside those for it.
#ifdef KVQUANT_EMULATED
constexpr DeviceType kDeviceType = DeviceType::kCpu;
constexpr char kNamespace[] = "kvquant_emulated", kDispatchKey[] = "CPU";
#else
constexpr DeviceType kDeviceType = DeviceType::kCuda;
constexpr char kNamespace[] = "kvquant", kDispatchKey[] = "CUDA";
#endif

/// The current stream of libtorch on a device.
cudaStream_t current_stream(int32_t device);

/// Makes a device the current one until the end of a scope.
class DeviceScope {
 public:
  DeviceScope(const char* op, int32_t device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int previous_ = 0, device_;
};

/// FLOAT32, FLOAT16 or BFLOAT16; fails for others.
ElementType element_type(const char* op, const char* name, const Tensor& tensor);

/// What operators on positions need of the cache: lengths and rope, whose shapes are checked.
CacheView position_view(const char* op, const LayerParams& params, const Tensor& lengths, const Tensor& rope);

class CacheArguments {
 public:
  /// Takes the seven tensors at stack[0 .. 7); fails if the layer's format has no kernels.
  CacheArguments(const char* op, const StableIValue* stack);

  Device device() const { return tensors_.lengths.device(); }
  const LayerParams& params() const { return *params_; }
  int64_t columns() const { return static_cast<int64_t>(view_.heads + 2 * view_.kv_heads) * view_.head_dim; }
  const CacheView& view() const { return view_; }
  /// Uploads the parameters, if they are new; the device must be current.
  void find_params(const char* op);

 private:
  CacheTensors tensors_;
  const LayerParams* params_;
  CacheView view_;
};

}  // namespace kvquant::cuda
