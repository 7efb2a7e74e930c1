/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append of a prompt's chunk to int2, head_dim 128: the same bytes as append.cu leaves. Few instructions per element
// decide here, more than memory:
//
// Keys: a warp takes a head of a page, a lane four channels, two pairs of RoPE, and all tokens of a tile. A code is the
// low bits of a number that a large constant was added to; codes of later tokens are shifted over it by a product, so
// that sixteen bits of any width fall out on the way. Quotients near a rounding border are found by one comparison and
// done again. Angles are shared by the heads of a block.
//
// Values: a thread takes a token's head, in registers: the transform needs no exchange and sums are in the order of the
// portable operator. Instead of dividing each element by the norm, limits are found once such that comparing with them
// is the same to the bit. Codes meet by a transpose of 16 x 16 codes across lanes.
//
// Exact copies are blocks of the same launch; slots of the window that are coded from are filled by the warp that
// coded.
//
// An H100, 8192 tokens of 8 kv heads: 31 us, 51 % of the speed of a copy (append.cu: 9 %); 32768 tokens: 66 %. A third
// of the time of a first version went to instructions that were not in the cache, hence the short loops.
#include "code_limits.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "page_angles.cuh"
#include "row_codes.cuh"
#include "static_tile.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = kRowDim, kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kUnit = kPageTokens;                   // tokens of a block
constexpr int kValueHeads = kWarps * kWarp / kUnit;  // of a block
constexpr int kOwn = kDim / kWarp;                   // channels of a lane
constexpr int kRunPlaces = kDim / kWidthRuns;        // that have codes of one width

/// Shared memory of blocks for keys; the codes of a tile of each warp follow. Values have rows only.
struct KeyBlock {
  __half rows[2][kWarps][kTileTokens * kRowStride];
  PageAngles angles;
  uint8_t places[kWarps][kDim];
};
static_assert(sizeof(KeyBlock::rows) == sizeof(__half) * kWarps * kWarp * kRowStride, "rows of values fit");

/// How a lane codes one of its channels.
struct KeyChannel {
  int place, bits;
  uint32_t shift;  // 1 << bits
  float mean, start, step;
  float factor, offset, levels;  // code = round(levels * (x * factor + offset)), between 0 and 1 before
  float limit;                   // of what is rounded away
  int field;                     // in the tile, bytes
};

__device__ __forceinline__ int own_channel(int lane, int i) { return i / 2 * kRowPairs + lane * 2 + i % 2; }

__device__ __forceinline__ KeyChannel describe(const CacheView& cache, int kv_head, int channel, int place) {
  const SideView& keys = cache.keys;
  KeyChannel x;
  const int run = place / kRunPlaces, at = kv_head * kDim + place;
  x.place = place;
  x.bits = keys.width[run];
  x.shift = 1u << x.bits;
  x.mean = keys.mean != nullptr ? keys.mean[kv_head * kDim + channel] : 0.0f;
  x.start = keys.steps[2 * at];
  x.step = keys.steps[2 * at + 1];
  x.levels = static_cast<float>(x.shift - 1u);
  x.factor = x.bits > 0 ? 1.0f / (x.step * x.levels) : 0.0f;
  x.offset = x.bits > 0 ? -x.start * x.factor : 0.0f;
  // The quotient is off by 2.5 2^-23 (1 + |offset|) levels at most, that of the portable operator by less.
  x.limit = 0.5f - 0x1p-21f * x.levels * (1.0f + fabsf(x.offset));
  x.field = keys.run_begin[run] + place % kRunPlaces * 2 * x.bits;
  return x;
}

/// The element of a channel as it is coded; row: of the token.
__device__ __forceinline__ float4 turned(const KeyChannel (&channels)[kOwn], const __half* row, const float4& angle,
                                         int lane) {
  float x[kOwn];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float2 two = __half22float2(*reinterpret_cast<const __half2*>(row + i * kRowPairs + lane * 2));
    x[2 * i] = __fsub_rn(two.x, channels[2 * i].mean);
    x[2 * i + 1] = __fsub_rn(two.y, channels[2 * i + 1].mean);
  }
  const float2 first = turn(x[0], x[2], make_float2(angle.x, angle.y));
  const float2 second = turn(x[1], x[3], make_float2(angle.z, angle.w));
  return make_float4(first.x, second.x, first.y, second.y);
}

/// Codes of a channel once more, with divisions where they may matter.
__device__ __noinline__ void put_again(KeyChannel own, float other_mean, bool upper, const __half* rows,
                                       const PageAngles& angles, int first_token, int pair, int first, int last,
                                       uint8_t* field) {
  const float inverse = 1.0f / own.step;
  for (int token = first; token < last; ++token) {
    const __half* row = rows + token * kRowStride + pair;
    float low = __half2float(row[0]), high = __half2float(row[kRowPairs]);
    low = __fsub_rn(low, upper ? other_mean : own.mean);
    high = __fsub_rn(high, upper ? own.mean : other_mean);
    const float4& two = angles.of(first_token + token, pair / 2);
    const float2 y = turn(low, high, pair % 2 == 0 ? make_float2(two.x, two.y) : make_float2(two.z, two.w));
    const int code = static_code(upper ? y.y : y.x, own.start, own.step, inverse, own.bits);
    const int bit = token * own.bits, shift = bit % 8;
    uint8_t* p = field + bit / 8;
    const unsigned mask = (own.shift - 1u) << shift, value = static_cast<unsigned>(code) << shift;
    p[0] = static_cast<uint8_t>((p[0] & ~mask) | value);
    if (shift + own.bits > 8) p[1] = static_cast<uint8_t>((p[1] & ~(mask >> 8)) | (value >> 8));
  }
}

/// The keys of a tile of a page and head. codes: where the tile is put together; to: where it goes.
__device__ __forceinline__ void put_keys(const CacheView& cache, const KeyChannel (&channels)[kOwn], const __half* rows,
                                         const PageAngles& angles, int tile, int first, int last, uint8_t* codes,
                                         uint8_t* to, int lane) {
  constexpr float kRound = 12582912.0f;  // 1.5 2^23: its sum with a small number ends in that, rounded
  constexpr int kAtOnce = 4;             // tokens
  uint32_t sums[kOwn] = {};
  bool doubt[kOwn] = {};
#pragma unroll 1
  for (int j = kTileTokens / kAtOnce - 1; j >= 0; --j) {
    uint32_t halfway[kOwn];
#pragma unroll
    for (int t = kAtOnce - 1; t >= 0; --t) {
      const int token = j * kAtOnce + t;
      const float4 y = turned(channels, rows + token * kRowStride, angles.of(tile * kTileTokens + token, lane), lane);
      const float x[kOwn] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const KeyChannel& c = channels[i];
        const float part = __saturatef(fmaf(x[i], c.factor, c.offset));
        const float sum = fmaf(part, c.levels, kRound);
        const float away = fmaf(part, c.levels, kRound - sum);
        doubt[i] |= fabsf(away) > c.limit;
        sums[i] = sums[i] * c.shift + __float_as_uint(sum);
        if (t == 2) halfway[i] = sums[i];
      }
    }
    // Sixteen bits are complete wherever a half of the field begins: with 3 bits, amid the four tokens.
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int bits = channels[i].bits;
      uint8_t* field = codes + channels[i].field;
      if ((j * bits & 3) == 0 && bits != 0) {
        *reinterpret_cast<uint16_t*>(field + (j * bits >> 1)) = static_cast<uint16_t>(sums[i]);
      }
      if (bits == 8) *reinterpret_cast<uint16_t*>(field + 4 * j + 2) = static_cast<uint16_t>(halfway[i]);
      if (bits == 3 && j == 1) *reinterpret_cast<uint16_t*>(field + 2) = static_cast<uint16_t>(sums[i] >> 4);
      if (bits == 3 && j == 2) *reinterpret_cast<uint16_t*>(field + 4) = static_cast<uint16_t>(halfway[i] >> 2);
    }
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (!doubt[i] || channels[i].bits == 0) continue;
    put_again(channels[i], channels[i ^ 2].mean, i >= 2, rows, angles, tile * kTileTokens, lane * 2 + i % 2, first,
              last, codes + channels[i].field);
  }
  store_tile(cache, first, last, codes, to, lane);
}

/// The keys of a page, a head a warp.
__device__ __forceinline__ void append_keys(const CacheView& cache, const NewRows& rows, const TokenRun& run,
                                            int first_head, KeyBlock& block) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, kv_head = first_head + warp;
  const bool mine = kv_head < cache.kv_heads;
  const int first_tile = run.begin / kTileTokens, last_tile = (run.end - 1) / kTileTokens;
  const auto stage = [&](int tile) {
    const int first = tile * kTileTokens;
    const TokenRun part{run.b, max(run.begin, first), min(run.end, first + kTileTokens)};
    if (mine && tile <= last_tile) {
      stage_rows(cache, rows, part, kv_head, true, first, block.rows[tile % 2][warp], lane);
    }
    commit_copies();
  };
  stage(first_tile);
  stage(first_tile + 1);
  if (mine) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int place = lane * kOwn + i;
      const int channel =
          cache.keys.order != nullptr ? cache.keys.order[kv_head * kDim + place] - kv_head * kDim : place;
      block.places[warp][channel] = static_cast<uint8_t>(place);
    }
  }
  page_angles(cache, run.begin / kPageTokens, threadIdx.x, block.angles);
  __syncthreads();
  if (!mine) return;
  KeyChannel channels[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int channel = own_channel(lane, i);
    channels[i] = describe(cache, kv_head, channel, block.places[warp][channel]);
  }
  uint8_t* page = cache.page(run.b, run.begin / kPageTokens);
  uint8_t* codes = reinterpret_cast<uint8_t*>(&block + 1) + warp * cache.keys.tile_bytes;
  for (int tile = first_tile; tile <= last_tile; ++tile) {
    wait_copies<1>();
    __syncwarp();
    const int first = tile * kTileTokens, in_page = tile % kPageTiles;
    put_keys(cache, channels, block.rows[tile % 2][warp], block.angles, in_page, max(run.begin - first, 0),
             min(run.end - first, kTileTokens), codes, page + cache.keys.tile(kv_head, in_page), lane);
    stage(tile + 2);
    if (max(run.begin, first) < cache.length(run.b)) refill(cache, rows, run, tile, kv_head, true, lane);
  }
}

/// The values of 32 tokens of a head, a token a lane.
__device__ __forceinline__ void append_values(const CacheView& cache, const NewRows& rows, const TokenRun& unit,
                                              int kv_head, int first, __half* staged) {
  const SideView& side = cache.values;
  const int lane = threadIdx.x % kWarp;
  const TokenRun run{unit.b, max(unit.begin, first), min(unit.end, first + kWarp)};
  if (run.begin >= run.end) return;
  stage_rows(cache, rows, run, kv_head, false, first, staged, lane);
  commit_copies();
  wait_copies<0>();
  __syncwarp();
  float x[kDim];
  load_row(staged + lane * kRowStride, x);
  transform_row(x);
  float square = 0.0f, product = 0.0f;
#pragma unroll
  for (int i = 0; i < kDim; ++i) square = __fadd_rn(square, __fmul_rn(x[i], x[i]));
  const float rms = __fsqrt_rn(__fdiv_rn(square, static_cast<float>(kDim)));
  const float small = side.four_levels[2], large = side.four_levels[3];
  const Limits limits = find_limits(rms, __fmul_rn(0.5f, __fadd_rn(small, large)));
  const int own_tile = first / kTileTokens + lane / kTileTokens, tile = own_tile % kPageTiles;
  const int begin = max(run.begin - own_tile * kTileTokens, 0),
            end = min(run.end - own_tile * kTileTokens, kTileTokens);
  uint8_t* page = cache.page(run.b, first / kPageTokens);
  uint8_t* codes = page + side.tile(kv_head, tile);
  // Half of the channels at a time goes where the row was, so that this is a loop: its instructions, for channels one
  // by one, would not fit into the cache.
  auto* own = reinterpret_cast<float4*>(staged + lane * kRowStride);
#pragma unroll 1
  for (int half = 0; half < 2; ++half) {
    if (half == 0) {
#pragma unroll
      for (int i = 0; i < 16; ++i) own[i] = make_float4(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
    } else {
#pragma unroll
      for (int i = 0; i < 16; ++i) own[i] = make_float4(x[4 * i + 64], x[4 * i + 65], x[4 * i + 66], x[4 * i + 67]);
    }
    uint32_t words[4] = {};  // of channels 4 k + i, so that they are neighbours when they are transposed
#pragma unroll 1
    for (int four = 0; four < 4; ++four) {
      uint32_t parts[4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4 y = own[4 * four + i];
        const float at[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const bool above = at[j] > limits.zero, outer = at[j] <= limits.low || at[j] > limits.high;
          if (above) parts[j] += 2u << (2 * i);
          if (outer) parts[j] += 1u << (2 * i);
          product = __fadd_rn(product, __fmul_rn(fabsf(at[j]), outer ? large : small));
        }
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) words[j] += parts[j] << (8 * four);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      words[j] ^= ~(words[j] >> 1) & 0x55555555u;  // outer below, inner below and so on
      words[j] = transpose_codes(words[j], lane);
    }
    if (begin < end) {
      store_words(make_uint4(words[0], words[1], words[2], words[3]), begin, end,
                  codes + half * 256 + lane % kTileTokens * 16);
    }
  }
  const int in_tile = lane % kTileTokens;
  if (in_tile >= begin && in_tile < end) {
    uint8_t* norms = page + side.norms + tile * side.norm_tile_bytes + kv_head * kTileTokens * 2;
    reinterpret_cast<__half*>(norms)[in_tile] = __float2half_rn(norm_of(square, product));
  }
  const int in_window = min(run.end, cache.length(run.b));
  for (int t = run.begin / kTileTokens; t * kTileTokens < in_window; ++t) {
    refill(cache, rows, run, t, kv_head, false, lane);
  }
}

/// Blocks: of keys, values, then of exact pages.
struct IntBlocks {
  int units, keys, values;
};

__global__ void __launch_bounds__(kThreads, 3)
    append_int_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows,
                      const __grid_constant__ IntBlocks blocks) {
  KVQUANT_DYNAMIC_SHARED(shared);
  const int block = blockIdx.x;
  if (block >= blocks.values + blocks.keys) return append_exact(cache, rows, block - blocks.values - blocks.keys);
  const TokenRun run = unit_run<kUnit>(cache, rows, block % blocks.units);
  if (run.begin >= run.end) return;
  const int warp = threadIdx.x / kWarp;
  if (block >= blocks.keys) {
    const int kv_head = (block - blocks.keys) / blocks.units * kValueHeads + warp / (kUnit / kWarp);
    const int first = run.begin / kUnit * kUnit + warp % (kUnit / kWarp) * kWarp;
    if (kv_head >= cache.kv_heads) return;
    append_values(cache, rows, run, kv_head, first, reinterpret_cast<__half*>(shared) + warp * kWarp * kRowStride);
  } else {
    append_keys(cache, rows, run, block / blocks.units * kWarps, *reinterpret_cast<KeyBlock*>(shared));
  }
}

}  // namespace

bool append_int_supports(const CacheView& cache, const NewTokens& tokens) {
  return append_values_supports(cache, tokens) && cache.keys.format == Format::kStatic && cache.keys.basis_heads == 0 &&
         cache.keys_pre_rope == 0;
}

void append_int(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  const auto groups = [&](int heads) { return (cache.kv_heads + heads - 1) / heads; };
  IntBlocks blocks;
  blocks.units = tokens.count / kUnit + 2 * cache.batch;
  blocks.values = blocks.units * groups(kValueHeads);
  blocks.keys = blocks.units * groups(kWarps);
  const int exact = cache.batch * exact_columns(cache) * groups(2);
  const auto all = static_cast<unsigned>(blocks.values + blocks.keys + exact);
  const size_t bytes = sizeof(KeyBlock) + static_cast<size_t>(kWarps * cache.keys.tile_bytes);
  launch("append", append_int_kernel, {dim3(all), kThreads, bytes, stream}, cache, NewRows{tokens}, blocks);
}

}  // namespace kvquant::cuda
