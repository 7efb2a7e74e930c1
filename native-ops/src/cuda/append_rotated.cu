/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append of a prompt's chunk to rotatekv2, head_dim 128, but for keys in an order (append_ordered.cu): the same bytes
// as append_tokens.cu leaves. A thread takes a token's head, in registers, a warp 32 tokens and a block four heads,
// which exchange 16 channels at a time through shared memory where they are rotated together. A scale is a half and a
// zero a whole number, so that the borders between codes are numbers too: codes come of comparisons, without a
// division.
//
// An H100, 8192 tokens of 8 kv heads, natural order: 32 us instead of 339, 49 % of the speed of a copy; 32768 tokens:
// 66 %. Blocks that fetch the rows of their next 32 tokens while they work were slower.
#include <algorithm>

#include "code_limits.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "row_codes.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = kRowDim, kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kChunk = 16;  // channels that are exchanged at a time

struct Exchange {
  float4 at[2][kWarps][kChunk / 4][kWarp];
};
constexpr int kRowsBytes = kWarps * kWarp * kRowStride * 2;

/// Shared memory for keys in an order; rows are where elements are then.
struct Ordered {
  float elements[kWarps * kDim][kWarp];
  int offsets[kWarps * kDim];                          // of elements of places: bytes
  uint32_t codes[kWarp / kTileTokens][kWarps * kDim];  // of channels
};
static_assert(sizeof(Ordered::elements) >= kRowsBytes, "rows fit");

/// core/rotation.h's mix_heads: warps hold heads of groups of two or four. All warps of a block must call it.
__device__ __forceinline__ void mix_heads(float (&x)[kDim], int together, Exchange& exchange) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, own = warp % together, first = warp - own;
  const float odd = (own & 1) != 0 ? -1.0f : 1.0f, upper = (own & 2) != 0 ? -1.0f : 1.0f;
#pragma unroll
  for (int chunk = 0; chunk < kDim / kChunk; ++chunk) {
    auto& buffer = exchange.at[chunk % 2];
#pragma unroll
    for (int i = 0; i < kChunk / 4; ++i) {
      const float* from = x + chunk * kChunk + 4 * i;
      buffer[warp][i][lane] = make_float4(from[0], from[1], from[2], from[3]);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kChunk / 4; ++i) {
      const float4 a = buffer[first][i][lane], b = buffer[first + 1][i][lane];
      float* to = x + chunk * kChunk + 4 * i;
      // A product with one or minus one is exact.
      to[0] = fmaf(odd, b.x, a.x);
      to[1] = fmaf(odd, b.y, a.y);
      to[2] = fmaf(odd, b.z, a.z);
      to[3] = fmaf(odd, b.w, a.w);
      if (together == 4) {
        const float4 c = buffer[first + 2][i][lane], d = buffer[first + 3][i][lane];
        to[0] = fmaf(upper, fmaf(odd, d.x, c.x), to[0]);
        to[1] = fmaf(upper, fmaf(odd, d.y, c.y), to[1]);
        to[2] = fmaf(upper, fmaf(odd, d.z, c.z), to[2]);
        to[3] = fmaf(upper, fmaf(odd, d.w, c.w), to[3]);
      }
      const float size = together == 4 ? 0.5f : 0.70710678118654752f;
#pragma unroll
      for (int j = 0; j < 4; ++j) to[j] = __fmul_rn(to[j], size);
    }
  }
}

/// The same in shared memory, without the factor 0.5 for four heads; a thread takes channels of a token.
__device__ __forceinline__ void mix_elements(Ordered& shared, int together) {
  constexpr int kOwn = kDim / kWarps;
  const int lane = threadIdx.x % kWarp;
  float* own = &shared.elements[threadIdx.x / kWarp * kOwn][lane];
#pragma unroll 8
  for (int i = 0; i < kOwn; ++i) {
    const auto head = [&](int h) -> float& { return own[(h * kDim + i) * kWarp]; };
    const float x0 = head(0), x1 = head(1), x2 = head(2), x3 = head(3);
    const float a = __fadd_rn(x0, x1), b = __fsub_rn(x0, x1), c = __fadd_rn(x2, x3), d = __fsub_rn(x2, x3);
    if (together == 4) {
      head(0) = __fadd_rn(a, c);
      head(1) = __fadd_rn(b, d);
      head(2) = __fsub_rn(a, c);
      head(3) = __fsub_rn(b, d);
    } else {
      head(0) = __fmul_rn(a, 0.70710678118654752f);
      head(1) = __fmul_rn(b, 0.70710678118654752f);
      head(2) = __fmul_rn(c, 0.70710678118654752f);
      head(3) = __fmul_rn(d, 0.70710678118654752f);
    }
  }
}

/// Mixes heads, without the factor 0.5 for four, and gives each warp the channels of its group, place after place. All
/// warps of a block must call it.
__device__ __forceinline__ void to_places(const CacheView& cache, int first_head, float (&x)[kDim], Ordered& shared) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, first = first_head * kDim;
  __syncthreads();  // all have read their rows
#pragma unroll
  for (int i = 0; i < kDim; ++i) shared.elements[warp * kDim + i][lane] = x[i];
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    const int place = i * kThreads + threadIdx.x;
    const bool there = first + place < cache.kv_heads * kDim;
    shared.offsets[place] =
        there ? (cache.keys.order[first + place] - first) * static_cast<int>(sizeof(float) * kWarp) : 0;
  }
  __syncthreads();
  if (cache.keys.rotation_heads > 1) {
    mix_elements(shared, cache.keys.rotation_heads);
    __syncthreads();
  }
  const auto* from = reinterpret_cast<const char*>(&shared.elements[0][lane]);
#pragma unroll
  for (int i = 0; i < kDim; i += 4) {
    const int4 at = *reinterpret_cast<const int4*>(shared.offsets + warp * kDim + i);
    x[i] = *reinterpret_cast<const float*>(from + at.x);
    x[i + 1] = *reinterpret_cast<const float*>(from + at.y);
    x[i + 2] = *reinterpret_cast<const float*>(from + at.z);
    x[i + 3] = *reinterpret_cast<const float*>(from + at.w);
  }
}

/// Codes of places, if there is a group, a token a lane, to where codes of channels are. All warps of a block must call
/// it.
__device__ __forceinline__ void exchange_codes(uint32_t (&words)[8], bool there, Ordered& shared) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
  for (int i = 0; i < 8; ++i) words[i] = transpose_codes(words[i], lane);
  auto* to = reinterpret_cast<char*>(shared.codes[lane / kTileTokens]);
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    if (!there) continue;
    const int4 at = *reinterpret_cast<const int4*>(shared.offsets + warp * kDim + i * 16 + lane % kTileTokens * 4);
    const auto put = [&](int offset, uint32_t word) { *reinterpret_cast<uint32_t*>(to + offset / kWarp) = word; };
    put(at.x, words[i]);
    put(at.y, words[i + 1]);
    put(at.z, words[i + 2]);
    put(at.w, words[i + 3]);
  }
  __syncthreads();
}

/// Codes of the channels of a head, two tiles.
__device__ __forceinline__ void store_channels(const Ordered& shared, const TokenRun& run, int first, uint8_t* tile,
                                               int tile_bytes) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
  for (int i = 0; i < kWarp / kTileTokens; ++i) {
    const int start = first + i * kTileTokens;
    const int begin = max(run.begin - start, 0), end = min(run.end - start, kTileTokens);
    const auto words = reinterpret_cast<const uint4*>(shared.codes[i] + warp * kDim)[lane];
    if (begin < end) store_words(words, begin, end, tile + i * tile_bytes + lane * 16);
  }
}

/// What a block does at a time: 32 tokens of four heads of a side.
struct Item {
  TokenRun run;
  int first_head;
  bool keys;
};

/// Blocks of items (keys in natural order, then values), then of exact pages.
struct RotatedBlocks {
  int units, values, items;
};

__device__ __forceinline__ Item item_at(const CacheView& cache, const NewRows& rows, const RotatedBlocks& blocks,
                                        int index) {
  const bool keys = index < blocks.items - blocks.values;
  const int at = keys ? index : index - (blocks.items - blocks.values);
  return {unit_run<kWarp>(cache, rows, at % blocks.units), at / blocks.units * kWarps, keys};
}

__device__ __forceinline__ void append_item(const CacheView& cache, const NewRows& rows, const Item& item,
                                            float (&x)[kDim], uint8_t* shared) {
  const bool keys = item.keys, ordered = keys && cache.keys.order != nullptr;
  auto& places = *reinterpret_cast<Ordered*>(shared);
  const SideView& side = keys ? cache.keys : cache.values;
  const TokenRun& run = item.run;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, kv_head = item.first_head + warp;
  const int first = run.begin / kWarp * kWarp;
  if (side.rotation_heads != 0) walsh_hadamard(x);
  if (ordered) {
    to_places(cache, item.first_head, x, places);
  } else if (side.rotation_heads > 1) {
    mix_heads(x, side.rotation_heads, *reinterpret_cast<Exchange*>(shared + kRowsBytes));
  }
  float low = INFINITY, high = -INFINITY;
#pragma unroll
  for (int i = 0; i < kDim; ++i) {
    low = fminf(low, x[i]);
    high = fmaxf(high, x[i]);
  }
  const bool doubled = ordered && side.rotation_heads == 4;  // elements; products with 2 and 0.5 are exact
  const float size = doubled ? 2.0f : 1.0f, unit = doubled ? 0.5f : 1.0f;
  const float2 range = affine_group(low * unit, high * unit, side);
  const float limits[3] = {code_limit(range, 1) * size, code_limit(range, 2) * size, code_limit(range, 3) * size};
  uint32_t words[8] = {};
#pragma unroll
  for (int i = 0; i < kDim; ++i) {
    const bool above = x[i] > limits[1], outer = !(x[i] > limits[0]) || x[i] > limits[2];
    if (above) words[code_word(i)] += 2u << code_bit(i);
    if (outer) words[code_word(i)] += 1u << code_bit(i);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) words[i] ^= ~(words[i] >> 1) & 0x55555555u;  // codes: not outer where above is not set
  const int own_tile = first / kTileTokens + lane / kTileTokens, tile = own_tile % kPageTiles;
  const int begin = max(run.begin - own_tile * kTileTokens, 0),
            end = min(run.end - own_tile * kTileTokens, kTileTokens);
  if (ordered) exchange_codes(words, kv_head < cache.kv_heads, places);
  if (kv_head >= cache.kv_heads) return;
  uint8_t* page = cache.page(run.b, first / kPageTokens);
  if (ordered) {
    store_channels(places, run, first, page + side.tile(kv_head, first / kTileTokens % kPageTiles), side.tile_bytes);
  } else {
    store_codes(words, begin, end, page + side.tile(kv_head, tile), lane);
  }
  const int in_tile = lane % kTileTokens;
  if (in_tile >= begin && in_tile < end) {
    auto* scales = reinterpret_cast<__half*>(page + side.scales(tile, kv_head));
    scales[in_tile] = __float2half_rn(range.x);
    scales[kTileTokens + in_tile] = __float2half_rn(range.y);
  }
  const int in_window = min(run.end, cache.length(run.b));
  for (int t = run.begin / kTileTokens; t * kTileTokens < in_window; ++t) {
    refill(cache, rows, run, t, kv_head, keys, lane);
  }
}

__global__ void __launch_bounds__(kThreads, 3)
    append_rotated_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows,
                          const __grid_constant__ RotatedBlocks blocks) {
  KVQUANT_DYNAMIC_SHARED(shared);
  const int block = blockIdx.x, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (block >= blocks.items) return append_exact(cache, rows, block - blocks.items);
  const Item item = item_at(cache, rows, blocks, block);
  if (item.run.begin >= item.run.end) return;
  __half* staged = reinterpret_cast<__half*>(shared) + warp * kWarp * kRowStride;
  if (item.first_head + warp < cache.kv_heads) {
    const int first = item.run.begin / kWarp * kWarp;
    stage_rows(cache, rows, item.run, item.first_head + warp, item.keys, first, staged, lane);
  }
  commit_copies();
  wait_copies<0>();
  __syncwarp();
  float x[kDim];
  load_row(staged + lane * kRowStride, x);
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
  blocks.units = tokens.count / kWarp + 2 * cache.batch;
  blocks.values = blocks.units * groups(kWarps);
  const bool across = cache.keys.order != nullptr && !cache.keys.local_order;
  blocks.items = across ? blocks.values : 2 * blocks.values;
  const int exact = cache.batch * exact_columns(cache) * groups(2);
  const dim3 all(static_cast<unsigned>(blocks.items + exact));
  const size_t bytes = cache.keys.local_order ? sizeof(Ordered) : kRowsBytes + sizeof(Exchange);
  launch("append", append_rotated_kernel, {all, kThreads, bytes, stream}, cache, NewRows{tokens}, blocks);
  if (across) append_ordered(cache, tokens, stream);
}

}  // namespace kvquant::cuda
