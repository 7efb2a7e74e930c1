/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Decode attention over keys in static codes of a basis over their head, before RoPE, and values in 2-bit codes with
// norms (latent2), head_dim 128, on tensor cores; the plain kernel takes a token at a time.
//
// A block takes a part of a sequence for a kv head, 128 tokens (8 tiles) at a time; its 8 warps meet once per 128
// tokens. Warp w rebuilds the keys of tokens w and w + 8 of each tile (latent_keys.cuh) and finds their scores, then
// adds 16 channels of the values of the 128 tokens before (norm_values.cuh). All warps refer weights to the same
// scores, which they raise together, rarely. The basis of the head and RoPE's angles of 128 positions lie in shared
// memory. The last part is what is kept exactly; a single part goes on to it itself and writes the output.
//
// All query heads of a kv head share the rebuilt keys: 128 x 96 multiplications each where 12 of 16 runs have codes. On
// Hopper (sm_90a) a warpgroup multiplies codes in registers with the basis in shared memory; elsewhere warps do, by
// mma. The basis comes as halves from the copy of parameters (latent_basis.h).
//
// Measured on an H100, us a launch: 926 at batch 32, 32 query and 8 kv heads, 32768 tokens (cuDNN over fp16: 1382); 260
// at 16, 32, 32, 4096 (350); by mma on the same GPU 1114 and 310. Tried: warps that go through 128 tokens on their own,
// two products at a time, 8 warps on a multiprocessor, by mma: 851 and 278; before that, with the basis made by every
// block and steps unrolled for any width: 1154 and 431 by mma, 1030 and 398 by warpgroups, 1079 and 460 with codes
// unpacked while products were in flight.
#include <algorithm>
#include <cmath>

#include "latent_block.cuh"
#include "launch.cuh"

namespace kvquant::cuda {
namespace {

/// A part's tokens in codes: leaves sums of values at the beginning of shared memory and returns the warp's head.
__device__ __forceinline__ MergedHead<kDim / kWarp> attend_codes(const CacheView& cache, const Attention& p,
                                                                 const LatentLayer& layer, const BlockHeads& heads,
                                                                 int tokens, uint32_t sinks, int begin, int end,
                                                                 unsigned char* bytes, int warp, int lane) {
  auto& shared = *reinterpret_cast<LatentShared*>(bytes + kSharedAt);
  auto* turns = reinterpret_cast<uint32_t*>(bytes);
  unsigned char* basis = bytes + kBasisAt;
  const int g = lane / 4, c = lane % 4;
  const LatentStream stream{cache,
                            layer,
                            cache.page_table + static_cast<int64_t>(heads.b) * cache.page_columns,
                            basis + layer.basis_bytes,
                            heads.kv_head,
                            begin,
                            end,
                            max(1, (tokens + kPageTokens - 1) / kPageTokens),
                            warp,
                            lane};
  const auto angle = [&](int group) {
    const float* base = cache.rope + static_cast<int64_t>(kPageTokens + 2 * max(0, min(group, end - 1))) * kDim;
    const int pair = threadIdx.x % (kDim / 2);
    return make_float2(__ldg(base + pair), __ldg(base + kDim / 2 + pair));
  };
  const int first_id = stream.load_id(begin), second_id = stream.load_id(begin + 1);
  int id = stream.load_id(begin + 2);
  const PairQueries queries(cache, p, heads);
  const float2 first = angle(begin);
  float2 next = angle(begin + 1);
  const uint8_t* stored = cache.keys.latent + static_cast<int64_t>(heads.kv_head) * layer.basis_bytes;
  const float unit = reinterpret_cast<const float*>(cache.keys.latent + static_cast<int64_t>(cache.kv_heads) *
                                                                            layer.basis_bytes)[heads.kv_head];
  float bias[2] = {};
  if (cache.keys.noise != nullptr) {
    const float* noise = cache.keys.noise + heads.kv_head * kDim + threadIdx.x % (kDim / 2);
    const float noise0 = noise[0], noise1 = noise[kDim / 2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      bias[i] = queries.x[i].x * queries.x[i].x * noise0 + queries.x[i].y * queries.x[i].y * noise1;
    }
  }
  for (int i = threadIdx.x * 16; i < layer.basis_bytes; i += kLatentThreads * 16) copy_async(basis + i, stored + i);
  stream.start(begin, first_id);
  stream.start(begin + 1, second_id);
  queries.store(first, shared.queries[0]);
  fill_turns(cache, turns);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) bias[i] += __shfl_xor_sync(0xffffffffu, bias[i], step);
    if (lane == 0) shared.bias[warp][i] = bias[i];
  }
  wait_copies<1>();
  publish_operands();
  __syncthreads();
  const auto constant = [&](int column) {
    const int half = column / 2 * 2;
    return (shared.bias[half][column % 2] + shared.bias[half + 1][column % 2]) * (0.5f / kLog2e);
  };
  const float constant0 = constant(2 * c), constant1 = constant(2 * c + 1);

  LatentWarp state;
#pragma unroll 1
  for (int group = begin; group < end; ++group) {
    const int buffer = (group - begin) % 2;
    const TileReader tile{stream.stage(group) + g * layer.key_stride, key_swizzle(g)};
    const auto* q = reinterpret_cast<const uint32_t*>(shared.queries[buffer]) + g * (kTurnedStride<kDim> / 2) + c;
    float scores[4];
    score_latent(scores, q, layer.keys, tile, basis, reinterpret_cast<const uint4*>(turns + warp * kTurnStride) + lane,
                 warp, lane);
    const auto* norms = reinterpret_cast<const __half*>(stream.norms(group)) + g * kTileTokens + warp;
    float norm0 = __half2float(norms[0]), norm1 = __half2float(norms[8]);
    const int token = group * kGroupTokens + g * kTileTokens + warp;
    const auto is_valid = [&](int t) { return t < tokens && !(t < kSinkBits && (sinks >> t & 1u) != 0); };
    const bool valid0 = is_valid(token), valid1 = is_valid(token + 8);
    scores[0] = valid0 ? fmaf(scores[0], unit, constant0) : -INFINITY;
    scores[1] = valid0 ? fmaf(scores[1], unit, constant1) : -INFINITY;
    scores[2] = valid1 ? fmaf(scores[2], unit, constant0) : -INFINITY;
    scores[3] = valid1 ? fmaf(scores[3], unit, constant1) : -INFINITY;
    norm0 = valid0 ? norm0 : 0.0f;
    norm1 = valid1 ? norm1 : 0.0f;
    if (group + 1 < end) queries.store(next, shared.queries[buffer ^ 1]);
    next = angle(group + 2);
    wait_copies<0>();
    const bool raise = __syncthreads_or(state.must_raise(scores, fmaxf(norm0, norm1))) != 0;
    stream.start(group + 2, id);  // where group - 2 was, whose values all have added
    id = stream.load_id(group + 3);
    if (group > begin) state.add_values(stream.values(group - 1), shared.weights[buffer ^ 1], warp, lane);
    if (raise) {
      state.raise(shared, fmaxf(scores[0], scores[2]), fmaxf(scores[1], scores[3]), fmaxf(norm0, norm1), warp, lane);
    }
    shared.weights[buffer][warp][lane] = state.weigh(scores, norm0, norm1, warp);
  }
  wait_copies<0>();
  __syncthreads();
  if (begin < end) state.add_values(stream.values(end - 1), shared.weights[(end - 1 - begin) % 2], warp, lane);

  // Sums of all channels, and of the warps' weights, by column.
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int step = 4; step < kWarp; step *= 2) {
      state.weights[i] += __shfl_xor_sync(0xffffffffu, state.weights[i], step);
      state.ones[i] += __shfl_xor_sync(0xffffffffu, state.ones[i], step);
    }
    if (lane < 4) {
      shared.weight_sums[warp][2 * c + i] = state.weights[i];
      shared.one_sums[warp][2 * c + i] = state.ones[i];
      if (warp == 0) shared.maxima[0][2 * c + i] = state.reference[i];
    }
  }
  // 2^18: fields are codes times 2^(p - 24), weights have a factor of 2^(6 - p).
  const float factor = state.norm_scale > 0.0f ? layer.level_step * 262144.0f / state.norm_scale : 0.0f;
  auto* out = reinterpret_cast<float*>(bytes);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    out[(2 * c + j % 2) * kMergeStride<kDim> + warp / 2 * 32 + g * 4 + warp % 2 * 2 + j / 2] = state.sums[j];
  }
  __syncthreads();
  MergedHead<kDim / kWarp> merged;
  merged.maximum = shared.maxima[0][warp];
  float ones = 0.0f;
#pragma unroll
  for (int w = 0; w < kLatentWarps; ++w) {
    merged.weights += shared.weight_sums[w][warp];
    ones += shared.one_sums[w][warp];
  }
#pragma unroll
  for (int i = 0; i < kDim / kWarp; ++i) {
    merged.sums[i] = fmaf(-1.5f, ones, out[warp * kMergeStride<kDim> + lane * (kDim / kWarp) + i]) * factor;
  }
  walsh_hadamard(merged.sums, lane);
  return merged;
}

/// A block per part, kv head (and group of 8 query heads) and sequence.
__global__ void __launch_bounds__(kLatentThreads, 2)
    attend_latent_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Attention p,
                         const __grid_constant__ LatentLayer layer) {
  KVQUANT_DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x % kWarp, warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarp, 0);
  const BlockHeads heads = block_heads(cache);
  release_next_kernel();
  const bool has_exact = cache.window > 0 || cache.sink_pages > 0;
  const int parts = has_exact && p.parts > 1 ? p.parts - 1 : p.parts, part = heads.part;
  const bool in_codes = part < parts;
  unsigned char* tiles = shared + kBasisAt + warp * kExactStride;
  ExactUnits<kDim> exact(cache, heads, {0, warp, kLatentWarps, kWarpBits}, tiles, tiles + Fp16Tile<kDim>::kBytes, lane);
  const uint32_t sinks = find_sinks(cache, heads.b, lane);
  MergedHead<kDim / kWarp> merged;
  if (in_codes) {
    const int groups = (exact.quantized + kGroupTokens - 1) / kGroupTokens;
    const int begin = static_cast<int>(static_cast<int64_t>(groups) * part / parts);
    const int end = static_cast<int>(static_cast<int64_t>(groups) * (part + 1) / parts);
    if (begin == end && p.parts > 1) return write_empty(cache, p, heads);
    merged = attend_codes(cache, p, layer, heads, exact.quantized, sinks, begin, end, shared, warp, lane);
  }
  if (has_exact && (p.parts == 1 || !in_codes)) {
    exact.start(warp, false);
    exact.start(warp, true);
    attend_exact<kDim, kLatentWarps, kScratchAt>(p, heads, exact, sinks, shared);
    if (warp < heads.count) {
      const auto& scratch = *reinterpret_cast<const MergeScratch<kLatentWarps>*>(shared + kScratchAt);
      merged.add(merge_head<kDim, kLatentWarps>(scratch, reinterpret_cast<const float*>(shared + kBasisAt),
                                                kExactStride / 4, warp, false));
    }
  }
  if (warp < heads.count) write_head(cache, p, heads, warp, merged);
}

LatentLayer describe(const CacheView& cache) {
  LatentLayer layer = {};
  const SideView& keys = cache.keys;
  uint8_t widths[kWidthRuns];
  std::copy_n(keys.width, kWidthRuns, widths);
  layer.keys.order = latent_steps(widths);
  for (int i = 0; i < 2 * kMostSteps; ++i) {
    const int run = layer.keys.order.run[i];
    layer.keys.tile[i] = run < 0 ? 0 : keys.run_begin[run];
  }
  layer.basis_bytes = layer.keys.order.steps() * 2 * kRunBytes;
  layer.key_stride = (keys.tile_bytes + 127) / 128 * 128;
  layer.stage_bytes = kTiles * (layer.key_stride + kValueTileBytes + kNormBytes);
  layer.level_step = (cache.values.four_levels[3] - cache.values.four_levels[0]) / 3.0f;
  return layer;
}

int shared_bytes(const LatentLayer& layer) {
  return kBasisAt + std::max(layer.basis_bytes + kLatentStages * layer.stage_bytes, kLatentWarps * kExactStride);
}

}  // namespace

bool attend_latent_supports(const CacheView& cache) {
  const float* levels = cache.values.four_levels;
  const bool even =
      levels[0] == -levels[3] && levels[1] == -levels[2] && std::fabs(levels[3] - 3.0f * levels[2]) < 1e-3f;
  const bool turns = cache.rope_rows >= kPageTokens + 2;  // 128 positions, which keys are turned by
  return cache.sink_policy != SinkPolicy::kMassive && cache.keys_pre_rope != 0 &&
         cache.keys.format == Format::kStatic && cache.keys.basis_heads == 1 && cache.values.format == Format::kNorm &&
         cache.values.bits == 2 && cache.values.rotated && even && cache.head_dim == kDim &&
         cache.max_sinks <= kSinkBits && turns;
}

AttentionShape attend_latent_shape(const CacheView& cache) {
  // A block's warps work on the same tokens: as one warp that takes them one after another.
  return {1, shared_bytes(describe(cache)), 2, kGroupTokens};
}

void attend_latent(const CacheView& cache, const Attention& p, cudaStream_t stream) {
  const LatentLayer layer = describe(cache);
  const LaunchShape shape{attention_blocks(cache, p), kLatentThreads, static_cast<size_t>(shared_bytes(layer)), stream};
  launch("attend", attend_latent_kernel, shape, cache, p, layer);
}

}  // namespace kvquant::cuda
