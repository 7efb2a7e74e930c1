/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append of a prompt's chunk to svdq, head_dim 128, but for keys (append_layer_tiles.cu): values of 2 bits with a norm,
// a block a page of a head, and exact copies of both sides. Starts while the kernel for keys ends, which it has nothing
// to do with.
#include "append_values.cuh"

namespace kvquant::cuda {
namespace {

/// The values of a tile of a head.
__device__ __forceinline__ void append_tile(const CacheView& cache, const NewRows& rows, const TokenRun& run,
                                            int kv_head, int first, __half* staged) {
  const int lane = threadIdx.x % kWarp;
  stage_rows(cache, rows, run, kv_head, false, first, staged, lane);
  commit_copies();
  wait_copies<0>();
  __syncwarp();
  float x[kRowHalf];
  load_row(staged + lane % kTileTokens * kRowStride + lane / kTileTokens * kRowHalf, x);
  append_value_tile(cache, rows, run, kv_head, first, x);
}

__global__ void __launch_bounds__(kValueThreads, 5)
    append_values_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows,
                         const __grid_constant__ ValueBlocks blocks) {
  __align__(16) __shared__ __half staged[kPageTiles][kTileTokens * kRowStride];
  const int block = blockIdx.x, warp = threadIdx.x / kWarp;
  if (block < blocks.pages) {
    const TokenRun page = unit_run<kPageTokens>(cache, rows, block % blocks.units);
    const int first = (page.begin / kPageTokens * kPageTiles + warp) * kTileTokens;
    const TokenRun run{page.b, max(page.begin, first), min(page.end, first + kTileTokens)};
    if (run.begin < run.end) append_tile(cache, rows, run, block / blocks.units, first, staged[warp]);
  } else {
    append_exact(cache, rows, block - blocks.pages);
  }
  wait_for_previous_kernel();  // what comes next may rely on both
}

}  // namespace

bool append_values_supports(const CacheView& cache, const NewTokens& tokens) {
  const float* levels = cache.values.four_levels;
  return cache.head_dim == kRowDim && cache.values.format == Format::kNorm && cache.values.bits == 2 &&
         cache.values.rotated && levels[0] == -levels[3] && levels[1] == -levels[2] && levels[2] > 0.0f &&
         aligned_rows(tokens);
}

void append_values(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  launch_values(append_values_kernel, cache, tokens, stream);
}

}  // namespace kvquant::cuda
