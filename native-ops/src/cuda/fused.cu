/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Norms and gates of a layer, one kernel each: libtorch takes three to six. Sums are fp32; what is stored is rounded
// once. A block takes a row.
#include "elements.cuh"
#include "kernels.h"
#include "launch.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / kWarp;

/// The sum over a block, in a fixed order, for all of its threads.
__device__ float block_sum(float x) {
  __shared__ float of_warps[kWarps];
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) sum += of_warps[warp];
  return sum;
}

template <class Element>
__global__ void __launch_bounds__(kThreads) norm_kernel(Norm p) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * p.columns;
  const auto* x = static_cast<const Element*>(p.x) + first;
  float squares = 0.0f;
  for (int64_t c = threadIdx.x; c < p.columns; c += kThreads) {
    const float value = to_float(x[c]);
    squares = fmaf(value, value, squares);
  }
  const float factor = rsqrtf(block_sum(squares) / static_cast<float>(p.columns) + p.eps);
  for (int64_t c = threadIdx.x; c < p.columns; c += kThreads) {
    const float value = to_float(x[c]) * factor * to_float(static_cast<const Element*>(p.weight)[c]);
    static_cast<Element*>(p.out)[first + c] = from_float<Element>(value);
  }
}

template <class Element>
__global__ void __launch_bounds__(kThreads) gate_kernel(Gate p) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, row = blockIdx.y;
  if (c >= p.columns) return;
  const auto* x = static_cast<const Element*>(p.x) + 2 * row * p.columns;
  const float gate = to_float(x[c]), up = to_float(x[p.columns + c]);
  static_cast<Element*>(p.out)[row * p.columns + c] = from_float<Element>(gate / (1.0f + __expf(-gate)) * up);
}

}  // namespace

void norm(const Norm& p, cudaStream_t stream) {
  if (p.rows == 0) return;
  const LaunchShape shape{dim3(static_cast<unsigned>(p.rows)), kThreads, 0, stream};
  if (p.type == ElementType::kFloat32) launch("norm", norm_kernel<float>, shape, p);
  if (p.type == ElementType::kFloat16) launch("norm", norm_kernel<__half>, shape, p);
  if (p.type == ElementType::kBFloat16) launch("norm", norm_kernel<__nv_bfloat16>, shape, p);
}

void gate(const Gate& p, cudaStream_t stream) {
  if (p.rows == 0 || p.columns == 0) return;
  const auto blocks = static_cast<unsigned>((p.columns + kThreads - 1) / kThreads);
  const LaunchShape shape{dim3(blocks, static_cast<unsigned>(p.rows)), kThreads, 0, stream};
  if (p.type == ElementType::kFloat32) launch("gate", gate_kernel<float>, shape, p);
  if (p.type == ElementType::kFloat16) launch("gate", gate_kernel<__half>, shape, p);
  if (p.type == ElementType::kBFloat16) launch("gate", gate_kernel<__nv_bfloat16>, shape, p);
}

}  // namespace kvquant::cuda
