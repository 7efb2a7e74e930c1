/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Tells libtorch of the emulated operators; src/cuda/operators.cu registers their kernels.
#include <cstdio>

#include "cuda/arguments.h"
#include "ops/schemas.h"

namespace kvquant::cuda {
namespace {

const char* const kSchemas[] = {kAppendSchema,    kAttendSchema,     kAppendAttendSchema,   kDequantizeSchema,
                                kScoreBiasSchema, kRopeHeadsSchema,  kMassiveEntriesSchema, kNormSchema,
                                kGateSchema,      kDeviceInfoSchema, kHoldParamsSchema,     kDropParamsSchema};

const bool defined = [] {
  if (!find_torch_functions()) return false;
  TorchLibraryHandle definitions = nullptr;
  AOTITorchError error = aoti_torch_library_init_def(kNamespace, __FILE__, __LINE__, &definitions);
  for (const char* schema : kSchemas) error |= aoti_torch_library_def(definitions, schema);
  if (error != 0) std::fprintf(stderr, "kvquant: libtorch refused to define the emulated operators\n");
  return error == 0;
}();

}  // namespace
}  // namespace kvquant::cuda
