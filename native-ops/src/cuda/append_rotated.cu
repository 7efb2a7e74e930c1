/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append of a prompt's chunk to rotatekv2, head_dim 128, but for keys in an order across the layer (append_ordered.cu):
// the same bytes as append_tokens.cu leaves. Two lanes take a token's head, half of it in registers each, a warp 16
// tokens, a tile, and a block four heads, which are mixed in shared memory where they are rotated together; from there
// a warp takes its head's channels or, in an order, those of its group. A scale is a half and a zero a whole number, so
// that the borders between codes are numbers too: codes come of comparisons, without a division.
//
// An H100, 8192 tokens of 8 kv heads: 26 us instead of 339, 60 % of the speed of a copy, in an order 28.5 us, 55 %;
// 32768 tokens: 74 % and 70 %. With a lane for a token's head, 12 warps on a multiprocessor instead of 20 and twice the
// code, 49 % and 48 %. Blocks that fetch the rows of their next tokens while they work were slower.
#include <algorithm>

#include "code_limits.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "row_codes.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = kRowDim, kHalf = kRowHalf, kWarps = 4, kThreads = kWarps * kWarp;

/// Shared memory of a block: rows first, then elements, [channels][tokens of a tile]; see element_row.
struct Elements {
  union {
    __half rows[kWarps][kTileTokens * kRowStride];
    float at[kWarps * kDim][kTileTokens];
  };
  int offsets[kWarps][2][kHalf + 4];  // of elements of places of an order: bytes
  uint32_t codes[kWarps * kDim];      // of channels, in the order of elements
};

/// Where a channel of four heads lies: channels 64 apart meet different banks.
__device__ __forceinline__ int element_row(int channel) { return channel ^ (channel / kHalf & 1); }

/// core/rotation.h's mix_heads, without the factor 0.5 for four heads; a thread takes four tokens of a channel.
__device__ __forceinline__ void mix_heads(Elements& shared, int together) {
  auto* fours = reinterpret_cast<float4*>(shared.at) + threadIdx.x;
  constexpr int kHead = kDim * kTileTokens / 4;
  const auto add = [](float4 a, float4 b) {
    return make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w));
  };
  const auto subtract = [](float4 a, float4 b) {
    return make_float4(__fsub_rn(a.x, b.x), __fsub_rn(a.y, b.y), __fsub_rn(a.z, b.z), __fsub_rn(a.w, b.w));
  };
  const auto less = [](float4 a) {
    constexpr float kSize = 0.70710678118654752f;
    return make_float4(__fmul_rn(a.x, kSize), __fmul_rn(a.y, kSize), __fmul_rn(a.z, kSize), __fmul_rn(a.w, kSize));
  };
#pragma unroll 2
  for (int i = 0; i < kHead; i += kThreads) {
    const float4 x0 = fours[i], x1 = fours[i + kHead], x2 = fours[i + 2 * kHead], x3 = fours[i + 3 * kHead];
    const float4 a = add(x0, x1), b = subtract(x0, x1), c = add(x2, x3), d = subtract(x2, x3);
    fours[i] = together == 4 ? add(a, c) : less(a);
    fours[i + kHead] = together == 4 ? add(b, d) : less(b);
    fours[i + 2 * kHead] = together == 4 ? subtract(a, c) : less(c);
    fours[i + 3 * kHead] = together == 4 ? subtract(b, d) : less(d);
  }
}

/// Mixes heads, without the factor 0.5 for four, and gives each warp its head's channels or, in an order, those of its
/// group, place after place. All warps of a block must call it.
__device__ __forceinline__ void exchange_elements(const SideView& side, int channels, int first_head, bool ordered,
                                                  float (&x)[kHalf], Elements& shared) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, half = lane / kTileTokens;
  const int first = first_head * kDim;
  // Neighbouring channels change places in the upper half: element_row.
  float* even = &shared.at[warp * kDim + half * (kHalf + 1)][lane % kTileTokens];
  float* odd = &shared.at[warp * kDim + half * (kHalf - 1)][lane % kTileTokens];
  __syncthreads();  // all have read their rows
#pragma unroll
  for (int i = 0; i < kHalf; ++i) (i % 2 == 0 ? even : odd)[i * kTileTokens] = x[i];
  if (ordered) {
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      const int place = first + i * kDim + threadIdx.x;
      const int row = place < channels ? element_row(side.order[place] - first) : 0;
      shared.offsets[i][threadIdx.x / kHalf][threadIdx.x % kHalf] = row * static_cast<int>(sizeof(shared.at[0]));
    }
  }
  __syncthreads();
  if (side.rotation_heads > 1) {
    mix_heads(shared, side.rotation_heads);
    __syncthreads();
  }
  if (!ordered) {
#pragma unroll
    for (int i = 0; i < kHalf; ++i) x[i] = (i % 2 == 0 ? even : odd)[i * kTileTokens];
    return;
  }
  const auto* from = reinterpret_cast<const char*>(&shared.at[0][lane % kTileTokens]);
#pragma unroll
  for (int i = 0; i < kHalf; i += 4) {
    const int4 at = *reinterpret_cast<const int4*>(shared.offsets[warp][half] + i);
    x[i] = *reinterpret_cast<const float*>(from + at.x);
    x[i + 1] = *reinterpret_cast<const float*>(from + at.y);
    x[i + 2] = *reinterpret_cast<const float*>(from + at.z);
    x[i + 3] = *reinterpret_cast<const float*>(from + at.w);
  }
}

/// From codes of places to codes of channels; there: whether the warp has a group. All warps of a block must call it.
__device__ __forceinline__ uint4 exchange_codes(const uint32_t (&words)[4], bool there, Elements& shared) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (there) {
    const int4 at = *reinterpret_cast<const int4*>(shared.offsets[warp][lane / kTileTokens] + lane % kTileTokens * 4);
    const auto put = [&](int offset, uint32_t word) {
      shared.codes[offset / static_cast<int>(sizeof(shared.at[0]))] = word;
    };
    put(at.x, words[0]);
    put(at.y, words[1]);
    put(at.z, words[2]);
    put(at.w, words[3]);
  }
  __syncthreads();
  const uint4 own = reinterpret_cast<const uint4*>(shared.codes)[threadIdx.x];
  return lane < kTileTokens ? own : make_uint4(own.y, own.x, own.w, own.z);
}

/// What a block does at a time: a tile of four heads of a side.
struct Item {
  TokenRun run;
  int first_head;
  bool keys;
};

/// Blocks of items (keys unless their order goes across the layer, then values), then of exact pages.
struct RotatedBlocks {
  int units, values, items;
};

__device__ __forceinline__ Item item_at(const CacheView& cache, const NewRows& rows, const RotatedBlocks& blocks,
                                        int index) {
  const bool keys = index < blocks.items - blocks.values;
  const int at = keys ? index : index - (blocks.items - blocks.values);
  return {unit_run<kTileTokens>(cache, rows, at % blocks.units), at / blocks.units * kWarps, keys};
}

__device__ __forceinline__ void append_item(const CacheView& cache, const NewRows& rows, const Item& item,
                                            float (&x)[kHalf], Elements& shared) {
  const bool keys = item.keys, ordered = keys && cache.keys.order != nullptr;
  const SideView& side = keys ? cache.keys : cache.values;
  const TokenRun& run = item.run;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, kv_head = item.first_head + warp;
  if (side.rotation_heads != 0) transform_half(x, lane);
  if (ordered || side.rotation_heads > 1) {
    exchange_elements(side, cache.kv_heads * kDim, item.first_head, ordered, x, shared);
  }
  float low = INFINITY, high = -INFINITY;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    low = fminf(low, x[i]);
    high = fmaxf(high, x[i]);
  }
  low = fminf(low, __shfl_xor_sync(0xffffffffu, low, kTileTokens));
  high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, kTileTokens));
  const bool doubled = side.rotation_heads == 4;  // elements; products with 2 and 0.5 are exact
  const float size = doubled ? 2.0f : 1.0f, unit = doubled ? 0.5f : 1.0f;
  const float2 range = affine_group(low * unit, high * unit, side);
  const float limits[3] = {code_limit(range, 1) * size, code_limit(range, 2) * size, code_limit(range, 3) * size};
  uint32_t words[4] = {};  // of channels 4 k + i, so that they are neighbours when they are transposed
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const bool above = x[i] > limits[1], outer = !(x[i] > limits[0]) || x[i] > limits[2];
    if (above) words[i % 4] += 2u << (i / 4 * 2);
    if (outer) words[i % 4] += 1u << (i / 4 * 2);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words[i] ^= ~(words[i] >> 1) & 0x55555555u;  // codes: not outer where above is not set
    words[i] = transpose_codes(words[i], lane);
  }
  uint4 codes = make_uint4(words[0], words[1], words[2], words[3]);
  if (ordered) codes = exchange_codes(words, kv_head < cache.kv_heads, shared);
  if (kv_head >= cache.kv_heads) return;
  const int first = run.begin / kTileTokens * kTileTokens, tile = first / kTileTokens % kPageTiles;
  const int begin = run.begin - first, end = run.end - first;
  uint8_t* page = cache.page(run.b, first / kPageTokens);
  store_words(codes, begin, end, page + side.tile(kv_head, tile) + lane * 16);
  const int in_tile = lane % kTileTokens;
  if (in_tile >= begin && in_tile < end) {
    auto* scales = reinterpret_cast<__half*>(page + side.scales(tile, kv_head));
    scales[lane] = __float2half_rn(lane < kTileTokens ? range.x : range.y);
  }
  if (run.begin < cache.length(run.b)) refill(cache, rows, run, first / kTileTokens, kv_head, keys, lane);
}

__global__ void __launch_bounds__(kThreads, 5)
    append_rotated_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows,
                          const __grid_constant__ RotatedBlocks blocks) {
  __align__(16) __shared__ Elements shared;
  const int block = blockIdx.x, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (block == 0) wait_for_previous_kernel();  // what comes next may rely on massive sinks, too
  if (block >= blocks.items) return append_exact(cache, rows, block - blocks.items);
  const Item item = item_at(cache, rows, blocks, block);
  if (item.run.begin >= item.run.end) return;
  if (item.first_head + warp < cache.kv_heads) {
    const int first = item.run.begin / kTileTokens * kTileTokens;
    stage_rows(cache, rows, item.run, item.first_head + warp, item.keys, first, shared.rows[warp], lane);
  }
  commit_copies();
  wait_copies<0>();
  __syncwarp();
  float x[kHalf];
  load_row(shared.rows[warp] + lane % kTileTokens * kRowStride + lane / kTileTokens * kHalf, x);
  append_item(cache, rows, item, x, shared);
}

}  // namespace

bool append_rotated_supports(const CacheView& cache, const NewTokens& tokens) {
  const auto side = [](const SideView& x) {
    return x.format == Format::kAffine && x.bits == 2 && x.group_size == kDim && x.mean == nullptr &&
           x.basis_heads == 0 && x.rotation_heads != 3 && x.rotation_heads <= 4 && !x.float_zero;
  };
  return cache.head_dim == kDim && side(cache.keys) && side(cache.values) && cache.keys_pre_rope != 0 &&
         cache.values.order == nullptr &&
         (cache.keys.order == nullptr || cache.keys.local_order || append_ordered_supports(cache)) &&
         cache.kv_heads % std::max({1, cache.keys.rotation_heads, cache.values.rotation_heads}) == 0 &&
         aligned_rows(tokens);
}

void append_rotated(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  const auto groups = [&](int heads) { return (cache.kv_heads + heads - 1) / heads; };
  RotatedBlocks blocks;
  blocks.units = tokens.count / kTileTokens + 2 * cache.batch;
  blocks.values = blocks.units * groups(kWarps);
  const bool across = cache.keys.order != nullptr && !cache.keys.local_order;
  blocks.items = across ? blocks.values : 2 * blocks.values;
  const int exact = cache.batch * exact_columns(cache) * groups(2);
  const dim3 all(static_cast<unsigned>(blocks.items + exact));
  // Has nothing to do with massive sinks, which the kernels ahead bring up to date.
  const bool early = cache.sink_policy == SinkPolicy::kMassive && can_start_early("append");
  launch("append", append_rotated_kernel, {all, kThreads, 0, stream, early}, cache, NewRows{tokens}, blocks);
  if (across) append_ordered(cache, tokens, stream);
}

}  // namespace kvquant::cuda
