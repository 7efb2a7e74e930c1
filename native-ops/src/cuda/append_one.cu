/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append while decoding, int2, int3, int4 and int8: the same bytes as append.cu leaves, for one token per sequence.
//
// There the time goes to instructions that are fetched once and to loads that wait for each other, so this is short
// code: of a block per sequence and kv head the first warp codes the key that leaves the window, the second the value,
// the others copy the new token. A lane holds 4 channels, or 2 with head_dim 64; nothing meets but at the end.
// An H100, batch 32 and 8 kv heads: int4 6.0 us (7.0 when levels were compared one by one), int8 6.3, int3 6.7,
// int2 7.4 (8.1), with head_dim 64 4.1 to 5.0; append.cu: 9 to 12 us.
#include "kernels.h"
#include "launch.cuh"
#include "one_token.cuh"
#include "ptx.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kThreads = 4 * kWarp;

template <int kDim>
__device__ __forceinline__ void put_key(const CacheView& cache, const NewRows& rows, const Place16& at,
                                        float (&shared)[kDim]) {
  constexpr int kOwn = kDim / kWarp;
  const SideView& keys = cache.keys;
  const int run = at.lane * kOwn / (kDim / kWidthRuns), bits = keys.width[run], head = at.kv_head * kDim;
  const int first = at.lane * kOwn, bit = at.in_tile() * bits, shift = bit % 8;
  uint8_t* field = at.page + keys.tile(at.kv_head, at.tile()) + keys.run_begin[run] +
                   first % (kDim / kWidthRuns) * 2 * bits + bit / 8;
  const bool two = shift + bits > 8;  // bytes
  float x[kOwn], step[kOwn][2];
  int channel[kOwn];
  unsigned old[kOwn] = {};
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    channel[i] = keys.order != nullptr ? keys.order[head + first + i] - head : first + i;
    step[i][0] = keys.steps[2 * (head + first + i)];
    step[i][1] = keys.steps[2 * (head + first + i) + 1];
    if (bits > 0) old[i] = field[i * 2 * bits];
    if (two) old[i] |= static_cast<unsigned>(field[i * 2 * bits + 1]) << 8;
  }
  load_token(cache, rows, at, true, x);
  if (cache.keys_pre_rope == 0) turn_head(cache, at.token, at.lane, x);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) shared[first + i] = x[i];
  __syncwarp();
  const unsigned mask = ((1u << bits) - 1u) << shift;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int code = static_code(shared[channel[i]], step[i][0], step[i][1], 1.0f / step[i][1], bits);
    const unsigned now = (old[i] & ~mask) | static_cast<unsigned>(code) << shift;
    if (bits > 0) field[i * 2 * bits] = static_cast<uint8_t>(now);
    if (two) field[i * 2 * bits + 1] = static_cast<uint8_t>(now >> 8);
  }
}

template <int kDim, int value_bits>
__global__ void __launch_bounds__(kThreads)
    append_one_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows) {
  __align__(16) __shared__ float shared[3][kDim];
  release_next_kernel();
  wait_for_previous_kernel();
  const int kv_head = blockIdx.x, b = blockIdx.y, count = rows.count(b), length = cache.length(b);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (warp < 2) {
    const int end = count > 0 ? cache.quantized(b, length + count) : 0;
    for (int token = cache.quantized(b, length); token < end; ++token) {
      const Place16 at{b, kv_head, token, lane, cache.page(b, token / kPageTokens)};
      if (warp == 0) {
        put_key(cache, rows, at, shared[0]);
      } else {
        put_value<value_bits>(cache, rows, at, shared[1], shared[2]);
      }
      __syncwarp();
    }
  }
  // One new token never takes the place of the one that leaves the window; several may.
  if (count > 1) __syncthreads();
  if (warp < 2) return;
  const int thread = threadIdx.x - 2 * kWarp;
  for (int i = 0; i < count; ++i) {
#pragma unroll
    for (int channel = 0; channel < kDim; channel += 2 * kWarp) {
      store_exact(cache, rows, b, i, kv_head, channel + thread);
    }
  }
  if (count > 0 && kv_head == 0 && cache.sink_policy == SinkPolicy::kFirst) {
    for (int page = 0; page < cache.sink_pages; ++page) update_sink_header(cache, b, count, page, thread);
  }
}

template <int kDim>
auto kernel_for(int value_bits) {
  return value_bits == 2   ? append_one_kernel<kDim, 2>
         : value_bits == 3 ? append_one_kernel<kDim, 3>
         : value_bits == 4 ? append_one_kernel<kDim, 4>
                           : append_one_kernel<kDim, 8>;
}

}  // namespace

bool append_one_supports(const CacheView& cache) {
  return cache.keys.format == Format::kStatic && cache.keys.basis_heads == 0 && even_levels(cache.values) &&
         cache.sink_policy != SinkPolicy::kMassive;
}

void append_one(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(cache.kv_heads), static_cast<unsigned>(cache.batch));
  const auto kernel = cache.head_dim == 64 ? kernel_for<64>(cache.values.bits) : kernel_for<128>(cache.values.bits);
  launch("append", kernel, {blocks, kThreads, 0, stream, can_start_early("append")}, cache, NewRows{tokens});
}

}  // namespace kvquant::cuda
