/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append of tokens in tiles to kvquant2, 3 and 4, head_dim 128: the same bytes as append_tokens.cu leaves.
//
// A block takes a side of a tile, all heads. A warp takes a token at a time: a bound that as many of its lanes' extreme
// elements reach as there are slots rules most elements out, and those that are left find their slots by counting. Then
// a thread takes channels and writes their codes of all tokens. Elements are halves: two are compared at a time with
// borders between codes, which are halves too.
//
// An H100, 8192 tokens of 8 kv heads, of whose keys' elements 13 % lie beyond their ranges: 31.7 us instead of 672,
// half of the speed of a copy. Blocks begin twice on a multiprocessor, all at once, and a quarter of their time went to
// what they look up first: so ranges are read before the kernel ahead has ended, one warp finds the tile, its page is
// looked up while rows come, and a warp waits for its own rows only (35.3 before that and with 10 % more instructions).
// Twice the warps, a token each, is no faster. Blocks that take both sides of a tile: 32.6. Rows by bulk copies: 37.0
// where copies by warps took 34.8. Fetching rows of values to L2 while keys are coded: 0.4 to 1.5 us slower. The bound
// of many slots by comparing all lanes' extremes instead of taking one after another: 0.6 slower, 0.4 faster with bulk
// copies. Lists that are filled by atomics: 0.5 faster where blocks take both sides; otherwise not measured.
#include <algorithm>

#include "device_limits.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "outlier_choice.cuh"
#include "tile_rows.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = 128, kMostWarps = 16;

/// The largest half whose place in a range is not above a middle of two levels. The place grows with the element.
static __device__ __noinline__ __half code_limit(float middle, float start, float step) {
  const float border = fmaf(middle, step, start), margin = (fabsf(border) + fabsf(middle * step)) * 0x1p-20f;
  const auto place = [](__half x) {
    const int bits = __half_as_ushort(x);
    return (bits & 0x8000) != 0 ? ~bits & 0xffff : bits | 0x8000;
  };
  const auto element = [](int place) {
    return __ushort_as_half(static_cast<uint16_t>((place & 0x8000) != 0 ? place & 0x7fff : ~place));
  };
  int below = 0x03ff, above = 0xfc01;  // minus infinity; behind infinity
  if (fabsf(border) < 1e30f && margin < 1e30f) {
    below = place(__float2half_rd(border - margin));
    above = place(__float2half_rd(border + margin)) + 1;
  }
  while (above - below > 1) {
    const int between = (above + below) / 2;
    if (__fdiv_rn(__fsub_rn(__half2float(element(between)), start), step) > middle) {
      above = between;
    } else {
      below = between;
    }
  }
  return element(below);
}

/// Codes of two channels: 16 bits of each in a word.
template <int bits>
struct PairCodes {
  static constexpr int kLimits = (1 << bits) - 1;
  uint32_t words[bits] = {};

  /// limits: of both channels.
  __device__ __forceinline__ void add(int token, uint32_t pair, const __half2 (&limits)[kLimits]) {
    uint32_t code[bits] = {};
    if constexpr (bits == 2) {
      // The higher bit says which limit the lower one depends on.
      code[1] = __hgt2_mask(as_half2(pair), limits[1]);
      const uint32_t limit = (as_bits(limits[0]) & ~code[1]) | (as_bits(limits[2]) & code[1]);
      code[0] = __hgt2_mask(as_half2(pair), as_half2(limit));
    }
#pragma unroll
    for (int i = 0; bits != 2 && i < kLimits; ++i) {
      const uint32_t above = __hgt2_mask(as_half2(pair), limits[i]);
      // Limits ascend: bit b of the number of those that were passed changes with every 2^b-th.
#pragma unroll
      for (int b = 0; b < bits; ++b) {
        if ((i + 1) % (1 << b) == 0) code[b] ^= above;
      }
    }
#pragma unroll
    for (int b = 0; b < bits; ++b) {
      const int bit = token * bits + b;
      words[bit / 16] |= code[b] & (0x00010001u << (bit % 16));
    }
  }
};

/// Stores codes of four channels, those of tokens [first, last).
template <int bits>
__device__ __forceinline__ void store_codes(const PairCodes<bits> (&codes)[2], int first, int last, uint8_t* to) {
  uint32_t words[2 * bits];  // of 16 bits: [channel][bits]
#pragma unroll
  for (int i = 0; i < 2 * bits; ++i) {
    const auto half = [&](int at) {
      const int channel = at / bits;
      return codes[channel / 2].words[at % bits] >> (channel % 2 * 16) & 0xffffu;
    };
    words[i] = half(2 * i) | half(2 * i + 1) << 16;
  }
  if (first == 0 && last == kTileTokens) {
#pragma unroll
    for (int i = 0; i < bits; ++i) reinterpret_cast<uint2*>(to)[i] = make_uint2(words[2 * i], words[2 * i + 1]);
    return;
  }
  const uint64_t own = (~0ull >> (64 - last * bits)) & ~((1ull << (first * bits)) - 1);
#pragma unroll
  for (int i = 0; i < 4 * bits; ++i) {
    const auto mask = static_cast<uint16_t>(own >> (i % bits * 16));
    if (mask == 0) continue;
    auto* word = reinterpret_cast<uint16_t*>(to) + i;
    *word = static_cast<uint16_t>((*word & ~mask) | (words[i / 2] >> (i % 2 * 16) & mask));
  }
}

/// Limits of two channels; ranges: their starts and steps.
__device__ __forceinline__ __half2 code_limits(float middle, const float4& ranges) {
  const float a = fmaf(middle, ranges.y, ranges.x), b = fmaf(middle, ranges.w, ranges.z);
  const float size = fabsf(middle) * 0x1p-20f;
  const float margin_a = fmaf(size, fabsf(ranges.y), fabsf(a) * 0x1p-20f);
  const float margin_b = fmaf(size, fabsf(ranges.w), fabsf(b) * 0x1p-20f);
  const uint32_t low = halves_towards_zero(a - margin_a, b - margin_b);
  const uint32_t high = halves_towards_zero(a + margin_a, b + margin_b);
  // Where both are the same, both are below the border in size; one of less than zero is then above it.
  if (low == high && margin_a + margin_b < 1e20f) return as_half2(low + (low >> 15 & 0x00010001u));
  return __halves2half2(code_limit(middle, ranges.x, ranges.y), code_limit(middle, ranges.z, ranges.w));
}

/// Codes of the whole tile, a thread four channels at a time.
template <int bits>
__device__ __forceinline__ void put_codes(const TileSide& t, bool keys, uint8_t* codes_at, int64_t head_bytes) {
  constexpr int kLimits = (1 << bits) - 1;
  const int quads = t.layout.channels / 4;
  const auto* token_limits = reinterpret_cast<const __half2*>(t.shared + t.layout.limits);
#pragma unroll 1
  for (int quad = threadIdx.x; quad < quads; quad += blockDim.x) {
    PairCodes<bits> codes[2];
    __half2 limits[2][kLimits];
    if (keys) {
      const auto* steps = reinterpret_cast<const float4*>(t.steps) + 2 * quad;
      const float4 ranges[2] = {__ldg(steps), __ldg(steps + 1)};
#pragma unroll
      for (int i = 0; i < kLimits; ++i) {
        const float middle = __fmul_rn(0.5f, __fadd_rn(t.levels[i], t.levels[i + 1]));
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          limits[k][i] = code_limits(middle, ranges[k]);
        }
      }
    }
#pragma unroll
    for (int token = 0; token < kTileTokens; ++token) {
      const uint2 x = reinterpret_cast<const uint2*>(t.row(token))[quad];
      if (!keys) {
#pragma unroll
        for (int i = 0; i < kLimits; ++i) limits[0][i] = limits[1][i] = token_limits[token * (kLimits + 1) + i];
      }
      codes[0].add(token, x.x, limits[0]);
      codes[1].add(token, x.y, limits[1]);
    }
    const int head = quad / (kDim / 4), at = quad % (kDim / 4);
    store_codes<bits>(codes, t.first, t.last, codes_at + head * head_bytes + at * (8 * bits));
  }
}

/// Rows of a warp's tokens as halves.
__device__ __forceinline__ void stage_token(const CacheView& cache, const NewRows& rows, const TileSide& t, int b,
                                            bool keys, int token, int lane) {
  const int length = cache.length(b), channels = t.layout.channels;
  __half* to = t.row(token % kTileTokens);
  if (token >= length) {
    const int64_t from = rows.key(cache, b, token - length, 0) + (keys ? 0 : channels);
    if (rows.tokens.type == ElementType::kFloat16) {
      const __half* row = static_cast<const __half*>(rows.tokens.qkv) + from;
#pragma unroll 4
      for (int c = 8 * lane; c < channels; c += 8 * kWarp) copy_async(to + c, row + c);
    } else {
#pragma unroll 4
      for (int c = 4 * lane; c < channels; c += 4 * kWarp) {
        *reinterpret_cast<uint2*>(to + c) = four_halves(rows.tokens.type, rows.tokens.qkv, from + c);
      }
    }
    return;
  }
  const uint8_t* page = cache.window_page(b, token);
#pragma unroll 2
  for (int c = lane; c < channels; c += kWarp) {
    const int64_t at = keys ? cache.exact_key(c / kDim, c % kDim) : cache.exact_value(c / kDim, c % kDim);
    to[c] = reinterpret_cast<const __half*>(page + at)[token % kExactTokens];
  }
}

/// Ranges of channels in halves: their middles, then how far they reach.
__device__ __forceinline__ void put_reach(const TileSide& t, int lane) {
  auto* middles = reinterpret_cast<uint2*>(t.shared + t.layout.limits);
  uint2* reaches = middles + t.layout.channels / 4;
  float margin = 0.0f;
#pragma unroll 2
  for (int i = threadIdx.x; i < t.layout.channels / 4; i += blockDim.x) {
    const float4 a = __ldg(reinterpret_cast<const float4*>(t.steps) + 2 * i);
    const float4 b = __ldg(reinterpret_cast<const float4*>(t.steps) + 2 * i + 1);
    // Without a step nothing lies beyond.
    const auto reach = [](float step) { return step > 0.0f ? step : INFINITY; };
    middles[i] = make_uint2(pack_halves(a.x, a.z), pack_halves(b.x, b.z));
    reaches[i] = make_uint2(pack_halves(reach(a.y), reach(a.w)), pack_halves(reach(b.y), reach(b.w)));
    margin = fmaxf(fmaxf(fmaxf(margin, fabsf(a.x) + fabsf(a.y)), fabsf(a.z) + fabsf(a.w)),
                   fmaxf(fabsf(b.x) + fabsf(b.y), fabsf(b.z) + fabsf(b.w)));
  }
  const uint32_t most = __reduce_max_sync(0xffffffffu, __float_as_uint(margin * 0x1p-9f + 0x1p-21f));
  if (lane == 0) atomicMax(t.margin(), most);
}

/// Sinks, where there is no window; else append.cu copies what is kept exactly.
static __device__ __noinline__ void keep_sinks(const CacheView& cache, const NewRows& rows, int block, bool keys) {
  const int b = block / cache.sink_pages, column = block % cache.sink_pages, warps = blockDim.x / kWarp;
  if (rows.count(b) == 0) return;
#pragma unroll 1
  for (int kv_head = threadIdx.x / kWarp; kv_head < cache.kv_heads; kv_head += warps) {
    keep_page(cache, rows, b, column, kv_head, keys, threadIdx.x % kWarp);
  }
  if (keys) update_sink_header(cache, b, rows.count(b), column, threadIdx.x);
}

/// What a block works on, in shared memory.
struct __align__(16) BlockTile {
  TileRun run;
  uint8_t* page;
};

/// A side of a tile.
template <int bits, bool keys>
__device__ __forceinline__ void append_side(const CacheView& cache, const NewRows& rows, volatile BlockTile& tile,
                                            unsigned char* shared, int warp, int lane) {
  constexpr int kLimits = (1 << bits) - 1;
  const SideView& side = keys ? cache.keys : cache.values;
  const int warps = blockDim.x / kWarp;
  const TileRun run{tile.run.b, tile.run.begin, tile.run.end, 0};
  const TokensLayout layout(cache.kv_heads * kDim, side.outliers, warps);
  const TileSide t{side.steps, side.levels, side.outliers, layout, shared, run.first(), run.last()};
#pragma unroll 1
  for (int i = t.first + warp; i < t.last; i += warps) {
    stage_token(cache, rows, t, run.b, keys, run.begin - t.first + i, lane);
    commit_copies();
  }
  if (threadIdx.x == 0) tile.page = cache.page(run.b, run.begin / kPageTokens);  // rows take as long
  auto* slots = reinterpret_cast<uint16_t*>(t.shared + t.layout.slots);
#pragma unroll 1
  for (int i = threadIdx.x; i < t.outliers * 2 * kTileTokens; i += blockDim.x) {
    slots[i] = i / kTileTokens % 2 == 0 ? 0 : kNoChannel;
  }
  __syncthreads();
  const WarpLists lists(t.layout, t.shared, warp);
#pragma unroll 1
  for (int i = t.first + warp; i < t.last; i += warps) {
    // A warp has staged its tokens itself.
    if (i + warps < t.last) {
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    __syncwarp();
    if (keys) {
      choose_far(t, i, lists, lane);
    } else {
      choose_ends(t, i, lists, lane);
    }
  }
  __syncthreads();
  if (!keys) {
#pragma unroll 1
    for (int i = threadIdx.x; i < kTileTokens * kLimits; i += blockDim.x) {
      const int token = i / kLimits, limit = i % kLimits;
      if (token < t.first || token >= t.last) continue;
      const float middle = __fmul_rn(0.5f, __fadd_rn(t.levels[limit], t.levels[limit + 1]));
      const __half* range = t.range(token);
      reinterpret_cast<__half2*>(t.shared + t.layout.limits)[token * (kLimits + 1) + limit] =
          __half2half2(code_limit(middle, __half2float(range[kTileTokens]), __half2float(range[0])));
    }
    __syncthreads();
  }
  uint8_t* page = tile.page;
  put_codes<bits>(t, keys, page + side.tile(0, run.tile()), side.tile(1, 0) - side.tile(0, 0));
  auto* to = reinterpret_cast<uint16_t*>(page + side.outlier_slot(run.tile(), 0));
  if (t.first == 0 && t.last == kTileTokens) {
#pragma unroll 1
    for (int i = threadIdx.x; i < t.outliers * (4 * kTileTokens / 16); i += blockDim.x) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(slots)[i];
    }
  } else {
#pragma unroll 1
    for (int i = threadIdx.x; i < t.outliers * 2 * kTileTokens; i += blockDim.x) {
      if (i % kTileTokens >= t.first && i % kTileTokens < t.last) to[i] = slots[i];
    }
  }
  if (keys) return;
  auto* ranges = reinterpret_cast<__half*>(page + side.scales(run.tile(), 0));
  for (int i = threadIdx.x; i < 2 * kTileTokens; i += blockDim.x) {
    if (i % kTileTokens >= t.first && i % kTileTokens < t.last) ranges[i] = t.range(0)[i];
  }
}

/// A block per side and tile, then per side and page of sinks.
template <int bits>
__global__ void __launch_bounds__(kMostWarps* kWarp, 2)
    append_codebook_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows, int tiles) {
  KVQUANT_DYNAMIC_SHARED(shared);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  const bool keys = blockIdx.y == 0;
  release_next_kernel();
  if (static_cast<int>(blockIdx.x) >= tiles) {
    wait_for_previous_kernel();
    return keep_sinks(cache, rows, blockIdx.x - tiles, keys);
  }
  auto& tile = *reinterpret_cast<BlockTile*>(shared);
  unsigned char* rest = shared + sizeof(BlockTile);
  if (keys) {
    const TokensLayout layout(cache.kv_heads * kDim, cache.keys.outliers, warps);
    const TileSide t{cache.keys.steps, nullptr, 0, layout, rest, 0, 0};
    if (threadIdx.x == 0) *t.margin() = 0;
    __syncthreads();
    put_reach(t, lane);
  }
  wait_for_previous_kernel();
  if (warp == 0) {
    TileRun run;
    block_run(cache, rows, blockIdx.x, 0, &run);
    if (lane == 0) tile.run = run;
  }
  __syncthreads();
  if (tile.run.begin >= tile.run.end) return;
  if (keys) {
    append_side<bits, true>(cache, rows, tile, rest, warp, lane);
  } else {
    append_side<bits, false>(cache, rows, tile, rest, warp, lane);
  }
}

int block_warps(const CacheView& cache) {
  const int channels = cache.kv_heads * kDim;
  return channels > 2048 && channels <= 4096 ? kMostWarps : kMostWarps / 2;
}

int block_bytes(const CacheView& cache) {
  return TokensLayout(cache.kv_heads * kDim, std::max(cache.keys.outliers, cache.values.outliers), block_warps(cache))
             .bytes +
         static_cast<int>(sizeof(BlockTile));
}

}  // namespace

bool append_codebook_supports(const CacheView& cache, const NewTokens& tokens) {
  const SideView &keys = cache.keys, &values = cache.values;
  const auto side = [](const SideView& x) {
    return x.format == Format::kCodebook && x.mean == nullptr && x.rotation_heads == 0 && x.basis_heads == 0;
  };
  return side(keys) && side(values) && keys.bits == values.bits && keys.bits >= 2 && keys.bits <= 4 &&
         keys.steps != nullptr && values.steps == nullptr && values.outliers % 2 == 0 && cache.keys_pre_rope != 0 &&
         cache.head_dim == kDim && keys.outliers <= kMostSlots && values.outliers / 2 < kMostSlots &&
         aligned_rows(tokens) && block_bytes(cache) <= most_shared_bytes("append");
}

void append_codebook(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  const int tiles = tokens.count / kTileTokens + 2 * cache.batch;
  const bool sinks = cache.window == 0 && cache.sink_policy == SinkPolicy::kFirst;
  const LaunchShape shape{dim3(static_cast<unsigned>(tiles + (sinks ? cache.batch * cache.sink_pages : 0)), 2),
                          static_cast<unsigned>(block_warps(cache) * kWarp), static_cast<size_t>(block_bytes(cache)),
                          stream, can_start_early("append")};
  const NewRows rows{tokens};
  if (cache.keys.bits == 2) launch("append", append_codebook_kernel<2>, shape, cache, rows, tiles);
  if (cache.keys.bits == 3) launch("append", append_codebook_kernel<3>, shape, cache, rows, tiles);
  if (cache.keys.bits == 4) launch("append", append_codebook_kernel<4>, shape, cache, rows, tiles);
}

}  // namespace kvquant::cuda
