/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Dequantize of rotatekv2 with head_dim 128. In natural order a scale and zero of a token are those of a head, so that
// codes are transformed (code_transform.cuh); in another order, elements. Values: a warp takes a tile of a head. Keys:
// a block takes a tile of four heads, a head a warp; then, from shared memory, a warp takes four tokens, mixes the
// heads that are rotated together, turns them to their position and writes them.
//
// An H100, 8192 tokens of 8 kv heads, natural order: 22 us instead of 211, 71 % of the speed of a copy.
#include "code_transform.cuh"
#include "launch.cuh"
#include "read_rows.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = kReadDim, kWarps = 4, kThreads = kWarps * kWarp, kStride = kDim + 8;

constexpr int kMostGroups = 64;

struct KeyBlock {
  float2 angles[kTileTokens * kReadAngleStride];
  __half rows[kWarps][kTileTokens * kStride];
  __half2 scales[kMostGroups * kTileTokens];  // of keys in an order
};

/// Transforms a tile of a head and hands eight channels of a token at a time to put(token, u, channels).
template <class Put>
__device__ __forceinline__ void transform_tile(const SideView& side, const uint8_t* page, int kv_head, int tile,
                                               float size, int lane, Put put) {
  const int g = lane / 4, c = lane % 4;
  const auto* scales = reinterpret_cast<const __half*>(page + side.scales(tile, kv_head));
  const float factors[2] = {__half2float(scales[g]) * size, __half2float(scales[g + 8]) * size};
  const float zeros[2] = {__half2float(scales[kTileTokens + g]), __half2float(scales[kTileTokens + g + 8])};
  CodeSums sums;
  transform_codes(page + side.tile(kv_head, tile), sums, lane);
#pragma unroll
  for (int row = 0; row < 2; ++row) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      put(g + 8 * row, 4 * i + c, transformed(sums, row, i, factors[row], zeros[row], c));
    }
  }
}

__device__ __forceinline__ void dequantize_values(const CacheView& cache, const Rows& rows, int tile, int kv_head) {
  const int lane = threadIdx.x % kWarp;
  const TileTokens tokens = tile_tokens(cache, rows, tile, lane);
  if (tokens.stored != 0) {
    const uint8_t* page = cache.page(rows.sequence, tile / kPageTiles);
    __half* to = row_of(rows.v, rows, kv_head, tile * kTileTokens);
    transform_tile(cache.values, page, kv_head, tile % kPageTiles, 1.0f, lane, [&](int token, int u, uint4 eight) {
      if ((tokens.stored >> token & 1u) != 0) *reinterpret_cast<uint4*>(to + token * kDim + 8 * u) = eight;
    });
  }
  copy_exact_values(cache, rows, kv_head, tile, tokens, lane);
}

/// Scales and zeros of a tile, of all groups of the layer: [groups][16].
__device__ __forceinline__ void load_scales(const SideView& side, const uint8_t* page, int groups, int tile,
                                            __half2* scales) {
  for (int i = threadIdx.x; i < groups * kTileTokens; i += kThreads) {
    const auto* from = reinterpret_cast<const __half*>(page + side.scales(tile, i / kTileTokens)) + i % kTileTokens;
    scales[i] = __halves2half2(from[0], from[kTileTokens]);
  }
}

/// Transforms a tile of a head whose channels are in groups of an order; see transform_tile.
template <class Put>
__device__ __forceinline__ void transform_ordered(const SideView& side, const uint8_t* page, int kv_head, int tile,
                                                  float size, const __half2* scales, int lane, Put put) {
  const int g = lane / 4, c = lane % 4;
  const auto* from = reinterpret_cast<const uint4*>(page + side.tile(kv_head, tile));
  const auto* groups = reinterpret_cast<const uint4*>(side.groups + kv_head * kDim);
  uint32_t words[4][8];
  uint32_t owners[4][4];  // two groups each
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint4 low = from[(4 * i + c) * 2], high = from[(4 * i + c) * 2 + 1], own = groups[4 * i + c];
    const uint32_t all[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int r = 0; r < 8; ++r) words[i][r] = all[r];
    owners[i][0] = own.x;
    owners[i][1] = own.y;
    owners[i][2] = own.z;
    owners[i][3] = own.w;
  }
  const auto elements = [&](int i, int r, int row) {
    const uint32_t codes =
        __byte_perm(words[i][r], words[i + 1][r], row == 0 ? 0x5410 : 0x7632) >> (2 * g) & 0x00030003u;
    const uint32_t numbers = codes | 0x64006400u;  // 1024 + code
    const auto scale = [&](int j) {
      const uint32_t group = r % 2 == 0 ? owners[j][r / 2] & 0xffffu : owners[j][r / 2] >> 16;
      return scales[group * kTileTokens + g + 8 * row];
    };
    const __half2 a = scale(i), b = scale(i + 1);
    const __half2 whole = __hsub2(*reinterpret_cast<const __half2*>(&numbers), __float2half2_rn(1024.0f));
    const __half2 x = __hmul2(__hsub2(whole, __highs2half2(a, b)), __lows2half2(a, b));
    return *reinterpret_cast<const uint32_t*>(&x);
  };
  const float unit = size * 0.08838834764831845f / 1024.0f;  // sqrt(1 / 128)
  transform_elements(lane, elements, [&](int row, int i, const float(&y)[8]) {
    put(g + 8 * row, 4 * i + c,
        make_uint4(two_halves(y[0] * unit, y[1] * unit), two_halves(y[2] * unit, y[3] * unit),
                   two_halves(y[4] * unit, y[5] * unit), two_halves(y[6] * unit, y[7] * unit)));
  });
}

/// Two heads that are rotated together.
__device__ __forceinline__ void mix(float (&a)[4], float (&b)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float sum = a[i] + b[i], difference = a[i] - b[i];
    a[i] = sum;
    b[i] = difference;
  }
}

template <bool ordered>
__device__ __forceinline__ void dequantize_keys(const CacheView& cache, const Rows& rows, int tile, int first_head,
                                                KeyBlock& block) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, kv_head = first_head + warp;
  const int together = cache.keys.rotation_heads, heads = min(kWarps, cache.kv_heads - first_head);
  const TileTokens tokens = tile_tokens(cache, rows, tile, lane);
  read_angles(cache, tile, block.angles);
  const uint8_t* page = tokens.stored != 0 ? cache.page(rows.sequence, tile / kPageTiles) : nullptr;
  if (ordered) {
    if (tokens.stored != 0) load_scales(cache.keys, page, cache.kv_heads, tile % kPageTiles, block.scales);
    __syncthreads();
  }
  if (tokens.stored != 0 && warp < heads) {
    const float size = together == 4 ? 0.5f : together == 2 ? 0.70710678118654752f : 1.0f;
    const auto put = [&](int token, int u, uint4 eight) {
      *reinterpret_cast<uint4*>(block.rows[warp] + token * kStride + 8 * u) = eight;
    };
    if (ordered) {
      transform_ordered(cache.keys, page, kv_head, tile % kPageTiles, size, block.scales, lane, put);
    } else {
      transform_tile(cache.keys, page, kv_head, tile % kPageTiles, size, lane, put);
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kTileTokens / kWarps; ++i) {
    const int at = warp * (kTileTokens / kWarps) + i, token = tile * kTileTokens + at;
    if ((tokens.stored >> at & 1u) == 0) continue;
    float x[kWarps][4];
#pragma unroll
    for (int h = 0; h < kWarps; ++h) {
      const auto* from = reinterpret_cast<const __half2*>(block.rows[h] + at * kStride);
      const float2 low = __half22float2(from[lane]), high = __half22float2(from[lane + kReadPairs / 2]);
      x[h][0] = low.x;
      x[h][1] = low.y;
      x[h][2] = high.x;
      x[h][3] = high.y;
    }
    if (together > 1) {
      mix(x[0], x[1]);
      mix(x[2], x[3]);
    }
    if (together > 2) {
      mix(x[0], x[2]);
      mix(x[1], x[3]);
    }
    const float4 angle = *reinterpret_cast<const float4*>(block.angles + at * kReadAngleStride + lane * 2);
#pragma unroll
    for (int h = 0; h < kWarps; ++h) {
      if (h >= heads) continue;
      const float(&y)[4] = x[h];
      auto* to = reinterpret_cast<uint32_t*>(row_of(rows.k, rows, first_head + h, token));
      to[lane] = two_halves(y[0] * angle.x - y[2] * angle.y, y[1] * angle.z - y[3] * angle.w);
      to[lane + kReadPairs / 2] = two_halves(y[2] * angle.x + y[0] * angle.y, y[3] * angle.z + y[1] * angle.w);
    }
  }
  if (warp < heads) {
    copy_exact(cache, rows, kv_head, true, tile, tokens, lane,
               [&](int t) { return *reinterpret_cast<const float4*>(block.angles + t * kReadAngleStride + lane * 2); });
  }
}

/// Blocks: of keys, values.
struct RotatedBlocks {
  int tiles, keys, value_tiles;
};

template <bool ordered>
__global__ void __launch_bounds__(kThreads, 4)
    dequantize_rotated_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Rows rows,
                              const __grid_constant__ RotatedBlocks blocks) {
  __shared__ KeyBlock shared;
  const int block = blockIdx.x, first = rows.begin / kTileTokens;
  if (block < blocks.keys) {
    dequantize_keys<ordered>(cache, rows, first + block % blocks.tiles, block / blocks.tiles * kWarps, shared);
    return;
  }
  const int at = block - blocks.keys, tile = first + at % blocks.value_tiles * kWarps + threadIdx.x / kWarp;
  if (tile * kTileTokens < rows.end) dequantize_values(cache, rows, tile, at / blocks.value_tiles);
}

}  // namespace

bool dequantize_rotated_supports(const CacheView& cache) {
  const auto side = [](const SideView& x) {
    return x.format == Format::kAffine && x.bits == 2 && x.group_size == kDim && x.mean == nullptr &&
           x.basis_heads == 0;
  };
  const int together = cache.keys.rotation_heads;
  return cache.head_dim == kDim && side(cache.keys) && side(cache.values) && cache.keys_pre_rope != 0 &&
         cache.values.order == nullptr && cache.kv_heads <= kMostGroups &&
         (cache.keys.order == nullptr || cache.keys.groups != nullptr) &&
         (together == 1 || together == 2 || together == 4) && cache.values.rotation_heads == 1 &&
         cache.kv_heads % together == 0;
}

void dequantize_rotated(const CacheView& cache, const Rows& rows, cudaStream_t stream) {
  RotatedBlocks blocks;
  blocks.tiles = (rows.end - 1) / kTileTokens - rows.begin / kTileTokens + 1;
  blocks.keys = blocks.tiles * ((cache.kv_heads + kWarps - 1) / kWarps);
  blocks.value_tiles = (blocks.tiles + kWarps - 1) / kWarps;
  const auto all = static_cast<unsigned>(blocks.keys + blocks.value_tiles * cache.kv_heads);
  const auto kernel = cache.keys.order != nullptr ? dequantize_rotated_kernel<true> : dequantize_rotated_kernel<false>;
  launch("dequantize", kernel, {dim3(all), kThreads, 0, stream}, cache, rows, blocks);
}

}  // namespace kvquant::cuda
