/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The variants of decode attention; which one runs is chosen once, by dispatch.h.
#pragma once
#include "cache.h"

namespace kvquant {

void attend_portable(const LayerCache& cache, const float* qkv, float* out);
void attend_avx2(const LayerCache& cache, const float* qkv, float* out);
void attend_avx512(const LayerCache& cache, const float* qkv, float* out);

}  // namespace kvquant
