/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Values of 2 bits with a norm, head_dim 128, of a prompt's chunk: the same bytes as append.cu leaves. Two lanes take a
// token's head, half of it in registers each, a warp a tile; sums go through one half, then through the other, in the
// order of the portable operator. Codes come of limits (code_limits.cuh), and meet by a transpose of 16 x 16 codes
// across lanes. Also how kernels of values alone are started (append_values.cu, append_levels.cu).
#pragma once
#include "code_limits.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "row_codes.cuh"

namespace kvquant::cuda {

/// The sum of terms of a token, which two lanes hold, in order. again: the same term in other instructions, lest the
/// compiler keep all of them.
template <class Term, class Again>
__device__ __forceinline__ float sum_halves(int lane, Term term, Again again) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kRowHalf; ++i) sum = __fadd_rn(sum, term(i));
  sum = __shfl_xor_sync(0xffffffffu, sum, kTileTokens);  // the upper lane goes on with the sum of the lower one
#pragma unroll
  for (int i = 0; i < kRowHalf; ++i) sum = __fadd_rn(sum, again(i));
  return __shfl_sync(0xffffffffu, sum, lane | kTileTokens);
}

/// The values of a tile of a head; x: of token lane % 16, 64 channels.
__device__ __forceinline__ void append_value_tile(const CacheView& cache, const NewRows& rows, const TokenRun& run,
                                                  int kv_head, int first, float (&x)[kRowHalf]) {
  const SideView& side = cache.values;
  const int lane = threadIdx.x % kWarp, tile = first / kTileTokens % kPageTiles;
  uint8_t* page = cache.page(run.b, first / kPageTokens);
  transform_half(x, lane);
  const float square =
      sum_halves(lane, [&](int i) { return __fmul_rn(x[i], x[i]); }, [&](int i) { return fmaf(x[i], x[i], 0.0f); });
  const float rms = __fsqrt_rn(__fdiv_rn(square, static_cast<float>(kRowDim)));
  const float small = side.four_levels[2], large = side.four_levels[3];
  const Limits limits = find_limits(rms, __fmul_rn(0.5f, __fadd_rn(small, large)));
  uint32_t words[4] = {};  // of channels 4 k + i, so that they are neighbours when they are transposed
#pragma unroll
  for (int i = 0; i < kRowHalf; ++i) {
    const bool above = x[i] > limits.zero, outer = x[i] <= limits.low || x[i] > limits.high;
    if (above) words[i % 4] += 2u << (i / 4 * 2);
    if (outer) words[i % 4] += 1u << (i / 4 * 2);
    x[i] = __fmul_rn(fabsf(x[i]), outer ? large : small);
  }
  const auto chosen = [&](int i) { return x[i]; };
  const float product = sum_halves(lane, chosen, chosen);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words[i] ^= ~(words[i] >> 1) & 0x55555555u;  // outer below, inner below and so on
    words[i] = transpose_codes(words[i], lane);
  }
  const int begin = run.begin - first, end = run.end - first, in_tile = lane % kTileTokens;
  store_words(make_uint4(words[0], words[1], words[2], words[3]), begin, end,
              page + side.tile(kv_head, tile) + lane * 16);
  if (lane == in_tile && in_tile >= begin && in_tile < end) {
    uint8_t* norms = page + side.norms + tile * side.norm_tile_bytes + kv_head * kTileTokens * 2;
    reinterpret_cast<__half*>(norms)[in_tile] = __float2half_rn(norm_of(square, product));
  }
  if (run.begin < cache.length(run.b)) refill(cache, rows, run, first / kTileTokens, kv_head, false, lane);
}

/// Blocks of pages of a head, then of exact pages.
struct ValueBlocks {
  int units, pages;
};

constexpr int kValueThreads = kPageTiles * kWarp;

/// Starts a kernel of such blocks.
inline void launch_values(void (*kernel)(CacheView, NewRows, ValueBlocks), const CacheView& cache,
                          const NewTokens& tokens, cudaStream_t stream) {
  ValueBlocks blocks;
  blocks.units = tokens.count / kPageTokens + 2 * cache.batch;
  blocks.pages = blocks.units * cache.kv_heads;
  const auto all =
      static_cast<unsigned>(blocks.pages + cache.batch * exact_columns(cache) * ((cache.kv_heads + 1) / 2));
  launch("append", kernel, {dim3(all), kValueThreads, 0, stream, can_start_early("append")}, cache, NewRows{tokens},
         blocks);
}

}  // namespace kvquant::cuda
