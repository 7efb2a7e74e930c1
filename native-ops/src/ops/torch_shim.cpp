/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "torch_shim.h"

#include <dlfcn.h>

#include <cstdio>

namespace kvquant {

#define KVQUANT_DEFINE(name, parameters) AOTITorchError(*name) parameters = nullptr;
KVQUANT_TORCH_FUNCTIONS(KVQUANT_DEFINE)
#undef KVQUANT_DEFINE

bool find_torch_functions() {
#ifdef __APPLE__
  const char* file = "libtorch_cpu.dylib";
#else
  const char* file = "libtorch_cpu.so";
#endif
  // Java loads libtorch into a scope of its own, where only its handle finds it.
  void* libtorch = dlopen(file, RTLD_NOLOAD | RTLD_LAZY);
  if (libtorch == nullptr) {
    std::fprintf(stderr, "kvquant: %s is not loaded; load libtorch first\n", file);
    return false;
  }
#define KVQUANT_FIND(name, parameters)                                                         \
  name = reinterpret_cast<decltype(name)>(dlsym(libtorch, #name));                             \
  if (name == nullptr) {                                                                       \
    std::fprintf(stderr, "kvquant: this libtorch has no %s; 2.7 or later is needed\n", #name); \
    return false;                                                                              \
  }
  KVQUANT_TORCH_FUNCTIONS(KVQUANT_FIND)
#undef KVQUANT_FIND
  return true;
}

}  // namespace kvquant
