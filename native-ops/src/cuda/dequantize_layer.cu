/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Dequantize of svdq in a basis over all heads, head_dim 128, before RoPE: the part for keys. A block takes 128 tokens
// of a head; tensor cores multiply codes of stored places of all heads, as halves, with the basis (layer_basis.h), 64
// places at a time, which are on their way through shared memory. Keys are turned where they are added up. Values:
// dequantize_int.cu or dequantize_levels.cu.
#include "latent_basis.h"
#include "launch.cuh"
#include "layer_basis.h"
#include "page_angles.cuh"
#include "read_rows.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = kReadDim, kWarps = 4, kThreads = kWarps * kWarp, kStages = 3;
constexpr int kUnit = 128, kTiles = kUnit / kTileTokens, kUnitPages = kUnit / kPageTokens;
constexpr int kItems = kTilePlaces * kTiles / kThreads;  // codes of a place and tile, of a thread

struct Stage {
  uint8_t codes[kTilePlaces * kUnit * 2], basis[kDim * kSlabBytes];
};
static_assert(kUnitPages * sizeof(PageAngles) <= kStages * sizeof(Stage), "one memory for both");

struct LayerColumns {
  StoredRuns runs;
  int slabs;
  const uint8_t* columns;
  const float* same;
};

/// Codes of a place for a tile, as they are stored; zeros where there are none.
struct Raw {
  uint32_t words[4];
};

struct Block {
  int head, first, end;  // tokens from the first on; behind those that are coded and asked for

  __device__ bool asked(int tile, const Rows& rows) const {
    const int start = first + tile * kTileTokens;
    return start < end && start + kTileTokens > rows.begin;
  }
};

/// Which run, among those of all heads, a thread's item of a slab belongs to.
__device__ __forceinline__ int run_of(int slab, int item) {
  return slab * kTileRuns + (item * kThreads + static_cast<int>(threadIdx.x)) / (kRunPlaces * kTiles);
}
__device__ __forceinline__ int tile_of(int item) {
  return (item * kThreads + static_cast<int>(threadIdx.x)) / kRunPlaces % kTiles;
}

__device__ __forceinline__ void load_codes(const CacheView& cache, const Rows& rows, const LayerColumns& layer,
                                           const Block& block, int slab, Raw (&raw)[kItems]) {
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int run = run_of(slab, i), tile = tile_of(i), start = block.first + tile * kTileTokens;
    raw[i] = {};
    if (run >= cache.kv_heads * layer.runs.count || !block.asked(tile, rows)) continue;
    const int own = layer.runs.run[run % layer.runs.count], bits = cache.keys.width[own];
    const uint8_t* from = cache.page(rows.sequence, start / kPageTokens) +
                          cache.keys.tile(run / layer.runs.count, start / kTileTokens % kPageTiles) +
                          cache.keys.run_begin[own] + threadIdx.x % kRunPlaces * 2 * bits;
    if (bits == 8) {
      const uint4 all = *reinterpret_cast<const uint4*>(from);
      raw[i] = {{all.x, all.y, all.z, all.w}};
    } else if (bits == 4) {
      const uint2 all = *reinterpret_cast<const uint2*>(from);
      raw[i] = {{all.x, all.y, 0, 0}};
    } else if (bits == 2) {
      raw[i].words[0] = *reinterpret_cast<const uint32_t*>(from);
    } else {
      const auto* halves = reinterpret_cast<const uint16_t*>(from);
      raw[i].words[0] = halves[0];
      if (bits == 3) {
        raw[i].words[0] |= static_cast<uint32_t>(halves[1]) << 16;
        raw[i].words[1] = halves[2];
      }
    }
  }
}

/// Two neighbouring codes as halves, less 2^(bits - 1).
template <int bits>
__device__ __forceinline__ uint32_t two_codes(const Raw& raw, int two) {
  uint32_t whole;  // 1024 + code
  if (bits == 8) {
    whole = __byte_perm(raw.words[two / 2], 0x64646464u, two % 2 == 0 ? 0x4140 : 0x4342);
  } else {
    const int bit = 2 * two * bits, shift = bit % 32;
    uint32_t x = raw.words[bit / 32] >> shift;
    if (shift + 2 * bits > 32) x |= raw.words[bit / 32 + 1] << (32 - shift);
    constexpr uint32_t kOnes = (1u << bits) - 1u;
    whole = (x & kOnes) | (x << (16 - bits) & kOnes << 16) | 0x64006400u;
  }
  const __half2 codes = __hsub2(*reinterpret_cast<const __half2*>(&whole),
                                __float2half2_rn(1024.0f + static_cast<float>(1 << bits) / 2));
  return *reinterpret_cast<const uint32_t*>(&codes);
}

/// Codes of a place for a tile to [places][tokens] in shared memory, of which chunks of eight tokens lie at their index
/// ^ place % 8.
template <int bits>
__device__ __forceinline__ void put_codes(const Raw& raw, int place, int tile, uint8_t* codes) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int chunk = (tile * 2 + half) ^ (place % 8);
    *reinterpret_cast<uint4*>(codes + place * (kUnit * 2) + chunk * 16) =
        make_uint4(two_codes<bits>(raw, half * 4), two_codes<bits>(raw, half * 4 + 1),
                   two_codes<bits>(raw, half * 4 + 2), two_codes<bits>(raw, half * 4 + 3));
  }
}

__device__ __forceinline__ void store_codes(const CacheView& cache, const LayerColumns& layer, int slab,
                                            const Raw (&raw)[kItems], uint8_t* codes) {
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int bits = cache.keys.width[layer.runs.run[run_of(slab, i) % layer.runs.count]], tile = tile_of(i);
    const int place = (run_of(slab, i) - slab * kTileRuns) * kRunPlaces + threadIdx.x % kRunPlaces;
    if (bits == 8) put_codes<8>(raw[i], place, tile, codes);
    if (bits == 4) put_codes<4>(raw[i], place, tile, codes);
    if (bits == 3) put_codes<3>(raw[i], place, tile, codes);
    if (bits == 2) put_codes<2>(raw[i], place, tile, codes);
    if (bits == 1) put_codes<1>(raw[i], place, tile, codes);
  }
}

__device__ __forceinline__ void load_basis(const LayerColumns& layer, int head, int slab, Stage& stage) {
  const uint8_t* from = layer.columns + (static_cast<int64_t>(head) * layer.slabs + slab) * sizeof(stage.basis);
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(stage.basis)) / 16 / kThreads; ++i) {
    copy_async(stage.basis + (i * kThreads + threadIdx.x) * 16, from + (i * kThreads + threadIdx.x) * 16);
  }
}

/// Adds a slab's products: of the warp's 64 tokens, and of rows 64 warp % 2 and on of the basis.
__device__ __forceinline__ void multiply(const Stage& stage, float (&sums)[4][8][4]) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int row = warp % 2 * 64 + lane % 8 + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kSlab / 16; ++k) {
    uint32_t a[4][4], b[4][4];
    const uint8_t* codes = stage.codes + (16 * k + lane / 16 * 8 + lane % 8) * (kUnit * 2);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      load_transposed(a[i], codes + ((warp / 2 * 8 + i * 2 + lane / 8 % 2) ^ (lane % 8)) * 16);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      load_matrices(b[j], stage.basis + (row + j * 16) * kSlabBytes + ((2 * k + lane / 8 % 2) ^ (lane % 8)) * 16);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        mma(sums[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
}

/// Turns the warp's keys and writes them.
__device__ __forceinline__ void write_keys(const CacheView& cache, const Rows& rows, const LayerColumns& layer,
                                           const Block& block, const PageAngles* angles, float (&sums)[4][8][4]) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, c = lane % 4, n = warp % 2;
  const float unit = layer.same[cache.kv_heads * kDim];
  float same[2][8];
#pragma unroll
  for (int i = 0; i < 16; ++i) same[i / 8][i % 8] = layer.same[block.head * kDim + i / 8 * 64 + n * 32 + c * 8 + i % 8];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int in_unit = (warp / 2 * 4 + i) * kTileTokens, tile = (block.first + in_unit) / kTileTokens;
    if (tile * kTileTokens >= rows.end || (tile + 1) * kTileTokens <= rows.begin) continue;
    const unsigned stored = tile_tokens(cache, rows, tile, lane).stored;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int token = in_unit + g + 8 * r;
      if ((stored >> (g + 8 * r) & 1u) == 0) continue;
      uint32_t low[4], high[4];
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const float4& angle = angles[token / kPageTokens].of(token % kPageTokens, 16 * n + 4 * c + q);
        const auto key = [&](int half, int e) {
          return fmaf(sums[i][4 * half + q][2 * r + e], unit, same[half][2 * q + e]);
        };
        const float2 first = turn(key(0, 0), key(1, 0), make_float2(angle.x, angle.y));
        const float2 second = turn(key(0, 1), key(1, 1), make_float2(angle.z, angle.w));
        low[q] = two_halves(first.x, second.x);
        high[q] = two_halves(first.y, second.y);
      }
      __half* to = row_of(rows.k, rows, block.head, block.first + token) + n * 32 + c * 8;
      *reinterpret_cast<uint4*>(to) = make_uint4(low[0], low[1], low[2], low[3]);
      *reinterpret_cast<uint4*>(to + kDim / 2) = make_uint4(high[0], high[1], high[2], high[3]);
    }
  }
#pragma unroll 1
  for (int i = 0; i < 2; ++i) {
    const int in_unit = (warp * 2 + i) * kTileTokens, tile = (block.first + in_unit) / kTileTokens;
    if (tile * kTileTokens >= rows.end || (tile + 1) * kTileTokens <= rows.begin) continue;
    copy_exact(cache, rows, block.head, true, tile, tile_tokens(cache, rows, tile, lane), lane, [&](int t) {
      return angles[in_unit / kPageTokens].of(in_unit % kPageTokens + t, lane);
    });
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    dequantize_layer_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Rows rows,
                            const __grid_constant__ LayerColumns layer) {
  KVQUANT_DYNAMIC_SHARED(memory);
  release_next_kernel();
  auto* stages = reinterpret_cast<Stage*>(memory);
  Block block;
  block.head = blockIdx.x % cache.kv_heads;
  block.first = (rows.begin / kUnit + blockIdx.x / cache.kv_heads) * kUnit;
  block.end = min(cache.quantized(rows.sequence, cache.length(rows.sequence)), rows.end);
  Raw raw[kItems];
  load_codes(cache, rows, layer, block, 0, raw);
  load_basis(layer, block.head, 0, stages[0]);
  commit_copies();
  if (layer.slabs > 1) load_basis(layer, block.head, 1, stages[1]);
  commit_copies();
  store_codes(cache, layer, 0, raw, stages[0].codes);
  if (layer.slabs > 1) load_codes(cache, rows, layer, block, 1, raw);
  float sums[4][8][4] = {};
#pragma unroll 1
  for (int slab = 0, at = 0; slab < layer.slabs; ++slab, at = at + 1 == kStages ? 0 : at + 1) {
    wait_copies<kStages - 2>();
    __syncthreads();
    const int next = slab + kStages - 1;
    if (next < layer.slabs) load_basis(layer, block.head, next, stages[at == 0 ? kStages - 1 : at - 1]);
    commit_copies();
    if (slab + 1 < layer.slabs) store_codes(cache, layer, slab + 1, raw, stages[at + 1 == kStages ? 0 : at + 1].codes);
    if (next < layer.slabs) load_codes(cache, rows, layer, block, next, raw);
    multiply(stages[at], sums);
  }
  wait_copies<0>();
  __syncthreads();
  auto* angles = reinterpret_cast<PageAngles*>(memory);
  for (int i = 0; i < kUnitPages; ++i) {
    const int page = block.first / kPageTokens + i;
    if (page * kPageTokens < rows.end) page_angles(cache, page, threadIdx.x, angles[i]);
  }
  __syncthreads();
  write_keys(cache, rows, layer, block, angles, sums);
}

}  // namespace

bool dequantize_layer_supports(const CacheView& cache) {
  return cache.head_dim == kDim && cache.keys.format == Format::kStatic && cache.keys.basis_heads > 1 &&
         cache.keys_pre_rope != 0 && cache.keys.latent != nullptr &&
         (dequantize_values_supports(cache) || dequantize_levels_supports(cache));
}

void dequantize_layer(const CacheView& cache, const Rows& rows, cudaStream_t stream) {
  LayerColumns layer;
  layer.runs = stored_runs_of(cache.keys.width);
  layer.slabs = layer.runs.tiles(cache.kv_heads);
  layer.columns = cache.keys.latent + layer_rows_bytes(cache.kv_heads, layer.runs);
  layer.same = reinterpret_cast<const float*>(layer.columns + layer_columns_bytes(cache.kv_heads, layer.runs));
  const int units = (rows.end - 1) / kUnit - rows.begin / kUnit + 1;
  launch("dequantize", dequantize_layer_kernel,
         {dim3(static_cast<unsigned>(units * cache.kv_heads)), kThreads, kStages * sizeof(Stage), stream}, cache, rows,
         layer);
  if (dequantize_values_supports(cache)) {
    dequantize_values(cache, rows, stream);
  } else {
    dequantize_levels(cache, rows, stream);
  }
}

}  // namespace kvquant::cuda
