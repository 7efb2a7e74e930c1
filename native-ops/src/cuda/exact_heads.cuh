/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The part of rotatekv2's attention that is kept exactly, by plain code: head_dim 128, an order across the layer.
#pragma once
#include "elements.cuh"
#include "query_state.cuh"

namespace kvquant::cuda {

/// The exact part, a warp a query head: sinks, wherever they are, then the window.
__device__ __noinline__ inline void attend_exact_heads(const CacheView& cache, const Attention& p, int b,
                                                       int first_head, int part) {
  constexpr int kDim = 128, n = kDim / kWarp;
  const int lane = threadIdx.x % kWarp, per_head = cache.heads / cache.kv_heads;
  const int position = cache.length(b), quantized = cache.quantized(b, position + 1);
  const float scale = cache.score_scale * kLog2e;
  for (int i = threadIdx.x / kWarp; i < kRotatedHeads * per_head; i += blockDim.x / kWarp) {
    const int head = first_head * per_head + i, kv_head = first_head + i / per_head;
    float q[n];
    const int64_t row = static_cast<int64_t>(b) * (cache.heads + 2 * cache.kv_heads) + head;
#pragma unroll
    for (int j = 0; j < n; ++j) q[j] = load_element(p.type, p.qkv, row * kDim + lane * n + j) * scale;
    turn_head(cache, position, lane, q);
    QueryState<n> state;
    const auto add = [&](const Place& place, int token) {
      float k[n], v[n];
      read_exact(cache, place, kv_head, true, lane, k);
      read_exact(cache, place, kv_head, false, lane, v);
      turn_head(cache, token, lane, k);
      state.add(dot(q, k), v, false);
    };
    for (int slot = 0; slot < cache.sink_pages * kExactTokens; ++slot) {
      const uint8_t* page = cache.sink_page(b, slot / kExactTokens);
      const int token = reinterpret_cast<const ExactHeader*>(page)->tokens[slot % kExactTokens];
      if (token >= 0 && token <= position) add({page, slot % kExactTokens}, token);
    }
    for (int token = quantized; token <= position; ++token) {
      const Place place = find_token(cache, b, token, quantized);
      if (place.exact == cache.window_page(b, token)) add(place, token);  // else it is a sink
    }
    const int64_t to = (static_cast<int64_t>(b) * cache.heads + head) * p.parts + part;
#pragma unroll
    for (int j = 0; j < n; ++j) p.sums[to * kDim + lane * n + j] = state.natural[j];
    if (lane == 0) p.ranges[to] = make_float2(state.maximum, state.weights);
  }
}

}  // namespace kvquant::cuda
