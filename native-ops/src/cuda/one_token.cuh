/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// What append_one.cu and append_latent.cu share, head_dim 128: a warp takes a head of a token, a lane 4 channels;
// values of 2 bits with a norm. Sums are in channel order, as those of the portable operator: 128 additions that wait
// for each other, which reads of shared memory must not wait for in turn.
#pragma once
#include "append.cuh"
#include "codes.cuh"
#include "token_reader.cuh"

namespace kvquant::cuda {

constexpr int kOneDim = 128, kOneOwn = kOneDim / kWarp;

struct Place16 {
  int b, kv_head, token, lane;
  uint8_t* page;

  __device__ int tile() const { return token % kPageTokens / kTileTokens; }
  __device__ int in_tile() const { return token % kTileTokens; }
};

/// k or v of a token, new or from the window; rounded, without the mean.
__device__ __forceinline__ void load_token(const CacheView& cache, const NewRows& rows, const Place16& at, bool keys,
                                           float (&x)[kOneOwn]) {
  const SideView& side = keys ? cache.keys : cache.values;
  const int fresh = at.token - cache.length(at.b), first = at.lane * kOneOwn;
  const int64_t index =
      fresh >= 0 ? rows.key(cache, at.b, fresh, at.kv_head) + (keys ? 0 : cache.kv_heads * kOneDim) + first : 0;
  const uint8_t* window = fresh >= 0
                              ? nullptr
                              : cache.window_page(at.b, at.token) + at.in_tile() * 2 +
                                    (keys ? cache.exact_key(at.kv_head, first) : cache.exact_value(at.kv_head, first));
#pragma unroll
  for (int i = 0; i < kOneOwn; ++i) {
    x[i] = fresh >= 0 ? rows.load(index + i)
                      : __half2float(*reinterpret_cast<const __half*>(window + i * (kExactTokens * 2)));
    if (side.rounded) x[i] = round_to_half(x[i]);
    if (side.mean != nullptr) x[i] = __fsub_rn(x[i], side.mean[at.kv_head * kOneDim + first + i]);
  }
}

/// The sum of an array in shared memory, in order.
__device__ __forceinline__ float sum_in_order(const float (&x)[kOneDim]) {
  const auto* fours = reinterpret_cast<const float4*>(x);
  float4 a = fours[0], b = fours[1];
  float sum = 0.0f;
#pragma unroll 1
  for (int i = 0; i < kOneDim / 4; i += 2) {
    const int next = min(i + 2, kOneDim / 4 - 2);
    const float4 c = fours[next], d = fours[next + 1];
    sum = __fadd_rn(__fadd_rn(__fadd_rn(__fadd_rn(sum, a.x), a.y), a.z), a.w);
    sum = __fadd_rn(__fadd_rn(__fadd_rn(__fadd_rn(sum, b.x), b.y), b.z), b.w);
    a = c;
    b = d;
  }
  return sum;
}

/// Codes the value of a token. squares, products: of the warp alone.
template <int bits = 2>
__device__ __forceinline__ void put_value(const CacheView& cache, const NewRows& rows, const Place16& at,
                                          float (&squares)[kOneDim], float (&products)[kOneDim]) {
  static_assert(bits == 2 || bits == 4, "codes lie within bytes");
  constexpr int kLevels = 1 << bits, kPerByte = 8 / bits;
  const SideView& side = cache.values;
  const int first = at.lane * kOneOwn, shift = at.in_tile() % kPerByte * bits;
  uint8_t* field = at.page + side.tile(at.kv_head, at.tile()) + first * 2 * bits + at.in_tile() / kPerByte;
  float x[kOneOwn], level[kLevels], middles[kLevels - 1];
  unsigned old[kOneOwn];
#pragma unroll
  for (int i = 0; i < kOneOwn; ++i) old[i] = field[i * 2 * bits];
#pragma unroll
  for (int i = 0; i < kLevels; ++i) level[i] = side.levels[i];
#pragma unroll
  for (int i = 0; i < kLevels - 1; ++i) middles[i] = __fmul_rn(0.5f, __fadd_rn(level[i], level[i + 1]));
  load_token(cache, rows, at, false, x);
  if (side.rotated) walsh_hadamard(x, at.lane);
#pragma unroll
  for (int i = 0; i < kOneOwn; ++i) squares[first + i] = __fmul_rn(x[i], x[i]);
  __syncwarp();
  const float square = sum_in_order(squares);
  const float rms = __fsqrt_rn(__fdiv_rn(square, static_cast<float>(kOneDim))), inverse = 1.0f / rms;
#pragma unroll
  for (int i = 0; i < kOneOwn; ++i) {
    const int code = nearest_level(x[i], rms, inverse, middles);
    float chosen = level[0];
#pragma unroll
    for (int j = 1; j < kLevels; ++j) chosen = code == j ? level[j] : chosen;
    products[first + i] = __fmul_rn(x[i], chosen);
    field[i * 2 * bits] =
        static_cast<uint8_t>((old[i] & ~((kLevels - 1u) << shift)) | static_cast<unsigned>(code) << shift);
  }
  __syncwarp();
  const float product = sum_in_order(products);
  if (at.lane > 0) return;
  uint8_t* norms = at.page + side.norms + at.tile() * side.norm_tile_bytes + at.kv_head * kTileTokens * 2;
  reinterpret_cast<__half*>(norms)[at.in_tile()] = __float2half_rn(norm_of(square, product));
}

}  // namespace kvquant::cuda
