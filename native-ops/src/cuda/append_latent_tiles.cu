/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append of a prompt's chunk to latent2 in a basis of each head, head_dim 128: the same bytes as append_basis.cu and
// append.cu leave. Tensor cores multiply tokens, which are halves, with the basis as two halves each (latent_rows.h); a
// warp takes 32 tokens of a head, which stay in registers as operands, a block eight times as many and the basis of a
// head. Where a sum is so near to a border between codes that the portable operator, whose sums are rounded, might have
// the other code, it is done again with its additions in its order, for several such codes at a time: each lane has
// some products of one, and a lane adds those of one. Values and exact copies: append_values.cu.
//
// An H100, 8192 tokens of 8 kv heads: 68 us, 23 % of the speed of a copy, instead of about 500; 85 us while loads were
// written out for each kind of token, 3000 instructions before the first product.
#include "codes.cuh"
#include "kernels.h"
#include "latent_rows.h"
#include "launch.cuh"
#include "row_codes.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = kRowDim, kWarps = 8, kThreads = kWarps * kWarp, kUnit = kWarp;
constexpr int kAgain = 8;  // codes that are done again at a time
constexpr int kProductStride = kDim + 4;

/// A warp's shared memory; codes of stored places, [places][32 tokens], follow.
struct LatentWarp {
  union {
    __half rows[kTileTokens * kRowStride];
    float products[kAgain][kProductStride];
    uint8_t tile[kDim * kTileTokens];  // as it is stored
  };
  uint16_t doubts[kRunPlaces * kUnit + kAgain];  // place (of those that are stored) * 32 + token
};

struct LatentBlocks {
  int units, groups, runs;  // units of a head, blocks of a head, stored runs
};

/// Rows of a tile of a head, none where a token is not appended; few instructions matter more than a call.
__device__ __noinline__ void stage_tile(const CacheView& cache, const NewRows& rows, const TokenRun& run, int kv_head,
                                        int first, __half* to, int lane) {
  const TokenRun part{run.b, max(run.begin, first), min(run.end, first + kTileTokens)};
  if (part.begin < part.end) stage_rows(cache, rows, part, kv_head, true, first, to, lane);
  commit_copies();
  wait_copies<0>();
  __syncwarp();
}

/// Four channels of a token of a head as halves.
__device__ __noinline__ uint2 load_four(const CacheView& cache, const NewRows& rows, int b, int token, int kv_head,
                                        int channel) {
  const int fresh = token - cache.length(b);
  if (fresh >= 0) return four_halves(rows.tokens.type, rows.tokens.qkv, rows.key(cache, b, fresh, kv_head) + channel);
  const auto* from =
      reinterpret_cast<const uint16_t*>(cache.window_page(b, token) + cache.exact_key(kv_head, channel)) +
      token % kExactTokens;
  return make_uint2(from[0] | static_cast<uint32_t>(from[kExactTokens]) << 16,
                    from[2 * kExactTokens] | static_cast<uint32_t>(from[3 * kExactTokens]) << 16);
}

__device__ __forceinline__ float square_of(uint32_t word, float sum) {
  const float2 x = __half22float2(*reinterpret_cast<const __half2*>(&word));
  return fmaf(x.x, x.x, fmaf(x.y, x.y, sum));
}

/// A tile's codes of a place, a byte each, as 16 * bits bits.
__device__ __forceinline__ uint64_t packed(uint4 codes, int bits) {
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
  uint64_t all = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t x = words[i];
    x = (x & 0x00ff00ffu) | (x & 0xff00ff00u) >> (8 - bits);
    x = (x & 0xffffu) | x >> (16 - 2 * bits);
    all |= static_cast<uint64_t>(x & ((1u << (4 * bits)) - 1u)) << (4 * bits * i);
  }
  return all;
}

/// Of tokens outside [first, last) codes stay as they are in `old`; `tile`: of the whole tile.
__device__ __noinline__ void keep_codes(const CacheView& cache, int first, int last, const uint8_t* old, uint8_t* tile,
                                        int lane) {
  for (int place = lane; place < kDim; place += kWarp) {
    const int run = place / kRunPlaces, bits = cache.keys.width[run];
    const int field = cache.keys.run_begin[run] + place % kRunPlaces * 2 * bits;
    for (int half = 0; half < bits; ++half) {
      const auto below = [&](int token) { return (1u << min(max(token * bits - 16 * half, 0), 16)) - 1u; };
      const uint32_t ones = below(last) & ~below(first);
      auto& now = reinterpret_cast<uint16_t*>(tile + field)[half];
      now = static_cast<uint16_t>((now & ones) | (reinterpret_cast<const uint16_t*>(old + field)[half] & ~ones));
    }
  }
}

/// Codes of a tile of a head to its page.
__device__ __forceinline__ void store_tile(const CacheView& cache, const uint8_t* codes, int runs,
                                           const uint8_t* run_of, int first, int last, uint8_t* tile, uint8_t* to,
                                           int lane) {
  for (int stored = lane; stored < runs * kRunPlaces; stored += kWarp) {
    const int run = run_of[stored / kRunPlaces], bits = cache.keys.width[run];
    const uint4 sixteen = *reinterpret_cast<const uint4*>(codes + stored * kUnit);
    uint8_t* field = tile + cache.keys.run_begin[run] + stored % kRunPlaces * 2 * bits;
    if (bits == 8) {
      *reinterpret_cast<uint4*>(field) = sixteen;
      continue;
    }
    const uint64_t all = packed(sixteen, bits);
    for (int i = 0; i < bits; ++i) reinterpret_cast<uint16_t*>(field)[i] = static_cast<uint16_t>(all >> (16 * i));
  }
  __syncwarp();
  if (first != 0 || last != kTileTokens) {
    keep_codes(cache, first, last, to, tile, lane);
    __syncwarp();
  }
  for (int at = lane * 16; at < cache.keys.tile_bytes; at += kWarp * 16) {
    *reinterpret_cast<uint4*>(to + at) = *reinterpret_cast<const uint4*>(tile + at);
  }
  __syncwarp();
}

/// Does the last of the codes in doubt again.
__device__ __forceinline__ void code_again(const CacheView& cache, const NewRows& rows, const TokenRun& run,
                                           int kv_head, const uint8_t* run_of, int before, int after, LatentWarp& own,
                                           uint8_t* codes, int lane) {
  const auto place_of = [&](int stored) { return run_of[stored / kRunPlaces] * kRunPlaces + stored % kRunPlaces; };
  const int first = run.begin / kUnit * kUnit, fresh = first - cache.length(run.b);
  const float* basis = cache.keys.basis + static_cast<int64_t>(kv_head) * kDim * kDim + lane * 4;
  const float* mean = cache.keys.mean;
  float means[4] = {};
  if (mean != nullptr) {
#pragma unroll
    for (int j = 0; j < 4; ++j) means[j] = mean[kv_head * kDim + lane * 4 + j];
  }
  const auto multiply = [&](int i, uint2 four) {
    const float4 row = *reinterpret_cast<const float4*>(basis + place_of(own.doubts[i] / kUnit) * kDim);
    const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&four.x));
    const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&four.y));
    // Less a mean of zero it is what it was.
    *reinterpret_cast<float4*>(own.products[i - after] + lane * 4) =
        make_float4(__fmul_rn(row.x, __fsub_rn(low.x, means[0])), __fmul_rn(row.y, __fsub_rn(low.y, means[1])),
                    __fmul_rn(row.z, __fsub_rn(high.x, means[2])), __fmul_rn(row.w, __fsub_rn(high.y, means[3])));
  };
  if (rows.tokens.type == ElementType::kFloat16 && fresh >= 0) {
    const auto* from = static_cast<const __half*>(rows.tokens.qkv) + rows.key(cache, run.b, fresh, kv_head) + lane * 4;
    const int64_t stride = static_cast<int64_t>(cache.heads + 2 * cache.kv_heads) * kDim;
#pragma unroll 4
    for (int i = after; i < before; ++i) {
      multiply(i, *reinterpret_cast<const uint2*>(from + own.doubts[i] % kUnit * stride));
    }
  } else {
#pragma unroll 1
    for (int i = after; i < before; ++i) {
      multiply(i, load_four(cache, rows, run.b, first + own.doubts[i] % kUnit, kv_head, lane * 4));
    }
  }
  __syncwarp();
  if (after + lane < before) {
    const auto* products = reinterpret_cast<const float4*>(own.products[lane]);
    float sum = 0.0f;
#pragma unroll 4
    for (int i = 0; i < kDim / 4; ++i) {
      const float4 four = products[i];
      sum = __fadd_rn(__fadd_rn(__fadd_rn(__fadd_rn(sum, four.x), four.y), four.z), four.w);
    }
    const int doubt = own.doubts[after + lane], place = place_of(doubt / kUnit);
    const float* range = cache.keys.steps + 2 * (kv_head * kDim + place);
    codes[doubt] = static_cast<uint8_t>(
        static_code(sum, range[0], range[1], 1.0f / range[1], cache.keys.width[place / kRunPlaces]));
  }
  __syncwarp();
}

/// 32 tokens of a head.
__device__ __forceinline__ void append_unit(const CacheView& cache, const NewRows& rows, const TokenRun& run,
                                            int kv_head, const uint8_t* basis, int runs, const uint8_t* run_of,
                                            LatentWarp& own, uint8_t* codes, int lane) {
  const int g = lane / 4, c = lane % 4, first = run.begin / kUnit * kUnit;
  uint32_t x[4][16];  // of tokens g, g + 8, ..: channels 32 j + 8 c + (0 .. 7)
  float norms[4];
  bool there[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = first + 8 * i + g;
    there[i] = token >= run.begin && token < run.end;
    norms[i] = 0.0f;
    if (i % 2 == 0) {
      __syncwarp();
      stage_tile(cache, rows, run, kv_head, first + 8 * i, own.rows, lane);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint4 eight = *reinterpret_cast<const uint4*>(own.rows + (i % 2 * 8 + g) * kRowStride + 32 * j + 8 * c);
      x[i][4 * j] = there[i] ? eight.x : 0u;
      x[i][4 * j + 1] = there[i] ? eight.y : 0u;
      x[i][4 * j + 2] = there[i] ? eight.z : 0u;
      x[i][4 * j + 3] = there[i] ? eight.w : 0u;
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 16; ++j) norms[i] = square_of(x[i][j], norms[i]);
    norms[i] += __shfl_xor_sync(0xffffffffu, norms[i], 1);
    norms[i] += __shfl_xor_sync(0xffffffffu, norms[i], 2);
    norms[i] = sqrtf(norms[i]);
  }
  __syncwarp();
  int doubts = 0;
#pragma unroll 1
  for (int i = 0; i < runs; ++i) {
    const uint8_t* at = basis + i * kRowRunBytes;
    float sums[2][4] = {}, rests[2][4] = {};
#pragma unroll
    for (int step = 0; step < kRowSteps; ++step) {
      const uint4 rows_of = reinterpret_cast<const uint4*>(at)[step * kWarp + lane];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const uint32_t a0 = x[2 * m][2 * step], a1 = x[2 * m + 1][2 * step];
        const uint32_t a2 = x[2 * m][2 * step + 1], a3 = x[2 * m + 1][2 * step + 1];
        mma(sums[m], a0, a1, a2, a3, rows_of.x, rows_of.y);
        mma(rests[m], a0, a1, a2, a3, rows_of.z, rows_of.w);
      }
    }
    const auto* scales = reinterpret_cast<const float4*>(at + kRunFragments);
    const float levels = static_cast<float>((1 << cache.keys.width[run_of[i]]) - 1);
    unsigned open = 0;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float4 scale = scales[2 * c + e];
      const int place = i * kRunPlaces + 2 * c + e;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float sum = sums[j / 2][j % 2 * 2 + e] + rests[j / 2][j % 2 * 2 + e];
        const float part = fminf(fmaxf(fmaf(sum, scale.x, scale.y), 0.0f), levels), code = rintf(part);
        const bool clear = fabsf(part - code) < 0.5f - fmaf(scale.z, norms[j], scale.w);
        if (!clear && there[j]) open |= 1u << (4 * e + j);
        codes[place * kUnit + 8 * j + g] = static_cast<uint8_t>(static_cast<int>(code));
      }
    }
    if (__any_sync(0xffffffffu, open != 0)) {
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const bool mine = (open >> k & 1u) != 0;
        const unsigned lanes = __ballot_sync(0xffffffffu, mine);
        const int place = i * kRunPlaces + 2 * c + k / 4;
        if (mine) {
          own.doubts[doubts + __popc(lanes & ((1u << lane) - 1u))] =
              static_cast<uint16_t>(place * kUnit + k % 4 * 8 + g);
        }
        doubts += __popc(lanes);
      }
    }
    __syncwarp();
    while (doubts >= kAgain || (doubts > 0 && i == runs - 1)) {
      const int after = max(doubts - kAgain, 0);
      code_again(cache, rows, run, kv_head, run_of, doubts, after, own, codes, lane);
      doubts = after;
    }
  }
  uint8_t* page = cache.page(run.b, first / kPageTokens);
#pragma unroll 1
  for (int i = 0; i < kUnit / kTileTokens; ++i) {
    const int start = first + i * kTileTokens;
    const int begin = max(run.begin - start, 0), end = min(run.end - start, kTileTokens);
    if (begin >= end) continue;
    store_tile(cache, codes + i * kTileTokens, runs, run_of, begin, end, own.tile,
               page + cache.keys.tile(kv_head, start / kTileTokens % kPageTiles), lane);
    if (start < cache.length(run.b)) refill(cache, rows, run, start / kTileTokens, kv_head, true, lane);
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    append_latent_tiles_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows,
                               const __grid_constant__ LatentBlocks blocks, const uint8_t* basis) {
  KVQUANT_DYNAMIC_SHARED(memory);
  release_next_kernel();
  __shared__ uint8_t run_of[kWidthRuns];
  const int kv_head = blockIdx.y, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int bytes = blocks.runs * kRowRunBytes;
  for (int i = threadIdx.x * 16; i < bytes; i += kThreads * 16) copy_async(memory + i, basis + kv_head * bytes + i);
  commit_copies();
  if (threadIdx.x == 0) {
    for (int run = 0, stored = 0; run < kWidthRuns; ++run) {
      if (cache.keys.width[run] != 0) run_of[stored++] = static_cast<uint8_t>(run);
    }
  }
  wait_copies<0>();
  __syncthreads();
  const int codes = blocks.runs * kRunPlaces * kUnit;
  auto& own = reinterpret_cast<LatentWarp*>(memory + bytes)[warp];
  uint8_t* own_codes = memory + bytes + kWarps * sizeof(LatentWarp) + warp * codes;
  for (int unit = blockIdx.x * kWarps + warp; unit < blocks.units; unit += blocks.groups * kWarps) {
    const TokenRun run = unit_run<kUnit>(cache, rows, unit);
    if (run.begin >= run.end) continue;
    append_unit(cache, rows, run, kv_head, memory, blocks.runs, run_of, own, own_codes, lane);
  }
}

int stored_runs(const SideView& keys) {
  return static_cast<int>(std::count_if(keys.width, keys.width + kWidthRuns, [](int width) { return width != 0; }));
}

/// latent_rows_offset, of the copy of parameters, behind keys.latent.
const uint8_t* latent_rows(const CacheView& cache) {
  uint8_t widths[kWidthRuns];
  for (int i = 0; i < kWidthRuns; ++i) widths[i] = static_cast<uint8_t>(cache.keys.width[i]);
  const auto head = static_cast<size_t>(2 * latent_steps(widths).steps()) * kRunBytes + sizeof(float);
  return cache.keys.latent + align_rows(static_cast<size_t>(cache.kv_heads) * head);
}

}  // namespace

bool append_latent_tiles_supports(const CacheView& cache, const NewTokens& tokens) {
  return append_latent_supports(cache) && cache.keys.latent != nullptr && stored_runs(cache.keys) > 0 &&
         append_values_supports(cache, tokens);
}

void append_latent_tiles(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  constexpr int kMostBlocks = 264;  // that run at once
  LatentBlocks blocks;
  blocks.runs = stored_runs(cache.keys);
  blocks.units = tokens.count / kUnit + 2 * cache.batch;
  blocks.groups = std::min((blocks.units + kWarps - 1) / kWarps, std::max(1, kMostBlocks / cache.kv_heads));
  const size_t bytes =
      static_cast<size_t>(blocks.runs * (kRowRunBytes + kWarps * kRunPlaces * kUnit)) + kWarps * sizeof(LatentWarp);
  const dim3 grid(static_cast<unsigned>(blocks.groups), static_cast<unsigned>(cache.kv_heads));
  launch("append", append_latent_tiles_kernel, {grid, kThreads, bytes, stream}, cache, NewRows{tokens}, blocks,
         latent_rows(cache));
  append_values(cache, tokens, stream);
}

}  // namespace kvquant::cuda
