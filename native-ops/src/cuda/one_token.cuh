/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// What append_one.cu and append_latent.cu share: a warp takes a head of a token, a lane 2 or 4 channels; values with a
// norm. Sums are in channel order, as those of the portable operator: 128 additions that wait
// for each other, which reads of shared memory must not wait for in turn.
#pragma once
#include "append.cuh"
#include "codes.cuh"
#include "even_levels.cuh"
#include "token_reader.cuh"

namespace kvquant::cuda {

struct Place16 {
  int b, kv_head, token, lane;
  uint8_t* page;

  __device__ int tile() const { return token % kPageTokens / kTileTokens; }
  __device__ int in_tile() const { return token % kTileTokens; }
};

/// k or v of a token, new or from the window; rounded, without the mean.
template <int n>
__device__ __forceinline__ void load_token(const CacheView& cache, const NewRows& rows, const Place16& at, bool keys,
                                           float (&x)[n]) {
  const SideView& side = keys ? cache.keys : cache.values;
  const int fresh = at.token - cache.length(at.b), first = at.lane * n;
  const int64_t index =
      fresh >= 0 ? rows.key(cache, at.b, fresh, at.kv_head) + (keys ? 0 : cache.kv_heads * n * kWarp) + first : 0;
  const uint8_t* window = fresh >= 0
                              ? nullptr
                              : cache.window_page(at.b, at.token) + at.in_tile() * 2 +
                                    (keys ? cache.exact_key(at.kv_head, first) : cache.exact_value(at.kv_head, first));
#pragma unroll
  for (int i = 0; i < n; ++i) {
    x[i] = fresh >= 0 ? rows.load(index + i)
                      : __half2float(*reinterpret_cast<const __half*>(window + i * (kExactTokens * 2)));
    if (side.rounded) x[i] = round_to_half(x[i]);
    if (side.mean != nullptr) x[i] = __fsub_rn(x[i], side.mean[at.kv_head * (n * kWarp) + first + i]);
  }
}

/// The sum of the terms of an array in shared memory, in order.
template <int n, class Term>
__device__ __forceinline__ float sum_in_order(const float (&x)[n], Term term) {
  const auto* fours = reinterpret_cast<const float4*>(x);
  const auto add = [&](float sum, const float4& y) {
    return __fadd_rn(__fadd_rn(__fadd_rn(__fadd_rn(sum, term(y.x)), term(y.y)), term(y.z)), term(y.w));
  };
  float4 a = fours[0], b = fours[1];
  float sum = 0.0f;
#pragma unroll 1
  for (int i = 0; i < n / 4; i += 2) {
    const int next = min(i + 2, n / 4 - 2);
    const float4 c = fours[next], d = fours[next + 1];
    sum = add(add(sum, a), b);
    a = c;
    b = d;
  }
  return sum;
}

/// Puts a code into the byte or two that it shares with those of other tokens.
template <int bits>
__device__ __forceinline__ void put_shared(uint8_t* to, unsigned old, int shift, float code) {
  const unsigned mask = ((1u << bits) - 1u) << shift, now = (old & ~mask) | static_cast<unsigned>(code) << shift;
  to[0] = static_cast<uint8_t>(now);
  if (bits == 3 && shift + bits > 8) to[1] = static_cast<uint8_t>(now >> 8);
}

/// What is there.
template <int bits>
__device__ __forceinline__ unsigned shared_bytes(const uint8_t* from, int shift) {
  const unsigned low = bits < 8 ? from[0] : 0u;
  return bits == 3 && shift + bits > 8 ? low | static_cast<unsigned>(from[1]) << 8 : low;
}

/// Codes the value of a token, whose levels are evenly spaced. values, products: of the warp alone.
template <int bits, int dim>
__device__ __forceinline__ void put_value(const CacheView& cache, const NewRows& rows, const Place16& at,
                                          float (&values)[dim], float (&products)[dim]) {
  constexpr int n = dim / kWarp;
  const SideView& side = cache.values;
  const int first = at.lane * n, bit = at.in_tile() * bits, shift = bit % 8;
  uint8_t* field = at.page + side.tile(at.kv_head, at.tile()) + first * 2 * bits + bit / 8;
  float x[n];
  unsigned old[n], doubts = 0;
#pragma unroll
  for (int i = 0; i < n; ++i) old[i] = shared_bytes<bits>(field + i * 2 * bits, shift);
  load_token(cache, rows, at, false, x);
  if (side.rotated) walsh_hadamard(x, at.lane);
#pragma unroll
  for (int i = 0; i < n; ++i) values[first + i] = x[i];
  __syncwarp();
  const float square = sum_in_order(values, [](float y) { return __fmul_rn(y, y); });
  const EvenLevels<bits> levels(side.level_step);
  const TokenLevels token = levels.of(__fsqrt_rn(__fdiv_rn(square, static_cast<float>(dim))));
#pragma unroll
  for (int i = 0; i < n; ++i) {
    bool doubt = false;
    const float code = levels.rounded(x[i], token, doubt) - levels.kRound;
    doubts |= doubt ? 1u << i : 0u;
    products[first + i] = __fmul_rn(x[i], levels.level(code));
    put_shared<bits>(field + i * 2 * bits, old[i], shift, code);
  }
#pragma unroll 1
  for (; doubts != 0; doubts &= doubts - 1) {
    const int i = __ffs(static_cast<int>(doubts)) - 1;
    bool doubt = false;
    const float y = values[first + i], near = levels.rounded(y, token, doubt) - levels.kRound;
    const float code = nearest_even(levels, y, token.rms, near);
    products[first + i] = __fmul_rn(y, levels.level(code));
    put_shared<bits>(field + i * 2 * bits, shared_bytes<bits>(field + i * 2 * bits, shift), shift, code);
  }
  __syncwarp();
  const float product = sum_in_order(products, [](float y) { return y; });
  if (at.lane > 0) return;
  uint8_t* norms = at.page + side.norms + at.tile() * side.norm_tile_bytes + at.kv_head * kTileTokens * 2;
  reinterpret_cast<__half*>(norms)[at.in_tile()] = __float2half_rn(norm_of(square, product));
}

}  // namespace kvquant::cuda
