/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Codes of latent2's keys that append_latent_tiles.cu is not sure of: a sum is so near to a border between codes that
// the portable operator, whose sums are rounded, might have the other one. It is done again with its additions in its
// order, several at a time: each lane has some products of one, and a lane adds those of one. What it was taken for has
// been stored: bits are flipped.
#pragma once
#include "append_values.cuh"
#include "codes.cuh"
#include "latent_rows.h"

namespace kvquant::cuda {

/// Codes that are done again at a time: as many as leave room for 16 runs where a block has 99 KB.
constexpr int kAgain = 6;
constexpr int kProductStride = kRowDim + 4;

/// A code to be done again.
struct Doubt {
  const uint8_t* token;  // its keys; those of the window are apart
  uint8_t* field;        // codes of the place and tile
  uint32_t what;         // place + token of the tile 2^8 + what it was taken for 2^16 + 2^24, if it comes of the window
};
/// A warp's.
struct alignas(16) Doubts {
  float products[kAgain][kProductStride];
  Doubt list[kAgain - 1 + kWarp];
};

/// Four channels of a doubtful token, of the window or of another type.
static __device__ __noinline__ uint2 load_four(ElementType type, const Doubt& doubt, int lane) {
  if (doubt.what >> 24 == 0) return four_halves(type, doubt.token, lane * 4);
  const auto* from = reinterpret_cast<const uint16_t*>(doubt.token) + lane * 4 * kExactTokens;
  return make_uint2(from[0] | static_cast<uint32_t>(from[kExactTokens]) << 16,
                    from[2 * kExactTokens] | static_cast<uint32_t>(from[3 * kExactTokens]) << 16);
}

/// Does n codes again.
__device__ __forceinline__ void code_again(const CacheView& cache, const NewRows& rows, int kv_head, Doubts& own,
                                           int begin, int n) {
  const int lane = threadIdx.x % kWarp;
  const float* basis = cache.keys.basis + static_cast<int64_t>(kv_head) * kRowDim * kRowDim + lane * 4;
  float4 mean = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (cache.keys.mean != nullptr) {
    const float* means = cache.keys.mean + kv_head * kRowDim + lane * 4;
    mean = make_float4(means[0], means[1], means[2], means[3]);
  }
  float4 row[kAgain];
  uint2 four[kAgain];
#pragma unroll
  for (int i = 0; i < kAgain; ++i) {
    const Doubt& doubt = own.list[begin + min(i, n - 1)];
    row[i] = __ldg(reinterpret_cast<const float4*>(basis + (doubt.what & 127u) * kRowDim));
    if (rows.tokens.type == ElementType::kFloat16 && doubt.what >> 24 == 0) {
      four[i] = __ldg(reinterpret_cast<const uint2*>(doubt.token) + lane);
    } else {
      four[i] = load_four(rows.tokens.type, doubt, lane);
    }
  }
  const Doubt doubt = own.list[begin + min(lane, n - 1)];
  const int place = static_cast<int>(doubt.what & 127u), bits = cache.keys.width[place / kRunPlaces];
  const float* range = cache.keys.steps + 2 * (kv_head * kRowDim + place);
  const float start = range[0], step = range[1];
#pragma unroll
  for (int i = 0; i < kAgain; ++i) {
    const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&four[i].x));
    const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&four[i].y));
    // Less a mean of zero it is what it was.
    *reinterpret_cast<float4*>(own.products[i] + lane * 4) =
        make_float4(__fmul_rn(row[i].x, __fsub_rn(low.x, mean.x)), __fmul_rn(row[i].y, __fsub_rn(low.y, mean.y)),
                    __fmul_rn(row[i].z, __fsub_rn(high.x, mean.z)), __fmul_rn(row[i].w, __fsub_rn(high.y, mean.w)));
  }
  __syncwarp();
  if (lane < n) {
    const auto* products = reinterpret_cast<const float4*>(own.products[lane]);
    float sum = 0.0f;
#pragma unroll 8
    for (int i = 0; i < kRowDim / 4; ++i) {
      const float4 four = products[i];
      sum = __fadd_rn(__fadd_rn(__fadd_rn(__fadd_rn(sum, four.x), four.y), four.z), four.w);
    }
    const auto code = static_cast<uint32_t>(static_code(sum, start, step, 1.0f / step, bits));
    const uint32_t change = code ^ (doubt.what >> 16 & 255u);
    const uintptr_t field = reinterpret_cast<uintptr_t>(doubt.field);
    const int at = static_cast<int>(field % 4) * 8 + static_cast<int>(doubt.what >> 8 & 15u) * bits;
    auto* words = reinterpret_cast<unsigned*>(field / 4 * 4) + at / 32;
    if (change != 0) {  // others may change bits of the same words
      atomicXor(words, change << at % 32);
      if (at % 32 + bits > 32) atomicXor(words + 1, change >> (32 - at % 32));
    }
  }
  __syncwarp();
}

}  // namespace kvquant::cuda
