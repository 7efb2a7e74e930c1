/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// From tiles of keys as side_tile.cuh reads them to keys as attention sees them: transforms, a basis of a head, RoPE.
#pragma once
#include "side_tile.cuh"

namespace kvquant::cuda {

/// The Walsh-Hadamard transform of every token.
template <int n>
__device__ __forceinline__ void transform_tokens(float (&x)[n][kTileTokens], int lane) {
#pragma unroll
  for (int t = 0; t < kTileTokens; ++t) {
    float token[n];
#pragma unroll
    for (int i = 0; i < n; ++i) token[i] = x[i][t];
    walsh_hadamard(token, lane);
#pragma unroll
    for (int i = 0; i < n; ++i) x[i][t] = token[i];
  }
}

/// Cosines and sines of positions 0 to 63 in shared memory, [64][D / 2], for turn_tokens.
template <int D>
__device__ __forceinline__ void fill_page_angles(const CacheView& cache, float2* angles) {
  for (int i = threadIdx.x; i < kPageTokens * D / 2; i += blockDim.x) {
    const int pair = i / kPageTokens, slot = i % kPageTokens;
    angles[slot * (D / 2) + pair] =
        make_float2(cache.rope[pair * kPageTokens + slot], cache.rope[(D / 2 + pair) * kPageTokens + slot]);
  }
}

/// Cosines and sines of the position that a page begins with, of a lane's pairs.
template <int D>
struct PageBase {
  static constexpr int kPairs = D / kWarp / 2;
  float cosine[kPairs], sine[kPairs];

  __device__ __forceinline__ PageBase(const CacheView& cache, int position, int lane) {
    const float* base = cache.rope + (static_cast<int64_t>(kPageTokens) + position / kPageTokens) * D + lane * kPairs;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      cosine[i] = base[i];
      sine[i] = base[D / 2 + i];
    }
  }
};

/// Turns tokens to their positions, that of token t in lane t; tile: they follow each other in a page.
template <int D, bool tile>
__device__ __forceinline__ void turn_tokens(const CacheView& cache, const float2* angles, int position, int lane,
                                            float (&x)[D / kWarp][kTileTokens]) {
  constexpr int kPairs = PageBase<D>::kPairs;
  PageBase<D> base(cache, max(0, __shfl_sync(0xffffffffu, position, 0)), lane);
  const int first = max(0, __shfl_sync(0xffffffffu, position, 0)) % kPageTokens;
#pragma unroll
  for (int t = 0; t < kTileTokens; ++t) {
    int within = first + t;
    if (!tile) {
      const int to = max(0, __shfl_sync(0xffffffffu, position, t));
      base = PageBase<D>(cache, to, lane);
      within = to % kPageTokens;
    }
    const float2* own = angles + within * (D / 2) + lane * kPairs;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float2 angle = own[i];
      const float cosine = base.cosine[i] * angle.x - base.sine[i] * angle.y;
      const float sine = base.sine[i] * angle.x + base.cosine[i] * angle.y;
      const float low = x[i][t], high = x[i + kPairs][t];
      x[i][t] = fmaf(low, cosine, -high * sine);
      x[i + kPairs][t] = fmaf(high, cosine, low * sine);
    }
  }
}

/// Adds a mean turned to the positions of a tile's tokens, which have been turned before they were stored.
template <int D>
__device__ __forceinline__ void add_turned(const CacheView& cache, const float2* angles, int position,
                                           const float* mean, int lane, float (&x)[D / kWarp][kTileTokens]) {
  constexpr int kPairs = PageBase<D>::kPairs;
  const int to = max(0, __shfl_sync(0xffffffffu, position, 0));
  const PageBase<D> base(cache, to, lane);
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const float low = mean[lane * kPairs + i], high = mean[D / 2 + lane * kPairs + i];
    const float a = low * base.cosine[i] - high * base.sine[i], b = high * base.cosine[i] + low * base.sine[i];
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) {
      const float2 angle = angles[(to % kPageTokens + t) * (D / 2) + lane * kPairs + i];
      x[i][t] += fmaf(a, angle.x, -b * angle.y);
      x[i + kPairs][t] += fmaf(b, angle.x, a * angle.y);
    }
  }
}

/// Halves from one row of a basis to the next in shared memory: rows are in different banks.
template <int D>
constexpr int kBasisStride = D + 8;

/// The rows of a head's inverse basis, [channel][place] as halves in shared memory, for multiply_basis.
template <int D>
__device__ __forceinline__ void fill_basis(const SideView& side, int kv_head, __half* basis) {
  const float* from = side.inverse + static_cast<int64_t>(kv_head) * D * D;
  for (int i = threadIdx.x; i < D * D; i += blockDim.x) {
    basis[i / D * kBasisStride<D> + i % D] = __float2half_rn(from[i]);
  }
}

/// The channels of tokens [place][16 tokens] that are in a basis of their head; x leaves through scratch, which may
/// begin where places do.
template <int D>
__device__ __forceinline__ void multiply_basis(const __half* basis, const SideTile<D>& side, int lane, float* scratch,
                                               float (&x)[D / kWarp][kTileTokens]) {
  constexpr int kBlocks = D / 16;
  auto* places = reinterpret_cast<unsigned char*>(scratch);
  put_halves<D>(x, lane, places);
  uint32_t b[kBlocks][4];
  const int matrix = lane / 8;
#pragma unroll
  for (int k = 0; k < kBlocks; ++k) {
    load_transposed(b[k], places + Fp16Tile<D>::swizzled(16 * k + matrix % 2 * 8 + lane % 8, matrix / 2));
  }
  __syncwarp();
#pragma unroll 1
  for (int block = 0; block < kBlocks; ++block) {
    float sums[2][4] = {};
#pragma unroll
    for (int k = 0; k < kBlocks; ++k) {
      uint32_t a[4];
      const int row = 16 * block + matrix % 2 * 8 + lane % 8;
      load_matrices(a, basis + row * kBasisStride<D> + 16 * k + matrix / 2 * 8);
      mma(sums[0], a[0], a[1], a[2], a[3], b[k][0], b[k][1]);
      mma(sums[1], a[0], a[1], a[2], a[3], b[k][2], b[k][3]);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int token = i / 4 * 8 + 2 * (lane % 4) + i % 2, channel = 16 * block + i / 2 % 2 * 8 + lane / 4;
      scratch[token * SideTile<D>::kStride + channel] = sums[i / 4][i % 4];
    }
  }
  side.get(scratch, x);
}

/// From keys as they are stored, mixed over their group of heads, to keys as attention sees them: natural basis, after
/// RoPE. position: of token t in lane t; basis: fill_basis, if they are in one.
template <int D>
__device__ __forceinline__ void finish_keys(const CacheView& cache, const SideTile<D>& side, int kv_head, int position,
                                            const float2* angles, const __half* basis, float* scratch,
                                            float (&x)[D / kWarp][kTileTokens]) {
  constexpr int n = D / kWarp;
  const SideView& keys = cache.keys;
  const int lane = side.lane;
  if (keys.rotation_heads != 0) transform_tokens(x, lane);
  if (keys.basis_heads != 0) {
    multiply_basis<D>(basis, side, lane, scratch, x);
  } else if (keys.format == Format::kStatic && keys.order != nullptr) {
    side.reorder(kv_head, scratch, x);
  }
  const float* mean = keys.mean == nullptr ? nullptr : keys.mean + kv_head * D;
  if (cache.keys_pre_rope == 0) {
    if (mean != nullptr) add_turned<D>(cache, angles, position, mean, lane, x);
    return;
  }
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const float shift = mean == nullptr ? 0.0f : mean[channel_of<D>(lane, i)];
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) x[i][t] += shift;
  }
  turn_tokens<D, true>(cache, angles, position, lane, x);
}

}  // namespace kvquant::cuda
