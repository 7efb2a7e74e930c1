/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append while decoding, svdq in a basis over all heads, head_dim 128, without a window, for about one token per
// sequence: the same bytes as append_basis.cu and append.cu leave. For keys a block takes four places, a warp one,
// whose rows of the basis nobody else reads, and 32 tokens at a time, a lane one; up to eight heads are on their way to
// shared memory at once. Rows of the basis come while the kernel ahead ends. Other blocks code values and copy sinks, a
// warp a head of a sequence (one_token.cuh). An H100, svdq2.25 with 8 kv heads, a token for each of 32 sequences: 14.0
// us; 14.9 us where one head came after another, each transposed; append_basis.cu: 154 us.
#include "kernels.h"
#include "launch.cuh"
#include "one_token.cuh"
#include "tile_rows.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = 128, kWarps = 4, kThreads = kWarps * kWarp, kRunPlaces = kDim / kWidthRuns;
constexpr int kOwnChunks = kWarp * kDim / 8 / kThreads;  // 16 bytes each
constexpr int kFewHeads = 8;                             // that fit in shared memory all at once

template <int kStages>
struct Shared {
  __half tokens[kStages][kWarp][kRowStride];
};
struct ValueShared {
  float squares[kWarps][kDim], products[kWarps][kDim];
};
static_assert(sizeof(ValueShared) <= sizeof(Shared<2>), "one memory for both");

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

/// Starts copies of a head of 32 tokens, as halves.
__device__ __forceinline__ void load_head(const CacheView& cache, const NewRows& rows, int first_row, int head,
                                          __half (&to)[kWarp][kRowStride]) {
#pragma unroll
  for (int i = 0; i < kOwnChunks; ++i) {
    const int chunk = i * kThreads + threadIdx.x, token = chunk / (kDim / 8), channel = chunk % (kDim / 8) * 8;
    const int64_t row = min(first_row + token, rows.tokens.count - 1);
    const int64_t index = (row * (cache.heads + 2 * cache.kv_heads) + cache.heads + head) * kDim + channel;
    if (rows.tokens.type == ElementType::kFloat16) {
      copy_async(&to[token][channel], static_cast<const __half*>(rows.tokens.qkv) + index);
    } else {
      const uint2 low = four_halves(rows.tokens.type, rows.tokens.qkv, index);
      const uint2 high = four_halves(rows.tokens.type, rows.tokens.qkv, index + 4);
      *reinterpret_cast<uint4*>(&to[token][channel]) = make_uint4(low.x, low.y, high.x, high.y);
    }
  }
}

/// Where a code of a place goes.
struct KeyField {
  uint8_t* at;
  int bits, shift;

  __device__ void put(unsigned old0, unsigned old1, unsigned code) const {
    const unsigned mask = (1u << bits) - 1u;
    at[0] = static_cast<uint8_t>((old0 & ~(mask << shift)) | code << shift);
    if (shift + bits > 8) at[1] = static_cast<uint8_t>((old1 & ~(mask << shift >> 8)) | code << shift >> 8);
  }
};

/// The sequence of a row: most often each has one.
__device__ __forceinline__ int sequence_of(const CacheView& cache, const NewRows& rows, int row) {
  if (row < cache.batch && rows.start(row) <= row && rows.start(row + 1) > row) return row;
  return find_sequence(cache.batch, row, [&](int i) { return rows.start(i); });
}

/// Adds a head's products in order.
__device__ __forceinline__ float add_head(const __half* token, const float* row, const float* mean, float sum) {
#pragma unroll 4
  for (int c = 0; c < kDim; c += 8) {
    const uint4 eight = *reinterpret_cast<const uint4*>(token + c);
    const uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 factor = *reinterpret_cast<const float4*>(row + c + 4 * i);
      const float4 less = *reinterpret_cast<const float4*>(mean + c + 4 * i);
      const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&words[2 * i]));
      const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&words[2 * i + 1]));
      sum = __fadd_rn(sum, __fmul_rn(factor.x, __fsub_rn(low.x, less.x)));
      sum = __fadd_rn(sum, __fmul_rn(factor.y, __fsub_rn(low.y, less.y)));
      sum = __fadd_rn(sum, __fmul_rn(factor.z, __fsub_rn(high.x, less.z)));
      sum = __fadd_rn(sum, __fmul_rn(factor.w, __fsub_rn(high.y, less.w)));
    }
  }
  return sum;
}

/// parameters: mean, then a row of the basis for each warp. kStages: heads on their way.
template <int kStages>
__device__ __forceinline__ void append_keys(const CacheView& cache, const NewRows& rows, const LayerBlocks& blocks,
                                            Shared<kStages>& shared, float* parameters) {
  const SideView& keys = cache.keys;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, heads = keys.basis_heads;
  const int size = heads * kDim, stored = blockIdx.x * kWarps + warp;
  const bool there = stored < cache.kv_heads * blocks.places;
  const int kv_head = there ? stored / blocks.places : 0,
            place = there ? stored_place(keys, stored % blocks.places) : 0;
  float* row = parameters + (1 + warp) * size;
  const float* from = keys.basis + static_cast<int64_t>(kv_head * kDim + place) * size;
  for (int c = lane * 4; c < size; c += kWarp * 4) copy_async(row + c, from + c);
  for (int c = threadIdx.x * 4; c < size; c += kThreads * 4) {
    if (keys.mean != nullptr) {
      copy_async(parameters + c, keys.mean + c);
    } else {
      *reinterpret_cast<float4*>(parameters + c) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
  }
  const float2 range = reinterpret_cast<const float2*>(keys.steps)[kv_head * kDim + place];
  const int run = place / kRunPlaces, bits = keys.width[run];
  wait_for_previous_kernel();
  for (int first_row = 0; first_row < rows.tokens.count; first_row += kWarp) {
#pragma unroll 1
    for (int i = 0; i < kStages; ++i) {
      if (i < heads) load_head(cache, rows, first_row, i, shared.tokens[i]);
      commit_copies();
    }
    const int own_row = first_row + lane;
    const bool mine = there && own_row < rows.tokens.count;
    KeyField field = {nullptr, bits, 0};
    unsigned old0 = 0, old1 = 0;
    bool several = false;
    if (mine) {
      const int b = sequence_of(cache, rows, own_row), token = cache.length(b) + own_row - rows.start(b);
      const int bit = token % kTileTokens * bits;
      field.shift = bit % 8;
      field.at = cache.page(b, token / kPageTokens) + keys.tile(kv_head, token % kPageTokens / kTileTokens) +
                 keys.run_begin[run] + place % kRunPlaces * 2 * bits + bit / 8;
      several = rows.count(b) > 1;
      old0 = field.at[0];
      if (field.shift + bits > 8) old1 = field.at[1];
    }
    float sum = 0.0f;
#pragma unroll 1
    for (int head = 0; head < heads; ++head) {
      wait_copies<kStages - 1>();
      __syncthreads();
      sum = add_head(shared.tokens[head % kStages][lane], row + head * kDim, parameters + head * kDim, sum);
      if (head + kStages < heads) {
        __syncthreads();
        load_head(cache, rows, first_row, head + kStages, shared.tokens[head % kStages]);
      }
      commit_copies();
    }
    const auto code = static_cast<unsigned>(static_code(sum, range.x, range.y, 1.0f / range.y, bits));
    // Tokens of one sequence may share bytes: one after the other then.
    if (!__any_sync(0xffffffffu, several)) {
      if (mine) field.put(old0, old1, code);
    } else {
      for (int i = 0; i < kWarp; ++i) {
        if (mine && lane == i) field.put(field.at[0], field.shift + bits > 8 ? field.at[1] : 0, code);
        __syncwarp();
      }
    }
    __syncthreads();
  }
}

template <int kStages>
__global__ void __launch_bounds__(kThreads)
    append_layer_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows,
                        const __grid_constant__ LayerBlocks blocks) {
  KVQUANT_DYNAMIC_SHARED(memory);
  release_next_kernel();
  const int block = blockIdx.x, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (block < blocks.keys) {
    append_keys(cache, rows, blocks, *reinterpret_cast<Shared<kStages>*>(memory),
                reinterpret_cast<float*>(memory + sizeof(Shared<kStages>)));
    return;
  }
  const int item = (block - blocks.keys) * kWarps + warp, kv_head = item % cache.kv_heads, b = item / cache.kv_heads;
  if (b >= cache.batch) return;
  auto& shared = *reinterpret_cast<ValueShared*>(memory);
  wait_for_previous_kernel();
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
    for (int j = 0; j < kDim / kWarp; ++j) store_exact(cache, rows, b, i, kv_head, j * kWarp + lane);
  }
  if (count > 0 && kv_head == 0 && cache.sink_policy == SinkPolicy::kFirst) {
    for (int page = 0; page < cache.sink_pages; ++page) update_sink_header(cache, b, count, page, lane);
  }
}

}  // namespace

bool append_layer_supports(const CacheView& cache, const NewTokens& tokens) {
  return cache.head_dim == kDim && cache.window == 0 && cache.keys.format == Format::kStatic &&
         cache.keys.basis_heads > 1 && cache.keys_pre_rope != 0 && even_levels(cache.values) &&
         (cache.values.bits == 2 || cache.values.bits == 4) && aligned_rows(tokens) &&
         reinterpret_cast<uintptr_t>(cache.keys.basis) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(cache.keys.mean) % 16 == 0 && cache.keys.basis_heads <= 40 &&
         cache.keys.basis_heads == cache.kv_heads;
}

void append_layer(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  LayerBlocks blocks{0, 0};
  for (const int width : cache.keys.width) blocks.places += width != 0 ? kRunPlaces : 0;
  blocks.keys = (cache.kv_heads * blocks.places + kWarps - 1) / kWarps;
  const int values = (cache.kv_heads * cache.batch + kWarps - 1) / kWarps;
  const size_t parameters = static_cast<size_t>((kWarps + 1) * cache.keys.basis_heads * kDim) * sizeof(float);
  const bool few = cache.keys.basis_heads <= kFewHeads;
  const size_t bytes = parameters + (few ? sizeof(Shared<kFewHeads>) : sizeof(Shared<2>));
  launch("append", few ? append_layer_kernel<kFewHeads> : append_layer_kernel<2>,
         {dim3(static_cast<unsigned>(blocks.keys + values)), kThreads, bytes, stream, can_start_early("append")}, cache,
         NewRows{tokens}, blocks);
}

}  // namespace kvquant::cuda
