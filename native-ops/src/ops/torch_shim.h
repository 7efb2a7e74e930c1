/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The part of libtorch's C interface (2.7 and later) that the operators need, declared here so that one binary serves
// every libtorch from 2.7 on. The functions live in the libtorch that the process has already loaded.
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

AOTITorchError aoti_torch_library_init_def(const char* ns, const char* file, uint32_t line, TorchLibraryHandle* out);
AOTITorchError aoti_torch_library_init_impl(const char* ns, const char* dispatch_key, const char* file, uint32_t line,
                                            TorchLibraryHandle* out);
AOTITorchError aoti_torch_library_def(TorchLibraryHandle library, const char* schema);
AOTITorchError aoti_torch_library_impl(TorchLibraryHandle library, const char* name, BoxedKernel kernel);

AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle tensor, void** out);
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle tensor, int64_t** out);
AOTITorchError aoti_torch_get_strides(AtenTensorHandle tensor, int64_t** out);
AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, int64_t* out);
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, int32_t* out);
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle tensor, int32_t* out);
AOTITorchError aoti_torch_get_device_index(AtenTensorHandle tensor, int32_t* out);
AOTITorchError aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                        int32_t device_type, int32_t device_index, AtenTensorHandle* out);
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor);
}
