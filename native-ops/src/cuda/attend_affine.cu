/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Decode attention over codes of 2, 3 or 4 bits with a scale and zero per token and head or few heads, keys rotated
// over groups of heads before RoPE in natural order: rotatekv3 and rotatekv4, and at head_dim 64 rotatekv2. Keys are
// never rebuilt: attend_rotated.cu says how scores come from codes. There two operands share bytes of codes of 2 bits;
// here an operand is tokens f and f + 8 of 8 tiles, whose codes of any width are fields of subnormal halves after one
// or two byte moves and a mask (affine_keys.cuh).
//
// A block takes a part of a sequence for 4 kv heads, a round of 128 tokens at a time. 8 warps find scores, an operand
// each, of all heads. 4 helpers copy the keys of the next round and the values of this one, turn queries back by the
// next round's first position, and add the values of the round before, a head each (norm_values.cuh). All meet once a
// round. What is kept exactly the parts share, after their rounds (affine_exact.cuh).
//
// Measured on an H100 at batch 8, 32 query and 8 kv heads, 16384 tokens, us a launch, in brackets by attend_tiles.cu as
// it was then: rotatekv4 86 (901), rotatekv3 88 (871), torch's best fp16 attention 180; with head_dim 64 rotatekv4 56
// (323), rotatekv3 54 (322), rotatekv2 47 (315), torch 93. Two blocks a multiprocessor with head_dim 64, which have 80
// registers a thread and spill some: rotatekv4 55, rotatekv3 57, rotatekv2 49. Of 16 tokens of a head a warp of scores
// has 300 instructions with head_dim 128, 160 with 64.
#include "affine_exact.cuh"
#include "affine_keys.cuh"
#include "attend_affine.h"
#include "device_limits.cuh"
#include "launch.cuh"

namespace kvquant::cuda {
namespace affine {
namespace {

/// Sums of weighted codes: a head, 8 columns.
template <int bits, int D>
struct ValueWarp {
  ValueSums<D> sums;
  float reference = kLowest;  // of column g

  /// 128 tokens. codes: those of the head; operands, references: of the head's columns, product n.
  template <int products>
  __device__ __forceinline__ void add(const unsigned char* codes, const uint2 (&operands)[kProducts][products][kWarp],
                                      const float (&references)[kProducts][8 * products], int n, int lane) {
    const int g = lane / 4, c = lane % 4;
    float theirs[kProducts], most = reference;
#pragma unroll
    for (int f = 0; f < kProducts; ++f) {
      theirs[f] = references[f][8 * n + g];
      most = fmaxf(most, theirs[f]);
    }
    if (__any_sync(0xffffffffu, most > reference)) {
      const float keep = exp2_fast(reference - most);
      sums.multiply(__shfl_sync(0xffffffffu, keep, 8 * c), __shfl_sync(0xffffffffu, keep, 8 * c + 4));
      reference = most;
    }
    WeightOperands weights;
#pragma unroll
    for (int f = 0; f < kProducts; ++f) {
      const __half2 factor = __float2half2_rn(exp2_fast(theirs[f] - reference));
      const uint2 x = operands[f][n][lane];
      weights.b[f][0] = as_bits(__hmul2(as_half2(x.x), factor));
      weights.b[f][1] = as_bits(__hmul2(as_half2(x.y), factor));
    }
    add_codes<bits, D>(sums, codes, weights, 0xffffffffu, lane);
  }
};

template <int bits, int D, int products>
__device__ __forceinline__ void find_scores(const CacheView& cache, const Work& work, int sink,
                                            SharedState<bits, D, products>& state) {
  const int lane = threadIdx.x % kWarp, field = threadIdx.x / kWarp;
  KeyWarp<bits, D, products> keys(state, field, lane);
  const int key_shift = 31 - __clz(cache.keys.group_size / D), value_shift = 31 - __clz(cache.values.group_size / D);
  meet<kThreads>();
#pragma unroll 1
  for (int round = work.begin; round < work.end; ++round) {
    const int turn = (round - work.begin) % 2, first = round * kRoundTokens, own = lane / 4 * kTileTokens + field;
    const auto& stage = state.stages[turn];
    bool valid[2] = {first + own < work.coded, first + own + 8 < work.coded};
#pragma unroll 1
    for (uint32_t left = __ballot_sync(0xffffffffu, sink >= 0 && sink / kRoundTokens == round); left != 0;
         left &= left - 1) {
      const int place = __shfl_sync(0xffffffffu, sink, __ffs(static_cast<int>(left)) - 1) % kRoundTokens;
      valid[0] = valid[0] && place != own;
      valid[1] = valid[1] && place != own + 8;
    }
    float scores[products][4] = {};
    keys.score(scores, stage, state.queries[turn], state, key_shift);
    keys.weigh(scores, valid, stage, state.weights[turn][field], state.references[turn][field], value_shift);
    meet<kThreads>();
  }
  keys.publish_sums(state);
  meet<kThreads>();
}

/// What else there is to do: copies, queries' turns and values, those of the round before.
template <int bits, int D, int products>
__device__ __forceinline__ void help(const CacheView& cache, const Attention& p, const Work& work,
                                     SharedState<bits, D, products>& state) {
  const int lane = threadIdx.x % kWarp, head = threadIdx.x / kWarp - kKeyWarps, thread = threadIdx.x - kKeyThreads;
  const int column = head * Columns<products>::kOfHead, rounds = work.end - work.begin;
  const Copier<bits, D> copier(cache, work, thread);
  const Queries<D, products> queries(cache, p, work, thread);
  ValueWarp<bits, D> values;
  if (rounds > 0) {
    copier.copy_keys(state.stages[0], work.begin);
    commit_copies();
    queries.store(cache, work.begin, state.queries[0]);
    wait_copies<0>();
  }
  meet<kThreads>();
#pragma unroll 1
  for (int i = 0; i <= rounds; ++i) {
    // Keys of the round behind this one and values of this one come while those of the one before it are added.
    const bool more = i + 1 < rounds;
    if (more) copier.copy_keys(state.stages[(i + 1) % 2], work.begin + i + 1);
    if (i < rounds) copier.copy_values(state.stages[i % 2], work.begin + i);
    commit_copies();
    if (more) queries.store(cache, work.begin + i + 1, state.queries[(i + 1) % 2]);
    if (i > 0) {
      const int turn = (i - 1) % 2;
      values.template add<products>(&state.stages[turn].values[head][0][0], state.weights[turn], state.references[turn],
                                    column / 8, lane);
    }
    wait_copies<0>();
    if (i < rounds) meet<kThreads>();
  }
  const int g = lane / 4, c = lane % 4;
#pragma unroll
  for (int m = 0; m < D / 16; ++m) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int channel = m / 2 * 32 + 4 * g + m % 2 * 2 + j / 2;
      state.out[head][2 * c + j % 2][channel] = values.sums.sums[m][j] * kSumFactor;
    }
  }
  if (c == 0) state.value_references[head][g] = values.reference;
  meet<kThreads>();
}

/// What a block's rounds come to for a query, a lane n neighbouring channels.
template <int bits, int D, int products>
__device__ __forceinline__ void merge(const SharedState<bits, D, products>& state, bool rotated, int head, int query,
                                      MergedHead<D / kWarp>& merged) {
  constexpr int n = D / kWarp;
  const int lane = threadIdx.x % kWarp, column = head * Columns<products>::kOfHead + query;
  float zeros = 0.0f;
  merged.maximum = state.value_references[head][column % 8];
  for (int w = 0; w < kKeyWarps; ++w) {
    const float factor = exp2_fast(state.last_references[w][column] - merged.maximum);
    merged.weights = fmaf(state.sums[w][column], factor, merged.weights);
    zeros = fmaf(state.zeros[w][column], factor, zeros);
  }
#pragma unroll
  for (int j = 0; j < n; ++j) merged.sums[j] = state.out[head][column % 8][lane * n + j] - zeros;
  if (rotated) walsh_hadamard(merged.sums, lane);
}

template <int bits, int D, int products>
__global__ void __launch_bounds__(kThreads, 1)
    attend_affine_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Attention p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // older GPUs lack the shared memory
  KVQUANT_DYNAMIC_SHARED(shared);
  auto& state = *reinterpret_cast<SharedState<bits, D, products>*>(shared);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, per_head = cache.heads / cache.kv_heads;
  const int groups = (per_head + kMostQueries - 1) / kMostQueries;
  Work work;
  work.first_head = static_cast<int>(blockIdx.x) / groups * kTeam;
  work.first_query = static_cast<int>(blockIdx.x) % groups * kMostQueries;
  work.queries = min(kMostQueries, per_head - work.first_query);
  work.b = blockIdx.y;
  work.part = blockIdx.z;
  work.parts = p.parts;
  work.length = cache.length(work.b) + 1;
  work.coded = cache.quantized(work.b, work.length);
  const int rounds = (work.coded + kRoundTokens - 1) / kRoundTokens;
  work.begin = static_cast<int>(static_cast<int64_t>(rounds) * work.part / work.parts);
  work.end = static_cast<int>(static_cast<int64_t>(rounds) * (work.part + 1) / work.parts);
  release_next_kernel();
  int sink = -1;  // a lane a slot
  if (lane < cache.sink_pages * kExactTokens) {
    const auto* header = reinterpret_cast<const ExactHeader*>(cache.sink_page(work.b, lane / kExactTokens));
    sink = header->tokens[lane % kExactTokens];
    if (sink >= work.length) sink = -1;
  }
  fill_angles(cache, state);
  fill_mixing(cache, state);
  __syncthreads();
  if (warp < kKeyWarps) {
    find_scores(cache, work, sink, state);
  } else {
    help(cache, p, work, state);
  }
  const Exact<D> exact(cache, work, sink);
  if (exact.any()) {
    exact.attend(p, state.exact, state.merge);
    __syncthreads();
  }
#pragma unroll 1
  for (int i = warp; i < kTeam * work.queries; i += kWarps) {
    const int head = i / work.queries, query = i % work.queries, kv_head = work.first_head + head;
    MergedHead<D / kWarp> merged;
    if (work.begin < work.end) merge(state, cache.values.rotated, head, query, merged);
    if (exact.any()) exact.add(state.exact, state.merge, head, query, merged);
    write_head(cache, p, {work.b, work.part, kv_head, kv_head * per_head + work.first_query, work.queries}, query,
               merged);
  }
#endif
}

template <int bits, int D>
void launch_affine(const CacheView& cache, const Attention& p, cudaStream_t stream) {
  const int per_head = cache.heads / cache.kv_heads, groups = (per_head + kMostQueries - 1) / kMostQueries;
  const dim3 blocks(static_cast<unsigned>(cache.kv_heads / kTeam * groups), static_cast<unsigned>(cache.batch),
                    static_cast<unsigned>(p.parts));
  if (per_head > 2) {
    launch("attend", attend_affine_kernel<bits, D, 2>,
           LaunchShape{blocks, kThreads, sizeof(SharedState<bits, D, 2>), stream}, cache, p);
  } else {
    launch("attend", attend_affine_kernel<bits, D, 1>,
           LaunchShape{blocks, kThreads, sizeof(SharedState<bits, D, 1>), stream}, cache, p);
  }
}

template <int bits, int D>
int shared_bytes() {
  return static_cast<int>(sizeof(SharedState<bits, D, 2>));
}

}  // namespace
}  // namespace affine

bool attend_affine_supports(const CacheView& cache) {
  const auto side = [&](const SideView& x) {
    const int heads = x.group_size / cache.head_dim;  // that share a scale
    return x.format == Format::kAffine && x.order == nullptr && x.group_size % cache.head_dim == 0 &&
           (heads == 1 || heads == 2 || heads == 4);
  };
  const int heads = cache.keys.rotation_heads, bits = cache.keys.bits;
  return side(cache.keys) && side(cache.values) && cache.values.bits == bits &&
         (cache.head_dim == 64 ? bits >= 2 && bits <= 4 : cache.head_dim == 128 && (bits == 3 || bits == 4)) &&
         cache.keys_pre_rope != 0 && cache.sparse_tokens == 0 && cache.kv_heads % affine::kTeam == 0 &&
         (heads == 1 || heads == 2 || heads == 4) && cache.sink_pages * kExactTokens <= kWarp &&
         cache.rope_rows >= kPageTokens + 2 &&  // 128 positions, which keys are turned by
         can_start_early("attend") && attend_affine_shape(cache).shared_bytes <= most_shared_bytes("attend");
}

AttentionShape attend_affine_shape(const CacheView& cache) {
  using namespace affine;
  const bool narrow = cache.head_dim == 64;
  const int bytes = cache.keys.bits == 2   ? shared_bytes<2, 64>()
                    : cache.keys.bits == 3 ? (narrow ? shared_bytes<3, 64>() : shared_bytes<3, 128>())
                                           : (narrow ? shared_bytes<4, 64>() : shared_bytes<4, 128>());
  return {1, bytes, 1, kRoundTokens, kTeam};
}

void attend_affine(const CacheView& cache, const Attention& p, cudaStream_t stream) {
  using namespace affine;
  if (cache.head_dim == 64) {
    if (cache.keys.bits == 2) return launch_affine<2, 64>(cache, p, stream);
    if (cache.keys.bits == 3) return launch_affine<3, 64>(cache, p, stream);
    return launch_affine<4, 64>(cache, p, stream);
  }
  if (cache.keys.bits == 3) return launch_affine<3, 128>(cache, p, stream);
  return launch_affine<4, 128>(cache, p, stream);
}

}  // namespace kvquant::cuda
