/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append of a prompt's chunk to int2, int3, int4 and int8: the same bytes as append.cu leaves. Few instructions per
// element decide here, more than memory:
//
// Keys: a warp takes a tile of a head, a lane four channels, two pairs of RoPE, and all tokens. A code is the low bits
// of a number that a large constant was added to; codes of later tokens are shifted over it by a product, so that
// sixteen bits of any width fall out on the way. Quotients near a rounding border are found by one comparison and done
// again. Angles are shared by the heads of a block; all that is known of channels is loaded at once, before it is known
// which tokens these are.
//
// Values: append_values.cuh. Exact copies are blocks of the same launch; slots of the window that are coded from are
// filled by the warp that coded.
//
// Of head_dim 64 two heads that lie side by side make one row, with all else as for a head of 128.
//
// An H100, 8192 tokens of 8 kv heads: int2 31 us, 50 % of the speed of a copy, int3 31 us, 53 %, int4 31 us, 55 %, int8
// 40 us, 52 % (append.cu: 8 to 10 %). Of int4 it was 40 us when a block coded keys of a page and a lane all values of a
// token, which took 30 for int2; 37 when each tile's block loaded what is known of channels piece by piece. Now 38 with
// keys first, 36 with both in turn, 33 with four blocks of a multiprocessor for five. Values alone take 22 us.
//
// Of head_dim 64: int2 19 us, 41 %, int3 19 us, 42 %, int4 20 us, 43 %, int8 25 us, 41 % (append.cu: 98 to 125); with
// keys first int2 takes 20 us and int8 29, with both in turn 19 and 28, with four blocks of a multiprocessor
// for five 18 and 24 (of head_dim 128 int2 31.0 for 31.5, not kept: int4 has not been measured so).
#include <algorithm>

#include "append_values.cuh"
#include "static_tile.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kWarps = kPageTiles, kThreads = kWarps * kWarp;
constexpr int kOwn = kRowDim / kWarp;  // channels of a lane
static_assert(kThreads == kValueThreads, "a block is for keys or values");

/// How a channel is coded: round(levels * (x * factor + offset)), between 0 and 1 before. All that a loop wants of it
/// is here, lest it be derived over and over.
struct alignas(16) KeyCode {
  float factor, offset, limit, levels;  // limit: of what is rounded away
  uint32_t shift;                       // 1 << bits
  int field, step;                      // in the tiles, bytes; of four tokens, down to half words
  uint32_t flags;                       // bit j: a half word of the field begins with token 4 j; others; place
};
static_assert(sizeof(KeyCode) >= 2 * 8, "codes of a channel fit where its description was");
constexpr uint32_t kEightBits = 16, kThreeBits = 32, kPlace = 256;

/// Bytes of a head's tile in shared memory.
template <int D>
constexpr int kMostTile = D * kTileTokens;

/// Shared memory of blocks for keys.
template <int D>
struct KeyBlock {
  __half rows[kWarps][kTileTokens * KeyRows<D>::kStride];
  float2 angles[kTileTokens * kAngles<D>];
  KeyCode channels[kWarps][kRowDim];  // then the codes of the tiles of each warp
};

/// What is known of a lane's places and channels, loaded at once.
struct KeyInputs {
  int channel[kOwn];   // of the row, of places 4 lane and so on
  float2 range[kOwn];  // start and step of them
  float mean[kOwn];    // of channels
};

template <int D>
__device__ __forceinline__ int own_channel(int lane, int i) {
  return lane / kHeadLanes<D> * D + i / 2 * (D / 2) + lane % kHeadLanes<D> * 2 + i % 2;
}

template <int D>
__device__ __forceinline__ KeyInputs load_inputs(const CacheView& cache, int kv_head, int lane) {
  const SideView& keys = cache.keys;
  KeyInputs inputs;
  const int head = kv_head * D, ahead = present<D>(cache, kv_head, lane * kOwn) ? 0 : D;  // of what is read instead
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int place = lane * kOwn + i, from = head + place - ahead;
    inputs.channel[i] = keys.order != nullptr ? keys.order[from] - head + ahead : place;
    inputs.range[i] = reinterpret_cast<const float2*>(keys.steps)[from];
    inputs.mean[i] = keys.mean != nullptr ? keys.mean[head + own_channel<D>(lane, i) - ahead] : 0.0f;
  }
  return inputs;
}

/// Describes the channels of a lane's places; those of a missing head have no codes.
template <int D>
__device__ __forceinline__ void describe(const CacheView& cache, int kv_head, const KeyInputs& inputs,
                                         KeyCode* channels, int lane) {
  constexpr int kRunPlaces = kStaticRun<D>;
  const SideView& keys = cache.keys;
  const int run = lane % kHeadLanes<D> * kOwn / kRunPlaces;
  const int bits = present<D>(cache, kv_head, lane * kOwn) ? keys.width[run] : 0;
  const uint32_t whole = bits == 0 ? 0u : bits % 4 == 0 ? 15u : bits == 2 ? 5u : 1u;
  const uint32_t flags = whole | (bits == 8 ? kEightBits : 0u) | (bits == 3 ? kThreeBits : 0u);
  KeyCode code;
  code.levels = static_cast<float>((1 << bits) - 1);
  code.shift = 1u << bits;
  code.step = bits / 2;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int place = lane * kOwn + i;
    code.factor = bits > 0 ? 1.0f / (inputs.range[i].y * code.levels) : 0.0f;
    code.offset = bits > 0 ? -inputs.range[i].x * code.factor : 0.0f;
    // The quotient and that of the portable operator are apart by 2^-24 (4.5 + |offset|) levels at most.
    code.limit = 0.5f - 0x1p-23f * code.levels * (3.0f + fabsf(code.offset));
    code.field = lane / kHeadLanes<D> * kMostTile<D> + keys.run_begin[run] + place % kRunPlaces * 2 * bits;
    code.flags = flags | static_cast<uint32_t>(place) * kPlace;
    channels[inputs.channel[i]] = code;
  }
}

/// Cosines and sines of a tile's positions, [16][kAngles], to the bit of rope_angle; a block's work.
template <int D>
__device__ __forceinline__ void put_angles(const CacheView& cache, int tile, float2* angles) {
  constexpr int kPairs = D / 2, kQuads = kPageTokens / 4, kOwnQuads = kTileTokens / 4;  // of a page, of a tile
  const float* base = cache.rope + (static_cast<int64_t>(kPageTokens) + tile / kPageTiles) * D;
  const auto* steps = reinterpret_cast<const float4*>(cache.rope) + tile % kPageTiles * kOwnQuads;
  const int quad = threadIdx.x % kOwnQuads;
#pragma unroll
  for (int pair = threadIdx.x / kOwnQuads; pair < kPairs; pair += kThreads / kOwnQuads) {
    const float c0 = base[pair], s0 = base[kPairs + pair];
    const float4 c = steps[pair * kQuads + quad], s = steps[(kPairs + pair) * kQuads + quad];
    const float c1[4] = {c.x, c.y, c.z, c.w}, s1[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      angles[(4 * quad + i) * kAngles<D> + pair] = make_float2(__fsub_rn(__fmul_rn(c0, c1[i]), __fmul_rn(s0, s1[i])),
                                                               __fadd_rn(__fmul_rn(s0, c1[i]), __fmul_rn(c0, s1[i])));
    }
  }
}

/// The elements of a lane's channels as they are coded; row: of the token, at the first.
template <int D>
__device__ __forceinline__ float4 turned(const float (&means)[kOwn], const __half* row, const float4& angle) {
  float x[kOwn];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float2 two = __half22float2(*reinterpret_cast<const __half2*>(row + i * (D / 2)));
    x[2 * i] = __fsub_rn(two.x, means[2 * i]);
    x[2 * i + 1] = __fsub_rn(two.y, means[2 * i + 1]);
  }
  const float2 first = turn(x[0], x[2], make_float2(angle.x, angle.y));
  const float2 second = turn(x[1], x[3], make_float2(angle.z, angle.w));
  return make_float4(first.x, second.x, first.y, second.y);
}

/// Codes of a channel once more, with divisions where they may matter; pair: its elements, of which it is the lower or
/// the upper one.
template <int D>
__device__ __noinline__ void put_again(float2 range, int bits, float2 means, bool upper, const __half* pair,
                                       const float2* angles, int first, int last, uint8_t* field) {
  const float inverse = 1.0f / range.y;
  for (int token = first; token < last; ++token) {
    const float low = __fsub_rn(__half2float(pair[token * KeyRows<D>::kStride]), means.x);
    const float high = __fsub_rn(__half2float(pair[token * KeyRows<D>::kStride + D / 2]), means.y);
    const float2 y = turn(low, high, angles[token * kAngles<D>]);
    const int code = static_code(upper ? y.y : y.x, range.x, range.y, inverse, bits);
    const int bit = token * bits, shift = bit % 8;
    uint8_t* p = field + bit / 8;
    const unsigned mask = ((1u << bits) - 1u) << shift, value = static_cast<unsigned>(code) << shift;
    p[0] = static_cast<uint8_t>((p[0] & ~mask) | value);
    if (shift + bits > 8) p[1] = static_cast<uint8_t>((p[1] & ~(mask >> 8)) | (value >> 8));
  }
}

/// The keys of a tile of a row. threes: some have 3 bits; codes: where the tiles are put together; to: where that of
/// the lane's head goes, if it is there.
template <int D>
__device__ __forceinline__ void put_keys(const CacheView& cache, int kv_head, const KeyCode (&channels)[kOwn],
                                         const float (&means)[kOwn], const __half* rows, const float2* angles,
                                         int first, int last, bool threes, uint8_t* codes, uint8_t* to, int lane) {
  constexpr float kRound = 12582912.0f;  // 1.5 2^23: its sum with a small number ends in that, rounded
  constexpr int kAtOnce = 4;             // tokens
  uint32_t sums[kOwn] = {};
  unsigned doubts = 0;  // a bit for kAtOnce tokens, of each channel
  const int own_head = lane / kHeadLanes<D>, own_lane = lane % kHeadLanes<D>;
  rows += KeyRows<D>::place(own_channel<D>(lane, 0));
#pragma unroll 1
  for (int j = kTileTokens / kAtOnce - 1; j >= 0; --j) {
    uint32_t halfway[kOwn];
    bool doubt[kOwn] = {};
    const auto* angle = reinterpret_cast<const float4*>(angles + j * kAtOnce * kAngles<D>) + own_lane;
    const __half* row = rows + j * kAtOnce * KeyRows<D>::kStride;
#pragma unroll
    for (int t = kAtOnce - 1; t >= 0; --t) {
      const float4 y = turned<D>(means, row + t * KeyRows<D>::kStride, angle[t * kAngles<D> / 2]);
      const float x[kOwn] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const KeyCode& c = channels[i];
        const float part = __saturatef(fmaf(x[i], c.factor, c.offset));
        const float sum = fmaf(part, c.levels, kRound);
        const float away = fmaf(part, c.levels, kRound - sum);
        doubt[i] |= fabsf(away) > c.limit;
        sums[i] = sums[i] * c.shift + __float_as_uint(sum);
        if (t == 2) halfway[i] = sums[i];
      }
    }
    if (doubt[0] || doubt[1] || doubt[2] || doubt[3]) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) doubts |= doubt[i] ? 1u << (i * kAtOnce + j) : 0u;
    }
    // Sixteen bits are complete wherever a half word of the field begins.
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const KeyCode& own = channels[i];
      uint8_t* half = codes + own.field + j * own.step;
      if ((own.flags & 1u << j) != 0) *reinterpret_cast<uint16_t*>(half) = static_cast<uint16_t>(sums[i]);
      if ((own.flags & kEightBits) != 0) reinterpret_cast<uint16_t*>(half)[1] = static_cast<uint16_t>(halfway[i]);
    }
    if (!threes || j % 3 == 0) continue;
    // With 3 bits, that is amid the four tokens.
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if ((channels[i].flags & kThreeBits) == 0) continue;
      const uint32_t half = j == 1 ? sums[i] >> 4 : halfway[i] >> 2;
      *reinterpret_cast<uint16_t*>(codes + channels[i].field + 2 * j) = static_cast<uint16_t>(half);
    }
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const KeyCode& own = channels[i];
    const int bits = 31 - __clz(static_cast<int>(own.shift));
    for (unsigned left = bits != 0 ? doubts >> i * kAtOnce & 0xfu : 0u; left != 0; left &= left - 1) {
      const int begin = (__ffs(static_cast<int>(left)) - 1) * kAtOnce;
      const float2 range = reinterpret_cast<const float2*>(cache.keys.steps)[kv_head * D + own.flags / kPlace];
      put_again<D>(range, bits, make_float2(means[i % 2], means[i % 2 + 2]), i >= 2, rows + i % 2,
                   angles + own_lane * 2 + i % 2, max(first, begin), min(last, begin + kAtOnce), codes + own.field);
    }
  }
  store_tile<D>(cache, first, last, codes + own_head * kMostTile<D>, to, own_lane);
}

/// The keys of a tile, a row a warp.
template <int D>
__device__ __forceinline__ void append_keys(const CacheView& cache, const NewRows& rows, const TokenRun& run,
                                            int kv_head, const KeyInputs& inputs, bool threes, KeyBlock<D>& block) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int tile = run.begin / kTileTokens, first = tile * kTileTokens;
  const bool mine = kv_head < cache.kv_heads;
  if (mine) stage_rows<false, KeyRows<D>, D>(cache, rows, run, kv_head, true, first, block.rows[warp], lane);
  commit_copies();
  put_angles<D>(cache, tile, block.angles);
  if (mine) describe<D>(cache, kv_head, inputs, block.channels[warp], lane);
  __syncthreads();
  if (!mine) return;
  KeyCode channels[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) channels[i] = block.channels[warp][own_channel<D>(lane, i)];
  wait_copies<0>();
  __syncwarp();
  uint8_t* to =
      cache.page(run.b, run.begin / kPageTokens) + cache.keys.tile(kv_head + lane / kHeadLanes<D>, tile % kPageTiles);
  put_keys<D>(cache, kv_head, channels, inputs.mean, block.rows[warp], block.angles, run.begin - first, run.end - first,
              threes, reinterpret_cast<uint8_t*>(block.channels[warp]),
              present<D>(cache, kv_head, lane * kOwn) ? to : nullptr, lane);
  if (run.begin < cache.length(run.b)) refill<D>(cache, rows, run, tile, kv_head, true, lane);
}

/// Blocks: of values, of keys, then of exact pages. units: of pages and of tiles.
struct IntBlocks {
  int pages, tiles, values, keys;
  bool threes;  // widths of keys
};

template <int value_bits, int D>
__global__ void __launch_bounds__(kThreads, 5)
    append_int_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows,
                      const __grid_constant__ IntBlocks blocks) {
  KVQUANT_DYNAMIC_SHARED(shared);
  release_next_kernel();
  wait_for_previous_kernel();
  const int block = blockIdx.x, key_block = block - blocks.values;
  if (key_block >= blocks.keys) return append_exact<D>(cache, rows, key_block - blocks.keys);
  if (key_block < 0) {
    const TokenRun page = unit_run<kPageTokens>(cache, rows, block % blocks.pages);
    if (page.begin >= page.end) return;
    append_value_page<value_bits, D>(cache, rows, page, block / blocks.pages * kRowHeads<D>,
                                     *reinterpret_cast<ValueBlock<D>*>(shared));
  } else {
    const int kv_head = (key_block / blocks.tiles * kWarps + static_cast<int>(threadIdx.x) / kWarp) * kRowHeads<D>;
    // Loaded first, while it becomes known which tokens these are.
    const KeyInputs inputs =
        load_inputs<D>(cache, min(kv_head, cache.kv_heads - 1), static_cast<int>(threadIdx.x) % kWarp);
    const TokenRun tile = unit_run<kTileTokens>(cache, rows, key_block % blocks.tiles);
    if (tile.begin >= tile.end) return;
    append_keys<D>(cache, rows, tile, kv_head, inputs, blocks.threes, *reinterpret_cast<KeyBlock<D>*>(shared));
  }
}

template <int D>
void launch_blocks(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  const auto groups = [&](int heads) { return (cache.kv_heads + heads - 1) / heads; };
  IntBlocks blocks;
  blocks.pages = tokens.count / kPageTokens + 2 * cache.batch;
  blocks.tiles = tokens.count / kTileTokens + 2 * cache.batch;
  blocks.values = blocks.pages * groups(kRowHeads<D>);
  blocks.keys = blocks.tiles * groups(kWarps * kRowHeads<D>);
  blocks.threes = std::count(cache.keys.width, cache.keys.width + kWidthRuns, 3) > 0;
  const int exact = cache.batch * exact_columns(cache) * exact_groups<D>(cache.kv_heads);
  const auto all = static_cast<unsigned>(blocks.values + blocks.keys + exact);
  constexpr size_t bytes = std::max(sizeof(ValueBlock<D>), sizeof(KeyBlock<D>));
  const int bits = cache.values.bits;
  const auto kernel = bits == 2   ? append_int_kernel<2, D>
                      : bits == 3 ? append_int_kernel<3, D>
                      : bits == 4 ? append_int_kernel<4, D>
                                  : append_int_kernel<8, D>;
  launch("append", kernel, {dim3(all), kThreads, bytes, stream, can_start_early("append")}, cache, NewRows{tokens},
         blocks);
}

}  // namespace

bool append_int_supports(const CacheView& cache, const NewTokens& tokens) {
  return (cache.head_dim == kRowDim || cache.head_dim == 64) && cache.values.rotated && even_levels(cache.values) &&
         aligned_rows(tokens) && cache.keys.format == Format::kStatic && cache.keys.basis_heads == 0 &&
         cache.keys_pre_rope == 0;
}

void append_int(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  if (cache.head_dim == 64) return launch_blocks<64>(cache, tokens, stream);
  launch_blocks<kRowDim>(cache, tokens, stream);
}

}  // namespace kvquant::cuda
