/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Dequantize of values of 4 bits with a norm, head_dim 128, behind a kernel for keys, which it has nothing to do with.
// A warp takes a tile of a head: a table makes two levels, as halves, of a byte of codes; tensor cores take the steps
// of the transform between 16 channels, the steps between those stay in registers.
#include "launch.cuh"
#include "read_rows.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = kReadDim, kWarps = 4, kThreads = kWarps * kWarp, kGroups = kDim / 16;
constexpr int kRowBytes = kTileTokens * 2;  // of a channel: two chunks of eight tokens

struct LevelBlock {
  uint32_t levels[256];  // of two codes
  uint8_t tiles[kWarps][kDim * kRowBytes];
};

struct LevelParts {
  int tiles;  // blocks of a head
};

/// The i-th chunk of a channel: eight channels that are read at once then meet all banks.
__device__ __forceinline__ uint8_t* chunk_at(uint8_t* tile, int channel, int i) {
  return tile + channel * kRowBytes + ((i ^ channel / 4) & 1) * 16;
}

/// The steps of the transform between elements of an array.
__device__ __forceinline__ void butterflies(float (&x)[kGroups]) {
#pragma unroll
  for (int half = 1; half < kGroups; half *= 2) {
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      if (i & half) continue;
      const float a = x[i], b = x[i + half];
      x[i] = a + b;
      x[i + half] = a - b;
    }
  }
}

/// Levels of a tile as halves, [channels][tokens].
__device__ __forceinline__ void look_up(const uint32_t (&levels)[256], const uint2 (&codes)[kDim / kWarp], int lane,
                                        uint8_t* tile) {
#pragma unroll
  for (int i = 0; i < kDim / kWarp; ++i) {
    const int channel = i * kWarp + lane;
    const uint2 all = codes[i];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t eight = half == 0 ? all.x : all.y;
      *reinterpret_cast<uint4*>(chunk_at(tile, channel, half)) =
          make_uint4(levels[eight & 255u], levels[eight >> 8 & 255u], levels[eight >> 16 & 255u], levels[eight >> 24]);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    dequantize_levels_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Rows rows,
                             const __grid_constant__ LevelParts parts) {
  __align__(16) __shared__ LevelBlock block;
  const SideView& side = cache.values;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, c = lane % 4;
  const int kv_head = blockIdx.x / parts.tiles;
  const int tile = rows.begin / kTileTokens + blockIdx.x % parts.tiles * kWarps + warp;
  const int stored = cache.quantized(rows.sequence, cache.length(rows.sequence));
  uint2 codes[kDim / kWarp] = {};
  float factors[2] = {};
  if (tile * kTileTokens < min(rows.end, stored)) {
    const uint8_t* page = cache.page(rows.sequence, tile / kPageTiles);
    const auto* from = reinterpret_cast<const uint2*>(page + side.tile(kv_head, tile % kPageTiles));
#pragma unroll
    for (int i = 0; i < kDim / kWarp; ++i) codes[i] = from[i * kWarp + lane];
    const auto* norms = reinterpret_cast<const __half*>(page + side.norms + tile % kPageTiles * side.norm_tile_bytes) +
                        kv_head * kTileTokens;
    const float scale = side.rotated ? rsqrtf(static_cast<float>(kDim)) : 1.0f;
#pragma unroll
    for (int r = 0; r < 2; ++r) factors[r] = __half2float(norms[g + 8 * r]) * scale;
  }
  for (int i = threadIdx.x; i < 256; i += kThreads)
    block.levels[i] = two_halves(side.levels[i % 16], side.levels[i / 16]);
  __syncthreads();
  if (tile * kTileTokens < rows.end) {
    const TileTokens tokens = tile_tokens(cache, rows, tile, lane);
    if (tokens.stored != 0) {
      look_up(block.levels, codes, lane, block.tiles[warp]);
      __syncwarp();
      // Columns of a group's transform, in such an order that a lane gets channels 4 c .. 4 c + 3.
      uint32_t signs[2][2];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = g / 2 * 4 + i / 2 * 2 + g % 2, row = i % 2 * 8 + 2 * c;
        const auto element = [&](int k) -> uint32_t {
          if (!side.rotated) return k == column ? 0x3c00u : 0u;
          return __popc(k & column) % 2 == 0 ? 0x3c00u : 0xbc00u;
        };
        signs[i / 2][i % 2] = element(row) | element(row + 1) << 16;
      }
      float x[2][4][kGroups];  // of tokens g and g + 8
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        uint32_t a[4];
        load_transposed(a, chunk_at(block.tiles[warp], 16 * i + lane / 16 * 8 + lane % 8, lane / 8 % 2));
        float both[2][4] = {};
        mma(both[0], a[0], a[1], a[2], a[3], signs[0][0], signs[0][1]);
        mma(both[1], a[0], a[1], a[2], a[3], signs[1][0], signs[1][1]);
#pragma unroll
        for (int j = 0; j < 8; ++j) x[j / 4][j % 4][i] = both[j % 4 / 2][j / 4 * 2 + j % 2];
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (side.rotated) {
#pragma unroll
          for (int j = 0; j < 4; ++j) butterflies(x[r][j]);
        }
        if ((tokens.stored >> (g + 8 * r) & 1u) == 0) continue;
        __half* to = row_of(rows.v, rows, kv_head, tile * kTileTokens + g + 8 * r) + 4 * c;
#pragma unroll
        for (int i = 0; i < kGroups; ++i) {
          *reinterpret_cast<uint2*>(to + 16 * i) =
              make_uint2(two_halves(x[r][0][i] * factors[r], x[r][1][i] * factors[r]),
                         two_halves(x[r][2][i] * factors[r], x[r][3][i] * factors[r]));
        }
      }
    }
    copy_exact_values(cache, rows, kv_head, tile, tokens, lane);
  }
  wait_for_previous_kernel();
}

}  // namespace

bool dequantize_levels_supports(const CacheView& cache) {
  return cache.head_dim == kDim && cache.values.format == Format::kNorm && cache.values.bits == 4;
}

void dequantize_levels(const CacheView& cache, const Rows& rows, cudaStream_t stream) {
  const int tiles = (rows.end - 1) / kTileTokens - rows.begin / kTileTokens + 1;
  const LevelParts parts{(tiles + kWarps - 1) / kWarps};
  launch(
      "dequantize", dequantize_levels_kernel,
      {dim3(static_cast<unsigned>(parts.tiles * cache.kv_heads)), kThreads, 0, stream, can_start_early("dequantize")},
      cache, rows, parts);
}

}  // namespace kvquant::cuda
