/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The kernels of attend_int.cuh for head_dim 64.
#include "attend_int.cuh"

namespace kvquant::cuda {

void attend_int_64(const CacheView& cache, const Attention& p, const IntLayer& layer, int warps, bool early,
                   cudaStream_t stream) {
  launch_bits<64>(cache, p, layer, warps, early, stream);
}

}  // namespace kvquant::cuda
