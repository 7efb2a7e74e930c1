/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Dequantize of svdq in a basis over all heads, head_dim 128, before RoPE: the part for keys. A block takes 128 tokens
// of a head; tensor cores multiply codes of stored places of all heads, as halves, with the basis (layer_basis.h), 64
// places at a time, which are on their way through shared memory. Keys are turned where they are added up. Values:
// dequantize_int.cu. An H100, svdq2.25, 8192 tokens of 8 kv heads: 57 us, 29 % of the speed of a copy; 73 us with
// places of codes worked out for each load.
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
};

/// Where the codes of a run lie in a page, of the first tile, and their width: offset + width 2^28; 0: no run.
__device__ __forceinline__ uint32_t describe_run(const CacheView& cache, const StoredRuns& runs, int run) {
  if (run >= cache.kv_heads * runs.count) return 0;
  const int own = runs.run[run % runs.count];
  return static_cast<uint32_t>(cache.keys.tile(run / runs.count, 0) + cache.keys.run_begin[own]) |
         static_cast<uint32_t>(cache.keys.width[own]) << 28;
}

/// A thread's items of a slab are of one tile, and of one place of runs thread / 64 + 2 i.
__device__ __forceinline__ int run_of(int slab, int item) {
  return slab * kTileRuns + static_cast<int>(threadIdx.x) / (kRunPlaces * kTiles) + item * 2;
}
__device__ __forceinline__ int own_tile() { return static_cast<int>(threadIdx.x) / kRunPlaces % kTiles; }

/// page: where the tile of the thread begins; nullptr: nothing of it is asked for.
__device__ __forceinline__ void load_codes(const uint8_t* page, const uint32_t* runs, int slab, Raw (&raw)[kItems]) {
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const uint32_t run = runs[run_of(slab, i)];
    const int bits = static_cast<int>(run >> 28);
    raw[i] = {};
    if (bits == 0 || page == nullptr) continue;
    const uint8_t* from = page + (run & 0xfffffffu) + threadIdx.x % kRunPlaces * 2 * bits;
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
  const __half2 codes =
      __hsub2(*reinterpret_cast<const __half2*>(&whole), __float2half2_rn(1024.0f + static_cast<float>(1 << bits) / 2));
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

__device__ __forceinline__ void store_codes(const uint32_t* runs, int slab, const Raw (&raw)[kItems], uint8_t* codes) {
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int bits = static_cast<int>(runs[run_of(slab, i)] >> 28), tile = own_tile();
    const int place = run_of(0, i) * kRunPlaces + threadIdx.x % kRunPlaces;
    if (bits == 8) {
      put_codes<8>(raw[i], place, tile, codes);
    } else if (bits == 4) {
      put_codes<4>(raw[i], place, tile, codes);
    } else if (bits == 2) {
      put_codes<2>(raw[i], place, tile, codes);
    } else if (bits == 3) {
      put_codes<3>(raw[i], place, tile, codes);
    } else {
      put_codes<1>(raw[i], place, tile, codes);
    }
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

/// Copies exact tokens of the warp's 64; lane i gets a bit for each token of tile i % 4 that comes of codes.
__device__ __forceinline__ unsigned copy_exact_keys(const CacheView& cache, const Rows& rows, const Block& block,
                                                    const PageAngles* angles) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  unsigned stored = 0;
#pragma unroll 1
  for (int i = 0; i < 4; ++i) {
    const int in_unit = (warp / 2 * 4 + i) * kTileTokens, tile = (block.first + in_unit) / kTileTokens;
    if (tile * kTileTokens >= rows.end || (tile + 1) * kTileTokens <= rows.begin) continue;
    const TileTokens tokens = tile_tokens(cache, rows, tile, lane);
    if (lane % 4 == i) stored = tokens.stored;
    if (i / 2 != warp % 2) continue;  // another warp's
    copy_exact(cache, rows, block.head, true, tile, tokens, lane,
               [&](int t) { return angles[in_unit / kPageTokens].of(in_unit % kPageTokens + t, lane); });
  }
  return stored;
}

__device__ __forceinline__ float2 turned(float a, float b, float cosine, float sine) {
  return make_float2(fmaf(a, cosine, -b * sine), fmaf(b, cosine, a * sine));
}

/// Turns the warp's keys and writes them.
__device__ __forceinline__ void write_keys(const CacheView& cache, const Rows& rows, const LayerColumns& layer,
                                           const Block& block, const PageAngles* angles, unsigned all_stored,
                                           float (&sums)[4][8][4]) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, c = lane % 4, n = warp % 2;
  const float unit = layer.same[cache.kv_heads * kDim];
  float same[2][8];
#pragma unroll
  for (int i = 0; i < 16; ++i) same[i / 8][i % 8] = layer.same[block.head * kDim + i / 8 * 64 + n * 32 + c * 8 + i % 8];
  const PageAngles& page = angles[warp / 2];
  __half* begin = row_of(rows.k, rows, block.head, block.first + warp / 2 * 64 + g) + n * 32 + c * 8;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned stored = __shfl_sync(0xffffffffu, all_stored, i);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int token = i * kTileTokens + g + 8 * r;
      if ((stored >> (g + 8 * r) & 1u) == 0) continue;
      uint32_t low[4], high[4];
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const float4& angle = page.of(token, 16 * n + 4 * c + q);
        const auto key = [&](int half, int e) {
          return fmaf(sums[i][4 * half + q][2 * r + e], unit, same[half][2 * q + e]);
        };
        const float2 first = turned(key(0, 0), key(1, 0), angle.x, angle.y);
        const float2 second = turned(key(0, 1), key(1, 1), angle.z, angle.w);
        low[q] = two_halves(first.x, second.x);
        high[q] = two_halves(first.y, second.y);
      }
      __half* to = begin + (i * kTileTokens + 8 * r) * kDim;
      *reinterpret_cast<uint4*>(to) = make_uint4(low[0], low[1], low[2], low[3]);
      *reinterpret_cast<uint4*>(to + kDim / 2) = make_uint4(high[0], high[1], high[2], high[3]);
    }
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
  auto* runs = reinterpret_cast<uint32_t*>(memory + kStages * sizeof(Stage));
  for (int i = threadIdx.x; i < layer.slabs * kTileRuns; i += kThreads) runs[i] = describe_run(cache, layer.runs, i);
  const int start = block.first + own_tile() * kTileTokens;
  const uint8_t* page = nullptr;
  if (start < block.end && start + kTileTokens > rows.begin) {
    page = cache.page(rows.sequence, start / kPageTokens) + start / kTileTokens % kPageTiles * cache.keys.tile_bytes;
  }
  // Codes are loaded two slabs ahead, and stored one ahead.
  Raw raw[kItems] = {};
  float sums[4][8][4] = {};
#pragma unroll 1
  for (int slab = -2, at = 1; slab < layer.slabs; ++slab, at = at + 1 == kStages ? 0 : at + 1) {
    wait_copies<kStages - 2>();
    __syncthreads();
    const int next = slab + 2;
    if (next < layer.slabs) load_basis(layer, block.head, next, stages[at == 0 ? kStages - 1 : at - 1]);
    commit_copies();
    if (slab >= -1 && slab + 1 < layer.slabs) {
      store_codes(runs, slab + 1, raw, stages[at + 1 == kStages ? 0 : at + 1].codes);
    }
    if (next < layer.slabs) load_codes(page, runs, next, raw);
    if (slab >= 0) multiply(stages[at], sums);
  }
  wait_copies<0>();
  __syncthreads();
  auto* angles = reinterpret_cast<PageAngles*>(memory);
  for (int i = 0; i < kUnitPages; ++i) {
    const int page = block.first / kPageTokens + i;
    if (page * kPageTokens < rows.end) page_angles(cache, page, threadIdx.x, angles[i]);
  }
  __syncthreads();
  const unsigned stored = copy_exact_keys(cache, rows, block, angles);
  write_keys(cache, rows, layer, block, angles, stored, sums);
}

}  // namespace

bool dequantize_layer_supports(const CacheView& cache) {
  return cache.head_dim == kDim && cache.keys.format == Format::kStatic && cache.keys.basis_heads > 1 &&
         cache.keys_pre_rope != 0 && cache.keys.latent != nullptr && dequantize_values_supports(cache);
}

void dequantize_layer(const CacheView& cache, const Rows& rows, cudaStream_t stream) {
  LayerColumns layer;
  layer.runs = stored_runs_of(cache.keys.width);
  layer.slabs = layer.runs.tiles(cache.kv_heads);
  layer.columns = cache.keys.latent + layer_rows_bytes(cache.kv_heads, layer.runs);
  layer.same = reinterpret_cast<const float*>(layer.columns + layer_columns_bytes(cache.kv_heads, layer.runs));
  const int units = (rows.end - 1) / kUnit - rows.begin / kUnit + 1;
  const size_t bytes = kStages * sizeof(Stage) + static_cast<size_t>(layer.slabs * kTileRuns) * sizeof(uint32_t);
  launch("dequantize", dequantize_layer_kernel,
         {dim3(static_cast<unsigned>(units * cache.kv_heads)), kThreads, bytes, stream}, cache, rows, layer);
  dequantize_values(cache, rows, stream);
}

}  // namespace kvquant::cuda
