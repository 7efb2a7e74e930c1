/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// A checked view of an operator argument: every shape, dtype and range is verified here, at the operator boundary, so
// that kernels check nothing. Errors name the operator, the argument, what was given and what is allowed.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "torch_shim.h"

namespace kvquant {

/// Element types, numbered as c10::ScalarType does.
enum class DType : int32_t { kUInt8 = 0, kInt8 = 1, kInt32 = 3, kInt64 = 4, kHalf = 5, kFloat = 6, kBFloat16 = 15 };

/// Where a tensor lives, numbered as c10::DeviceType does.
enum class DeviceType : int32_t { kCpu = 0, kCuda = 1 };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int32_t index = 0;
};

const char* dtype_name(DType dtype);

/// An error that reaches Java as an EngineException with this text.
[[noreturn]] void fail(const std::string& op, const std::string& message);

/// Owns one tensor handle; inputs of a boxed kernel are owned by the callee.
class Tensor {
 public:
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {}
  explicit Tensor(StableIValue value) : handle_(reinterpret_cast<AtenTensorHandle>(value)) {}
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  Tensor(Tensor&& other) noexcept : handle_(other.handle_) { other.handle_ = nullptr; }
  ~Tensor() {
    if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
  }

  /// A new contiguous, uninitialised tensor.
  static Tensor empty(DType dtype, std::initializer_list<int64_t> sizes, Device device = {});

  /// A contiguous CPU tensor over memory that the caller keeps alive.
  static Tensor wrap(void* data, DType dtype, const std::vector<int64_t>& sizes);

  /// Gives the handle away as an operator result.
  StableIValue release() {
    AtenTensorHandle handle = handle_;
    handle_ = nullptr;
    return reinterpret_cast<StableIValue>(handle);
  }

  int64_t dim() const;
  int64_t size(int64_t axis) const;
  DType dtype() const;
  bool is_contiguous() const;
  Device device() const;
  int64_t numel() const;

  template <class T>
  T* data() const {
    void* p = nullptr;
    aoti_torch_get_data_ptr(handle_, &p);
    return static_cast<T*>(p);
  }

  /// Fails unless this is a contiguous tensor of the given dtype, number of axes and type of device; returns *this.
  const Tensor& expect(const char* op, const char* name, DType dtype, int64_t axes,
                       DeviceType device = DeviceType::kCpu) const;

 private:
  AtenTensorHandle handle_;
};

/// Fails unless the size of an axis is what the other arguments imply.
void expect_size(const char* op, const char* name, int64_t got, int64_t wanted, const char* meaning);

/// Fails unless low <= value <= high.
void expect_range(const char* op, const char* name, int64_t value, int64_t low, int64_t high);

double as_double(StableIValue value);

}  // namespace kvquant
