/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Decode attention over keys in static codes and values in 2-bit codes with norms (int2), head_dim 128; at the speed of
// memory.
//
// The history of a sequence and kv head is cut into parts, a block each. Parts but the last are of stored tokens: their
// warps take 128 tokens at a time, keys and values each through a buffer of the warp's own that is filled while the
// other is worked on; warps meet only at the end. The last part is what is kept exactly, sinks and the recent window:
// 16 tokens at a time as in attend_fp16.cu, keys turned on the way.
//
//   score = 2^(24 - p) S / sigma + constant + mean term, S the product of codes and queries in which steps, the score's
//   factor and a power of 2, sigma, are folded (static_keys.cuh); constant is what starts of codes and the bias amount
//   to; the mean term is mean_term.cuh's.
#include <algorithm>
#include <cmath>

#include "exact_part.cuh"
#include "fold_query.cuh"
#include "launch.cuh"
#include "mean_term.cuh"
#include "norm_values.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = 128;
constexpr int kGroupTiles = kGroupTokens / kTileTokens;
/// Warps of a block; fewer where shared memory is small.
constexpr int kManyWarps = 8, kFewWarps = 4;

/// What the host finds out about a layer once per call.
struct IntLayer {
  KeyStep steps[kWidthRuns];
  int step_count;
  int key_stride;  // bytes from one tile of keys to the next in shared memory
  LevelFit levels;
  int warp_bytes;  // of shared memory
};

/// A warp's shared memory: keys of 8 tiles, values of 8 tiles, their norms, RoPE's row of the first token. At the end,
/// sums; in the exact part, a tile of keys and one of values.
struct WarpLayout {
  static constexpr int kValues = kGroupTiles * kValueStride, kNorms = kGroupTiles * kNormBytes, kRope = kDim * 4;
  static_assert(kValues == kHeads * kMergeStride<kDim> * 4, "sums fit where values were");
  static int bytes(int key_stride) {
    return std::max(kGroupTiles * key_stride + kValues + kNorms + kRope, 2 * Fp16Tile<kDim>::kBytes);
  }
};

template <int warps>
struct BlockLayout {
  static constexpr int kQueries = kWaveBytes;  // behind the waves: [16 runs][32 lanes] words
  static constexpr int kAmplitudes = kQueries + kWidthRuns * kWarp * 4;
  static constexpr int kFactors = kAmplitudes + kWidthRuns * kWarp * 8;  // [8] 1 / sigma, [8] constants
  static constexpr int kScratch = kFactors + 2 * kHeads * 4;
  static constexpr int kWarpBuffers = (kScratch + static_cast<int>(sizeof(MergeScratch<warps>)) + 127) / 128 * 128;
};

/// Copies to a warp's buffers, 128 tokens at a time.
struct GroupCopies {
  const CacheView& cache;
  const IntLayer& layer;
  int kv_head, lane;
  unsigned char *keys, *values, *norms, *rope;

  /// Tile i of 8 is tile i % 4 of page i / 4 of the two.
  __device__ __forceinline__ void copy_keys(const uint8_t* page0, const uint8_t* page1, int group) const {
    const int chunks = cache.keys.tile_bytes / 16;
    const int64_t begin = cache.keys.tile(kv_head, 0);
#pragma unroll
    for (int tile = 0; tile < kGroupTiles; ++tile) {
      const uint8_t* from = (tile < kPageTiles ? page0 : page1) + begin + tile % kPageTiles * cache.keys.tile_bytes;
      unsigned char* to = keys + tile * layer.key_stride;
      for (int i = lane; i < chunks; i += kWarp) copy_async(to + i * 16, from + i * 16);
    }
    const float* row = cache.rope + (static_cast<int64_t>(kPageTokens) + 2 * group) * kDim;
    copy_async(rope + lane * 16, row + lane * 4);
  }

  __device__ __forceinline__ void copy_values(const uint8_t* page0, const uint8_t* page1) const {
    const int64_t begin = cache.values.tile(kv_head, 0);
#pragma unroll
    for (int tile = 0; tile < kGroupTiles; ++tile) {
      const uint8_t* from = (tile < kPageTiles ? page0 : page1) + begin + tile % kPageTiles * kValueTileBytes;
      copy_async(values + tile * kValueStride + lane * 16, from + lane * 16);
    }
    if (lane < 2 * kGroupTiles) {
      const int tile = lane / 2;
      const uint8_t* from = (tile < kPageTiles ? page0 : page1) + cache.values.norms +
                            tile % kPageTiles * cache.values.norm_tile_bytes + kv_head * kNormBytes;
      copy_async(norms + lane * 16, from + lane % 2 * 16);
    }
  }
};

/// Scores in base 2 become weights, times norms, as operands.
template <bool kMasked>
__device__ __forceinline__ void weigh(Softmax& softmax, ValueSums& sums, float (&scores)[kProducts][4],
                                      const unsigned char* norms, uint32_t valid, WeightOperands& operands, int lane) {
  const uint4 n0 = reinterpret_cast<const uint4*>(norms)[lane / 4 * 2];
  const uint4 n1 = reinterpret_cast<const uint4*>(norms)[lane / 4 * 2 + 1];
  uint32_t words[8] = {n0.x, n0.y, n0.z, n0.w, n1.x, n1.y, n1.z, n1.w};  // of tokens 2 i and 2 i + 1 of the lane's tile
  if constexpr (kMasked) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t mask = ((valid >> (2 * i)) & 1u) * 0xffffu | ((valid >> (2 * i + 1)) & 1u) * 0xffff0000u;
      words[i] &= mask;
    }
#pragma unroll
    for (int f = 0; f < kProducts; ++f) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (((valid >> (f + i / 2 * 8)) & 1u) == 0) scores[f][i] = -INFINITY;
      }
    }
  }
  float maximum0 = fmaxf(scores[0][0], scores[0][2]), maximum1 = fmaxf(scores[0][1], scores[0][3]);
  __half2 largest = as_half2(words[0]);
#pragma unroll
  for (int f = 1; f < kProducts; ++f) {
    maximum0 = fmaxf(maximum0, fmaxf(scores[f][0], scores[f][2]));
    maximum1 = fmaxf(maximum1, fmaxf(scores[f][1], scores[f][3]));
    largest = __hmax2(largest, as_half2(words[f]));
  }
  float norm = fmaxf(__low2float(largest), __high2float(largest));
  const bool raise = softmax.must_raise(maximum0, maximum1);
  if (__any_sync(0xffffffffu, raise || norm > sums.limit)) {
    const float2 keep = softmax.raise(maximum0, maximum1);
    sums.multiply(keep.x, keep.y);
#pragma unroll
    for (int step = 4; step < kWarp; step *= 2) norm = fmaxf(norm, __shfl_xor_sync(0xffffffffu, norm, step));
    if (norm > sums.limit) sums.make_room(norm);
  }
#pragma unroll
  for (int f = 0; f < kProducts; ++f) {
    const __half2 low = as_half2(words[f / 2]), high = as_half2(words[f / 2 + 4]);
    const float unit = sums.norm_scale * static_cast<float>(1 << (6 - field_position(f)));
    const float a = (f % 2 == 0 ? __low2float(low) : __high2float(low)) * unit;
    const float b = (f % 2 == 0 ? __low2float(high) : __high2float(high)) * -unit;
    float w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      w[i] = exp2_fast(scores[f][i] - softmax.reference[i % 2]);
      softmax.weights[i % 2] += w[i];
    }
    weight_operand(operands.b[f], w[0] * a, w[1] * a, w[2] * b, w[3] * b);
  }
}

/// Stored tokens: a block per part, kv head (and group of 8 query heads) and sequence.
template <int warps, bool kEven, int blocks>
__global__ void __launch_bounds__(warps* kWarp, blocks)
    attend_int_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Attention p,
                      const __grid_constant__ IntLayer layer) {
  using Layout = BlockLayout<warps>;
  KVQUANT_DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const BlockHeads heads = block_heads(cache);
  release_next_kernel();
  const bool has_exact = cache.window > 0 || cache.sink_pages > 0;
  const int parts = p.parts - (has_exact ? 1 : 0), part = heads.part;
  if (part == parts) {
    return attend_exact<kDim, warps, Layout::kWarpBuffers, Layout::kScratch>(cache, p, heads, layer.warp_bytes, shared);
  }

  const int tokens = cache.quantized(heads.b, cache.length(heads.b) + 1);
  const int groups = (tokens + kGroupTokens - 1) / kGroupTokens;
  const int begin = static_cast<int>(static_cast<int64_t>(groups) * part / parts);
  const int end = static_cast<int>(static_cast<int64_t>(groups) * (part + 1) / parts);
  if (begin == end) return write_empty(cache, p, heads);

  auto* waves = reinterpret_cast<uint32_t*>(shared);
  auto* queries = reinterpret_cast<uint32_t*>(shared + Layout::kQueries);
  auto* amplitudes = reinterpret_cast<float2*>(shared + Layout::kAmplitudes);
  auto* factors = reinterpret_cast<float*>(shared + Layout::kFactors);
  auto& scratch = *reinterpret_cast<MergeScratch<warps>*>(shared + Layout::kScratch);
  unsigned char* keys = shared + Layout::kWarpBuffers + warp * layer.warp_bytes;
  unsigned char* values = keys + kGroupTiles * layer.key_stride;
  const GroupCopies copies{cache,
                           layer,
                           heads.kv_head,
                           lane,
                           keys,
                           values,
                           values + WarpLayout::kValues,
                           values + WarpLayout::kValues + WarpLayout::kNorms};

  // Small loads go first: behind a full queue of copies they would wait for all of them.
  int group = begin + warp;
  const int pages = (tokens + kPageTokens - 1) / kPageTokens;
  const int32_t* table = cache.page_table + static_cast<int64_t>(heads.b) * cache.page_columns;
  const auto ids_of = [&](int g) {
    const int first = min(2 * g, pages - 1);
    return make_int2(table[first], table[min(first + 1, pages - 1)]);
  };
  const auto page = [&](int id) { return cache.pages + id * cache.page_bytes; };
  int2 ids = ids_of(group), next = ids_of(group + warps);
  float q[kLanes];
  load_query(cache, p, heads, warp, lane, q);
  const uint32_t sinks = find_sinks(cache, heads.b, lane);
  if (group < end) copies.copy_keys(page(ids.x), page(ids.y), group);
  commit_copies();
  if (group < end) copies.copy_values(page(ids.x), page(ids.y));
  commit_copies();
  for (int head = warp; head < kHeads; head += warps) {
    if (head != warp) load_query(cache, p, heads, head, lane, q);
    fold_query(cache, heads, head, lane, q, queries, amplitudes, factors);
  }
  if (cache.keys.mean != nullptr) fill_waves(cache, waves);
  __syncthreads();
  const float2 unit = *reinterpret_cast<const float2*>(factors + 2 * (lane % 4));
  const float2 constant = *reinterpret_cast<const float2*>(factors + kHeads + 2 * (lane % 4));

  Softmax softmax;
  ValueSums sums;
  for (; group < end; group += warps) {
    const int2 after = ids_of(group + 2 * warps);
    wait_copies<1>();
    __syncwarp();
    float scores[kProducts][4] = {};
    add_steps(scores, layer.steps, layer.step_count, keys + lane / 4 * layer.key_stride, queries, lane);
#pragma unroll
    for (int f = 0; f < kProducts; ++f) {
      const float field = static_cast<float>(1 << (24 - field_position(f)));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[f][i] = fmaf(scores[f][i], (i % 2 == 0 ? unit.x : unit.y) * field, i % 2 == 0 ? constant.x : constant.y);
      }
    }
    if (cache.keys.mean != nullptr) {
      add_mean(scores, waves, amplitudes, reinterpret_cast<const float*>(copies.rope), lane);
    }
    __syncwarp();
    if (group + warps < end) copies.copy_keys(page(next.x), page(next.y), group + warps);
    commit_copies();
    wait_copies<1>();
    __syncwarp();
    WeightOperands operands;
    const int first = group * kGroupTokens;
    if (first + kGroupTokens <= tokens && (first > 0 || sinks == 0)) {
      weigh<false>(softmax, sums, scores, copies.norms, 0xffffu, operands, lane);
    } else {
      const uint32_t valid = valid_tokens(first + lane / 4 * kTileTokens, tokens, sinks);
      weigh<true>(softmax, sums, scores, copies.norms, valid, operands, lane);
    }
    add_codes<kEven>(sums, values, operands, layer.levels.beta, lane);
    __syncwarp();
    if (group + warps < end) copies.copy_values(page(next.x), page(next.y));
    commit_copies();
    next = after;
  }
  wait_copies<0>();
  __syncwarp();

  // 2^18: fields are codes times 2^(p - 24), weights have a factor of 2^(6 - p).
  const float factor = sums.norm_scale > 0.0f ? layer.levels.factor * 262144.0f / sums.norm_scale : 0.0f;
  auto* out = reinterpret_cast<float*>(values) + 2 * (lane % 4) * kMergeStride<kDim> + lane / 4 * 4;
#pragma unroll
  for (int m = 0; m < 8; ++m) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float sum = fmaf(-layer.levels.constant, sums.ones[j % 2], sums.sums[m][j]) * factor;
      out[j % 2 * kMergeStride<kDim> + m / 2 * 32 + m % 2 * 2 + j / 2] = sum;
    }
  }
  publish(scratch, softmax, warp, lane);
  __syncthreads();
  merge_warps<kDim>(cache, p, heads, scratch,
                    reinterpret_cast<const float*>(shared + Layout::kWarpBuffers + kGroupTiles * layer.key_stride),
                    layer.warp_bytes / 4, true);
}

IntLayer describe(const CacheView& cache, const float* levels) {
  IntLayer layer = {};
  const SideView& keys = cache.keys;
  for (int run = 0; run < kWidthRuns; ++run) {
    if (keys.width[run] == 0) continue;
    int same = 0;  // the last step, if it has room for this run
    while (same < layer.step_count && (layer.steps[same].width != keys.width[run] || layer.steps[same].runs == 2))
      ++same;
    KeyStep& step = layer.steps[same];
    if (same == layer.step_count) ++layer.step_count;
    step.width = static_cast<int16_t>(keys.width[run]);
    step.offset[step.runs] = static_cast<int16_t>(keys.run_begin[run]);
    step.run[step.runs] = static_cast<int16_t>(run);
    ++step.runs;
  }
  layer.key_stride = (keys.tile_bytes + 95) / 128 * 128 + 32;  // 32 bytes beyond a whole number of bank rows
  layer.warp_bytes = WarpLayout::bytes(layer.key_stride);
  const float w1 = levels[2] - levels[0], w0 = levels[1] - levels[0];
  layer.levels = {2.0f * w0 / w1 - 1.0f, -2.0f * levels[0] / w1, 0.5f * w1};
  return layer;
}

template <int warps, bool kEven, int blocks>
void launch_int(const CacheView& cache, const Attention& p, const IntLayer& layer, cudaStream_t stream) {
  const auto bytes = static_cast<size_t>(BlockLayout<warps>::kWarpBuffers + warps * layer.warp_bytes);
  const LaunchShape shape{attention_blocks(cache, p), warps * kWarp, bytes, stream};
  launch("attend", attend_int_kernel<warps, kEven, blocks>, shape, cache, p, layer);
}

template <int warps, int blocks>
void launch_levels(const CacheView& cache, const Attention& p, const IntLayer& layer, cudaStream_t stream) {
  if (std::fabs(layer.levels.beta) < 1e-6f) {
    launch_int<warps, true, blocks>(cache, p, layer, stream);
  } else {
    launch_int<warps, false, blocks>(cache, p, layer, stream);
  }
}

}  // namespace

bool attend_int_supports(const CacheView& cache) {
  const float* levels = cache.values.four_levels;
  const bool symmetric = levels[0] == -levels[3] && levels[1] == -levels[2];
  const bool waves = cache.rope_rows >= kPageTokens + 2;  // 128 positions, which the mean term turns by
  const bool first = cache.sink_policy != SinkPolicy::kMassive && cache.keys_pre_rope == 0;
  return first && cache.keys.format == Format::kStatic && cache.values.format == Format::kNorm &&
         cache.values.bits == 2 && cache.values.rotated && symmetric && cache.head_dim == kDim &&
         cache.max_sinks <= kSinkBits && waves;
}

AttentionShape attend_int_shape(const CacheView& cache, int shared_bytes) {
  const IntLayer layer = describe(cache, cache.values.four_levels);
  const int warps =
      BlockLayout<kManyWarps>::kWarpBuffers + kManyWarps * layer.warp_bytes <= shared_bytes ? kManyWarps : kFewWarps;
  const int fixed = warps == kManyWarps ? BlockLayout<kManyWarps>::kWarpBuffers : BlockLayout<kFewWarps>::kWarpBuffers;
  return {warps, fixed + warps * layer.warp_bytes, 2, kGroupTokens};
}

void attend_int(const CacheView& cache, const Attention& p, const AttentionShape& shape, cudaStream_t stream) {
  const IntLayer layer = describe(cache, cache.values.four_levels);
  if (shape.warps == kManyWarps) {
    launch_levels<kManyWarps, 2>(cache, p, layer, stream);
  } else {
    launch_levels<kFewWarps, 2>(cache, p, layer, stream);
  }
}

}  // namespace kvquant::cuda
