/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append of a prompt's chunk, head_dim 128, without a window: values of 4 bits with a norm, and sinks; the same bytes
// as append.cu leaves. As append_values.cu for 2 bits: two lanes take a token's head, half of it in registers each, a
// warp a tile. A table says of 128 ranges of quotients which codes they may have, and the middle between them, if there
// are two; a quotient so near to it that it is not to be trusted as a product with a reciprocal is divided. Codes of a
// tile meet in shared memory.
#include "append_values.cuh"
#include "codes.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = kRowDim, kHalf = kRowHalf, kLevels = 16;

/// Ranges that have equal shares of [-kReach, kReach]; what lies beyond belongs to the first and the last.
constexpr int kRanges = kValueThreads;
constexpr float kReach = 4.0f;
/// How near to a middle a quotient is divided: it is off by 2^-22 of its size, a middle in the table by 2^-20.
constexpr float kNear = 1.2e-5f;
constexpr int kTogether = 16;  // codes whose table is read at once

struct LevelBlock {
  float levels[kLevels];
  uint32_t ranges[kRanges];  // the middle in a range, or a large number, with the code below it as its last four bits
  int unsuitable;            // ranges that would need more
  __align__(16) __half rows[kPageTiles][kTileTokens * kRowStride];  // of tokens; then codes
};

/// Where the codes of a channel begin, a byte each; both halves of a head meet different banks.
__device__ __forceinline__ int code_row(int channel) { return channel * kTileTokens + channel / kHalf * kTileTokens; }

/// Of a quotient that the portable operator rounds otherwise, perhaps to the other side of a middle.
__device__ __noinline__ int divided_code(const float* levels, float x, float rms) {
  const float quotient = rms > 0.0f ? __fdiv_rn(x, rms) : 0.0f;
  int code = 0;
  for (int i = 0; i + 1 < kLevels; ++i) {
    code += quotient > __fmul_rn(0.5f, __fadd_rn(levels[i], levels[i + 1])) ? 1 : 0;
  }
  return code;
}

/// A thread's range of the table.
__device__ __forceinline__ void describe_range(LevelBlock& block) {
  const int range = threadIdx.x;
  int code = 0, inside = 0;
  float middle = 1e30f;
  for (int i = 0; i + 1 < kLevels; ++i) {
    const float x = 0.5f * (block.levels[i] + block.levels[i + 1]);
    const float apart = (x / (2.0f * kReach) + 0.5f) * static_cast<float>(kRanges - 1) - static_cast<float>(range);
    if (fabsf(apart) <= 0.502f) {
      ++inside;
      middle = x;
      if (range == 0 || range == kRanges - 1) inside = 2;
    } else if (apart < 0.0f) {
      ++code;
    }
  }
  block.ranges[range] = (__float_as_uint(middle) & ~15u) | static_cast<uint32_t>(code);
  if (inside > 1) block.unsuitable = 1;
}

/// The code of x, whose quotient with the norm is about x * inverse; near: unless that is too near to a middle.
__device__ __forceinline__ int level_code(const LevelBlock& block, float x, float inverse, bool* near) {
  const float quotient = x * inverse;
  const float at = fmaf(__saturatef(fmaf(quotient, 0.5f / kReach, 0.5f)), static_cast<float>(kRanges - 1), 0x1p23f);
  const uint32_t range = block.ranges[__float_as_uint(at) & (kRanges - 1)];
  const float apart = quotient - __uint_as_float(range & ~15u);
  *near |= !(fabsf(apart) > kNear);
  return static_cast<int>(range & 15u) + (apart > 0.0f ? 1 : 0);
}

/// Sixteen codes, a byte each, as 4 bits each.
__device__ __forceinline__ uint2 packed(uint4 codes) {
  const auto four = [](uint32_t x) { return (x & 0x000f000fu) | (x >> 4 & 0x00f000f0u); };
  return make_uint2(__byte_perm(four(codes.x), four(codes.y), 0x6420),
                    __byte_perm(four(codes.z), four(codes.w), 0x6420));
}

/// The values of a tile of a head.
__device__ __forceinline__ void append_tile(const CacheView& cache, const NewRows& rows, const TokenRun& run,
                                            int kv_head, int first, LevelBlock& block) {
  const SideView& side = cache.values;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, tile = first / kTileTokens % kPageTiles;
  const int in_tile = lane % kTileTokens, begin = run.begin - first, end = run.end - first;
  __half* staged = block.rows[warp];
  stage_rows(cache, rows, run, kv_head, false, first, staged, lane);
  commit_copies();
  wait_copies<0>();
  __syncwarp();
  float x[kHalf];
  load_row(staged + in_tile * kRowStride + lane / kTileTokens * kHalf, x);
  __syncwarp();
  if (side.rotated) transform_half(x, lane);
  const auto term = [&](int i) { return __fmul_rn(x[i], x[i]); };
  const float square = sum_halves(lane, term, term);
  const float rms = __fsqrt_rn(__fdiv_rn(square, static_cast<float>(kDim)));
  const float inverse = block.unsuitable != 0 ? NAN : rms > 0.0f ? 1.0f / rms : 0.0f;  // no number: divide
  auto* codes = reinterpret_cast<uint8_t*>(staged);
#pragma unroll
  for (int i = 0; i < kHalf; i += kTogether) {
    int code[kTogether];
    bool near = false;
#pragma unroll
    for (int j = 0; j < kTogether; ++j) code[j] = level_code(block, x[i + j], inverse, &near);
    if (near) {
#pragma unroll
      for (int j = 0; j < kTogether; ++j) code[j] = divided_code(block.levels, x[i + j], rms);
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      codes[code_row(lane / kTileTokens * kHalf + i + j) + in_tile] = static_cast<uint8_t>(code[j]);
      x[i + j] = __fmul_rn(x[i + j], block.levels[code[j]]);
    }
  }
  const auto chosen = [&](int i) { return x[i]; };
  const float product = sum_halves(lane, chosen, chosen);
  __syncwarp();
  uint8_t* page = cache.page(run.b, first / kPageTokens);
  auto* to = reinterpret_cast<uint2*>(page + side.tile(kv_head, tile));
#pragma unroll
  for (int i = 0; i < kDim / kWarp; ++i) {
    const int channel = i * kWarp + lane;
    uint2 words = packed(*reinterpret_cast<const uint4*>(codes + code_row(channel)));
    if (begin != 0 || end != kTileTokens) {
      const auto below = [](int token) { return token >= 16 ? ~0ull : (1ull << (4 * token)) - 1ull; };
      const uint64_t ones = below(end) & ~below(begin);
      const auto low = static_cast<uint32_t>(ones), high = static_cast<uint32_t>(ones >> 32);
      const uint2 old = to[channel];
      words = make_uint2((words.x & low) | (old.x & ~low), (words.y & high) | (old.y & ~high));
    }
    to[channel] = words;
  }
  if (lane == in_tile && in_tile >= begin && in_tile < end) {
    uint8_t* norms = page + side.norms + tile * side.norm_tile_bytes + kv_head * kTileTokens * 2;
    reinterpret_cast<__half*>(norms)[in_tile] = __float2half_rn(norm_of(square, product));
  }
}

__global__ void __launch_bounds__(kValueThreads, 3)
    append_levels_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows,
                         const __grid_constant__ ValueBlocks blocks) {
  __align__(16) __shared__ LevelBlock block;
  const int index = blockIdx.x, warp = threadIdx.x / kWarp;
  if (index < blocks.pages) {
    if (threadIdx.x < kLevels) block.levels[threadIdx.x] = cache.values.levels[threadIdx.x];
    if (threadIdx.x == 0) block.unsuitable = 0;
    __syncthreads();
    describe_range(block);
    __syncthreads();
    const TokenRun page = unit_run<kPageTokens>(cache, rows, index % blocks.units);
    const int first = (page.begin / kPageTokens * kPageTiles + warp) * kTileTokens;
    const TokenRun run{page.b, max(page.begin, first), min(page.end, first + kTileTokens)};
    if (run.begin < run.end) append_tile(cache, rows, run, index / blocks.units, first, block);
  } else {
    append_exact(cache, rows, index - blocks.pages);
  }
  wait_for_previous_kernel();  // what comes next may rely on both
}

}  // namespace

bool append_levels_supports(const CacheView& cache, const NewTokens& tokens) {
  return cache.head_dim == kDim && cache.window == 0 && cache.values.format == Format::kNorm &&
         cache.values.bits == 4 && aligned_rows(tokens);
}

void append_levels(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  launch_values(append_levels_kernel, cache, tokens, stream);
}

}  // namespace kvquant::cuda
