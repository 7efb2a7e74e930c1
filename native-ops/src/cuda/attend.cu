/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Chooses the kernel for a layer's attention, and adds up what its parts leave. The history of a sequence is cut into as
// many parts as fill the GPU; how long it is only the device knows, so the number of parts follows from the width of the
// page table and the cut from the length.
#include "elements.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "ptx.cuh"

namespace kvquant::cuda {
namespace {

constexpr float kLowest = -1e30f;

/// A block per query head and sequence, a thread per channel. Parts are added in order: the same bits every time.
template <class Element>
__global__ void combine_kernel(CacheView cache, Attention p) {
  wait_for_previous_kernel();
  const int c = threadIdx.x;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * cache.heads + blockIdx.x;
  const float2* ranges = p.ranges + row * p.parts;
  const float* sums = p.sums + row * p.parts * cache.head_dim + c;
  float maximum = kLowest, weights = 0.0f, sum = 0.0f;
  for (int part = 0; part < p.parts; ++part) maximum = fmaxf(maximum, ranges[part].x);
  for (int part = 0; part < p.parts; ++part) {
    const float2 range = ranges[part];
    if (!(range.y > 0.0f)) continue;  // a part without tokens wrote no sums
    const float factor = exp2f(range.x - maximum);
    weights = fmaf(range.y, factor, weights);
    sum = fmaf(sums[static_cast<int64_t>(part) * cache.head_dim], factor, sum);
  }
  static_cast<Element*>(p.out)[row * cache.head_dim + c] = from_float<Element>(sum / weights);
}

}  // namespace

void combine(const CacheView& cache, const Attention& p, cudaStream_t stream) {
  const LaunchShape shape{dim3(static_cast<unsigned>(cache.heads), static_cast<unsigned>(cache.batch)),
                          static_cast<unsigned>(cache.head_dim), 0, stream, true};
  if (p.type == ElementType::kFloat32) launch("attend", combine_kernel<float>, shape, cache, p);
  if (p.type == ElementType::kFloat16) launch("attend", combine_kernel<__half>, shape, cache, p);
  if (p.type == ElementType::kBFloat16) launch("attend", combine_kernel<__nv_bfloat16>, shape, cache, p);
}

int attend_parts(const CacheView& cache, int multiprocessors) {
  const int64_t blocks = static_cast<int64_t>(cache.heads) * cache.batch;
  const int64_t wanted = (8 * static_cast<int64_t>(multiprocessors) + blocks - 1) / blocks;
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>({wanted, cache.page_columns, 256})));
}

void attend(const CacheView& cache, const Attention& attention, cudaStream_t stream) {
  attend_plain(cache, attention, stream);
  combine(cache, attention, stream);
}

}  // namespace kvquant::cuda
