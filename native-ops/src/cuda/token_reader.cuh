/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// One head of one token as attention sees it, read by a warp: the device's core/token_reader.h, written for reading.
// Lane l holds channels (or places) l n .. l n + n - 1; a channel and its partner in RoPE, D / 2 apart, are in lanes 16
// apart.
#pragma once
#include "cache_view.cuh"

namespace kvquant::cuda {

/// Where a token is read from. Sinks come before all else, then pages.
struct Place {
  const uint8_t* exact;  // page and slot of an exact copy; nullptr: the token is in a page, in codes or as it is
  int slot;
};

/// Looks for an exact copy of a token of a sequence; of it, tokens [0, quantized) are in pages.
__device__ inline Place find_token(const CacheView& cache, int b, int token, int quantized) {
  for (int page = 0; page < cache.sink_pages && token < cache.max_sinks; ++page) {  // sinks are among the first tokens
    const uint8_t* exact = cache.sink_page(b, page);
    const auto* header = reinterpret_cast<const ExactHeader*>(exact);
    for (int slot = 0; slot < kExactTokens; ++slot) {
      if (header->tokens[slot] == token) return {exact, slot};
    }
  }
  if (token < quantized) return {nullptr, 0};
  return {cache.window_page(b, token), token % kExactTokens};
}

/// Turns a head to a position, in place.
template <int n>
__device__ void turn_head(const CacheView& cache, int position, int lane, float (&x)[n]) {
  const bool upper = lane >= kWarp / 2;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const float other = __shfl_xor_sync(0xffffffffu, x[i], kWarp / 2);
    const float2 angle = rope_angle(cache, position, (lane % (kWarp / 2)) * n + i);
    const float2 y = upper ? turn(other, x[i], angle) : turn(x[i], other, angle);
    x[i] = upper ? y.y : y.x;
  }
}

/// What is stored of a side of a token: by place (kStatic), else by channel, rotated if the side is.
template <int n>
__device__ void read_stored(const SideView& side, const uint8_t* page, int kv_head, int slot, int lane, float (&x)[n]) {
  constexpr int kRun = n * kWarp / kWidthRuns;
  const int tile = slot / kTileTokens, token = slot % kTileTokens;
  const uint8_t* codes = page + side.tile(kv_head, tile);
  float norm = 0.0f;
  if (side.format == Format::kNorm) {
    const uint8_t* norms = page + side.norms + tile * side.norm_tile_bytes + kv_head * kTileTokens * 2;
    norm = __half2float(reinterpret_cast<const __half*>(norms)[token]);
  }
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const int place = lane * n + i;
    if (side.format == Format::kStatic) {
      const int bits = side.width[place / kRun];
      const float* step = side.steps + 2 * (kv_head * n * kWarp + place);
      const uint8_t* field = codes + side.run_begin[place / kRun] + place % kRun * 2 * bits;
      x[i] = bits == 0 ? 0.0f : step[0] + step[1] * static_cast<float>(get_code(field, token, bits));
    } else {
      const uint8_t* field = codes + place * 2 * side.bits;
      if (side.format == Format::kNorm) x[i] = norm * side.levels[get_code(field, token, side.bits)];
      if (side.format == Format::kFloat16) x[i] = __half2float(reinterpret_cast<const __half*>(field)[token]);
      if (side.format == Format::kFloat32) x[i] = reinterpret_cast<const float*>(field)[token];
    }
  }
}

template <int n>
__device__ void read_exact(const CacheView& cache, const Place& place, int kv_head, bool key, int lane, float (&x)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const int64_t offset = key ? cache.exact_key(kv_head, lane * n + i) : cache.exact_value(kv_head, lane * n + i);
    x[i] = __half2float(reinterpret_cast<const __half*>(place.exact + offset)[place.slot]);
  }
}

/// The channel at a place of a head.
template <int D>
__device__ int channel_at(const SideView& side, int kv_head, int place) {
  return side.order == nullptr ? place : side.order[kv_head * D + place] - kv_head * D;
}

}  // namespace kvquant::cuda
