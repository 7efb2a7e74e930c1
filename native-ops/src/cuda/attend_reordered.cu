/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// attend_rotated.cu for an order of channels across the layer, where a channel may have the scale of any of up to 32
// groups of its token: products of scales with one-hot columns spread them over channels, which costs two products more
// (for 16 groups) for each of those that transform keys.
//
// A block takes a part of a sequence for 4 kv heads, 128 tokens (8 tiles) at a time; all its warps copy, all meet once
// per 128 tokens. Then warp w finds the scores of tokens w and w + 8 of each tile for all heads, and adds the values of
// the 128 tokens before for half the channels of one head. The last part is what is kept exactly, by plain code.
#include "block_merge.cuh"
#include "exact_heads.cuh"
#include "launch.cuh"
#include "reordered_keys.cuh"

namespace kvquant::cuda {
using namespace reordered;
namespace {

/// Sums of weighted codes: 64 channels of a head, 8 columns.
struct ValueWarp {
  float sums[4][4] = {}, reference[2] = {kLowest, kLowest}, own_reference = kLowest;  // columns 2 c, 2 c + 1; g

  /// codes: those of a head; operands, references: of the head's columns, `stride` apart for each of 8 products.
  template <int products>
  __device__ __forceinline__ void add(const unsigned char* codes, const uint2 (&operands)[kWarps][products][kWarp],
                                      const float (&references)[kWarps][8 * products], int n, int half, int lane) {
    const int g = lane / 4, c = lane % 4;
    const unsigned char* first = codes + c * 2 * kValueStride + g * 16 + half * 256;
    uint32_t words[2][8];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const uint4 x = *reinterpret_cast<const uint4*>(first + 128 * m);
      const uint4 y = *reinterpret_cast<const uint4*>(first + 128 * m + kValueStride);
      const uint32_t all[8] = {x.x, x.y, x.z, x.w, y.x, y.y, y.z, y.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) words[m][i] = all[i];
    }
#pragma unroll
    for (int f = 0; f < kProducts; ++f) {
      const float theirs = references[f][8 * n + g];
      if (__any_sync(0xffffffffu, theirs > own_reference)) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float raised = fmaxf(reference[i], references[f][8 * n + 2 * c + i]);
          const float keep = exp2_fast(reference[i] - raised);
          reference[i] = raised;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            sums[j][i] *= keep;
            sums[j][2 + i] *= keep;
          }
        }
        own_reference = fmaxf(own_reference, theirs);
      }
      const __half2 factor = __float2half2_rn(exp2_fast(theirs - own_reference));
      const uint2 b = operands[f][n][lane];
      const uint32_t b0 = as_bits(__hmul2(as_half2(b.x), factor)), b1 = as_bits(__hmul2(as_half2(b.y), factor));
      const uint32_t mask = 0x00030003u << field_position(f);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        uint32_t a[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          if (f == 4) words[m][i] >>= 8;
          a[i] = flip_and_mask(words[m][i], 0xffff0000u, mask);
        }
        mma(sums[2 * m], a[0], a[1], a[4], a[5], b0, b1);
        mma(sums[2 * m + 1], a[2], a[3], a[6], a[7], b0, b1);
      }
    }
  }
};

template <int products>
__global__ void __launch_bounds__(kThreads, 1)
    attend_reordered_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Attention p,
                            const __grid_constant__ RotatedLayout layout) {
  KVQUANT_DYNAMIC_SHARED(shared);
  auto* one_hot = reinterpret_cast<uint4*>(shared + layout.stages * layout.stage_bytes);
  auto& state =
      *reinterpret_cast<SharedState<products>*>(shared + layout.stages * layout.stage_bytes + layout.one_hot_bytes);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int first_head = blockIdx.x * kRotatedHeads, b = blockIdx.y, part = blockIdx.z;
  const int per_head = cache.heads / cache.kv_heads;
  release_next_kernel();
  const int parts = p.parts - (cache.window > 0 || cache.sink_pages > 0 ? 1 : 0);
  if (part == parts) return attend_exact_heads(cache, p, b, first_head, part);
  const int length = cache.length(b) + 1, tokens = cache.quantized(b, length);
  const int groups = (tokens + kGroupTokens - 1) / kGroupTokens;
  const int begin = static_cast<int>(static_cast<int64_t>(groups) * part / parts);
  const int end = static_cast<int>(static_cast<int64_t>(groups) * (part + 1) / parts);
  if (begin == end) {
    return write_empty(cache, p, {b, part, first_head, first_head * per_head, kRotatedHeads * per_head});
  }

  const int pages = (tokens + kPageTokens - 1) / kPageTokens;
  const int32_t* table = cache.page_table + static_cast<int64_t>(b) * cache.page_columns;
  const auto stage_of = [&](int group) { return shared + (group - begin) % layout.stages * layout.stage_bytes; };
  const auto load_ids = [&](int group) {
    const int page = min(2 * group, pages - 1);
    return make_int2(table[page], table[min(page + 1, pages - 1)]);
  };
  const auto copy = [&](int group, int2 ids) {
    if (group < end) copy_group(cache, layout, first_head, ids, stage_of(group));
    commit_copies();
  };
  const auto angle = [&](int group) {
    return rope_angle(cache, min(group, end - 1) * kGroupTokens, threadIdx.x % kPairs);
  };
  int sink = -1;  // a lane a slot
  if (lane < cache.sink_pages * kExactTokens) {
    const auto* header = reinterpret_cast<const ExactHeader*>(cache.sink_page(b, lane / kExactTokens));
    sink = header->tokens[lane % kExactTokens];
    if (sink >= length) sink = -1;
  }
  const Queries<products> queries(cache, p, b, first_head);
  KeyWarp<products> keys(cache, warp, lane);
  ValueWarp values;
  float2 next = angle(begin + 1);
  queries.store(angle(begin), state.queries[begin % 2]);
  fill_mixing(cache, state);
  fill_one_hot(cache, layout, first_head, one_hot);
  const int ahead = layout.stages - 2;
  copy(begin, load_ids(begin));
  if (ahead > 1) copy(begin + 1, load_ids(begin + 1));
  int2 ids = load_ids(begin + ahead);

  const int head = warp / 2, column = Columns<products>::of(head, 0);
  const auto add_values = [&](int group) {
    const unsigned char* stage = stage_of(group);
    values.add<products>(stage + Stage::kValues + head * 8 * kValueStride, state.weights[group % 2],
                         state.references[group % 2], column / 8, warp % 2, lane);
  };
  for (int group = begin; group < end; ++group) {
    if (ahead > 1) {
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    __syncthreads();
    copy(group + ahead, ids);  // where group - 2 was, whose values all have added
    ids = load_ids(group + ahead + 1);
    if (group + 1 < end) {
      queries.store(next, state.queries[(group + 1) % 2]);
      next = angle(group + 2);
    }
    const unsigned char* stage = stage_of(group);
    const uint32_t valid = valid_rows(group, warp, tokens, sink);
    float scores[products][4] = {};
    keys.score(scores, stage, state.queries[group % 2], layout, one_hot, state.mixing, warp, lane);
    keys.weigh(scores, valid, stage + Stage::kValueScales, state.weights[group % 2][warp],
               state.references[group % 2][warp], warp, lane);
    if (group > begin) add_values(group - 1);
  }
  __syncthreads();
  add_values(end - 1);
  __syncthreads();

  // The warps' sums: references are those that keys' warps had last.
  keys.publish(state.sums[warp], state.zeros[warp], state.references[0][warp], lane);
  auto* out = reinterpret_cast<float*>(shared);
  const int g = lane / 4, c = lane % 4;
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int channel = (warp % 2 * 2 + m / 2) * 32 + 4 * g + m % 2 * 2 + j / 2;
      out[(head * 8 + 2 * c + j % 2) * kMergeStride<kDim> + channel] = values.sums[m][j] * kSumFactor;
    }
  }
  if (lane < 4 && warp % 2 == 0) {
    state.value_references[head][2 * lane] = values.reference[0];
    state.value_references[head][2 * lane + 1] = values.reference[1];
  }
  __syncthreads();
  for (int i = warp; i < kRotatedHeads * per_head; i += kWarps) {
    const int own = i / per_head, at = Columns<products>::of(own, i % per_head);
    const float reference = state.value_references[own][at % 8];
    float weights = 0.0f, zeros = 0.0f, x[kDim / kWarp];
    for (int w = 0; w < kWarps; ++w) {
      const float factor = exp2_fast(state.references[0][w][at] - reference);
      weights = fmaf(state.sums[w][at], factor, weights);
      zeros = fmaf(state.zeros[w][at], factor, zeros);
    }
#pragma unroll
    for (int j = 0; j < kDim / kWarp; ++j) {
      x[j] = out[(own * 8 + at % 8) * kMergeStride<kDim> + lane * (kDim / kWarp) + j] - zeros;
    }
    if (cache.values.rotated) walsh_hadamard(x, lane);
    const int64_t to = (static_cast<int64_t>(b) * cache.heads + first_head * per_head + i) * p.parts + part;
#pragma unroll
    for (int j = 0; j < kDim / kWarp; ++j) p.sums[to * kDim + lane * (kDim / kWarp) + j] = x[j];
    if (lane == 0) p.ranges[to] = make_float2(reference, weights);
  }
}

RotatedLayout describe(const CacheView& cache) {
  RotatedLayout layout = {};
  layout.groups = cache.kv_heads;
  layout.steps = (layout.groups + 15) / 16;
  layout.stages = layout.groups > 16 ? 3 : 4;
  layout.stage_bytes = Stage::kKeyScales + 8 * layout.key_scale_bytes();
  layout.one_hot_bytes = kRotatedHeads * 8 * layout.steps * kWarp * 16;
  return layout;
}

template <int products>
void launch_reordered(const CacheView& cache, const Attention& p, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(cache.kv_heads / kRotatedHeads), static_cast<unsigned>(cache.batch),
                    static_cast<unsigned>(p.parts));
  const LaunchShape shape{blocks, kThreads, static_cast<size_t>(attend_reordered_shape(cache).shared_bytes), stream};
  launch("attend", attend_reordered_kernel<products>, shape, cache, p, describe(cache));
}

}  // namespace

bool attend_reordered_supports(const CacheView& cache) { return cache.kv_heads <= 32; }

AttentionShape attend_reordered_shape(const CacheView& cache) {
  const bool two = cache.heads / cache.kv_heads > 2;
  const size_t state = two ? sizeof(SharedState<2>) : sizeof(SharedState<1>);
  const RotatedLayout layout = describe(cache);
  const int bytes = layout.stages * layout.stage_bytes + layout.one_hot_bytes + static_cast<int>(state);
  // A block's warps work on the same tokens: as one warp that takes them one after another.
  return {1, bytes, 1, kGroupTokens};
}

void attend_reordered(const CacheView& cache, const Attention& p, cudaStream_t stream) {
  if (cache.heads / cache.kv_heads > 2) {
    launch_reordered<2>(cache, p, stream);
  } else {
    launch_reordered<1>(cache, p, stream);
  }
}

}  // namespace kvquant::cuda
