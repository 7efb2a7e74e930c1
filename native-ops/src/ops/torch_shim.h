/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The part of libtorch's C interface (2.7 and later) that the operators need, declared here so that one binary serves
// every libtorch from 2.7 on. Nothing is linked: the functions are looked up in the libtorch that the process has
// loaded.
#pragma once
#include <cstdint>

extern "C" {
using StableIValue = uint64_t;
struct AtenTensorOpaque;
using AtenTensorHandle = AtenTensorOpaque*;
struct TorchLibraryOpaque;
using TorchLibraryHandle = TorchLibraryOpaque*;
using AOTITorchError = int32_t;
using BoxedKernel = void (*)(StableIValue* stack, uint64_t num_inputs, uint64_t num_outputs);
}

// name, parameters
#define KVQUANT_TORCH_FUNCTIONS(F)                                                                                 \
  F(aoti_torch_library_init_def, (const char* ns, const char* file, uint32_t line, TorchLibraryHandle* out))       \
  F(aoti_torch_library_init_impl,                                                                                  \
    (const char* ns, const char* dispatch_key, const char* file, uint32_t line, TorchLibraryHandle* out))          \
  F(aoti_torch_library_def, (TorchLibraryHandle library, const char* schema))                                      \
  F(aoti_torch_library_impl, (TorchLibraryHandle library, const char* name, BoxedKernel kernel))                   \
  F(aoti_torch_get_data_ptr, (AtenTensorHandle tensor, void** out))                                                \
  F(aoti_torch_get_sizes, (AtenTensorHandle tensor, int64_t** out))                                                \
  F(aoti_torch_get_strides, (AtenTensorHandle tensor, int64_t** out))                                              \
  F(aoti_torch_get_dim, (AtenTensorHandle tensor, int64_t* out))                                                   \
  F(aoti_torch_get_dtype, (AtenTensorHandle tensor, int32_t* out))                                                 \
  F(aoti_torch_get_device_type, (AtenTensorHandle tensor, int32_t* out))                                           \
  F(aoti_torch_get_device_index, (AtenTensorHandle tensor, int32_t* out))                                          \
  F(aoti_torch_empty_strided, (int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype,           \
                               int32_t device_type, int32_t device_index, AtenTensorHandle* out))                  \
  F(aoti_torch_create_tensor_from_blob,                                                                            \
    (void* data, int64_t dim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset, int32_t dtype, \
     int32_t device_type, int32_t device_index, AtenTensorHandle* out))                                            \
  F(aoti_torch_delete_tensor_object, (AtenTensorHandle tensor))

namespace kvquant {

#define KVQUANT_DECLARE(name, parameters) extern AOTITorchError(*name) parameters;
KVQUANT_TORCH_FUNCTIONS(KVQUANT_DECLARE)
#undef KVQUANT_DECLARE

/// Looks every function up; false, with a line on stderr, if the process has no libtorch or one that lacks them.
bool find_torch_functions();

}  // namespace kvquant
