/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The end of a block's work on its part of a history: the warps' sums are added up, in order, and left for combine().
#pragma once
#include "elements.cuh"
#include "fp16_tile.cuh"
#include "kernels.h"

namespace kvquant::cuda {

/// Floats from one head's sums to the next in shared memory; the excess keeps heads in different banks.
template <int D>
constexpr int kMergeStride = D + 4;

template <int warps>
struct MergeScratch {
  float reference[warps][kHeads], weights[warps][kHeads];
};

/// What a block works on: a part of sequence b for query heads [first, first + count), at most 8, of a kv head.
struct BlockHeads {
  int b, part, kv_head, first, count;
};

/// Groups of at most 8 query heads that share a kv head.
__host__ __device__ inline int head_groups(const CacheView& cache) {
  return (cache.heads / cache.kv_heads + kHeads - 1) / kHeads;
}

/// Parts are the slowest axis: blocks that run together read the same pages, and short last parts fill the end.
inline dim3 attention_blocks(const CacheView& cache, const Attention& p) {
  return dim3(static_cast<unsigned>(cache.kv_heads * head_groups(cache)), static_cast<unsigned>(cache.batch),
              static_cast<unsigned>(p.parts));
}

/// together: kv heads of a block; own: which of them.
__device__ __forceinline__ BlockHeads block_heads(const CacheView& cache, int together = 1, int own = 0) {
  const int queries = cache.heads / cache.kv_heads, groups = head_groups(cache);
  const int kv_head = static_cast<int>(blockIdx.x) / groups * together + own;
  const int skipped = static_cast<int>(blockIdx.x) % groups * kHeads;
  return {static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z), kv_head, kv_head * queries + skipped,
          min(kHeads, queries - skipped)};
}

/// Leaves a part without tokens. The whole block calls it.
__device__ __forceinline__ void write_empty(const CacheView& cache, const Attention& p, const BlockHeads& heads) {
  const int64_t row = static_cast<int64_t>(heads.b) * cache.heads + heads.first;
  for (int i = threadIdx.x; i < heads.count * cache.head_dim; i += blockDim.x) {
    const int64_t to = (row + i / cache.head_dim) * p.parts + heads.part;
    p.sums[to * cache.head_dim + i % cache.head_dim] = 0.0f;
    if (i % cache.head_dim == 0) p.ranges[to] = make_float2(kLowest, 0.0f);
  }
}

/// Writes a warp's sums of Fp16Tile, [8 heads] with kMergeStride, for merge_warps.
template <int D>
__device__ __forceinline__ void put_sums(float* out, const float (&sums)[Fp16Tile<D>::kBlocks][4], int lane) {
  out += 2 * (lane % 4) * kMergeStride<D> + lane / 4;
#pragma unroll
  for (int i = 0; i < Fp16Tile<D>::kBlocks; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) out[j % 2 * kMergeStride<D> + 16 * i + j / 2 * 8] = sums[i][j];
  }
}

/// Leaves a warp's references and weights in shared memory; its sums, [head][channel] with kMergeStride, are in its own
/// buffer already.
template <int warps>
__device__ __forceinline__ void publish(MergeScratch<warps>& scratch, const Softmax& softmax, int warp, int lane) {
  float weights[2] = {softmax.weights[0], softmax.weights[1]};
#pragma unroll
  for (int step = 4; step < kWarp; step *= 2) {
    weights[0] += __shfl_xor_sync(0xffffffffu, weights[0], step);
    weights[1] += __shfl_xor_sync(0xffffffffu, weights[1], step);
  }
  if (lane < 4) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      scratch.reference[warp][2 * lane + i] = softmax.reference[i];
      scratch.weights[warp][2 * lane + i] = weights[i];
    }
  }
}

/// What a part comes to for a head; a lane has n channels of the sum.
template <int n>
struct MergedHead {
  float maximum = kLowest, weights = 0.0f, sums[n] = {};

  /// Adds another part.
  __device__ __forceinline__ void add(const MergedHead& other) {
    const float raised = fmaxf(maximum, other.maximum);
    const float own = exp2_fast(maximum - raised), theirs = exp2_fast(other.maximum - raised);
    maximum = raised;
    weights = weights * own + other.weights * theirs;
#pragma unroll
    for (int i = 0; i < n; ++i) sums[i] = sums[i] * own + other.sums[i] * theirs;
  }
};

/// After a barrier: adds up the sums of warps [first, last) for a head, which are warp_stride floats apart; rotated:
/// they are in the rotated basis. Each head has a sum in every `columns`-th of 8 columns. A warp does one head.
template <int D, int warps>
__device__ __forceinline__ MergedHead<D / kWarp> merge_head(const MergeScratch<warps>& scratch, const float* sums,
                                                            int warp_stride, int head, bool rotated,
                                                            int columns = kHeads, int first = 0, int last = warps) {
  constexpr int n = D / kWarp;
  const int lane = threadIdx.x % kWarp, count = last - first, entries = (kHeads - head + columns - 1) / columns * count;
  // A lane each: all that are left over from the warps and columns of the head.
  const int own_column = head + lane / count * columns, own_warp = first + lane % count;
  MergedHead<n> merged;
  float weight = 0.0f;
  if (lane < entries) {
    merged.maximum = scratch.reference[own_warp][own_column];
    weight = scratch.weights[own_warp][own_column];
  }
  const float reference = merged.maximum;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    merged.maximum = fmaxf(merged.maximum, __shfl_xor_sync(0xffffffffu, merged.maximum, step));
  }
  const float own_factor = exp2_fast(reference - merged.maximum);
  merged.weights = weight * own_factor;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    merged.weights += __shfl_xor_sync(0xffffffffu, merged.weights, step);
  }
  int entry = 0;
  for (int column = head; column < kHeads; column += columns) {
#pragma unroll 4
    for (int w = first; w < last; ++w, ++entry) {
      const float factor = __shfl_sync(0xffffffffu, own_factor, entry);
      const float* from = sums + w * warp_stride + column * kMergeStride<D> + lane * n;
#pragma unroll
      for (int i = 0; i < n; ++i) merged.sums[i] = fmaf(from[i], factor, merged.sums[i]);
    }
  }
  if (rotated) walsh_hadamard(merged.sums, lane);
  return merged;
}

/// Leaves a head of a part for combine(); or, if it is the only part, writes the output.
template <int n>
__device__ __forceinline__ void write_head(const CacheView& cache, const Attention& p, const BlockHeads& heads,
                                           int head, const MergedHead<n>& merged) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = static_cast<int64_t>(heads.b) * cache.heads + heads.first + head;
  if (p.direct) {
    const float factor = 1.0f / merged.weights;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      store_element(p.type, p.out, row * (n * kWarp) + lane * n + i, merged.sums[i] * factor);
    }
    return;
  }
  const int64_t to = row * p.parts + heads.part;
  float* sums = p.sums + to * (n * kWarp) + lane * n;
  if constexpr (n == 4) {
    *reinterpret_cast<float4*>(sums) = make_float4(merged.sums[0], merged.sums[1], merged.sums[2], merged.sums[3]);
  } else {
#pragma unroll
    for (int i = 0; i < n; ++i) sums[i] = merged.sums[i];
  }
  if (lane == 0) p.ranges[to] = make_float2(merged.maximum, merged.weights);
}

/// Both, for all heads of a block.
template <int D, int warps>
__device__ __forceinline__ void merge_warps(const CacheView& cache, const Attention& p, const BlockHeads& heads,
                                            const MergeScratch<warps>& scratch, const float* sums, int warp_stride,
                                            bool rotated) {
  for (int head = threadIdx.x / kWarp; head < heads.count; head += warps) {
    write_head(cache, p, heads, head, merge_head<D, warps>(scratch, sums, warp_stride, head, rotated));
  }
}

}  // namespace kvquant::cuda
