/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append of a prompt's chunk to rotatekv2, 3 and 4, head_dim 128, keys in an order of channels across the layer: the
// same bytes as append_tokens.cu leaves. A group may have channels of any head, so that a block holds some tokens of
// all heads in shared memory: first a thread transforms a token's head, in registers, then heads are mixed, a warp
// finds the range of a group, and a thread codes a channel. Borders between codes, values and exact copies:
// append_rotated.cu.
//
// An H100, 8192 tokens of 8 kv heads, with values: 47 us, 33 % of the speed of a copy, of 4 bits 52 us, 33 %.
#include <type_traits>

#include "kernels.h"
#include "launch.cuh"
#include "token_codes.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = kRowDim, kMostHeads = 40, kMostThreads = 160;

/// What a group's codes of a token come of.
template <int bits>
using CodeOf = std::conditional_t<bits == 2, float4, RoundedCode<bits>>;  // borders between codes

template <int bits>
__device__ __forceinline__ CodeOf<bits> code_of(float2 range) {
  if constexpr (bits == 2) {
    return make_float4(code_limit(range, 1), code_limit(range, 2), code_limit(range, 3), 0.0f);
  } else {
    return RoundedCode<bits>(range, 1.0f);
  }
}

/// Where elements of tokens, and what codes come of, lie in shared memory.
template <int tokens, int bits>
struct Tokens {
  static constexpr int kStride = tokens == 4 ? 4 : tokens + 4;  // from one channel to the next: banks
  static constexpr int kHead = kDim * kStride + tokens;

  float* x;
  CodeOf<bits>* codes;  // [tokens][heads]: of each group

  __device__ __forceinline__ float* at(int channel) const {
    return x + channel / kDim * kHead + channel % kDim * kStride;
  }
  static size_t bytes(int heads) {
    const auto elements = static_cast<size_t>(heads * kHead) * sizeof(float);
    return elements + static_cast<size_t>(heads * tokens) * sizeof(CodeOf<bits>);
  }
};

/// Every head of a token in place, as it is before heads are mixed.
template <int tokens, int bits>
__device__ __forceinline__ void transform(const CacheView& cache, const NewRows& rows, const TokenRun& run,
                                          const Tokens<tokens, bits>& to, __half* staged) {
  const int lane = threadIdx.x % kWarp, first = run.begin / tokens * tokens;
  const int first_head = threadIdx.x / kWarp * (kWarp / tokens);
  for (int head = first_head; head < min(first_head + kWarp / tokens, cache.kv_heads); ++head) {
    stage_rows(cache, rows, run, head, true, first, staged + head * tokens * kRowStride, lane);
  }
  commit_copies();
  wait_copies<0>();
  __syncwarp();
  float x[kDim];
  load_row(staged + threadIdx.x * kRowStride, x);
  __syncthreads();  // rows are read: elements take their place
  const int head = threadIdx.x / tokens;
  if (cache.keys.rotation_heads != 0) transform_row(x);
  if (head < cache.kv_heads) {
    float* own = to.at(head * kDim) + threadIdx.x % tokens;
#pragma unroll
    for (int i = 0; i < kDim; ++i) own[i * Tokens<tokens, bits>::kStride] = x[i];
  }
  __syncthreads();
}

/// core/rotation.h's mix_heads.
template <int tokens, int bits>
__device__ __forceinline__ void mix_heads(const CacheView& cache, const Tokens<tokens, bits>& in) {
  const int together = cache.keys.rotation_heads, quads = tokens / 4;
  for (int i = threadIdx.x; i < cache.kv_heads / together * kDim * quads; i += blockDim.x) {
    float* x = in.at(i / (kDim * quads) * together * kDim + i / quads % kDim) + i % quads * 4;
    const auto head = [&](int h) -> float4& { return *reinterpret_cast<float4*>(x + h * Tokens<tokens, bits>::kHead); };
    const auto add = [](float4 a, float4 b, float size) {
      return make_float4(__fmul_rn(__fadd_rn(a.x, b.x), size), __fmul_rn(__fadd_rn(a.y, b.y), size),
                         __fmul_rn(__fadd_rn(a.z, b.z), size), __fmul_rn(__fadd_rn(a.w, b.w), size));
    };
    const auto minus = [](float4 a) { return make_float4(-a.x, -a.y, -a.z, -a.w); };
    const float4 x0 = head(0), x1 = head(1);
    if (together == 2) {
      head(0) = add(x0, x1, 0.70710678118654752f);
      head(1) = add(x0, minus(x1), 0.70710678118654752f);
      continue;
    }
    const float4 x2 = head(2), x3 = head(3);
    const float4 a = add(x0, x1, 1.0f), b = add(x0, minus(x1), 1.0f), c = add(x2, x3, 1.0f),
                 d = add(x2, minus(x3), 1.0f);
    head(0) = add(a, c, 0.5f);
    head(1) = add(b, d, 0.5f);
    head(2) = add(a, minus(c), 0.5f);
    head(3) = add(b, minus(d), 0.5f);
  }
  __syncthreads();
}

/// Scales and limits of all groups, a warp a group, a lane four tokens of some places.
template <int tokens, int bits>
__device__ __forceinline__ void find_ranges(const CacheView& cache, const Tokens<tokens, bits>& in, int first, int last,
                                            uint8_t* page, int tile, int begin) {
  constexpr int kQuads = tokens / 4, kPlaces = kWarp / kQuads;
  const SideView& side = cache.keys;
  const int lane = threadIdx.x % kWarp, quad = lane % kQuads, own = lane / kQuads;
  for (int group = threadIdx.x / kWarp; group < cache.kv_heads; group += blockDim.x / kWarp) {
    float low[4], high[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      low[i] = INFINITY;
      high[i] = -INFINITY;
    }
#pragma unroll 4
    for (int i = own; i < kDim; i += kPlaces) {
      const float4 four = *reinterpret_cast<const float4*>(in.at(side.order[group * kDim + i]) + 4 * quad);
      const float x[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        low[j] = fminf(low[j], x[j]);
        high[j] = fmaxf(high[j], x[j]);
      }
    }
#pragma unroll
    for (int step = kQuads; step < kWarp; step *= 2) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        low[j] = fminf(low[j], __shfl_xor_sync(0xffffffffu, low[j], step));
        high[j] = fmaxf(high[j], __shfl_xor_sync(0xffffffffu, high[j], step));
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (own != j) continue;
      const int token = 4 * quad + j;
      const float2 range = affine_group(low[j], high[j], side);
      in.codes[token * cache.kv_heads + group] = code_of<bits>(range);
      if (token < first || token >= last) continue;
      auto* scales = reinterpret_cast<__half*>(page + side.scales(tile, group)) + begin + token;
      scales[0] = __float2half_rn(range.x);
      scales[kTileTokens] = __float2half_rn(range.y);
    }
  }
  __syncthreads();
}

/// Codes of a channel, two bits each. x: of its tokens; codes: of the first, others `stride` apart.
template <int tokens>
__device__ __forceinline__ uint32_t channel_codes(const float* x, const float4* codes, int stride) {
  uint32_t word = 0;
#pragma unroll
  for (int t = 0; t < tokens; t += 4) {
    const float4 four = *reinterpret_cast<const float4*>(x + t);
    const float own[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float4 limit = codes[(t + j) * stride];
      if (own[j] > limit.y) word += 2u << (2 * (t + j));
      if (!(own[j] > limit.x) || own[j] > limit.z) word += 1u << (2 * (t + j));
    }
  }
  return word ^ (~(word >> 1) & 0x55555555u);  // not outer where above is not set
}

/// The same of 3 or 4 bits.
template <int tokens, int bits>
__device__ __forceinline__ uint64_t channel_codes(const float* x, const RoundedCode<bits>* codes, int stride) {
  constexpr uint32_t kBits = RoundedCode<bits>::kBits;
  uint32_t words[2] = {};  // a nibble each
  bool right = true;
#pragma unroll
  for (int t = 0; t < tokens; t += 4) {
    const float4 four = *reinterpret_cast<const float4*>(x + t);
    const float own[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const RoundedCode<bits> code = codes[(t + j) * stride];
      const float sum = code.sum(own[j]);
      right &= !(code.left(own[j], sum) >= code.half);
      words[t / 8] += (code.code(sum) - kBits) << (4 * (t % 8 + j));
    }
  }
  if (!right) {
    words[0] = words[1] = 0;
#pragma unroll 1
    for (int t = 0; t < tokens; ++t) {
      const RoundedCode<bits> code = codes[t * stride];
      words[t / 8] |= (code.code(code.right_sum(x[t])) - kBits) << (4 * (t % 8));
    }
  }
  if (bits == 3) return in_a_row(words[0]) | static_cast<uint64_t>(in_a_row(words[1])) << 24;
  return words[0] | static_cast<uint64_t>(words[1]) << 32;
}

/// Codes of tokens [first, last) of those in shared memory, the first of which is `begin` in its tile; a thread a
/// channel.
template <int tokens, int bits>
__device__ __forceinline__ void put_codes(const CacheView& cache, const Tokens<tokens, bits>& in, int first, int last,
                                          uint8_t* page, int tile, int begin) {
  constexpr int kBytes = tokens * bits / 8;
  using Unit = std::conditional_t<
      kBytes == 8, uint64_t,
      std::conditional_t<kBytes == 4, uint32_t, std::conditional_t<kBytes % 2 == 0, uint16_t, uint8_t>>>;
  constexpr int kUnitBits = 8 * sizeof(Unit);
  const SideView& side = cache.keys;
  const auto below = [](int n) { return n * bits >= 64 ? ~0ull : (1ull << (n * bits)) - 1ull; };
  for (int channel = threadIdx.x; channel < cache.kv_heads * kDim; channel += blockDim.x) {
    const auto* codes = in.codes + side.group(channel);
    uint64_t word;
    if constexpr (bits == 2) {
      word = channel_codes<tokens>(in.at(channel), codes, cache.kv_heads);
    } else {
      word = channel_codes<tokens, bits>(in.at(channel), codes, cache.kv_heads);
    }
    auto* to = reinterpret_cast<Unit*>(page + side.tile(channel / kDim, tile) + channel % kDim * (2 * bits) +
                                       begin * bits / 8);
    const uint64_t ones = below(last) & ~below(first);
#pragma unroll
    for (int i = 0; i < kBytes / static_cast<int>(sizeof(Unit)); ++i) {
      auto unit = static_cast<Unit>(word >> (i * kUnitBits));
      if (first != 0 || last != tokens) {
        const auto own = static_cast<Unit>(ones >> (i * kUnitBits));
        unit = static_cast<Unit>((unit & own) | (to[i] & ~own));
      }
      to[i] = unit;
    }
  }
}

template <int tokens, int bits>
__global__ void __launch_bounds__(kMostThreads, 2)
    append_ordered_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows) {
  KVQUANT_DYNAMIC_SHARED(shared);
  const TokenRun run = unit_run<tokens>(cache, rows, blockIdx.x);
  if (run.begin >= run.end) return;
  const int start = run.begin / tokens * tokens, first = run.begin - start, last = run.end - start;
  const int tile = start % kPageTokens / kTileTokens, in_tile = start % kTileTokens;
  uint8_t* page = cache.page(run.b, start / kPageTokens);
  auto* x = reinterpret_cast<float*>(shared);
  const Tokens<tokens, bits> in{x, reinterpret_cast<CodeOf<bits>*>(x + cache.kv_heads * Tokens<tokens, bits>::kHead)};
  transform(cache, rows, run, in, reinterpret_cast<__half*>(shared));
  if (cache.keys.rotation_heads > 1) mix_heads(cache, in);
  find_ranges(cache, in, first, last, page, tile, in_tile);
  put_codes(cache, in, first, last, page, tile, in_tile);
}

template <int tokens, int bits>
void launch_keys(const CacheView& cache, const NewTokens& rows, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(rows.count / tokens + 2 * cache.batch);
  const auto threads = static_cast<unsigned>((cache.kv_heads * tokens + kWarp - 1) / kWarp * kWarp);
  launch("append", append_ordered_kernel<tokens, bits>,
         {dim3(blocks), threads, Tokens<tokens, bits>::bytes(cache.kv_heads), stream}, cache, NewRows{rows});
}

template <int bits>
void launch_bits(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  if (cache.kv_heads <= 8) return launch_keys<16, bits>(cache, tokens, stream);
  if (bits == 3 || cache.kv_heads <= 16) return launch_keys<8, bits>(cache, tokens, stream);
  // Of 3 bits, four tokens are no whole bytes.
  if constexpr (bits != 3) launch_keys<4, bits>(cache, tokens, stream);
}

}  // namespace

bool append_ordered_supports(const CacheView& cache) {
  // Pages of the window would have to be filled after keys of all heads were coded from them.
  return cache.kv_heads <= (cache.keys.bits == 3 ? 16 : kMostHeads) && cache.window == 0;
}

void append_ordered(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  if (cache.keys.bits == 2) return launch_bits<2>(cache, tokens, stream);
  if (cache.keys.bits == 3) return launch_bits<3>(cache, tokens, stream);
  launch_bits<4>(cache, tokens, stream);
}

}  // namespace kvquant::cuda
