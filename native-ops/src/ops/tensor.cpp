/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "tensor.h"

#include <cstring>

namespace kvquant {

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kUInt8:
      return "UINT8";
    case DType::kInt8:
      return "INT8";
    case DType::kInt32:
      return "INT32";
    case DType::kInt64:
      return "INT64";
    case DType::kHalf:
      return "FLOAT16";
    case DType::kFloat:
      return "FLOAT32";
    case DType::kBFloat16:
      return "BFLOAT16";
  }
  return "another dtype";
}

void fail(const std::string& op, const std::string& message) {
  throw std::runtime_error("kvquant::" + op + ": " + message);
}

namespace {

std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= sizes[i];
  }
  return strides;
}

}  // namespace

Tensor Tensor::empty(DType dtype, std::initializer_list<int64_t> sizes, Device device) {
  const std::vector<int64_t> strides = contiguous_strides(sizes);
  AtenTensorHandle handle = nullptr;
  if (aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides.data(),
                               static_cast<int32_t>(dtype), static_cast<int32_t>(device.type), device.index,
                               &handle) != 0) {
    throw std::runtime_error("kvquant: out of memory for a result");
  }
  return Tensor(handle);
}

Tensor Tensor::wrap(void* data, DType dtype, const std::vector<int64_t>& sizes) {
  const std::vector<int64_t> strides = contiguous_strides(sizes);
  AtenTensorHandle handle = nullptr;
  if (aoti_torch_create_tensor_from_blob(data, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0,
                                         static_cast<int32_t>(dtype), static_cast<int32_t>(DeviceType::kCpu), 0,
                                         &handle) != 0) {
    throw std::runtime_error("kvquant: libtorch could not wrap a tensor");
  }
  return Tensor(handle);
}

int64_t Tensor::dim() const {
  int64_t dim = 0;
  aoti_torch_get_dim(handle_, &dim);
  return dim;
}

int64_t Tensor::size(int64_t axis) const {
  int64_t* sizes = nullptr;
  aoti_torch_get_sizes(handle_, &sizes);
  return sizes[axis];
}

DType Tensor::dtype() const {
  int32_t dtype = -1;
  aoti_torch_get_dtype(handle_, &dtype);
  return static_cast<DType>(dtype);
}

bool Tensor::is_contiguous() const {
  int64_t *sizes = nullptr, *strides = nullptr;
  aoti_torch_get_sizes(handle_, &sizes);
  aoti_torch_get_strides(handle_, &strides);
  int64_t expected = 1;
  for (int64_t i = dim() - 1; i >= 0; --i) {
    if (sizes[i] != 1 && strides[i] != expected) return false;
    expected *= sizes[i];
  }
  return true;
}

Device Tensor::device() const {
  int32_t type = -1, index = 0;
  aoti_torch_get_device_type(handle_, &type);
  aoti_torch_get_device_index(handle_, &index);
  return {static_cast<DeviceType>(type), index};
}

int64_t Tensor::numel() const {
  int64_t n = 1;
  for (int64_t i = 0; i < dim(); ++i) n *= size(i);
  return n;
}

const Tensor& Tensor::expect(const char* op, const char* name, DType wanted, int64_t axes, DeviceType where) const {
  if (device().type != where) {
    const char* place = where == DeviceType::kCpu ? "the CPU" : "a GPU";
    fail(op, std::string(name) + " must be on " + place + "; move it there first");
  }
  if (dtype() != wanted) {
    fail(op, std::string(name) + " must be " + dtype_name(wanted) + ", not " + dtype_name(dtype()));
  }
  if (dim() != axes) {
    fail(op, std::string(name) + " must have " + std::to_string(axes) + " axes, not " + std::to_string(dim()));
  }
  if (!is_contiguous()) fail(op, std::string(name) + " must be contiguous");
  return *this;
}

void expect_size(const char* op, const char* name, int64_t got, int64_t wanted, const char* meaning) {
  if (got != wanted) {
    fail(op, std::string(name) + " has " + std::to_string(got) + " " + meaning + " but " + std::to_string(wanted) +
                 " are needed");
  }
}

void expect_range(const char* op, const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    fail(op, std::string(name) + " is " + std::to_string(value) + "; allowed: " + std::to_string(low) + " to " +
                 std::to_string(high));
  }
}

double as_double(StableIValue value) {
  double d;
  std::memcpy(&d, &value, sizeof d);
  return d;
}

}  // namespace kvquant
