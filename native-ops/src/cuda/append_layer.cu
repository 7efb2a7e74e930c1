/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append while decoding, svdq in a basis over all heads, head_dim 128, without a window, for about one token per
// sequence: the same bytes as append_basis.cu and append.cu leave. For keys a block takes four places, a warp one,
// whose rows of the basis nobody else reads, and 32 tokens at a time, a lane one: channels of a head after another pass
// through shared memory. Other blocks code values and copy sinks, a warp a head of a sequence (one_token.cuh). An H100,
// svdq2.25 with 8 kv heads, a token for each of 32 sequences: 14.5 us instead of 154.
#include "kernels.h"
#include "launch.cuh"
#include "one_token.cuh"
#include "tile_rows.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = kOneDim, kWarps = 4, kThreads = kWarps * kWarp, kRunPlaces = kDim / kWidthRuns;
constexpr int kStride = kWarp + 1, kParts = 4;  // from channel to channel; what a thread loads of a head, eight each

struct Shared {
  float tokens[2][kDim][kStride];  // [channels][tokens]
};
struct ValueShared {
  float squares[kWarps][kDim], products[kWarps][kDim];
};
static_assert(sizeof(ValueShared) <= sizeof(Shared), "one memory for both");

/// The blocks of keys are the first.
struct LayerBlocks {
  int places, keys;  // stored places of a head; blocks
};

/// The place of a head that is the stored one of an index.
__device__ __forceinline__ int stored_place(const SideView& keys, int index) {
  int run = 0;
  for (int left = index / kRunPlaces; keys.width[run] == 0 || left > 0; ++run) left -= keys.width[run] != 0 ? 1 : 0;
  return run * kRunPlaces + index % kRunPlaces;
}

/// What a thread brings of a head's channels: of token 8 warp + lane % 8, eight channels at a time.
__device__ __forceinline__ void load_parts(const CacheView& cache, const NewRows& rows, int first_row, int head,
                                           uint4 (&parts)[kParts]) {
  const int lane = threadIdx.x % kWarp, row = first_row + threadIdx.x / kWarp * 8 + lane % 8;
  const int64_t index = (static_cast<int64_t>(min(row, rows.tokens.count - 1)) * (cache.heads + 2 * cache.kv_heads) +
                         cache.heads + head) *
                            kDim +
                        lane / 8 * 8;
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const uint2 low = four_halves(rows.tokens.type, rows.tokens.qkv, index + i * 32);
    const uint2 high = four_halves(rows.tokens.type, rows.tokens.qkv, index + i * 32 + 4);
    parts[i] = make_uint4(low.x, low.y, high.x, high.y);
  }
}

/// Keys less the mean.
__device__ __forceinline__ void store_parts(const CacheView& cache, int head, const uint4 (&parts)[kParts],
                                            float (&to)[kDim][kStride]) {
  const int lane = threadIdx.x % kWarp, token = threadIdx.x / kWarp * 8 + lane % 8;
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const int channel = i * 32 + lane / 8 * 8;
    const uint32_t words[4] = {parts[i].x, parts[i].y, parts[i].z, parts[i].w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float2 x = __half22float2(*reinterpret_cast<const __half2*>(&words[j]));
      if (cache.keys.mean != nullptr) {
        const float* mean = cache.keys.mean + head * kDim + channel + 2 * j;
        x = make_float2(__fsub_rn(x.x, mean[0]), __fsub_rn(x.y, mean[1]));
      }
      to[channel + 2 * j][token] = x.x;
      to[channel + 2 * j + 1][token] = x.y;
    }
  }
}

__device__ __forceinline__ void put_key(const CacheView& cache, const NewRows& rows, int row, int kv_head, int place,
                                        float sum) {
  const SideView& keys = cache.keys;
  const int b = find_sequence(cache.batch, row, [&](int i) { return rows.start(i); });
  const int token = cache.length(b) + row - rows.start(b), run = place / kRunPlaces, bits = keys.width[run];
  const int bit = token % kTileTokens * bits, shift = bit % 8;
  const float* range = keys.steps + 2 * (kv_head * kDim + place);
  const unsigned code = static_code(sum, range[0], range[1], 1.0f / range[1], bits), mask = (1u << bits) - 1u;
  uint8_t* field = cache.page(b, token / kPageTokens) + keys.tile(kv_head, token % kPageTokens / kTileTokens) +
                   keys.run_begin[run] + place % kRunPlaces * 2 * bits + bit / 8;
  field[0] = static_cast<uint8_t>((field[0] & ~(mask << shift)) | code << shift);
  if (shift + bits > 8) field[1] = static_cast<uint8_t>((field[1] & ~(mask << shift >> 8)) | code << shift >> 8);
}

__device__ __forceinline__ void append_keys(const CacheView& cache, const NewRows& rows, const LayerBlocks& blocks,
                                            Shared& shared, float* basis_rows) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, heads = cache.keys.basis_heads;
  const int size = heads * kDim, stored = blockIdx.x * kWarps + warp;
  const bool there = stored < cache.kv_heads * blocks.places;
  const int kv_head = stored / blocks.places, first_head = blockIdx.x * kWarps / blocks.places / heads * heads;
  const int place = there ? stored_place(cache.keys, stored % blocks.places) : 0;
  float* row = basis_rows + warp * size;
  if (there) {
    const float* from = cache.keys.basis + static_cast<int64_t>(kv_head * kDim + place) * size;
    for (int c = lane * 4; c < size; c += kWarp * 4) copy_async(row + c, from + c);
  }
  commit_copies();
  for (int first_row = 0; first_row < rows.tokens.count; first_row += kWarp) {
    uint4 parts[kParts];
    load_parts(cache, rows, first_row, first_head, parts);
    float sum = 0.0f;
    for (int head = 0; head < heads; ++head) {
      auto& tokens = shared.tokens[head % 2];
      store_parts(cache, first_head + head, parts, tokens);
      wait_copies<0>();
      __syncthreads();
      if (head + 1 < heads) load_parts(cache, rows, first_row, first_head + head + 1, parts);
#pragma unroll 8
      for (int c = 0; c < kDim; c += 4) {
        const float4 four = *reinterpret_cast<const float4*>(row + head * kDim + c);
        sum = __fadd_rn(sum, __fmul_rn(four.x, tokens[c][lane]));
        sum = __fadd_rn(sum, __fmul_rn(four.y, tokens[c + 1][lane]));
        sum = __fadd_rn(sum, __fmul_rn(four.z, tokens[c + 2][lane]));
        sum = __fadd_rn(sum, __fmul_rn(four.w, tokens[c + 3][lane]));
      }
    }
    // Tokens of one sequence may share bytes: one after the other then.
    const int own_row = first_row + lane;
    const bool mine = there && own_row < rows.tokens.count;
    const int b = mine ? find_sequence(cache.batch, own_row, [&](int i) { return rows.start(i); }) : 0;
    if (!__any_sync(0xffffffffu, mine && rows.count(b) > 1)) {
      if (mine) put_key(cache, rows, own_row, kv_head, place, sum);
    } else {
      for (int i = 0; i < kWarp; ++i) {
        if (mine && lane == i) put_key(cache, rows, own_row, kv_head, place, sum);
        __syncwarp();
      }
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads)
    append_layer_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows,
                        const __grid_constant__ LayerBlocks blocks) {
  KVQUANT_DYNAMIC_SHARED(memory);
  const int block = blockIdx.x, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (block < blocks.keys) {
    append_keys(cache, rows, blocks, *reinterpret_cast<Shared*>(memory),
                reinterpret_cast<float*>(memory + sizeof(Shared)));
    return;
  }
  const int item = (block - blocks.keys) * kWarps + warp, kv_head = item % cache.kv_heads, b = item / cache.kv_heads;
  if (b >= cache.batch) return;
  auto& shared = *reinterpret_cast<ValueShared*>(memory);
  const int count = rows.count(b), length = cache.length(b);
  for (int i = 0; i < count; ++i) {
    const int token = length + i;
    const Place16 at{b, kv_head, token, lane, cache.page(b, token / kPageTokens)};
    if (cache.values.bits == 2) {
      put_value<2>(cache, rows, at, shared.squares[warp], shared.products[warp]);
    } else {
      put_value<4>(cache, rows, at, shared.squares[warp], shared.products[warp]);
    }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kOneOwn; ++j) store_exact(cache, rows, b, i, kv_head, j * kWarp + lane);
  }
  if (count > 0 && kv_head == 0 && cache.sink_policy == SinkPolicy::kFirst) {
    for (int page = 0; page < cache.sink_pages; ++page) update_sink_header(cache, b, count, page, lane);
  }
}

}  // namespace

bool append_layer_supports(const CacheView& cache, const NewTokens& tokens) {
  return cache.head_dim == kDim && cache.window == 0 && cache.keys.format == Format::kStatic &&
         cache.keys.basis_heads > 1 && cache.keys_pre_rope != 0 && cache.values.format == Format::kNorm &&
         (cache.values.bits == 2 || cache.values.bits == 4) && aligned_rows(tokens) &&
         reinterpret_cast<uintptr_t>(cache.keys.basis) % 16 == 0 && cache.keys.basis_heads <= 40 &&
         cache.keys.basis_heads == cache.kv_heads;
}

void append_layer(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  LayerBlocks blocks{0, 0};
  for (const int width : cache.keys.width) blocks.places += width != 0 ? kRunPlaces : 0;
  blocks.keys = (cache.kv_heads * blocks.places + kWarps - 1) / kWarps;
  const int values = (cache.kv_heads * cache.batch + kWarps - 1) / kWarps;
  const size_t bytes = sizeof(Shared) + static_cast<size_t>(kWarps * cache.keys.basis_heads * kDim) * sizeof(float);
  const auto all = static_cast<unsigned>(blocks.keys + values);
  launch("append", append_layer_kernel, {dim3(all), kThreads, bytes, stream}, cache, NewRows{tokens}, blocks);
}

}  // namespace kvquant::cuda
