/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append of a prompt's chunk to svdq and latent2 and their like, head_dim 128, but for keys (append_layer_tiles.cu,
// append_latent_tiles.cu): values with a norm, a block a page of a head, and exact copies of both sides. Starts while
// the kernel for keys ends, which it has nothing to do with.
#include "append_values.cuh"

namespace kvquant::cuda {
namespace {

/// Blocks of pages of a head, then of exact pages.
struct ValueBlocks {
  int units, pages;
};

template <int bits>
__global__ void __launch_bounds__(kValueThreads, 5)
    append_values_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows,
                         const __grid_constant__ ValueBlocks blocks) {
  __shared__ ValueBlock<> shared;
  const int block = blockIdx.x;
  if (block < blocks.pages) {
    const TokenRun page = unit_run<kPageTokens>(cache, rows, block % blocks.units);
    if (page.begin < page.end) append_value_page<bits>(cache, rows, page, block / blocks.units, shared);
  } else {
    append_exact(cache, rows, block - blocks.pages);
  }
  wait_for_previous_kernel();  // what comes next may rely on both
}

}  // namespace

bool append_values_supports(const CacheView& cache, const NewTokens& tokens) {
  return cache.head_dim == kRowDim && cache.values.rotated && even_levels(cache.values) && aligned_rows(tokens);
}

void append_values(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  ValueBlocks blocks;
  blocks.units = tokens.count / kPageTokens + 2 * cache.batch;
  blocks.pages = blocks.units * cache.kv_heads;
  const auto all =
      static_cast<unsigned>(blocks.pages + cache.batch * exact_columns(cache) * ((cache.kv_heads + 1) / 2));
  const int bits = cache.values.bits;
  const auto kernel = bits == 2   ? append_values_kernel<2>
                      : bits == 3 ? append_values_kernel<3>
                      : bits == 4 ? append_values_kernel<4>
                                  : append_values_kernel<8>;
  launch("append", kernel, {dim3(all), kValueThreads, 0, stream, can_start_early("append")}, cache, NewRows{tokens},
         blocks);
}

}  // namespace kvquant::cuda
