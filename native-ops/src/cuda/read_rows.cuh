/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// What kernels share that dequantize tile by tile: which tokens of a tile are asked for, where they go, and the few of
// which there are exact copies. Of head_dim 128, or two heads of 64 a warp: kv_head is then that of the lane's half.
#pragma once
#include "elements.cuh"
#include "kernels.h"
#include "ptx.cuh"
#include "token_reader.cuh"

namespace kvquant::cuda {

constexpr int kReadDim = 128, kReadPairs = kReadDim / 2;
/// From the angles of one token of a tile to the next.
constexpr int kReadAngleStride = kReadPairs + 2;

__device__ __forceinline__ uint32_t two_halves(float low, float high) {
  const __half2 x = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&x);
}

template <int D = kReadDim>
__device__ __forceinline__ __half* row_of(void* side, const Rows& rows, int kv_head, int token) {
  return static_cast<__half*>(side) +
         (static_cast<int64_t>(kv_head) * (rows.end - rows.begin) + token - rows.begin) * D;
}

/// Tokens of a tile that are asked for, a bit each: those in pages, the recent ones, sinks that are the first tokens
/// and massive ones.
struct TileTokens {
  unsigned stored, recent, first, massive;
};

__device__ __forceinline__ TileTokens tile_tokens(const CacheView& cache, const Rows& rows, int tile, int lane) {
  const int token = tile * kTileTokens + lane % kTileTokens, b = rows.sequence;
  unsigned first = 0, massive = 0;
  if (cache.sink_policy == SinkPolicy::kFirst && tile < cache.sink_pages) {
    const auto* header = reinterpret_cast<const ExactHeader*>(cache.sink_page(b, tile));
    first = __ballot_sync(0xffffffffu, lane < kTileTokens && header->tokens[lane % kTileTokens] == token);
  } else if (cache.sink_policy == SinkPolicy::kMassive) {
    for (int page = 0; page < cache.sink_pages; ++page) {
      const auto* header = reinterpret_cast<const ExactHeader*>(cache.sink_page(b, page));
      const int held = header->tokens[lane % kTileTokens];
      if (held >= 0 && held / kTileTokens == tile) massive |= 1u << (held % kTileTokens);
    }
#pragma unroll
    for (int step = 1; step < kTileTokens; step *= 2) massive |= __shfl_xor_sync(0xffffffffu, massive, step);
  }
  const bool asked = lane < kTileTokens && token >= rows.begin && token < rows.end;
  const unsigned wanted = __ballot_sync(0xffffffffu, asked), sinks = first | massive;
  const unsigned in_pages = __ballot_sync(0xffffffffu, token < cache.quantized(b, cache.length(b)));
  return {wanted & ~sinks & in_pages, wanted & ~sinks & ~in_pages, wanted & first, wanted & massive};
}

/// k or v of the tokens of an exact page that have their bit set; they are those of a tile. angle(t): of token t of the
/// tile and pairs 2 lane and 2 lane + 1. A warp's work.
template <int D, class Angle>
__device__ __forceinline__ void copy_exact_page(const CacheView& cache, const Rows& rows, const uint8_t* page,
                                                int kv_head, bool keys, int tile, unsigned tokens, int lane,
                                                Angle angle) {
  const int own = D == kReadDim ? lane : lane % (D / 4);
  uint4 words[4][2];  // of channels 2 own, 2 own + 1 and those D / 2 ahead
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int channel = i / 2 * (D / 2) + own * 2 + i % 2;
    const auto* from = reinterpret_cast<const uint4*>(
        page + (keys ? cache.exact_key(kv_head, channel) : cache.exact_value(kv_head, channel)));
    words[i][0] = from[0];
    words[i][1] = from[1];
  }
#pragma unroll
  for (int t = 0; t < kTileTokens; ++t) {
    if ((tokens >> t & 1u) == 0) continue;
    const int token = tile * kTileTokens + t;
    float x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 eight = words[i][t / 8];
      const uint32_t two = t / 2 % 4 == 0 ? eight.x : t / 2 % 4 == 1 ? eight.y : t / 2 % 4 == 2 ? eight.z : eight.w;
      x[i] = __half2float(__ushort_as_half(static_cast<unsigned short>(two >> (t % 2 * 16))));
    }
    if (keys) {
      const float4 two = angle(t);
      const float2 first = turn(x[0], x[2], make_float2(two.x, two.y));
      const float2 second = turn(x[1], x[3], make_float2(two.z, two.w));
      x[0] = first.x;
      x[1] = second.x;
      x[2] = first.y;
      x[3] = second.y;
    }
    auto* to = reinterpret_cast<uint32_t*>(row_of<D>(keys ? rows.k : rows.v, rows, kv_head, token));
    to[own] = two_halves(x[0], x[1]);
    to[own + D / 4] = two_halves(x[2], x[3]);
  }
}

/// k or v of tokens of a tile of which there is an exact copy; a warp's work. Of head_dim 64 without massive sinks.
template <int D = kReadDim, class Angle>
__device__ __forceinline__ void copy_exact(const CacheView& cache, const Rows& rows, int kv_head, bool keys, int tile,
                                           const TileTokens& tokens, int lane, Angle angle) {
  const int b = rows.sequence;
#pragma unroll 1
  for (int i = 0; i < 2; ++i) {
    const unsigned some = i == 0 ? tokens.recent : tokens.first;
    if (some == 0) continue;
    const uint8_t* page = i == 0 ? cache.window_page(b, tile * kTileTokens) : cache.sink_page(b, tile);
    copy_exact_page<D>(cache, rows, page, kv_head, keys, tile, some, lane, angle);
  }
  if constexpr (D == kReadDim) {
    for (unsigned left = tokens.massive; left != 0; left &= left - 1) {
      const int token = tile * kTileTokens + __ffs(static_cast<int>(left)) - 1;
      float x[D / kWarp];
      read_exact(cache, find_token(cache, b, token, token), kv_head, keys, lane, x);
      if (keys) turn_head(cache, token, lane, x);
      *reinterpret_cast<uint2*>(row_of(keys ? rows.k : rows.v, rows, kv_head, token) + lane * 4) =
          make_uint2(two_halves(x[0], x[1]), two_halves(x[2], x[3]));
    }
  }
}

template <int D = kReadDim>
__device__ __forceinline__ void copy_exact_values(const CacheView& cache, const Rows& rows, int kv_head, int tile,
                                                  const TileTokens& tokens, int lane) {
  copy_exact<D>(cache, rows, kv_head, false, tile, tokens, lane,
                [](int) { return make_float4(1.0f, 0.0f, 1.0f, 0.0f); });
}

/// Cosines and sines of the 16 positions of a tile, [16][kReadAngleStride]; a block's work.
__device__ __forceinline__ void read_angles(const CacheView& cache, int tile, float2* angles) {
#pragma unroll 4
  for (int i = threadIdx.x; i < kTileTokens * kReadPairs; i += blockDim.x) {
    const int token = i % kTileTokens, pair = i / kTileTokens;
    angles[token * kReadAngleStride + pair] = rope_angle(cache, tile * kTileTokens + token, pair);
  }
}

}  // namespace kvquant::cuda
