/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Chooses the kernel for a layer's attention, and adds up what its parts leave. The history of a sequence is cut into
// as many parts as fill the GPU; how long it is only the device knows, so the number of parts follows from the width of
// the page table and the cut from the length.
#include <algorithm>
#include <cmath>

#include "block_merge.cuh"
#include "elements.cuh"
#include "launch.cuh"

namespace kvquant::cuda {
namespace {

/// Threads of a channel in combine_kernel, parts that each of them loads at once, and parts of an attention at most.
constexpr int kCombiners = 4, kLoads = 9, kMostParts = 513;

/// A block per query head and sequence: kCombiners threads for each channel, each for every fourth part, whose sums
/// meet at the end. Loads come before everything else, at once. The order of additions is fixed: the same bits every
/// time.
template <class Element>
__global__ void combine_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Attention p) {
  __shared__ float shared_sums[kCombiners][kMaxHeadDim];
  __shared__ float2 shared_ranges[kCombiners];
  const int dim = cache.head_dim, c = static_cast<int>(threadIdx.x) % dim,
            combiner = static_cast<int>(threadIdx.x) / dim;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * cache.heads + blockIdx.x;
  const float* sums = p.sums + row * p.parts * dim + c;
  const float2* ranges = p.ranges + row * p.parts;
  release_next_kernel();
  wait_for_previous_kernel();
  float maximum = kLowest, weights = 0.0f, sum = 0.0f;
#pragma unroll 1
  for (int first = combiner; first < p.parts; first += kLoads * kCombiners) {
    float values[kLoads];
    float2 own[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int part = first + i * kCombiners;
      const bool exists = part < p.parts;
      own[i] = exists ? ranges[part] : make_float2(kLowest, 0.0f);
      values[i] = exists ? sums[static_cast<int64_t>(part) * dim] : 0.0f;
    }
    float raised = maximum;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) raised = fmaxf(raised, own[i].x);
    const float keep = exp2_fast(maximum - raised);
    maximum = raised;
    weights *= keep;
    sum *= keep;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const float factor = exp2_fast(own[i].x - maximum);
      weights = fmaf(own[i].y, factor, weights);
      sum = fmaf(values[i], factor, sum);
    }
  }
  shared_sums[combiner][c] = sum;
  if (c == 0) shared_ranges[combiner] = make_float2(maximum, weights);
  __syncthreads();
  if (combiner > 0) return;
#pragma unroll
  for (int i = 1; i < kCombiners; ++i) maximum = fmaxf(maximum, shared_ranges[i].x);
  weights = 0.0f;
  sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kCombiners; ++i) {
    const float2 range = shared_ranges[i];
    const float factor = exp2_fast(range.x - maximum);
    weights = fmaf(range.y, factor, weights);
    sum = fmaf(shared_sums[i][c], factor, sum);
  }
  static_cast<Element*>(p.out)[row * dim + c] = from_float<Element>(sum / weights);
}

}  // namespace

/// early: the GPU can start it before the parts are done.
static void combine(const CacheView& cache, const Attention& p, bool early, cudaStream_t stream) {
  const LaunchShape shape{dim3(static_cast<unsigned>(cache.heads), static_cast<unsigned>(cache.batch)),
                          static_cast<unsigned>(kCombiners * cache.head_dim), 0, stream, early};
  const auto start = [&](void (*kernel)(CacheView, Attention)) {
    // Blocks of two kernels share a multiprocessor only where both divide L1 alike: as attention does.
    check_cuda("attend",
               cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
    launch("attend", kernel, shape, cache, p);
  };
  if (p.type == ElementType::kFloat32) start(combine_kernel<float>);
  if (p.type == ElementType::kFloat16) start(combine_kernel<__half>);
  if (p.type == ElementType::kBFloat16) start(combine_kernel<__nv_bfloat16>);
}

namespace {

/// The number of parts that is done first, by what a block costs: its share of the history at its share of the memory's
/// speed, and what it takes to begin and end. Blocks of exact tokens start last and fill slots that have become free.
/// kv_heads: of a block.
struct Cut {
  int parts;
  double time;  // that is expected
};

Cut best_parts(const CacheView& cache, const AttentionShape& shape, int64_t pairs, int kv_heads, int64_t slots,
               bool exact) {
  constexpr double kBytesPerNanosecond = 2800.0, kBlockNanoseconds = 3000.0;
  const double byte_time = static_cast<double>(slots) / kBytesPerNanosecond;
  const double share_of_heads = static_cast<double>(kv_heads) / cache.kv_heads;
  const double history = static_cast<double>(cache.page_bytes) * share_of_heads * pages_read(cache) * byte_time;
  const double exact_bytes = static_cast<double>(cache.exact_bytes) * share_of_heads;
  const double window = (cache.ring + cache.sink_pages) * exact_bytes * byte_time + kBlockNanoseconds;
  const double exact_work = exact ? static_cast<double>(pairs) * window : 0;
  const int64_t units = static_cast<int64_t>(pages_read(cache)) * kPageTokens / shape.unit_tokens;
  const int64_t most = std::max<int64_t>(1, std::min<int64_t>(kMostParts - 1, (units + shape.warps - 1) / shape.warps));
  int best = 1;
  double least = 0;
  for (int64_t parts = 1; parts <= most; ++parts) {
    const int64_t blocks = pairs * parts, last = blocks % slots;
    // Warps take whole units: a block is as slow as the one with most.
    const int64_t rounds = ((units + parts - 1) / parts + shape.warps - 1) / shape.warps;
    const double share = static_cast<double>(rounds * shape.warps) / static_cast<double>(std::max<int64_t>(1, units));
    const double block = history * std::min(1.0, share) + kBlockNanoseconds;
    const double idle = last > 0 ? static_cast<double>(slots - last) * block : 0;
    double time = static_cast<double>((blocks + slots - 1) / slots) * block;
    if (exact && last > 0 && pairs <= slots - last) {
      time = std::max(time, time - block + window);
    } else if (exact_work > idle) {
      time += (exact_work - idle) / static_cast<double>(slots) + 0.5 * window;
    }
    if (parts == 1 || time < least) {
      least = time;
      best = static_cast<int>(parts);
    }
  }
  return {best + (exact ? 1 : 0), least};
}

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  check_cuda("attend", cudaDeviceGetAttribute(&value, name, device));
  return value;
}

}  // namespace

AttentionPlan plan_attention(const CacheView& cache, int device) {
  const int multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  const int shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const int shared_total = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  const bool exact = cache.window > 0 || cache.sink_pages > 0;
  AttentionPlan plan{AttentionPlan::kPlain, {4, 0, 8, 1}, 1, false, false};
  if (cache.sparse_tokens > 0) {
    // Kernels below look for pages in a list.
  } else if (cache.keys.format == Format::kFloat16 && cache.values.format == Format::kFloat16 && !exact) {
    plan = {AttentionPlan::kFp16, attend_fp16_shape(cache), 1, false, false};
  } else if (attend_int_supports(cache)) {
    plan = {AttentionPlan::kInt, attend_int_shape(cache, shared_bytes), 1, false, false};
  } else if (attend_latent_supports(cache)) {
    plan = {AttentionPlan::kLatent, attend_latent_shape(cache), 1, false, false};
  } else if (attend_rotated_supports(cache)) {
    plan = {AttentionPlan::kRotated, attend_rotated_shape(cache), 1, false, false};
  } else if (attend_codebook_supports(cache)) {
    plan = {AttentionPlan::kCodebook, attend_codebook_shape(cache), 1, false, false};
  }
  if (plan.shape.shared_bytes > shared_bytes) plan = {AttentionPlan::kPlain, {4, 0, 8, 1}, 1, false, false};
  if (plan.kernel == AttentionPlan::kPlain && attend_rebuilt_supports(cache) &&
      attend_rebuilt_shape(cache).shared_bytes <= shared_bytes) {
    const int parts = attend_rebuilt_parts(cache, multiprocessors);
    return {AttentionPlan::kRebuilt, attend_rebuilt_shape(cache), parts,
            attribute(cudaDevAttrComputeCapabilityMajor, device) >= 9, parts == 1};
  }
  if (plan.kernel == AttentionPlan::kPlain && attend_tiles_supports(cache) &&
      attend_tiles_shape(cache).shared_bytes <= shared_bytes) {
    plan = {AttentionPlan::kTiles, attend_tiles_shape(cache), 1, false, false};
  }
  const bool plain = plan.kernel == AttentionPlan::kPlain;
  const bool shares_exact = plan.kernel == AttentionPlan::kRotated && attend_rotated_writes(cache);
  constexpr int kReservedBytes = 1024;  // of each block, by CUDA
  const int resident =
      std::max(1, std::min(plan.shape.blocks, shared_total / (plan.shape.shared_bytes + kReservedBytes)));
  const int blocks = plain ? cache.heads
                     : plan.kernel == AttentionPlan::kRotated
                         ? cache.kv_heads / kRotatedHeads
                         : cache.kv_heads / plan.shape.together * head_groups(cache);
  const int64_t pairs = std::max<int64_t>(1, static_cast<int64_t>(cache.batch) * blocks);
  const int64_t slots = static_cast<int64_t>(multiprocessors) * resident;
  const Cut cut = best_parts(cache, plan.shape, pairs,
                             plan.kernel == AttentionPlan::kRotated ? kRotatedHeads : plan.shape.together, slots,
                             exact && !plain && plan.kernel != AttentionPlan::kCodebook &&
                                 plan.kernel != AttentionPlan::kTiles && !shares_exact);
  plan.parts = cut.parts;
  double least = cut.time;
  for (int together = 2; plan.kernel == AttentionPlan::kInt && together <= 4; together *= 2) {
    if (!attend_int_takes(cache, plan.shape, together)) break;
    AttentionShape share = plan.shape;
    share.warps /= together;
    const Cut other = best_parts(cache, share, pairs / together, together, slots, exact);
    if (other.time >= least) continue;
    least = other.time;
    plan.parts = other.parts;
    plan.shape.together = together;
  }
  if ((plan.kernel == AttentionPlan::kInt || plan.kernel == AttentionPlan::kLatent) &&
      plan.parts == (exact ? 2 : 1)) {  // the block of all tokens in codes goes on
    plan.parts = 1;
    plan.direct = true;
  }
  if (shares_exact && plan.parts == 1) plan.direct = true;
  plan.early = !plain && attribute(cudaDevAttrComputeCapabilityMajor, device) >= 9;
  return plan;
}

void attend(const CacheView& cache, const AttentionPlan& plan, const Attention& attention, cudaStream_t stream) {
  if (cache.sparse_tokens > 0) select_pages(cache, attention, plan.early, stream);
  if (plan.kernel == AttentionPlan::kTiles) {
    attend_tiles(cache, attention, plan.shape, stream);
  } else if (plan.kernel == AttentionPlan::kFp16) {
    attend_fp16(cache, attention, plan.shape, stream);
  } else if (plan.kernel == AttentionPlan::kRotated) {
    attend_rotated(cache, attention, plan.early, stream);
  } else if (plan.kernel == AttentionPlan::kLatent) {
    attend_latent(cache, attention, plan.early, stream);
  } else if (plan.kernel == AttentionPlan::kCodebook) {
    attend_codebook(cache, attention, stream);
  } else if (plan.kernel == AttentionPlan::kRebuilt) {
    attend_rebuilt(cache, attention, plan.shape, plan.early && cache.sparse_tokens > 0, stream);
  } else if (plan.kernel == AttentionPlan::kInt) {
    attend_int(cache, attention, plan.shape, plan.early, stream);
  } else {
    attend_plain(cache, attention, stream);
  }
  if (!plan.direct) combine(cache, attention, plan.early, stream);
}

}  // namespace kvquant::cuda
