/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Attention over rotatekv3 and rotatekv4, and rotatekv2 at head_dim 64; what attend_tiles.cu asks first.
#pragma once
#include "kernels.h"

namespace kvquant::cuda {

bool attend_affine_supports(const CacheView& cache);
AttentionShape attend_affine_shape(const CacheView& cache);
void attend_affine(const CacheView& cache, const Attention& attention, cudaStream_t stream);

}  // namespace kvquant::cuda
