/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// What a prompt's attention needs beside the cache: queries, keys and values of the new tokens by head, turned to their
// positions, and the bias of scores of coded keys.
#include "elements.cuh"
#include "kernels.h"
#include "launch.cuh"

namespace kvquant::cuda {
namespace {

/// One block a token and head; a thread turns one pair of channels.
template <class Element>
__global__ void rope_heads_kernel(CacheView cache, RopeHeads p) {
  const int64_t token = blockIdx.x;
  const int head = blockIdx.y, half = cache.head_dim / 2, pair = threadIdx.x;
  int b = 0;
  while (b + 1 < cache.batch && p.tokens.starts[b + 1] <= token) ++b;
  const auto position = static_cast<int>(cache.length(b) + token - p.tokens.starts[b]);
  const auto* x = static_cast<const Element*>(p.tokens.qkv) +
                  (token * (cache.heads + 2 * cache.kv_heads) + head) * static_cast<int64_t>(cache.head_dim);
  float2 value = make_float2(to_float(x[pair]), to_float(x[pair + half]));
  const bool turned = head < cache.heads + cache.kv_heads;
  if (turned) value = turn(value.x, value.y, rope_angle(cache, position, pair));
  void* side = head < cache.heads ? p.q : turned ? p.k : p.v;
  const int row = head < cache.heads ? head : turned ? head - cache.heads : head - cache.heads - cache.kv_heads;
  auto* out = static_cast<Element*>(side) + (row * static_cast<int64_t>(p.tokens.count) + token) * cache.head_dim;
  out[pair] = from_float<Element>(value.x);
  out[pair + half] = from_float<Element>(value.y);
}

/// A warp per query.
template <class Element>
__global__ void score_bias_kernel(CacheView cache, ScoreBias p) {
  const int64_t query = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (query >= p.tokens * cache.heads) return;
  const auto kv_head = static_cast<int>(query / p.tokens / (cache.heads / cache.kv_heads));
  float sum = 0.0f;
  for (int c = lane; c < cache.head_dim && cache.keys.noise != nullptr; c += kWarp) {
    const float x = to_float(static_cast<const Element*>(p.q)[query * cache.head_dim + c]);
    sum += x * x * cache.keys.noise[kv_head * cache.head_dim + c];
  }
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (lane == 0) p.out[query] = 0.5f * cache.score_scale * cache.score_scale * sum;
}

}  // namespace

void rope_heads(const CacheView& cache, const RopeHeads& heads, cudaStream_t stream) {
  if (heads.tokens.count == 0) return;
  const LaunchShape shape{
      dim3(static_cast<unsigned>(heads.tokens.count), static_cast<unsigned>(cache.heads + 2 * cache.kv_heads)),
      static_cast<unsigned>(cache.head_dim / 2), 0, stream};
  const ElementType type = heads.tokens.type;
  if (type == ElementType::kFloat32) launch("rope_heads", rope_heads_kernel<float>, shape, cache, heads);
  if (type == ElementType::kFloat16) launch("rope_heads", rope_heads_kernel<__half>, shape, cache, heads);
  if (type == ElementType::kBFloat16) launch("rope_heads", rope_heads_kernel<__nv_bfloat16>, shape, cache, heads);
}

void score_bias(const CacheView& cache, const ScoreBias& bias, cudaStream_t stream) {
  constexpr unsigned kThreads = 128;
  const int64_t queries = bias.tokens * cache.heads;
  if (queries == 0) return;
  const LaunchShape shape{dim3(static_cast<unsigned>((queries + kThreads / kWarp - 1) / (kThreads / kWarp))), kThreads,
                          0, stream};
  if (bias.type == ElementType::kFloat32) launch("score_bias", score_bias_kernel<float>, shape, cache, bias);
  if (bias.type == ElementType::kFloat16) launch("score_bias", score_bias_kernel<__half>, shape, cache, bias);
  if (bias.type == ElementType::kBFloat16) launch("score_bias", score_bias_kernel<__nv_bfloat16>, shape, cache, bias);
}

}  // namespace kvquant::cuda
