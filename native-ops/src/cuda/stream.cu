/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include <dlfcn.h>

#include "arguments.h"

namespace kvquant::cuda {

cudaStream_t current_stream(int32_t device) {
  using GetStream = AOTITorchError (*)(int32_t, void**);
  static const auto get_stream = reinterpret_cast<GetStream>(
      dlsym(dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY), "aoti_torch_get_current_cuda_stream"));
  void* stream = nullptr;
  if (get_stream == nullptr || get_stream(device, &stream) != 0) fail("cuda", "libtorch gives no CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

}  // namespace kvquant::cuda
