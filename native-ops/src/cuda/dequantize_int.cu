/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Dequantize of int2, int3, int4 and int8.
//
// Keys: a warp takes a head of a page, or two of head_dim 64, a lane four channels, two pairs of RoPE. A code is put at
// the top of a mantissa, so that a product and a sum make a key of it; the mean, turned, is two more.
//
// Values: a warp takes a tile of a head, or of two. Levels are equally spaced, so that codes are transformed
// (code_transform.cuh).
//
// An H100, 8192 tokens of 8 kv heads: int2 20 us, 77 % of the speed of a copy (dequantize.cu: 76 us), int4 22 us (149),
// int8 29 us (161). Of head_dim 64 13 us (81), 14 us (85) and 18 us (84).
#include "code_transform.cuh"
#include "launch.cuh"
#include "page_angles.cuh"
#include "read_rows.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp, kOwn = 4;  // channels of a lane
/// Kv heads of a warp.
template <int D>
constexpr int kTwo = 128 / D;

/// How a lane reads one of its channels: factor (1 + code / 2^bits) + offset.
struct KeyChannel {
  int bits, field;
  uint32_t mask;
  float factor, offset, mean;
};

template <int D>
struct KeyBlock {
  AnglesOfPage<D> angles;
  uint8_t places[kWarps * kTwo<D>][D];
};

/// The lane's kv head among those of its warp from first on; a missing one's lanes do what the last one's do.
template <int D>
__device__ __forceinline__ int lane_head(const CacheView& cache, int first, int lane) {
  return D == 128 ? first : min(first + lane / (D / 4), cache.kv_heads - 1);
}

template <int D>
__device__ __forceinline__ KeyChannel describe(const CacheView& cache, int kv_head, int channel, int place) {
  constexpr int kRunPlaces = D / kWidthRuns;
  const SideView& keys = cache.keys;
  const int run = place / kRunPlaces, bits = keys.width[run];
  const float2 step = reinterpret_cast<const float2*>(keys.steps)[kv_head * D + place];
  KeyChannel x;
  x.bits = bits;
  x.field = keys.run_begin[run] + place % kRunPlaces * 2 * bits;
  x.mask = ((1u << bits) - 1u) << (23 - bits);
  x.factor = bits > 0 ? step.y * static_cast<float>(1 << bits) : 0.0f;
  x.offset = bits > 0 ? step.x - x.factor : 0.0f;
  x.mean = keys.mean != nullptr ? keys.mean[kv_head * D + channel] : 0.0f;
  return x;
}

/// Codes of 16 tokens as four words, four tokens each, the first code at the top of a mantissa.
__device__ __forceinline__ void load_codes(const uint8_t* tile, const KeyChannel& own, uint32_t (&words)[4]) {
  const auto* from = reinterpret_cast<const uint16_t*>(tile + own.field);
  uint32_t halves[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) halves[i] = i < own.bits ? from[i] : 0u;
  const uint32_t w0 = halves[0] | halves[1] << 16, w1 = halves[2] | halves[3] << 16;
  const bool wide = own.bits == 8;
  words[0] = w0;
  words[1] = wide ? w1 : __funnelshift_r(w0, w1, 4 * own.bits);
  words[2] = wide ? halves[4] | halves[5] << 16 : own.bits == 4 ? w1 : __funnelshift_r(w0, w1, 8 * own.bits);
  words[3] = wide            ? halves[6] | halves[7] << 16
             : own.bits >= 3 ? w1 >> ((12 * own.bits) & 31)
                             : __funnelshift_r(w0, w1, 12 * own.bits);
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = __funnelshift_l(words[i], words[i], 23 - own.bits);
}

template <int D>
__device__ __forceinline__ void read_keys(const KeyChannel (&channels)[kOwn], const uint8_t* tile,
                                          const AnglesOfPage<D>& angles, int first, unsigned tokens, __half* row,
                                          int lane) {
  const int own = D == 128 ? lane : lane % (D / 4);
  uint32_t words[kOwn][4];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) load_codes(tile, channels[i], words[i]);
#pragma unroll
  for (int token = 0; token < kTileTokens; ++token) {
    const float4& angle = angles.of(first + token, lane);
    float x[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      uint32_t& word = words[i][token / 4];
      const float code = __uint_as_float((word & channels[i].mask) | 0x3f800000u);
      word = __funnelshift_r(word, word, channels[i].bits);
      const float cosine = i % 2 == 0 ? angle.x : angle.z, sine = i % 2 == 0 ? angle.y : angle.w;
      const float mean = fmaf(channels[i].mean, cosine, channels[i].offset);
      x[i] = fmaf(channels[i].factor, code, fmaf(channels[i ^ 2].mean, i < 2 ? -sine : sine, mean));
    }
    if ((tokens >> token & 1u) == 0) continue;
    auto* to = reinterpret_cast<uint32_t*>(row + token * D);
    to[own] = two_halves(x[0], x[1]);
    to[own + D / 4] = two_halves(x[2], x[3]);
  }
}

/// The keys of a page, a head a warp, or two.
template <int D>
__device__ __forceinline__ void dequantize_keys(const CacheView& cache, const Rows& rows, int page, int first_head,
                                                KeyBlock<D>& block, uint8_t* staged) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, b = rows.sequence;
  const int first = first_head + warp * kTwo<D>, kv_head = lane_head<D>(cache, first, lane);
  const int half = D == 128 ? 0 : lane / (D / 4), own = lane - half * (D / 4);  // of the warp's heads, of their lanes
  const bool mine = first < cache.kv_heads;
  const int tile_bytes = cache.keys.tile_bytes, quantized = cache.quantized(b, cache.length(b));
  const int first_tile = max(rows.begin, page * kPageTokens) / kTileTokens;
  const int last_tile = (min(rows.end, (page + 1) * kPageTokens) - 1) / kTileTokens;
  const int coded_tiles = (min(quantized, (page + 1) * kPageTokens) + kTileTokens - 1) / kTileTokens;
  staged += (warp * kTwo<D> + half) * kPageTiles * tile_bytes;
  if (mine && first_tile < coded_tiles) {
    const uint8_t* from = cache.page(b, page) + cache.keys.tile(kv_head, 0);
    const int begin = (first_tile % kPageTiles) * tile_bytes;
    const int end = (min(last_tile + 1, coded_tiles) - page * kPageTiles) * tile_bytes;
    // Four tiles are whole blocks of 16 bytes; one of head_dim 64 need not be.
    for (int at = (D == 64 ? begin / 16 * 16 : begin) + own * 16; at < end; at += D / 4 * 16) {
      copy_async(staged + at, from + at);
    }
  }
  commit_copies();
  if (mine) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int place = own * kOwn + i;
      block.places[warp * kTwo<D> + half][channel_at<D>(cache.keys, kv_head, place)] = static_cast<uint8_t>(place);
    }
  }
  page_angles(cache, page, threadIdx.x, block.angles);
  wait_copies<0>();
  __syncthreads();
  if (!mine) return;
  KeyChannel channels[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int channel = i / 2 * (D / 2) + own * 2 + i % 2;
    channels[i] = describe<D>(cache, kv_head, channel, block.places[warp * kTwo<D> + half][channel]);
  }
  for (int tile = first_tile; tile <= last_tile; ++tile) {
    const TileTokens tokens = tile_tokens(cache, rows, tile, lane);
    const int in_page = tile % kPageTiles;
    if (tokens.stored != 0) {
      read_keys(channels, staged + in_page * tile_bytes, block.angles, in_page * kTileTokens, tokens.stored,
                row_of<D>(rows.k, rows, kv_head, tile * kTileTokens), lane);
    }
    copy_exact<D>(cache, rows, kv_head, true, tile, tokens, lane,
                  [&](int t) { return block.angles.of(in_page * kTileTokens + t, lane); });
  }
}

/// The values of a tile of a head, or of two from kv_head on.
template <int bits, int D>
__device__ __forceinline__ void dequantize_values(const CacheView& cache, const Rows& rows, int tile, int kv_head) {
  constexpr float kCentre = 0.5f * ((1 << bits) - 1);
  const SideView& side = cache.values;
  const int lane = threadIdx.x % kWarp, g = lane / 4, c = lane % 4;
  const TileTokens tokens = tile_tokens(cache, rows, tile, lane);
  if (tokens.stored != 0) {
    const uint8_t* page = cache.page(rows.sequence, tile / kPageTiles);
    const auto* norms = reinterpret_cast<const __half*>(page + side.norms + tile % kPageTiles * side.norm_tile_bytes) +
                        kv_head * kTileTokens;
    // A missing second head is the first one again.
    const int next = D == 64 ? min(kv_head + 1, cache.kv_heads - 1) - kv_head : 0;
    float factors[kTwo<D>][2];
#pragma unroll
    for (int i = 0; i < kTwo<D>; ++i) {
      factors[i][0] = __half2float(norms[i * next * kTileTokens + g]) * side.level_step;
      factors[i][1] = __half2float(norms[i * next * kTileTokens + g + 8]) * side.level_step;
    }
    const uint8_t* codes = page + side.tile(kv_head, tile % kPageTiles);
    const int64_t ahead = D == 64 ? (next * kPageTiles - 1) * static_cast<int64_t>(side.tile_bytes) : 0;
    const auto put = [&](int row, int i, uint4 eight) {
      if ((tokens.stored >> (g + 8 * row) & 1u) == 0) return;
      const int head = D == 64 ? kv_head + i / 2 * next : kv_head;
      reinterpret_cast<uint4*>(row_of<D>(rows.v, rows, head, tile * kTileTokens + g + 8 * row))[i % (D / 32) * 4 + c] =
          eight;
    };
    if constexpr (bits == 8) {
      const auto two_bytes = [&](int i, int r, int row) {
        const uint8_t* from = codes + (8 * (c + 4 * i) + r) * kTileTokens + g + 8 * row;
        if (D == 64 && i >= 2) from += ahead;
        return static_cast<uint32_t>(from[0]) | static_cast<uint32_t>(from[32 * kTileTokens]) << 16;
      };
      transform_elements<D>(lane, two_bytes, [&](int row, int i, float(&x)[8]) {
        put(row, i, scaled<D>(x, factors[i / (D / 32)][row], kCentre, i % (D / 32) == 0 && c == 0));
      });
    } else {
      CodeSums sums;
      transform_codes<bits, D>(codes, sums, lane, ahead);
#pragma unroll
      for (int row = 0; row < 2; ++row) {
#pragma unroll
        for (int i = 0; i < 4; ++i) put(row, i, transformed<D>(sums, row, i, factors[i / (D / 32)][row], kCentre, c));
      }
    }
  }
  copy_exact_values<D>(cache, rows, lane_head<D>(cache, kv_head, lane), tile, tokens, lane);
}

/// Blocks: of keys, values.
struct IntBlocks {
  int pages, keys, tiles;
};

template <int value_bits, int D>
__global__ void __launch_bounds__(kThreads, 4)
    dequantize_int_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Rows rows,
                          const __grid_constant__ IntBlocks blocks) {
  KVQUANT_DYNAMIC_SHARED(shared);
  int block = blockIdx.x;
  if (block < blocks.keys) {
    const int first_head = block / blocks.pages * (kWarps * kTwo<D>);
    dequantize_keys(cache, rows, rows.begin / kPageTokens + block % blocks.pages, first_head,
                    *reinterpret_cast<KeyBlock<D>*>(shared), shared + sizeof(KeyBlock<D>));
    return;
  }
  block -= blocks.keys;
  const int kv_head = block / blocks.tiles * kTwo<D>;
  const int tile = rows.begin / kTileTokens + block % blocks.tiles * kWarps + threadIdx.x / kWarp;
  if (tile * kTileTokens < rows.end) dequantize_values<value_bits, D>(cache, rows, tile, kv_head);
  wait_for_previous_kernel();  // which reads keys back, if not this one; what comes next may rely on both
}

template <int D>
void launch_blocks(const CacheView& cache, const Rows& rows, bool keys, cudaStream_t stream) {
  constexpr int kBlockHeads = kWarps * kTwo<D>;  // of keys
  IntBlocks blocks;
  blocks.pages = (rows.end - 1) / kPageTokens - rows.begin / kPageTokens + 1;
  blocks.keys = keys ? blocks.pages * ((cache.kv_heads + kBlockHeads - 1) / kBlockHeads) : 0;
  const int tiles = (rows.end - 1) / kTileTokens - rows.begin / kTileTokens + 1;
  blocks.tiles = (tiles + kWarps - 1) / kWarps;
  const size_t staged = static_cast<size_t>(kBlockHeads * kPageTiles * cache.keys.tile_bytes);
  const size_t bytes = keys ? sizeof(KeyBlock<D>) + staged : 0;
  const auto all = static_cast<unsigned>(blocks.keys + blocks.tiles * ((cache.kv_heads + kTwo<D> - 1) / kTwo<D>));
  const bool early = !keys && can_start_early("dequantize");
  const auto start = [&](void (*kernel)(CacheView, Rows, IntBlocks)) {
    launch("dequantize", kernel, {dim3(all), kThreads, bytes, stream, early}, cache, rows, blocks);
  };
  switch (cache.values.bits) {
    case 2:
      return start(dequantize_int_kernel<2, D>);
    case 3:
      return start(dequantize_int_kernel<3, D>);
    case 4:
      return start(dequantize_int_kernel<4, D>);
    default:
      return start(dequantize_int_kernel<8, D>);
  }
}

void launch_head_dim(const CacheView& cache, const Rows& rows, bool keys, cudaStream_t stream) {
  if (cache.head_dim == 64) return launch_blocks<64>(cache, rows, keys, stream);
  launch_blocks<kReadDim>(cache, rows, keys, stream);
}

}  // namespace

bool dequantize_values_supports(const CacheView& cache) {
  const bool narrow = cache.head_dim == 64 && cache.sink_policy != SinkPolicy::kMassive;
  return (cache.head_dim == kReadDim || narrow) && cache.values.format == Format::kNorm && cache.values.rotated &&
         cache.values.level_step > 0.0f;
}

void dequantize_values(const CacheView& cache, const Rows& rows, cudaStream_t stream) {
  launch_head_dim(cache, rows, false, stream);
}

bool dequantize_int_supports(const CacheView& cache) {
  return cache.keys.format == Format::kStatic && cache.keys.basis_heads == 0 && cache.keys_pre_rope == 0 &&
         dequantize_values_supports(cache);
}

void dequantize_int(const CacheView& cache, const Rows& rows, cudaStream_t stream) {
  launch_head_dim(cache, rows, true, stream);
}

}  // namespace kvquant::cuda
