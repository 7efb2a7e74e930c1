/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Landmarks of pages that have become full (core/landmarks.h): the mean of a page's keys as attention reads them, to
// the bit of the portable operator. A block takes a page and kv head: 64 keys are read back into shared memory, a warp
// a token; in a basis a thread rebuilds a channel of many tokens, so that an element of the basis is read once for all
// of them.
#include "append.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "token_reader.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

/// The page and kv head that a block works on. [token][channel]; the odd stride lets threads walk along both.
template <int D>
struct PageKeys {
  const CacheView& cache;
  const uint8_t* page;
  int kv_head, first;  // first: position of the page's first token
  float (&keys)[kPageTokens][D + 1];

  /// kvquant::mix_heads, of one head of its group.
  static __device__ float mixed(int heads, int own, const float (&x)[kMaxRotationHeads]) {
    if (heads == 2) return __fmul_rn(own == 0 ? __fadd_rn(x[0], x[1]) : __fsub_rn(x[0], x[1]), 0.70710678118654752f);
    if (heads == 3) {
      const float mean = __fmul_rn(__fadd_rn(__fadd_rn(x[0], x[1]), x[2]), 0.66666666666666667f);
      return __fsub_rn(own == 0 ? x[0] : own == 1 ? x[1] : x[2], mean);
    }
    if (heads == 4) {
      const bool odd = own % 2 != 0;
      const float a = odd ? __fsub_rn(x[0], x[1]) : __fadd_rn(x[0], x[1]);
      const float b = odd ? __fsub_rn(x[2], x[3]) : __fadd_rn(x[2], x[3]);
      return __fmul_rn(own < 2 ? __fadd_rn(a, b) : __fsub_rn(a, b), 0.5f);
    }
    return x[0];
  }

  __device__ void read_tokens() const {
    constexpr int n = D / kWarp;
    const SideView& side = cache.keys;
    const int lane = threadIdx.x % kWarp, heads = max(1, side.rotation_heads), own = kv_head % heads;
    const bool sorted = side.format == Format::kStatic && side.order != nullptr;
    for (int token = threadIdx.x / kWarp; token < kPageTokens; token += kWarps) {
      float x[n], group[n][kMaxRotationHeads] = {};
      for (int head = 0; head < heads; ++head) {
        read_stored(side, page, kv_head - own + head, token, lane, x);
        if (side.rotation_heads != 0) walsh_hadamard(x, lane);
#pragma unroll
        for (int i = 0; i < n; ++i) {
#pragma unroll
          for (int j = 0; j < kMaxRotationHeads; ++j) group[i][j] = j == head ? x[i] : group[i][j];
        }
      }
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const int place = lane * n + i;
        keys[token][sorted ? channel_at<D>(side, kv_head, place) : place] = mixed(heads, own, group[i]);
      }
    }
    __syncthreads();
  }

  /// Places that are not stored are 0 and add nothing.
  __device__ void read_in_basis() const {
    constexpr int kTokens = D / 4;  // of a thread
    const SideView& side = cache.keys;
    const int channel = threadIdx.x % D, begin = threadIdx.x / D * kTokens, run = D / kWidthRuns;
    const int heads = side.basis_heads, own = kv_head % heads, size = heads * D;
    const float* row = side.inverse + (static_cast<int64_t>(kv_head) * D + channel) * size;
    auto* places = reinterpret_cast<float(*)[kPageTokens]>(&keys[0][0]);  // [D]
    float sums[kTokens] = {};
    for (int head = 0; head < heads; ++head) {
      const int stored = kv_head - own + head;
      __syncthreads();
      for (int i = threadIdx.x; i < D * kPageTokens; i += kThreads) {
        const int place = i / kPageTokens, token = i % kPageTokens, bits = side.width[place / run];
        if (bits == 0) continue;
        const float* step = side.steps + 2 * (stored * D + place);
        const uint8_t* field =
            page + side.tile(stored, token / kTileTokens) + side.run_begin[place / run] + place % run * 2 * bits;
        const auto code = static_cast<float>(get_code(field, token % kTileTokens, bits));
        places[place][token] = __fadd_rn(step[0], __fmul_rn(step[1], code));
      }
      __syncthreads();
      for (int place = 0; place < D; ++place) {
        if (side.width[place / run] == 0) continue;
        const float factor = row[head * D + place];
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
          sums[t] = __fadd_rn(sums[t], __fmul_rn(factor, places[place][begin + t]));
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (int t = 0; t < kTokens; ++t) keys[begin + t][channel] = sums[t];
    __syncthreads();
  }

  /// kvquant::TokenReader::finish_key.
  __device__ void finish() const {
    constexpr int kHalf = D / 2;
    const float* mean = cache.keys.mean == nullptr ? nullptr : cache.keys.mean + kv_head * D;
    for (int i = threadIdx.x; i < kPageTokens * kHalf; i += kThreads) {
      const int pair = i % kHalf;
      float *x = keys[i / kHalf] + pair, *y = x + kHalf;
      if (cache.keys_pre_rope == 0 && mean == nullptr) continue;
      const float2 angle = rope_angle(cache, first + i / kHalf, pair);
      if (cache.keys_pre_rope == 0) {
        const float2 turned = turn(mean[pair], mean[pair + kHalf], angle);
        *x = __fadd_rn(*x, turned.x);
        *y = __fadd_rn(*y, turned.y);
        continue;
      }
      if (mean != nullptr) {
        *x = __fadd_rn(*x, mean[pair]);
        *y = __fadd_rn(*y, mean[pair + kHalf]);
      }
      const float2 turned = turn(*x, *y, angle);
      *x = turned.x;
      *y = turned.y;
    }
    __syncthreads();
  }
};

/// Marks the page's tokens that are sinks of a sequence of so many tokens; the whole block asks.
__device__ void mark_sinks(const CacheView& cache, int b, int length, int first, bool (&is_sink)[kPageTokens]) {
  for (int i = threadIdx.x; i < kPageTokens; i += kThreads) is_sink[i] = false;
  __syncthreads();
  for (int slot = threadIdx.x; slot < cache.sink_pages * kExactTokens; slot += kThreads) {
    const auto* header = reinterpret_cast<const ExactHeader*>(cache.sink_page(b, slot / kExactTokens));
    const int token = header->tokens[slot % kExactTokens];
    if (token >= first && token < min(length, first + kPageTokens)) is_sink[token - first] = true;
  }
  __syncthreads();
}

__device__ uint16_t to_bfloat16(float x) {
  const uint32_t bits = __float_as_uint(x);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

template <int D>
__global__ void __launch_bounds__(kThreads)
    store_landmarks_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows) {
  __align__(16) __shared__ float keys[kPageTokens][D + 1];
  __shared__ bool is_sink[kPageTokens];
  // A sequence of n new tokens has at least n / 64 + 1 blocks.
  const auto first_block = [&](int b) { return rows.start(b) / kPageTokens + b; };
  const int b = find_sequence(cache.batch, static_cast<int>(blockIdx.x), first_block), count = rows.count(b);
  const int length = cache.length(b), begin = cache.quantized(b, length), end = cache.quantized(b, length + count);
  const int index = begin / kPageTokens + static_cast<int>(blockIdx.x) - first_block(b);
  if (count == 0 || begin >= end || index >= end / kPageTokens) return;
  uint8_t* page = cache.page(b, index);
  const PageKeys<D> all{cache, page, static_cast<int>(blockIdx.y), index * kPageTokens, keys};
  mark_sinks(cache, b, length + count, all.first, is_sink);
  if (cache.keys.basis_heads != 0) {
    all.read_in_basis();
  } else {
    all.read_tokens();
  }
  all.finish();
  const int c = threadIdx.x;
  if (c >= D) return;
  float sum = 0.0f;
  int counted = 0;
  for (int token = 0; token < kPageTokens; ++token) {
    if (is_sink[token]) continue;
    sum = __fadd_rn(sum, keys[token][c]);
    ++counted;
  }
  const float mean = __fdiv_rn(sum, static_cast<float>(max(1, counted)));
  reinterpret_cast<uint16_t*>(page + cache.landmarks)[all.kv_head * D + c] = to_bfloat16(mean);
}

}  // namespace

void store_landmarks(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(tokens.count / kPageTokens + cache.batch),
                    static_cast<unsigned>(cache.kv_heads));
  const LaunchShape shape{blocks, kThreads, 0, stream};
  if (cache.head_dim == 64) {
    launch("append", store_landmarks_kernel<64>, shape, cache, NewRows{tokens});
  } else {
    launch("append", store_landmarks_kernel<128>, shape, cache, NewRows{tokens});
  }
}

}  // namespace kvquant::cuda
