/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Dequantize of rotatekv2, 3 and 4 with head_dim 128. In natural order a scale and zero of a token are those of a head,
// so that codes are transformed (code_transform.cuh); in another order, elements. Values: a warp takes a tile of a
// head. Keys: a block takes a tile of four heads, a head a warp; then, from shared memory, a warp takes four tokens,
// mixes the heads that are rotated together, turns them to their position and writes them.
//
// An H100, 8192 tokens of 8 kv heads, natural order: 22 us, 72 % of the speed of a copy, of 4 bits 24 us
// (dequantize.cu: 103), 72 %, in an order 24 and 27 us, 65 %. Kernels of their own for orders took 21 and 23 us, but
// twice the code; four blocks of a multiprocessor instead of five, 23 and 25 us. Heads of 64 that are mixed of halves
// are too coarse.
#include "code_transform.cuh"
#include "launch.cuh"
#include "read_rows.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kOwn = kReadDim;  // channels of a warp: a head or two
constexpr int kWarps = 4, kThreads = kWarps * kWarp, kStride = kOwn + 8;
/// Kv heads of a warp.
template <int D>
constexpr int kTwo = kOwn / D;
/// From the angles of one token to the next.
template <int D>
constexpr int kAngleStride = D / 2 + 2;

constexpr int kMostGroups = 64;

template <int D>
struct KeyBlock {
  float2 angles[kTileTokens * kAngleStride<D>];
  __half rows[kWarps][kTileTokens * kStride];
  __half2 scales[kMostGroups * kTileTokens];  // of keys in an order
};

/// The kv head after one, or the same where there is none; of head_dim 64.
__device__ __forceinline__ int next_head(const CacheView& cache, int kv_head) {
  return min(kv_head + 1, cache.kv_heads - 1);
}

/// Transforms a tile of a head, or of two, and hands eight channels of a token at a time to put(token, u, channels):
/// channels 8 u to 8 u + 7 of those of the warp.
template <int bits, int D, class Put>
__device__ __forceinline__ void transform_tile(const CacheView& cache, const SideView& side, const uint8_t* page,
                                               int kv_head, int tile, float size, int lane, Put put) {
  const int g = lane / 4, c = lane % 4, next = D == 64 ? next_head(cache, kv_head) : kv_head;
  float factors[kTwo<D>][2], zeros[kTwo<D>][2];
#pragma unroll
  for (int i = 0; i < kTwo<D>; ++i) {
    const auto* scales = reinterpret_cast<const __half*>(page + side.scales(tile, i == 0 ? kv_head : next));
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      factors[i][row] = __half2float(scales[g + 8 * row]) * size;
      zeros[i][row] = __half2float(scales[kTileTokens + g + 8 * row]);
    }
  }
  CodeSums sums;
  const int64_t ahead = D == 64 ? side.tile(next, 0) - side.tile(kv_head, 0) - side.tile_bytes : 0;
  transform_codes<bits, D>(page + side.tile(kv_head, tile), sums, lane, ahead);
#pragma unroll
  for (int row = 0; row < 2; ++row) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int head = i / (D / 32);
      put(g + 8 * row, 4 * i + c, transformed<D>(sums, row, i, factors[head][row], zeros[head][row], c));
    }
  }
}

/// Exact copies of k or v of massive sinks of a tile, of head_dim 64; see copy_exact.
__device__ __forceinline__ void copy_massive(const CacheView& cache, const Rows& rows, int kv_head, bool keys, int tile,
                                             unsigned massive, int lane) {
  const int b = rows.sequence;
  for (unsigned left = massive; left != 0; left &= left - 1) {
    const int token = tile * kTileTokens + __ffs(static_cast<int>(left)) - 1;
    const Place place = find_token(cache, b, token, token);
    for (int head = kv_head; head <= next_head(cache, kv_head); ++head) {
      float x[2];
      read_exact(cache, place, head, keys, lane, x);
      if (keys) turn_head(cache, token, lane, x);
      reinterpret_cast<uint32_t*>(row_of<64>(keys ? rows.k : rows.v, rows, head, token))[lane] = two_halves(x[0], x[1]);
    }
  }
}

/// k or v of tokens of a tile of which there is an exact copy, of the heads of a warp. Few tiles have any.
template <int D>
__device__ __forceinline__ void copy_exact_heads(const CacheView& cache, const Rows& rows, int kv_head, bool keys,
                                                 int tile, const TileTokens& tokens, const float2* angles) {
  const int lane = threadIdx.x % kWarp, own = D == 64 && lane >= kWarp / 2 ? next_head(cache, kv_head) : kv_head;
  copy_exact<D>(cache, rows, own, keys, tile, tokens, lane, [&](int t) {
    return *reinterpret_cast<const float4*>(angles + t * kAngleStride<D> + lane % (D / 4) * 2);
  });
  if constexpr (D == 64) copy_massive(cache, rows, kv_head, keys, tile, tokens.massive, lane);
}

/// Returns the tile's tokens.
template <int bits, int D>
__device__ __forceinline__ TileTokens dequantize_values(const CacheView& cache, const Rows& rows, int tile,
                                                        int kv_head) {
  const int lane = threadIdx.x % kWarp;
  const TileTokens tokens = tile_tokens(cache, rows, tile, lane);
  if (tokens.stored != 0) {
    const uint8_t* page = cache.page(rows.sequence, tile / kPageTiles);
    const auto put = [&](int token, int u, uint4 eight) {
      if ((tokens.stored >> token & 1u) == 0) return;
      const int head = D == 64 && u >= 8 ? next_head(cache, kv_head) : kv_head;
      reinterpret_cast<uint4*>(row_of<D>(rows.v, rows, head, tile * kTileTokens + token))[u % (D / 8)] = eight;
    };
    transform_tile<bits, D>(cache, cache.values, page, kv_head, tile % kPageTiles, 1.0f, lane, put);
  }
  return tokens;
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
template <int bits, int D, class Put>
__device__ __forceinline__ void transform_ordered(const CacheView& cache, const uint8_t* page, int kv_head, int tile,
                                                  float size, const __half2* scales, int lane, Put put) {
  const SideView& side = cache.keys;
  const int g = lane / 4, c = lane % 4, next = D == 64 ? next_head(cache, kv_head) : kv_head;
  TileCodes<bits> codes[4][2][4];
  uint32_t owners[4][4];  // two groups each
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int head = D == 64 && i >= 2 ? next : kv_head, u = (4 * i + c) % (D / 8);
    load_four(page + side.tile(head, tile), u, 0, codes[i][0]);
    load_four(page + side.tile(head, tile), u, 1, codes[i][1]);
    const uint4 own = reinterpret_cast<const uint4*>(side.groups + head * D)[u];
    owners[i][0] = own.x;
    owners[i][1] = own.y;
    owners[i][2] = own.z;
    owners[i][3] = own.w;
  }
  const auto elements = [&](int i, int r, int row) {
    const uint32_t numbers =  // 1024 + code
        two_codes(codes[i][r / 4][r % 4], codes[i + 1][r / 4][r % 4], g, row != 0, r % 2 != 0) | 0x64006400u;
    const auto scale = [&](int j) {
      const uint32_t group = r % 2 == 0 ? owners[j][r / 2] & 0xffffu : owners[j][r / 2] >> 16;
      return scales[group * kTileTokens + g + 8 * row];
    };
    const __half2 a = scale(i), b = scale(i + 1);
    const __half2 whole = __hsub2(*reinterpret_cast<const __half2*>(&numbers), __float2half2_rn(1024.0f));
    const __half2 x = __hmul2(__hsub2(whole, __highs2half2(a, b)), __lows2half2(a, b));
    return *reinterpret_cast<const uint32_t*>(&x);
  };
  const float unit = size * (D == 64 ? 0.125f : 0.08838834764831845f) / 1024.0f;  // sqrt(1 / D)
  transform_elements<D>(lane, elements, [&](int row, int i, const float(&y)[8]) {
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

/// Cosines and sines of the 16 positions of a tile; a block's work.
template <int D>
__device__ __forceinline__ void read_angles(const CacheView& cache, int tile, KeyBlock<D>& block) {
#pragma unroll 4
  for (int i = threadIdx.x; i < kTileTokens * D / 2; i += kThreads) {
    const int token = i % kTileTokens, pair = i / kTileTokens;
    block.angles[token * kAngleStride<D> + pair] = rope_angle(cache, tile * kTileTokens + token, pair);
  }
}

/// Mixes, turns and writes a token of four heads, of head_dim 64 half a warp's; own: of the lanes that write a head.
template <int D>
__device__ __forceinline__ void write_keys(const CacheView& cache, const Rows& rows, int token, int first_head,
                                           const __half* from, float4 angle, int own) {
  constexpr int kFour = 4;
  const int together = cache.keys.rotation_heads;
  float x[kFour][4];
#pragma unroll
  for (int h = 0; h < kFour; ++h) {
    const auto* row = reinterpret_cast<const __half2*>(from + h / kTwo<D> * (kTileTokens * kStride) + h % kTwo<D> * D);
    const float2 low = __half22float2(row[own]), high = __half22float2(row[own + D / 4]);
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
#pragma unroll
  for (int h = 0; h < kFour; ++h) {
    if (first_head + h >= cache.kv_heads) continue;
    const float(&y)[4] = x[h];
    auto* to = reinterpret_cast<uint32_t*>(row_of<D>(rows.k, rows, first_head + h, token));
    to[own] = two_halves(y[0] * angle.x - y[2] * angle.y, y[1] * angle.z - y[3] * angle.w);
    to[own + D / 4] = two_halves(y[2] * angle.x + y[0] * angle.y, y[3] * angle.z + y[1] * angle.w);
  }
}

/// Returns the tile's tokens.
template <int bits, int D>
__device__ __forceinline__ TileTokens dequantize_keys(const CacheView& cache, const Rows& rows, int tile,
                                                      int first_head, KeyBlock<D>& block) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, kv_head = first_head + warp * kTwo<D>;
  const int together = cache.keys.rotation_heads, own = lane % (D / 4);
  const bool ordered = cache.keys.order != nullptr;
  const TileTokens tokens = tile_tokens(cache, rows, tile, lane);
  read_angles<D>(cache, tile, block);
  const uint8_t* page = tokens.stored != 0 ? cache.page(rows.sequence, tile / kPageTiles) : nullptr;
  if (ordered) {
    if (tokens.stored != 0) load_scales(cache.keys, page, cache.kv_heads, tile % kPageTiles, block.scales);
    __syncthreads();
  }
  if (tokens.stored != 0 && kv_head < cache.kv_heads) {
    const float size = together == 4 ? 0.5f : together == 2 ? 0.70710678118654752f : 1.0f;
    const auto put = [&](int token, int u, uint4 eight) {
      *reinterpret_cast<uint4*>(block.rows[warp] + token * kStride + 8 * u) = eight;
    };
    if (ordered) {
      transform_ordered<bits, D>(cache, page, kv_head, tile % kPageTiles, size, block.scales, lane, put);
    } else {
      transform_tile<bits, D>(cache, cache.keys, page, kv_head, tile % kPageTiles, size, lane, put);
    }
  }
  __syncthreads();
  const auto angle = [&](int t) {
    return *reinterpret_cast<const float4*>(block.angles + t * kAngleStride<D> + own * 2);
  };
  const int four = D == 64 ? lane / (kWarp / 2) : 0;
#pragma unroll
  for (int i = 0; i < kTileTokens / kWarps; ++i) {
    const int at = warp * (kTileTokens / kWarps) + i;
    if ((tokens.stored >> at & 1u) == 0) continue;
    write_keys<D>(cache, rows, tile * kTileTokens + at, first_head + 4 * four, block.rows[2 * four] + at * kStride,
                  angle(at), own);
  }
  return tokens;
}

/// Blocks: of keys, values.
struct RotatedBlocks {
  int tiles, keys, value_tiles;
};

template <int bits, int D>
__global__ void __launch_bounds__(kThreads, 5)
    dequantize_rotated_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Rows rows,
                              const __grid_constant__ RotatedBlocks blocks) {
  __shared__ KeyBlock<D> shared;
  const int block = blockIdx.x, warp = threadIdx.x / kWarp, first = rows.begin / kTileTokens;
  const bool keys = block < blocks.keys;
  int tile, kv_head;
  TileTokens tokens;
  if (keys) {
    const int first_head = block / blocks.tiles * (kWarps * kTwo<D>);
    tile = first + block % blocks.tiles;
    kv_head = first_head + warp * kTwo<D>;
    tokens = dequantize_keys<bits, D>(cache, rows, tile, first_head, shared);
    if (kv_head >= cache.kv_heads) return;
  } else {
    const int at = block - blocks.keys;
    tile = first + at % blocks.value_tiles * kWarps + warp;
    kv_head = at / blocks.value_tiles * kTwo<D>;
    if (tile * kTileTokens >= rows.end) return;
    tokens = dequantize_values<bits, D>(cache, rows, tile, kv_head);
  }
  copy_exact_heads<D>(cache, rows, kv_head, keys, tile, tokens, shared.angles);
}

template <int D>
void launch_blocks(const CacheView& cache, const Rows& rows, cudaStream_t stream) {
  const auto groups = [&](int heads) { return (cache.kv_heads + heads - 1) / heads; };
  RotatedBlocks blocks;
  blocks.tiles = (rows.end - 1) / kTileTokens - rows.begin / kTileTokens + 1;
  blocks.keys = blocks.tiles * groups(kWarps * kTwo<D>);
  blocks.value_tiles = (blocks.tiles + kWarps - 1) / kWarps;
  const auto all = static_cast<unsigned>(blocks.keys + blocks.value_tiles * groups(kTwo<D>));
  const int bits = cache.keys.bits;
  const auto kernel = bits == 2   ? dequantize_rotated_kernel<2, D>
                      : bits == 3 ? dequantize_rotated_kernel<3, D>
                                  : dequantize_rotated_kernel<4, D>;
  launch("dequantize", kernel, {dim3(all), kThreads, 0, stream}, cache, rows, blocks);
}

}  // namespace

bool dequantize_rotated_supports(const CacheView& cache) {
  const auto side = [&](const SideView& x) {
    return x.format == Format::kAffine && x.bits >= 2 && x.bits <= 4 && x.group_size == cache.head_dim &&
           x.mean == nullptr && x.basis_heads == 0;
  };
  const int together = cache.keys.rotation_heads;
  return cache.head_dim == kReadDim && side(cache.keys) && side(cache.values) && cache.keys.bits == cache.values.bits &&
         cache.keys_pre_rope != 0 && cache.values.order == nullptr && cache.kv_heads <= kMostGroups &&
         (cache.keys.order == nullptr || cache.keys.groups != nullptr) &&
         (together == 1 || together == 2 || together == 4) && cache.values.rotation_heads == 1 &&
         cache.kv_heads % together == 0;
}

void dequantize_rotated(const CacheView& cache, const Rows& rows, cudaStream_t stream) {
  launch_blocks<kReadDim>(cache, rows, stream);
}

}  // namespace kvquant::cuda
