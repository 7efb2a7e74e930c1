/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append while decoding, rotatekv2 with head_dim 128: the same bytes as append_tokens.cu leaves, for one token per
// sequence. A block takes a side of up to 8 heads of a token, or of all where channels are ordered across the layer; a
// warp takes a head and then a group, a lane 4 channels: what heads and groups exchange goes through shared memory once
// each. An H100, batch 32 and 8 kv heads: 3.4 us instead of 15.4.
#include <algorithm>

#include "append.cuh"
#include "codes.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "token_reader.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = 128, kOwn = kDim / kWarp, kMostHeads = 32, kUsualHeads = 8;

/// A head of a token, new or from the window, rounded.
__device__ __forceinline__ void load_head(const CacheView& cache, const NewRows& rows, bool keys, int b, int token,
                                          int head, int lane, float (&x)[kOwn]) {
  const int fresh = token - cache.length(b), first = lane * kOwn;
  if (fresh >= 0) {
    const int64_t index = rows.key(cache, b, fresh, head) + (keys ? 0 : cache.kv_heads * kDim) + first;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) x[i] = rows.load(index + i);
  } else {
    const Place place{cache.window_page(b, token), token % kExactTokens};
    read_exact(cache, place, head, keys, lane, x);
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if ((keys ? cache.keys : cache.values).rounded) x[i] = round_to_half(x[i]);
  }
}

/// The mixing of the heads of a group of append_tokens.cu, for the head `own` of it; all: the elements of every head.
__device__ __forceinline__ float mixed(const float* all, int heads, int own) {
  if (heads == 2) {
    const float a = all[0], b = all[kDim];
    return __fmul_rn(own == 0 ? __fadd_rn(a, b) : __fsub_rn(a, b), 0.70710678118654752f);
  }
  const float x0 = all[0], x1 = all[kDim], x2 = all[2 * kDim], x3 = all[3 * kDim];
  const float a = own % 2 == 0 ? __fadd_rn(x0, x1) : __fsub_rn(x0, x1);
  const float c = own % 2 == 0 ? __fadd_rn(x2, x3) : __fsub_rn(x2, x3);
  return __fmul_rn(own < 2 ? __fadd_rn(a, c) : __fsub_rn(a, c), 0.5f);
}

/// shared: of the block's heads, first_head and after.
__device__ __forceinline__ void put_side(const CacheView& cache, const SideView& side, const NewRows& rows, int b,
                                         int token, int first_head, float* shared) {
  const bool keys = &side == &cache.keys;
  const int lane = threadIdx.x % kWarp, head = first_head + threadIdx.x / kWarp,
            tile = token % kPageTokens / kTileTokens;
  const int in_tile = token % kTileTokens, shift = in_tile % 4 * 2;
  uint8_t* page = cache.page(b, token / kPageTokens);
  // The warp's group, and where its channels' codes are.
  int channel[kOwn];
  uint8_t* field[kOwn];
  unsigned old[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int place = head * kDim + lane * kOwn + i;
    channel[i] = side.order != nullptr ? side.order[place] : place;
    field[i] = page + side.tile(channel[i] / kDim, tile) + channel[i] % kDim * 4 + in_tile / 4;
    old[i] = *field[i];
  }
  float x[kOwn];
  load_head(cache, rows, keys, b, token, head, lane, x);
  if (keys && cache.keys_pre_rope == 0) turn_head(cache, token, lane, x);
  if (side.rotation_heads != 0) walsh_hadamard(x, lane);
  float* own = shared + threadIdx.x * kOwn;
  const int together = side.rotation_heads;
  if (together > 1) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) own[i] = x[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kOwn; ++i) x[i] = mixed(own - head % together * kDim + i, together, head % together);
    __syncthreads();
  }
  if (side.order != nullptr) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) own[i] = x[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kOwn; ++i) x[i] = shared[channel[i] - first_head * kDim];
  }
  float low = INFINITY, high = -INFINITY;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    low = fminf(low, x[i]);
    high = fmaxf(high, x[i]);
  }
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    low = fminf(low, __shfl_xor_sync(0xffffffffu, low, step));
    high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, step));
  }
  const float2 range = affine_group(low, high, side);
  if (lane == 0) {
    auto* scales = reinterpret_cast<__half*>(page + side.scales(tile, head));
    scales[in_tile] = __float2half_rn(range.x);
    scales[kTileTokens + in_tile] = __float2half_rn(range.y);
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const unsigned code = affine_code(x[i], range, side);
    *field[i] = static_cast<uint8_t>((old[i] & ~(3u << shift)) | code << shift);
  }
}

__global__ void __launch_bounds__(kMostHeads* kWarp)
    append_affine_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows) {
  __shared__ float shared[kMostHeads * kDim];
  const int b = blockIdx.y, first_head = static_cast<int>(blockIdx.z * blockDim.x / kWarp);
  const int length = cache.length(b), count = rows.count(b);
  const int end = count > 0 ? cache.quantized(b, length + count) : 0;
  for (int token = cache.quantized(b, length); token < end; ++token) {
    put_side(cache, blockIdx.x == 0 ? cache.keys : cache.values, rows, b, token, first_head, shared);
    __syncthreads();
  }
}

int most_rotated(const CacheView& cache) {
  return std::max({1, cache.keys.rotation_heads, cache.values.rotation_heads});
}

/// How many heads a block takes: as many as fit of those that exchange channels, or all.
int block_heads(const CacheView& cache) {
  const auto across = [](const SideView& x) { return x.order != nullptr && !x.local_order; };
  const bool ordered = cache.keys.order != nullptr || cache.values.order != nullptr;
  const int together = ordered ? kRotatedHeads : most_rotated(cache);
  if (cache.kv_heads <= kUsualHeads || across(cache.keys) || across(cache.values)) return cache.kv_heads;
  for (int heads = kUsualHeads; heads > 0; heads -= together) {
    if (cache.kv_heads % heads == 0) return heads;
  }
  return cache.kv_heads;
}

}  // namespace

bool append_affine_supports(const CacheView& cache) {
  const auto side = [](const SideView& x) {
    return x.format == Format::kAffine && x.bits == 2 && x.group_size == kDim && x.mean == nullptr &&
           x.basis_heads == 0 && x.rotation_heads != 3 && x.rotation_heads <= 4;
  };
  return cache.head_dim == kDim && side(cache.keys) && side(cache.values) &&
         cache.kv_heads % most_rotated(cache) == 0 && block_heads(cache) <= kMostHeads;
}

void append_affine(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  const int heads = block_heads(cache);
  const dim3 blocks(2, static_cast<unsigned>(cache.batch), static_cast<unsigned>(cache.kv_heads / heads));
  launch("append", append_affine_kernel, {blocks, static_cast<unsigned>(heads * kWarp), 0, stream}, cache,
         NewRows{tokens});
}

}  // namespace kvquant::cuda
