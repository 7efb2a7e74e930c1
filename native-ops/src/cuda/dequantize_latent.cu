/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Dequantize of latent2 in a basis of each head, head_dim 128: a block takes two pages of a head, a warp a tile, whose
// codes tensor cores multiply with the basis (latent_basis.h); keys are turned where they are added up. Values:
// dequantize_int.cu, which starts while this one ends. An H100, 8192 tokens of 8 kv heads: 40 us instead of 4200, 39 %
// of the speed of a copy.
#include "latent_basis.h"
#include "launch.cuh"
#include "page_angles.cuh"
#include "read_rows.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = kReadDim, kPages = 2, kWarps = kPages * kPageTiles, kThreads = kWarps * kWarp;
constexpr int kColumns = kDim / 8;  // of products, eight channels each

/// Where a chunk of the basis, eight places of a channel, lies: those that a product takes meet different banks.
__device__ __forceinline__ int chunk_of(int run, int channel) { return run * kDim + (channel ^ (channel / 8 % 4 * 2)); }

/// Codes as halves: of two tokens, places 2 c and 2 c + 1 of a run each.
__device__ __forceinline__ void load_codes(const SideView& keys, const uint8_t* tile, int run, int bits, int g, int c,
                                           uint32_t (&two)[2]) {
  const uint8_t* field = tile + keys.run_begin[run] + 2 * c * 2 * bits;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const auto code = [&](int place) {
      return static_cast<uint32_t>(get_code(field + place * 2 * bits, g + 8 * i, bits));
    };
    const uint32_t whole = 0x64006400u | code(0) | code(1) << 16;  // 1024 + code
    const __half2 x = __hsub2(*reinterpret_cast<const __half2*>(&whole), __float2half2_rn(1024.0f));
    two[i] = *reinterpret_cast<const uint32_t*>(&x);
  }
}

/// Keys of a tile in the natural basis: of tokens g and g + 8, channels 32 m + 8 c + 2 q + (0, 1) in column 4 m + q.
__device__ __forceinline__ void rebuild(const CacheView& cache, const LatentSteps& steps, const uint8_t* tile,
                                        const uint4* basis, int lane, float (&x)[kColumns][4]) {
  const int g = lane / 4, c = lane % 4;
#pragma unroll 1
  for (int step = 0; step < steps.steps(); ++step) {
    uint32_t a[2][2] = {};  // [run][token]
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = 2 * step + i;
      if (steps.width[at] != 0) load_codes(cache.keys, tile, steps.run[at], steps.width[at], g, c, a[i]);
    }
    if (step == 0 && c == 0) {
      const __half2 constant = __float2half2_rn(kConstantCode);
      a[0][0] = a[0][1] = *reinterpret_cast<const uint32_t*>(&constant);
    }
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int channel = i / 4 * 32 + g / 2 * 8 + i % 4 * 2 + g % 2;
      const auto word = [&](int run) { return reinterpret_cast<const uint32_t*>(basis + chunk_of(run, channel))[c]; };
      mma(x[i], a[0][0], a[0][1], a[1][0], a[1][1], word(2 * step), word(2 * step + 1));
    }
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    dequantize_latent_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Rows rows,
                             const __grid_constant__ LatentSteps steps) {
  KVQUANT_DYNAMIC_SHARED(shared);
  release_next_kernel();
  auto& angles = *reinterpret_cast<PageAngles(*)[kPages]>(shared);
  auto* basis = reinterpret_cast<uint4*>(shared + sizeof(angles));
  const int kv_head = blockIdx.y, first_page = rows.begin / kPageTokens + blockIdx.x * kPages;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, c = lane % 4;
  const int chunks = 2 * steps.steps() * kDim, own_page = warp / kPageTiles;
  const auto* from = reinterpret_cast<const uint4*>(cache.keys.latent) + static_cast<int64_t>(kv_head) * chunks;
  for (int i = threadIdx.x; i < chunks; i += kThreads) copy_async(basis + chunk_of(i / kDim, i % kDim), from + i);
  commit_copies();
  if ((first_page + own_page) * kPageTokens < rows.end) {
    page_angles(cache, first_page + own_page, threadIdx.x % (kThreads / kPages), angles[own_page]);
  }
  wait_copies<0>();
  __syncthreads();
  const int tile = first_page * kPageTiles + warp, in_page = warp % kPageTiles * kTileTokens;
  if (tile * kTileTokens >= rows.end || (tile + 1) * kTileTokens <= rows.begin) return;
  const TileTokens tokens = tile_tokens(cache, rows, tile, lane);
  if (tokens.stored != 0) {
    const uint8_t* page = cache.page(rows.sequence, tile / kPageTiles);
    float x[kColumns][4] = {};
    rebuild(cache, steps, page + cache.keys.tile(kv_head, tile % kPageTiles), basis, lane, x);
    const auto* units = reinterpret_cast<const float*>(cache.keys.latent +
                                                       static_cast<int64_t>(cache.kv_heads) * chunks * sizeof(uint4));
    const float unit = units[kv_head] * 0x1p-24f;  // codes are no subnormals here
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      if ((tokens.stored >> (g + 8 * row) & 1u) == 0) continue;
      __half* to = row_of(rows.k, rows, kv_head, tile * kTileTokens + g + 8 * row);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        uint32_t low[4], high[4];
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          const float4& angle = angles[own_page].of(in_page + g + 8 * row, 16 * m + 4 * c + q);
          const float(&a)[4] = x[4 * m + q], (&b)[4] = x[4 * m + 8 + q];
          const float2 first = turn(a[2 * row] * unit, b[2 * row] * unit, make_float2(angle.x, angle.y));
          const float2 second = turn(a[2 * row + 1] * unit, b[2 * row + 1] * unit, make_float2(angle.z, angle.w));
          low[q] = two_halves(first.x, second.x);
          high[q] = two_halves(first.y, second.y);
        }
        *reinterpret_cast<uint4*>(to + 32 * m + 8 * c) = make_uint4(low[0], low[1], low[2], low[3]);
        *reinterpret_cast<uint4*>(to + 32 * m + 8 * c + kDim / 2) = make_uint4(high[0], high[1], high[2], high[3]);
      }
    }
  }
  copy_exact(cache, rows, kv_head, true, tile, tokens, lane,
             [&](int t) { return angles[own_page].of(in_page + t, lane); });
}

}  // namespace

bool dequantize_latent_supports(const CacheView& cache) {
  return cache.keys.format == Format::kStatic && cache.keys.basis_heads == 1 && cache.keys_pre_rope != 0 &&
         cache.keys.latent != nullptr && dequantize_values_supports(cache);
}

void dequantize_latent(const CacheView& cache, const Rows& rows, cudaStream_t stream) {
  uint8_t widths[kWidthRuns];
  for (int i = 0; i < kWidthRuns; ++i) widths[i] = static_cast<uint8_t>(cache.keys.width[i]);
  const LatentSteps steps = latent_steps(widths);
  const int pages = (rows.end - 1) / kPageTokens - rows.begin / kPageTokens + 1;
  const dim3 blocks(static_cast<unsigned>((pages + kPages - 1) / kPages), static_cast<unsigned>(cache.kv_heads));
  const size_t bytes = kPages * sizeof(PageAngles) + static_cast<size_t>(2 * steps.steps()) * kRunBytes;
  launch("dequantize", dequantize_latent_kernel, {blocks, kThreads, bytes, stream}, cache, rows, steps);
  dequantize_values(cache, rows, stream);
}

}  // namespace kvquant::cuda
