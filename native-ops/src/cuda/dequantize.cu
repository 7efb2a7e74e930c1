/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Reads tokens back into the natural basis, keys after RoPE, for attention of a prompt's chunk over its past. A warp
// takes a token and kv head; a permutation of channels goes through shared memory.
#include "elements.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "token_reader.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kWarps = 8;

template <int D, class Element>
__global__ void __launch_bounds__(kWarps* kWarp) dequantize_kernel(const __grid_constant__ CacheView cache, Rows rows) {
  constexpr int n = D / kWarp;
  __shared__ float scratch[kWarps][D];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, kv_head = blockIdx.y, b = rows.sequence;
  const int token = rows.begin + blockIdx.x * kWarps + warp;
  if (token >= rows.end) return;
  const Place place = find_token(cache, b, token, cache.quantized(b, cache.length(b)));
  float k[n], v[n];
  if (place.exact != nullptr) {
    read_exact(cache, place, kv_head, true, lane, k);
    read_exact(cache, place, kv_head, false, lane, v);
    turn_head(cache, token, lane, k);
  } else {
    const uint8_t* page = cache.page(b, token / kPageTokens);
    read_key<D>(cache, page, kv_head, token, lane, scratch[warp], k);
    read_stored(cache.values, page, kv_head, token % kPageTokens, lane, v);
    if (cache.values.rotated) walsh_hadamard(v, lane);
  }
  const int64_t to = (static_cast<int64_t>(kv_head) * (rows.end - rows.begin) + token - rows.begin) * D + lane * n;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    static_cast<Element*>(rows.k)[to + i] = from_float<Element>(k[i]);
    static_cast<Element*>(rows.v)[to + i] = from_float<Element>(v[i]);
  }
}

template <int D>
void dequantize_dim(const CacheView& cache, const Rows& rows, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((rows.end - rows.begin + kWarps - 1) / kWarps);
  const LaunchShape shape{dim3(blocks, static_cast<unsigned>(cache.kv_heads)), kWarps * kWarp, 0, stream};
  if (rows.type == ElementType::kFloat32) launch("dequantize", dequantize_kernel<D, float>, shape, cache, rows);
  if (rows.type == ElementType::kFloat16) launch("dequantize", dequantize_kernel<D, __half>, shape, cache, rows);
}

}  // namespace

void dequantize(const CacheView& cache, const Rows& rows, cudaStream_t stream) {
  if (rows.begin >= rows.end) return;
  if (cache.head_dim == 64) {
    dequantize_dim<64>(cache, rows, stream);
  } else {
    dequantize_dim<128>(cache, rows, stream);
  }
}

}  // namespace kvquant::cuda
