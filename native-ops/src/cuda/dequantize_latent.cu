/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Dequantize of latent2 in a basis of each head, head_dim 128. Blocks stay with a head and go from page to page, a warp
// a tile at a time, while codes of the next one come; tensor cores multiply codes with the basis (latent_basis.h), and
// keys are turned where they are added up, by the angle of their page and that within the page. Values:
// dequantize_int.cu, which starts while this one ends.
//
// An H100, 8 kv heads: 8192 tokens 28 us, 56 % of the speed of a copy, instead of 40 with blocks for two pages each and
// angles made for each; 32768 tokens 73 %. Half as many blocks, so that values run beside keys, were slower.
#include <algorithm>

#include "latent_basis.h"
#include "launch.cuh"
#include "read_rows.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = kReadDim, kPairs = kReadPairs, kMostWarps = 2 * kPageTiles;
constexpr int kColumns = kDim / 8;                 // of products, eight channels each
constexpr int kStepChunks = kColumns / 2 * kWarp;  // of the basis: what a lane takes for two columns

/// Cosines and sines of the 64 positions within a page, of pairs 2 l and 2 l + 1, where a warp's lanes, which are eight
/// tokens and four such l that are 4 apart, meet different banks.
struct InPageAngles {
  float4 at[kPageTokens][kWarp];

  __device__ __forceinline__ float4& of(int token, int l) {
    return at[token][(l % 4 * 4 + l / 4 % 4 + l / 16 * 16) ^ (token % 2 * 4)];
  }
};

/// What comes for a tile: cosines and sines of its page, then its codes.
struct Base {
  float cosines[kPairs], sines[kPairs];
};

/// Codes as halves: of tokens g and g + 8, places 2 c and 2 c + 1 of a run each.
__device__ __forceinline__ void load_codes(const uint8_t* run, int bits, int g, int c, uint32_t (&two)[2]) {
  const uint8_t* from = run + 4 * c * bits + (g * bits >> 3);
  const int shift = g * bits & 7;
  const uint32_t ones = ((1u << bits) - 1u) * 0x00010001u;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    uint32_t word = from[i * bits] | static_cast<uint32_t>(from[(2 + i) * bits]) << 16;
    if (bits == 3) word |= (from[i * bits + 1] | static_cast<uint32_t>(from[(2 + i) * bits + 1]) << 16) << 8;
    const uint32_t whole = 0x64006400u | (word >> shift & ones);  // 1024 + code
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
      if (steps.width[at] != 0) load_codes(tile + cache.keys.run_begin[steps.run[at]], steps.width[at], g, c, a[i]);
    }
    if (step == 0 && c == 0) {
      const __half2 constant = __float2half2_rn(kConstantCode);
      a[0][0] = a[0][1] = *reinterpret_cast<const uint32_t*>(&constant);
    }
#pragma unroll
    for (int i = 0; i < kColumns; i += 2) {
      const uint4 two = basis[step * kStepChunks + i / 2 * kWarp + lane];
      mma(x[i], a[0][0], a[0][1], a[1][0], a[1][1], two.x, two.y);
      mma(x[i + 1], a[0][0], a[0][1], a[1][0], a[1][1], two.z, two.w);
    }
  }
}

/// The basis of a head as rebuild takes it; a block's work.
__device__ __forceinline__ void load_basis(const uint4* from, int steps, uint4* basis) {
#pragma unroll 4
  for (int i = threadIdx.x; i < steps * kDim; i += static_cast<int>(blockDim.x)) {
    const int step = i / kDim, channel = i % kDim;
    const uint4 low = from[2 * step * kDim + channel], high = from[(2 * step + 1) * kDim + channel];
    const uint32_t words[2][4] = {{low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}};
    const int column = channel / 32 * 4 + channel / 2 % 4, g = channel / 8 % 4 * 2 + channel % 2;
    auto* to = reinterpret_cast<uint2*>(basis + step * kStepChunks + column / 2 * kWarp + 4 * g) + column % 2;
#pragma unroll
    for (int c = 0; c < 4; ++c) to[2 * c] = make_uint2(words[0][c], words[1][c]);
  }
}

__device__ __forceinline__ void load_angles(const CacheView& cache, InPageAngles& angles) {
  constexpr int kQuads = kPageTokens / 4;
  const auto* from = reinterpret_cast<const float4*>(cache.rope);
#pragma unroll 4
  for (int i = threadIdx.x; i < kPairs * kQuads; i += static_cast<int>(blockDim.x)) {
    const int pair = i % kPairs, quad = i / kPairs;
    const float4 c = from[pair * kQuads + quad], s = from[(kPairs + pair) * kQuads + quad];
    const float cosines[4] = {c.x, c.y, c.z, c.w}, sines[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      reinterpret_cast<float2*>(&angles.of(4 * quad + j, pair / 2))[pair % 2] = make_float2(cosines[j], sines[j]);
    }
  }
}

/// The angle of both, to the bit of rope_angle.
__device__ __forceinline__ float2 sum_angle(float c0, float s0, float c1, float s1) {
  return make_float2(__fsub_rn(__fmul_rn(c0, c1), __fmul_rn(s0, s1)), __fadd_rn(__fmul_rn(s0, c1), __fmul_rn(c0, s1)));
}

/// Keys of a tile, turned: see rebuild.
__device__ __forceinline__ void write_keys(const Rows& rows, int kv_head, int tile, unsigned tokens, float unit,
                                           InPageAngles& angles, const Base& base, int lane,
                                           const float (&x)[kColumns][4]) {
  const int g = lane / 4, c = lane % 4, in_page = tile % kPageTiles * kTileTokens;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    float c0[8], s0[8];
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      const float4 cosines = *reinterpret_cast<const float4*>(base.cosines + 32 * m + 8 * c + i);
      const float4 sines = *reinterpret_cast<const float4*>(base.sines + 32 * m + 8 * c + i);
      c0[i] = cosines.x * unit, c0[i + 1] = cosines.y * unit, c0[i + 2] = cosines.z * unit,
      c0[i + 3] = cosines.w * unit;
      s0[i] = sines.x * unit, s0[i + 1] = sines.y * unit, s0[i + 2] = sines.z * unit, s0[i + 3] = sines.w * unit;
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      uint32_t low[4], high[4];
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const float4 angle = angles.of(in_page + g + 8 * row, 16 * m + 4 * c + q);
        const float(&a)[4] = x[4 * m + q], (&b)[4] = x[4 * m + 8 + q];
        float first[2], second[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float c1 = e == 0 ? angle.x : angle.z, s1 = e == 0 ? angle.y : angle.w;
          const float cosine = fmaf(c0[2 * q + e], c1, -s0[2 * q + e] * s1);
          const float sine = fmaf(s0[2 * q + e], c1, c0[2 * q + e] * s1);
          first[e] = fmaf(a[2 * row + e], cosine, -b[2 * row + e] * sine);
          second[e] = fmaf(b[2 * row + e], cosine, a[2 * row + e] * sine);
        }
        low[q] = two_halves(first[0], first[1]);
        high[q] = two_halves(second[0], second[1]);
      }
      if ((tokens >> (g + 8 * row) & 1u) == 0) continue;
      __half* to = row_of(rows.k, rows, kv_head, tile * kTileTokens + g + 8 * row) + 32 * m + 8 * c;
      *reinterpret_cast<uint4*>(to) = make_uint4(low[0], low[1], low[2], low[3]);
      *reinterpret_cast<uint4*>(to + kDim / 2) = make_uint4(high[0], high[1], high[2], high[3]);
    }
  }
}

__global__ void __launch_bounds__(kMostWarps* kWarp, 2)
    dequantize_latent_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Rows rows,
                             const __grid_constant__ LatentSteps steps) {
  KVQUANT_DYNAMIC_SHARED(shared);
  release_next_kernel();
  auto& angles = *reinterpret_cast<InPageAngles*>(shared);
  auto* basis = reinterpret_cast<uint4*>(shared + sizeof(InPageAngles));
  const int kv_head = blockIdx.y, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, b = rows.sequence;
  const int warps = blockDim.x / kWarp;
  const int tile_bytes = cache.keys.tile_bytes, own_bytes = static_cast<int>(sizeof(Base)) + tile_bytes;
  uint8_t* own = reinterpret_cast<uint8_t*>(basis + steps.steps() * kStepChunks) + 2 * warp * own_bytes;
  const int chunks = 2 * steps.steps() * kDim;
  const int first = rows.begin / kTileTokens + blockIdx.x * warps + warp, step = gridDim.x * warps;
  const int last = (rows.end - 1) / kTileTokens, quantized = cache.quantized(b, cache.length(b));
  const auto stage = [&](int tile, int i) {
    if (tile <= last) {
      uint8_t* to = own + i * own_bytes;
      const float* base = cache.rope + (static_cast<int64_t>(kPageTokens) + tile / kPageTiles) * kDim;
      copy_async(to + lane * 16, base + lane * 4);
      if (tile * kTileTokens < quantized) {
        const uint8_t* from = cache.page(b, tile / kPageTiles) + cache.keys.tile(kv_head, tile % kPageTiles);
        for (int at = lane * 16; at < tile_bytes; at += kWarp * 16) copy_async(to + sizeof(Base) + at, from + at);
      }
    }
    commit_copies();
  };
  stage(first, 0);
  load_basis(reinterpret_cast<const uint4*>(cache.keys.latent) + static_cast<int64_t>(kv_head) * chunks, steps.steps(),
             basis);
  load_angles(cache, angles);
  const auto* units =
      reinterpret_cast<const float*>(cache.keys.latent + static_cast<int64_t>(cache.kv_heads) * chunks * sizeof(uint4));
  const float unit = units[kv_head] * 0x1p-24f;  // codes are no subnormals here
  __syncthreads();
  int i = 0;
#pragma unroll 1
  for (int tile = first; tile <= last; tile += step, i ^= 1) {
    stage(tile + step, i ^ 1);
    wait_copies<1>();
    __syncwarp();
    const auto& base = *reinterpret_cast<const Base*>(own + i * own_bytes);
    const TileTokens tokens = tile_tokens(cache, rows, tile, lane);
    if (tokens.stored != 0) {
      float x[kColumns][4] = {};
      rebuild(cache, steps, own + i * own_bytes + sizeof(Base), basis, lane, x);
      write_keys(rows, kv_head, tile, tokens.stored, unit, angles, base, lane, x);
    }
    copy_exact(cache, rows, kv_head, true, tile, tokens, lane, [&](int t) {
      const float4 in_page = angles.of(tile % kPageTiles * kTileTokens + t, lane);
      const float2 one = sum_angle(base.cosines[2 * lane], base.sines[2 * lane], in_page.x, in_page.y);
      const float2 two = sum_angle(base.cosines[2 * lane + 1], base.sines[2 * lane + 1], in_page.z, in_page.w);
      return make_float4(one.x, one.y, two.x, two.y);
    });
    __syncwarp();
  }
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
  constexpr int kMostBlocks = 264;         // that run at once
  constexpr size_t kMostBytes = 99 << 10;  // of a block, where there is little
  const size_t common = sizeof(InPageAngles) + static_cast<size_t>(2 * steps.steps()) * kRunBytes;
  const size_t own = 2 * (sizeof(Base) + static_cast<size_t>(cache.keys.tile_bytes));
  const int warps = common + kMostWarps * own > kMostBytes ? kMostWarps / 2 : kMostWarps;
  const int tiles = (rows.end - 1) / kTileTokens - rows.begin / kTileTokens + 1;
  const int groups = std::min((tiles + warps - 1) / warps, std::max(1, kMostBlocks / cache.kv_heads));
  const dim3 blocks(static_cast<unsigned>(groups), static_cast<unsigned>(cache.kv_heads));
  launch("dequantize", dequantize_latent_kernel,
         {blocks, static_cast<unsigned>(warps * kWarp), common + static_cast<size_t>(warps) * own, stream}, cache, rows,
         steps);
  dequantize_values(cache, rows, stream);
}

}  // namespace kvquant::cuda
