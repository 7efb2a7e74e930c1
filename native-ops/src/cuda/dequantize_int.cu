/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Dequantize of int2, int3, int4 and int8 with head_dim 128.
//
// Keys: a warp takes a head of a page, a lane four channels, two pairs of RoPE. A code is put at the top of a mantissa,
// so that a product and a sum make a key of it; the mean, turned, is two more.
//
// Values: a warp takes a tile of a head. Levels are equally spaced, so that codes are transformed (code_transform.cuh).
//
// An H100, 8192 tokens of 8 kv heads: int2 20 us, 77 % of the speed of a copy (dequantize.cu: 76 us), int4 22 us (149),
// int8 29 us (161).
#include "code_transform.cuh"
#include "launch.cuh"
#include "page_angles.cuh"
#include "read_rows.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = kReadDim, kPairs = kDim / 2, kWarps = 4, kThreads = kWarps * kWarp, kOwn = kDim / kWarp;
constexpr int kRunPlaces = kDim / kWidthRuns;

/// How a lane reads one of its channels: factor (1 + code / 2^bits) + offset.
struct KeyChannel {
  int bits, field;
  uint32_t mask;
  float factor, offset, mean;
};

struct KeyBlock {
  PageAngles angles;
  uint8_t places[kWarps][kDim];
};

__device__ __forceinline__ KeyChannel describe(const CacheView& cache, int kv_head, int channel, int place) {
  const SideView& keys = cache.keys;
  const int run = place / kRunPlaces, bits = keys.width[run];
  const float2 step = reinterpret_cast<const float2*>(keys.steps)[kv_head * kDim + place];
  KeyChannel x;
  x.bits = bits;
  x.field = keys.run_begin[run] + place % kRunPlaces * 2 * bits;
  x.mask = ((1u << bits) - 1u) << (23 - bits);
  x.factor = bits > 0 ? step.y * static_cast<float>(1 << bits) : 0.0f;
  x.offset = bits > 0 ? step.x - x.factor : 0.0f;
  x.mean = keys.mean != nullptr ? keys.mean[kv_head * kDim + channel] : 0.0f;
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

__device__ __forceinline__ void read_keys(const KeyChannel (&channels)[kOwn], const uint8_t* tile,
                                          const PageAngles& angles, int first, unsigned tokens, __half* row, int lane) {
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
    auto* to = reinterpret_cast<uint32_t*>(row + token * kDim);
    to[lane] = two_halves(x[0], x[1]);
    to[lane + kPairs / 2] = two_halves(x[2], x[3]);
  }
}

/// The keys of a page, a head a warp.
__device__ __forceinline__ void dequantize_keys(const CacheView& cache, const Rows& rows, int page, int first_head,
                                                KeyBlock& block, uint8_t* staged) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, kv_head = first_head + warp, b = rows.sequence;
  const bool mine = kv_head < cache.kv_heads;
  const int tile_bytes = cache.keys.tile_bytes, quantized = cache.quantized(b, cache.length(b));
  const int first_tile = max(rows.begin, page * kPageTokens) / kTileTokens;
  const int last_tile = (min(rows.end, (page + 1) * kPageTokens) - 1) / kTileTokens;
  const int coded_tiles = (min(quantized, (page + 1) * kPageTokens) + kTileTokens - 1) / kTileTokens;
  staged += warp * kPageTiles * tile_bytes;
  if (mine && first_tile < coded_tiles) {
    const uint8_t* from = cache.page(b, page) + cache.keys.tile(kv_head, 0);
    const int end = (min(last_tile + 1, coded_tiles) - page * kPageTiles) * tile_bytes;
    for (int at = (first_tile % kPageTiles) * tile_bytes + lane * 16; at < end; at += kWarp * 16) {
      copy_async(staged + at, from + at);
    }
  }
  commit_copies();
  if (mine) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int place = lane * kOwn + i;
      block.places[warp][channel_at<kDim>(cache.keys, kv_head, place)] = static_cast<uint8_t>(place);
    }
  }
  page_angles(cache, page, threadIdx.x, block.angles);
  wait_copies<0>();
  __syncthreads();
  if (!mine) return;
  KeyChannel channels[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int channel = i / 2 * kPairs + lane * 2 + i % 2;
    channels[i] = describe(cache, kv_head, channel, block.places[warp][channel]);
  }
  for (int tile = first_tile; tile <= last_tile; ++tile) {
    const TileTokens tokens = tile_tokens(cache, rows, tile, lane);
    const int in_page = tile % kPageTiles;
    if (tokens.stored != 0) {
      read_keys(channels, staged + in_page * tile_bytes, block.angles, in_page * kTileTokens, tokens.stored,
                row_of(rows.k, rows, kv_head, tile * kTileTokens), lane);
    }
    copy_exact(cache, rows, kv_head, true, tile, tokens, lane,
               [&](int t) { return block.angles.of(in_page * kTileTokens + t, lane); });
  }
}

/// The values of a tile of a head.
template <int bits>
__device__ __forceinline__ void dequantize_values(const CacheView& cache, const Rows& rows, int tile, int kv_head) {
  constexpr float kCentre = 0.5f * ((1 << bits) - 1);
  const SideView& side = cache.values;
  const int lane = threadIdx.x % kWarp, g = lane / 4, c = lane % 4;
  const TileTokens tokens = tile_tokens(cache, rows, tile, lane);
  if (tokens.stored != 0) {
    const uint8_t* page = cache.page(rows.sequence, tile / kPageTiles);
    const auto* norms = reinterpret_cast<const __half*>(page + side.norms + tile % kPageTiles * side.norm_tile_bytes) +
                        kv_head * kTileTokens;
    const float factors[2] = {__half2float(norms[g]) * side.level_step, __half2float(norms[g + 8]) * side.level_step};
    const uint8_t* codes = page + side.tile(kv_head, tile % kPageTiles);
    const auto put = [&](int row, int i, uint4 eight) {
      if ((tokens.stored >> (g + 8 * row) & 1u) == 0) return;
      reinterpret_cast<uint4*>(row_of(rows.v, rows, kv_head, tile * kTileTokens + g + 8 * row))[4 * i + c] = eight;
    };
    if constexpr (bits == 8) {
      const auto two_bytes = [&](int i, int r, int row) {
        const uint8_t* from = codes + (8 * (c + 4 * i) + r) * kTileTokens + g + 8 * row;
        return static_cast<uint32_t>(from[0]) | static_cast<uint32_t>(from[32 * kTileTokens]) << 16;
      };
      transform_elements(lane, two_bytes, [&](int row, int i, float(&x)[8]) {
        put(row, i, scaled(x, factors[row], kCentre, i == 0 && c == 0));
      });
    } else {
      CodeSums sums;
      transform_codes<bits>(codes, sums, lane);
#pragma unroll
      for (int row = 0; row < 2; ++row) {
#pragma unroll
        for (int i = 0; i < 4; ++i) put(row, i, transformed(sums, row, i, factors[row], kCentre, c));
      }
    }
  }
  copy_exact_values(cache, rows, kv_head, tile, tokens, lane);
}

/// Blocks: of keys, values.
struct IntBlocks {
  int pages, keys, tiles;
};

template <int value_bits>
__global__ void __launch_bounds__(kThreads, 4)
    dequantize_int_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Rows rows,
                          const __grid_constant__ IntBlocks blocks) {
  KVQUANT_DYNAMIC_SHARED(shared);
  int block = blockIdx.x;
  if (block < blocks.keys) {
    dequantize_keys(cache, rows, rows.begin / kPageTokens + block % blocks.pages, block / blocks.pages * kWarps,
                    *reinterpret_cast<KeyBlock*>(shared), shared + sizeof(KeyBlock));
    return;
  }
  block -= blocks.keys;
  const int kv_head = block / blocks.tiles;
  const int tile = rows.begin / kTileTokens + block % blocks.tiles * kWarps + threadIdx.x / kWarp;
  if (tile * kTileTokens < rows.end) dequantize_values<value_bits>(cache, rows, tile, kv_head);
  wait_for_previous_kernel();  // which reads keys back, if not this one; what comes next may rely on both
}

void launch_blocks(const CacheView& cache, const Rows& rows, bool keys, cudaStream_t stream) {
  IntBlocks blocks;
  blocks.pages = (rows.end - 1) / kPageTokens - rows.begin / kPageTokens + 1;
  blocks.keys = keys ? blocks.pages * ((cache.kv_heads + kWarps - 1) / kWarps) : 0;
  const int tiles = (rows.end - 1) / kTileTokens - rows.begin / kTileTokens + 1;
  blocks.tiles = (tiles + kWarps - 1) / kWarps;
  const size_t bytes = keys ? sizeof(KeyBlock) + static_cast<size_t>(kWarps * kPageTiles * cache.keys.tile_bytes) : 0;
  const auto all = static_cast<unsigned>(blocks.keys + blocks.tiles * cache.kv_heads);
  const bool early = !keys && can_start_early("dequantize");
  const auto start = [&](void (*kernel)(CacheView, Rows, IntBlocks)) {
    launch("dequantize", kernel, {dim3(all), kThreads, bytes, stream, early}, cache, rows, blocks);
  };
  switch (cache.values.bits) {
    case 2:
      return start(dequantize_int_kernel<2>);
    case 3:
      return start(dequantize_int_kernel<3>);
    case 4:
      return start(dequantize_int_kernel<4>);
    default:
      return start(dequantize_int_kernel<8>);
  }
}

}  // namespace

bool dequantize_values_supports(const CacheView& cache) {
  return cache.head_dim == kDim && cache.values.format == Format::kNorm && cache.values.rotated &&
         cache.values.level_step > 0.0f;
}

void dequantize_values(const CacheView& cache, const Rows& rows, cudaStream_t stream) {
  launch_blocks(cache, rows, false, stream);
}

bool dequantize_int_supports(const CacheView& cache) {
  return cache.keys.format == Format::kStatic && cache.keys.basis_heads == 0 && cache.keys_pre_rope == 0 &&
         dequantize_values_supports(cache);
}

void dequantize_int(const CacheView& cache, const Rows& rows, cudaStream_t stream) {
  launch_blocks(cache, rows, true, stream);
}

}  // namespace kvquant::cuda
