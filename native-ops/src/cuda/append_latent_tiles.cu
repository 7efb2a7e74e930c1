/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append of a prompt's chunk to latent2 in a basis of each head, head_dim 128: the same bytes as append_basis.cu and
// append.cu leave. Blocks stay with a head and go from page to page: half of the warps code keys, half values
// (append_values.cuh), a tile a warp at a time, while the rows of the next one come; when there are none left they make
// exact copies. No warp waits for another one.
//
// Keys: tensor cores multiply the basis as two halves each (latent_rows.h), 16 places at a time, with tokens, which are
// halves and stay in registers. A lane gets four neighbouring tokens of a place. Where a sum is so near to a border
// between codes that the portable operator, whose sums are rounded, might have the other code, it is done again with
// its additions in its order, for several such codes at a time: each lane has some products of one, and a lane adds
// those of one.
//
// An H100, 8192 tokens of 8 kv heads: 62 us, 25 % of the speed of a copy, 32768 tokens 29 %; 67 us in two kernels, one
// for keys and one for values. Keys decide: alone they take 54 us, values alone 29, and without the codes that are done
// again, five or six of a tile, both take 43.
#include <algorithm>

#include "append_values.cuh"
#include "codes.cuh"
#include "kernels.h"
#include "latent_rows.h"
#include "launch.cuh"
#include "static_tile.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = kRowDim;
constexpr int kAgain = 6;  // codes that are done again at a time
constexpr int kProductStride = kDim + 4;
constexpr int kMostDoubts = kAgain + 2 * kRunPlaces * kTileTokens;  // those of two runs come together

/// A warp's shared memory for keys; a tile as it is stored follows.
struct alignas(16) KeyWarp {
  __half rows[kTileTokens * kRowStride];
  float products[kAgain][kProductStride];
  uint16_t doubts[kMostDoubts];  // place * 16 + token
};
using ValueRows = __half[kTileTokens * kRowStride];

/// Parameters, so that all lanes know that they are the same for them.
struct LatentBlocks {
  int units, groups, runs;                                   // units of a head, blocks of a head, stored runs
  int warps;                                                 // for keys; as many for values
  int exact;                                                 // pages of a head, k and v
  int run[kWidthRuns], bits[kWidthRuns], begin[kWidthRuns];  // of stored runs
};

/// Tokens of a tile that are coded: tile i % 4 of page i / 4.
__device__ __forceinline__ TokenRun tile_tokens(const CacheView& cache, const NewRows& rows, int i) {
  const TokenRun page = unit_run<kPageTokens>(cache, rows, i / kPageTiles);
  if (page.begin >= page.end) return {page.b, 0, 0};
  const int first = (page.begin / kPageTokens * kPageTiles + i % kPageTiles) * kTileTokens;
  return {page.b, max(page.begin, first), min(page.end, first + kTileTokens)};
}

__device__ __forceinline__ int first_of(const TokenRun& run) { return run.begin / kTileTokens * kTileTokens; }

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

/// Does the last of the codes in doubt again; `tile` has what they were taken for.
__device__ __forceinline__ void code_again(const CacheView& cache, const NewRows& rows, const TokenRun& run,
                                           int kv_head, int before, int after, KeyWarp& own, uint8_t* tile, int lane) {
  const int first = first_of(run), fresh = first - cache.length(run.b);
  const float* basis = cache.keys.basis + static_cast<int64_t>(kv_head) * kDim * kDim + lane * 4;
  const float* mean = cache.keys.mean;
  float means[4] = {};
  if (mean != nullptr) {
#pragma unroll
    for (int j = 0; j < 4; ++j) means[j] = mean[kv_head * kDim + lane * 4 + j];
  }
  const auto multiply = [&](int i, uint2 four) {
    const float4 row = *reinterpret_cast<const float4*>(basis + own.doubts[i] / kTileTokens * kDim);
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
#pragma unroll 3
    for (int i = after; i < before; ++i) {
      multiply(i, *reinterpret_cast<const uint2*>(from + own.doubts[i] % kTileTokens * stride));
    }
  } else {
#pragma unroll 1
    for (int i = after; i < before; ++i) {
      multiply(i, load_four(cache, rows, run.b, first + own.doubts[i] % kTileTokens, kv_head, lane * 4));
    }
  }
  __syncwarp();
  auto* words = reinterpret_cast<unsigned*>(tile);
  int at = 0, bits = 0;
  uint32_t change = 0;
  if (after + lane < before) {
    const auto* products = reinterpret_cast<const float4*>(own.products[lane]);
    float sum = 0.0f;
#pragma unroll 4
    for (int i = 0; i < kDim / 4; ++i) {
      const float4 four = products[i];
      sum = __fadd_rn(__fadd_rn(__fadd_rn(__fadd_rn(sum, four.x), four.y), four.z), four.w);
    }
    const int place = own.doubts[after + lane] / kTileTokens, token = own.doubts[after + lane] % kTileTokens;
    const float* range = cache.keys.steps + 2 * (kv_head * kDim + place);
    bits = cache.keys.width[place / kRunPlaces];
    at = 8 * (cache.keys.run_begin[place / kRunPlaces] + place % kRunPlaces * 2 * bits) + token * bits;
    const int code = static_code(sum, range[0], range[1], 1.0f / range[1], bits);
    const uint32_t taken = __funnelshift_r(words[at / 32], words[(at + bits - 1) / 32], at);
    change = (static_cast<uint32_t>(code) ^ taken) & ((1u << bits) - 1u);
  }
  __syncwarp();
  if (change != 0) {  // others may change bits of the same words
    atomicXor(words + at / 32, change << at % 32);
    if (at % 32 + bits > 32) atomicXor(words + at / 32 + 1, change >> (32 - at % 32));
  }
  __syncwarp();
}

/// 2^bits.
__device__ __forceinline__ float levels_of(int bits) { return __int_as_float((127 + bits) << 23); }

/// Puts codes of tokens 4 c to 4 c + 3 of place g of a run, which begins at `field`.
__device__ __forceinline__ void put_codes(const float (&codes)[4], int bits, uint8_t* field, int lane) {
  const float shift = levels_of(bits);
  const auto whole = [](float x) { return __float_as_uint(x + 0x1p23f); };
  uint8_t* own = field + (bits * lane >> 1);
  if (bits == 8) {
    *reinterpret_cast<uint32_t*>(own) =
        __byte_perm(whole(fmaf(codes[1], shift, codes[0])), whole(fmaf(codes[3], shift, codes[2])), 0x5410);
    return;
  }
  const uint32_t all = whole(fmaf(fmaf(fmaf(codes[3], shift, codes[2]), shift, codes[1]), shift, codes[0]));
  if (bits == 2) {
    *own = static_cast<uint8_t>(all);
  } else if (bits == 4) {
    *reinterpret_cast<uint16_t*>(own) = static_cast<uint16_t>(all);
  } else {
    const uint32_t next = __shfl_down_sync(0xffffffffu, all, 1);
    const int c = lane % 4;
    if (bits == 1) {
      if (c % 2 == 0) *own = static_cast<uint8_t>((all & 0xfu) | next << 4);
    } else if (c < 3) {
      reinterpret_cast<uint16_t*>(field + lane / 4 * 6)[c] =
          static_cast<uint16_t>((all & 0xfffu) >> 4 * c | next << (12 - 4 * c));
    }
  }
}

/// Reads a tile's rows, of tokens 4 (g / 2) + 2 n + g % 2 channels 32 j + 8 c + (0 .. 7): x[16 n + 4 j ..]. norms:
/// bounds of the lengths of tokens 4 c to 4 c + 3.
__device__ __forceinline__ void load_tokens(const __half* rows, int lane, float (&x)[kRowHalf], float (&norms)[4]) {
  const int g = lane / 4, c = lane % 4;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    __half2 sum = __float2half2_rn(0.0f);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint4 eight =
          *reinterpret_cast<const uint4*>(rows + (g / 2 * 4 + 2 * n + g % 2) * kRowStride + 32 * j + 8 * c);
      const uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[16 * n + 4 * j + i] = __uint_as_float(words[i]);
        const __half2 small = __hmul2(*reinterpret_cast<const __half2*>(&words[i]), __float2half2_rn(0x1p-4f));
        sum = __hfma2(small, small, sum);
      }
    }
    const float2 both = __half22float2(sum);
    float square = both.x + both.y;
    square += __shfl_xor_sync(0xffffffffu, square, 1);
    square += __shfl_xor_sync(0xffffffffu, square, 2);
    const float norm = sqrtf(fmaf(square, 260.0f, 0.001f));  // 16 sums in halves, and what is lost below them
#pragma unroll
    for (int e = 0; e < 2; ++e) norms[2 * n + e] = __shfl_sync(0xffffffffu, norm, 8 * c + 4 * e);
  }
}

/// The keys of a tile of a head; x, norms: see load_tokens.
__device__ __forceinline__ void append_key_tile(const CacheView& cache, const NewRows& rows, const TokenRun& run,
                                                int kv_head, const float (&x)[kRowHalf], const float (&norms)[4],
                                                const uint8_t* basis, const LatentBlocks& blocks, KeyWarp& own,
                                                uint8_t* tile, int lane) {
  const int g = lane / 4, c = lane % 4, first = first_of(run), begin = run.begin - first, end = run.end - first;
  uint8_t* to = cache.page(run.b, first / kPageTokens) + cache.keys.tile(kv_head, first / kTileTokens % kPageTiles);
  // Of tokens 4 c to 4 c + 3, a bit each.
  const unsigned there = (((1u << end) - 1u) & ~((1u << begin) - 1u)) >> 4 * c & 0xfu;
  int doubts = 0;
#pragma unroll 1
  for (int i = 0; i < blocks.runs; i += 2) {
    const uint8_t* pair = basis + i / 2 * kRowPairBytes;
    float sums[4][2][4] = {};  // [quarter of the channels][n]: few products in a row, as each may lose something
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      const int step = j % 4 * 2 + j / 4 % 2, quarter = j % 4;
      const uint4 a = reinterpret_cast<const uint4*>(pair)[(j < 8 ? kRowSteps + step : step) * kWarp + lane];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        mma(sums[quarter][n], a.x, a.y, a.z, a.w, __float_as_uint(x[16 * n + 2 * step]),
            __float_as_uint(x[16 * n + 2 * step + 1]));
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (i + h >= blocks.runs) break;
      const int bits = blocks.bits[i + h];
      const float4 scale = reinterpret_cast<const float4*>(pair + kPairFragments)[h * kRunPlaces + g];
      const float levels = levels_of(bits) - 1.0f;
      constexpr float kRound = 12582912.0f;  // 1.5 2^23: its sum with a small number ends in that, rounded
      float codes[4];
      bool clear[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const auto part_of = [&](int quarter) { return sums[quarter][k / 2][2 * h + k % 2]; };
        const float sum = (part_of(0) + part_of(1)) + (part_of(2) + part_of(3));
        const float part = __saturatef(fmaf(sum, scale.x, scale.y));
        codes[k] = fmaf(part, levels, kRound) - kRound;
        clear[k] = fabsf(fmaf(part, levels, -codes[k])) < fmaf(-scale.z, norms[k], 0.5f - scale.w);
      }
      put_codes(codes, bits, tile + blocks.begin[i + h], lane);
      if (!__any_sync(0xffffffffu, !(clear[0] && clear[1] && clear[2] && clear[3]))) continue;
      unsigned open = 0;
#pragma unroll
      for (int k = 0; k < 4; ++k) open |= clear[k] ? 0u : 1u << k;
      open &= there;
      const int place = (blocks.run[i + h] * kRunPlaces + g) * kTileTokens + 4 * c - 1;
      unsigned lanes;
      while ((lanes = __ballot_sync(0xffffffffu, open != 0)) != 0) {
        if (open != 0) {
          own.doubts[doubts + __popc(lanes & ((1u << lane) - 1u))] =
              static_cast<uint16_t>(place + __ffs(static_cast<int>(open)));
        }
        open &= open - 1u;
        doubts += __popc(lanes);
      }
    }
    __syncwarp();
    while (doubts >= kAgain || (doubts > 0 && i + 2 >= blocks.runs)) {
      const int after = max(doubts - kAgain, 0);
      code_again(cache, rows, run, kv_head, doubts, after, own, tile, lane);
      doubts = after;
    }
  }
  store_tile(cache, begin, end, tile, to, lane);
  if (run.begin < cache.length(run.b)) refill(cache, rows, run, first / kTileTokens, kv_head, true, lane);
}

/// Exact copies of pages of a head; a warp's work.
__device__ __noinline__ void append_exact_pages(const CacheView& cache, const NewRows& rows, const LatentBlocks& blocks,
                                                int kv_head, int lane) {
  // The blocks of a head that come last have fewer tiles than others.
  const int own = (blocks.groups - 1 - static_cast<int>(blockIdx.x)) * (2 * blocks.warps) + threadIdx.x / kWarp;
  for (int i = own; i < blocks.exact; i += blocks.groups * 2 * blocks.warps) {
    const int column = i / 2 % exact_columns(cache), b = i / 2 / exact_columns(cache);
    if (rows.count(b) <= 0) continue;
    keep_page(cache, rows, b, column, kv_head, i % 2 == 0, lane);
    if (kv_head == 0 && i % 2 == 0 && column < cache.sink_pages && cache.sink_policy == SinkPolicy::kFirst) {
      update_sink_header(cache, b, rows.count(b), column, lane);
    }
  }
}

__global__ void __launch_bounds__(2 * kPageTiles * kWarp, 2)
    append_latent_tiles_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows,
                               const __grid_constant__ LatentBlocks blocks, const uint8_t* basis) {
  KVQUANT_DYNAMIC_SHARED(memory);
  const int kv_head = blockIdx.y, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blocks.warps;
  const int bytes = (blocks.runs + 1) / 2 * kRowPairBytes;
  for (int i = threadIdx.x * 16; i < bytes; i += blockDim.x * 16) copy_async(memory + i, basis + kv_head * bytes + i);
  commit_copies();
  const bool keys = warp < warps;
  auto* key_warps = reinterpret_cast<KeyWarp*>(memory + bytes);
  auto* value_rows = reinterpret_cast<ValueRows*>(key_warps + warps);
  uint8_t* tiles = reinterpret_cast<uint8_t*>(value_rows + warps);
  auto& own = key_warps[warp % warps];
  __half* staged = keys ? own.rows : value_rows[warp % warps];
  const int step = blocks.groups * warps, last = blocks.units * kPageTiles;
  TokenRun run{0, 0, 0};
  for (int i = static_cast<int>(blockIdx.x) * warps + warp % warps - step; i < last; i += step) {
    const TokenRun next = i + step < last ? tile_tokens(cache, rows, i + step) : TokenRun{0, 0, 0};
    const bool there = run.begin < run.end;
    float x[kRowHalf], norms[4];  // x of keys: halves
    if (there) {
      wait_copies<0>();
      __syncwarp();
      if (keys) {
        load_tokens(staged, lane, x, norms);
      } else {
        load_row(staged + lane % kTileTokens * kRowStride + lane / kTileTokens * kRowHalf, x);
      }
      __syncwarp();
    }
    if (next.begin < next.end) stage_rows(cache, rows, next, kv_head, keys, first_of(next), staged, lane);
    commit_copies();
    if (there) {
      if (keys) {
        append_key_tile(cache, rows, run, kv_head, x, norms, memory, blocks, own, tiles + warp * cache.keys.tile_bytes,
                        lane);
      } else {
        append_value_tile(cache, rows, run, kv_head, first_of(run), x);
      }
    }
    if (i < 0) {
      wait_copies<0>();
      __syncthreads();
    }
    run = next;
  }
  append_exact_pages(cache, rows, blocks, kv_head, lane);
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

size_t shared_bytes(const CacheView& cache, int warps) {
  const size_t own = sizeof(KeyWarp) + sizeof(ValueRows) + static_cast<size_t>(cache.keys.tile_bytes);
  return static_cast<size_t>((stored_runs(cache.keys) + 1) / 2) * kRowPairBytes + static_cast<size_t>(warps) * own;
}

}  // namespace

bool append_latent_tiles_supports(const CacheView& cache, const NewTokens& tokens) {
  return append_latent_supports(cache) && cache.keys.latent != nullptr && stored_runs(cache.keys) > 0 &&
         append_values_supports(cache, tokens);
}

void append_latent_tiles(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  constexpr int kMostBlocks = 264;         // that run at once
  constexpr size_t kMostBytes = 99 << 10;  // where a block has less than elsewhere
  LatentBlocks blocks = {};
  for (int run = 0; run < kWidthRuns; ++run) {
    if (cache.keys.width[run] == 0) continue;
    blocks.run[blocks.runs] = run;
    blocks.bits[blocks.runs] = cache.keys.width[run];
    blocks.begin[blocks.runs++] = cache.keys.run_begin[run];
  }
  blocks.warps =
      shared_bytes(cache, kPageTiles) > kMostBytes && !can_start_early("append") ? kPageTiles / 2 : kPageTiles;
  blocks.units = tokens.count / kPageTokens + 2 * cache.batch;
  blocks.groups = std::min(blocks.units * kPageTiles / blocks.warps, std::max(1, kMostBlocks / cache.kv_heads));
  blocks.exact = cache.batch * exact_columns(cache) * 2;
  const dim3 grid(static_cast<unsigned>(blocks.groups), static_cast<unsigned>(cache.kv_heads));
  launch("append", append_latent_tiles_kernel,
         {grid, static_cast<unsigned>(2 * blocks.warps * kWarp), shared_bytes(cache, blocks.warps), stream}, cache,
         NewRows{tokens}, blocks, latent_rows(cache));
}

}  // namespace kvquant::cuda
