/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Dequantize of svdq in a basis over all heads, head_dim 128, before RoPE: the part for keys. A block takes 128 tokens
// of a head, on Hopper of two, four warps each; tensor cores multiply codes of stored places of all heads, as halves,
// with the basis (layer_basis.h), 64 places at a time, which are on their way through shared memory. Keys are turned
// where they are added up. Values: dequantize_int.cu. An H100, svdq2.25, 8192 tokens of 8 kv heads: 43 us, 39 % of the
// speed of a copy; 51 us with a head for each block, 57 us with products of warps too, 73 us with places of codes
// worked out for each load.
#include "latent_basis.h"
#include "launch.cuh"
#include "layer_basis.h"
#include "page_angles.cuh"
#include "read_rows.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = kReadDim, kHeadWarps = 4, kHeadThreads = kHeadWarps * kWarp, kStages = 3;
constexpr int kUnit = 128, kTiles = kUnit / kTileTokens, kUnitPages = kUnit / kPageTokens;
/// Codes of a place and tile, of a thread of a block that takes so many heads.
template <int heads>
constexpr int kItems = kTilePlaces * kTiles / (heads * kHeadThreads);
constexpr int kParts = kUnitPages, kPartBytes = kPageTokens * 2;

/// Of a stage, where warpgroups multiply: swizzled_operand.
constexpr int kAlign = 1024;

template <int heads>
struct Stage {
  uint8_t codes[kParts * kTilePlaces * kPartBytes], basis[heads][kDim * kSlabBytes];
};
static_assert(kUnitPages * sizeof(PageAngles) <= kStages * sizeof(Stage<1>), "one memory for both");

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

/// A thread's items of a slab are of one tile, and of one place of runs thread / 64 + 2 heads i.
template <int heads>
__device__ __forceinline__ int run_of(int slab, int item) {
  return slab * kTileRuns + static_cast<int>(threadIdx.x) / (kRunPlaces * kTiles) + item * 2 * heads;
}
__device__ __forceinline__ int own_tile() { return static_cast<int>(threadIdx.x) / kRunPlaces % kTiles; }

/// Codes of a place for a tile.
__device__ __forceinline__ Raw load_place(const uint8_t* from, int bits) {
  if (bits == 8) {
    const uint4 all = *reinterpret_cast<const uint4*>(from);
    return {{all.x, all.y, all.z, all.w}};
  }
  if (bits == 4) {
    const uint2 all = *reinterpret_cast<const uint2*>(from);
    return {{all.x, all.y, 0, 0}};
  }
  if (bits == 2) return {{*reinterpret_cast<const uint32_t*>(from), 0, 0, 0}};
  const auto* halves = reinterpret_cast<const uint16_t*>(from);
  if (bits == 3) return {{halves[0] | static_cast<uint32_t>(halves[1]) << 16, halves[2], 0, 0}};
  return {{halves[0], 0, 0, 0}};
}

/// page: where the tile of the thread begins; nullptr: nothing of it is asked for.
template <int heads>
__device__ __forceinline__ void load_codes(const uint8_t* page, const uint32_t* runs, int slab,
                                           Raw (&raw)[kItems<heads>]) {
#pragma unroll
  for (int i = 0; i < kItems<heads>; ++i) {
    const uint32_t run = runs[run_of<heads>(slab, i)];
    const int bits = static_cast<int>(run >> 28);
    raw[i] = {};
    if (bits == 0 || page == nullptr) continue;
    raw[i] = load_place(page + (run & 0xfffffffu) + threadIdx.x % kRunPlaces * 2 * bits, bits);
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

/// Codes of a place for a tile to [parts of 64 tokens][places][tokens] in shared memory, of which chunks of eight
/// tokens lie at their index ^ place % 8.
template <int bits>
__device__ __forceinline__ void put_codes(const Raw& raw, int place, int tile, uint8_t* codes) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int chunk = (tile % kPageTiles * 2 + half) ^ (place % 8);
    *reinterpret_cast<uint4*>(codes + (tile / kPageTiles * kTilePlaces + place) * kPartBytes + chunk * 16) =
        make_uint4(two_codes<bits>(raw, half * 4), two_codes<bits>(raw, half * 4 + 1),
                   two_codes<bits>(raw, half * 4 + 2), two_codes<bits>(raw, half * 4 + 3));
  }
}

template <int heads>
__device__ __forceinline__ void store_codes(const uint32_t* runs, int slab, const Raw (&raw)[kItems<heads>],
                                            uint8_t* codes) {
#pragma unroll
  for (int i = 0; i < kItems<heads>; ++i) {
    const int bits = static_cast<int>(runs[run_of<heads>(slab, i)] >> 28), tile = own_tile();
    const int place = run_of<heads>(0, i) * kRunPlaces + threadIdx.x % kRunPlaces;
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

__device__ __forceinline__ void load_basis(const LayerColumns& layer, int head, int slab,
                                           uint8_t (&to)[kDim * kSlabBytes]) {
  const int thread = threadIdx.x % kHeadThreads;
  const uint8_t* from = layer.columns + (static_cast<int64_t>(head) * layer.slabs + slab) * sizeof(to);
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(to)) / 16 / kHeadThreads; ++i) {
    copy_async(to + (i * kHeadThreads + thread) * 16, from + (i * kHeadThreads + thread) * 16);
  }
}

using Sums = float[kParts][kDim / 8][4];

/// Starts to add a slab's products: of 16 tokens of each part with all rows of the basis.
#ifdef KVQUANT_WARPGROUP_MMA
constexpr int kOwnAlign = kAlign;
__device__ __forceinline__ void multiply(const uint8_t* codes, const uint8_t* basis, Sums& sums) {
  const uint64_t a = swizzled_operand(codes), b = swizzled_operand(basis);
  begin_products();
#pragma unroll
  for (int k = 0; k < kSlab / 16; ++k) {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      warpgroup_mma<1>(sums[i], a + (i * kTilePlaces + k * 16) * kPartBytes / 16, b + 2 * k, 1);
    }
  }
  commit_products();
}

__device__ __forceinline__ void finish(Sums& sums) {
  wait_products();
#pragma unroll
  for (int i = 0; i < kParts; ++i) settle(sums[i]);
}
#else
constexpr int kOwnAlign = 16;
__device__ __forceinline__ void multiply(const uint8_t* codes, const uint8_t* basis, Sums& sums) {
  const int warp = threadIdx.x / kWarp % kHeadWarps, lane = threadIdx.x % kWarp, row = lane % 8 + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kSlab / 16; ++k) {
    uint32_t a[kParts][4];
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      load_transposed(
          a[i], codes + (i * kTilePlaces + 16 * k + row) * kPartBytes + ((warp * 2 + lane / 8 % 2) ^ (lane % 8)) * 16);
    }
#pragma unroll
    for (int j = 0; j < kDim / 16; ++j) {
      uint32_t b[4];
      load_matrices(b, basis + (row + j * 16) * kSlabBytes + ((2 * k + lane / 8 % 2) ^ (lane % 8)) * 16);
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        mma(sums[i][2 * j], a[i][0], a[i][1], a[i][2], a[i][3], b[0], b[1]);
        mma(sums[i][2 * j + 1], a[i][0], a[i][1], a[i][2], a[i][3], b[2], b[3]);
      }
    }
  }
}

__device__ __forceinline__ void finish(Sums&) {}
#endif

/// Copies exact tokens of the warp's tiles, one of each part; lane i gets a bit for each token of that of part i % 2
/// that comes of codes.
__device__ __forceinline__ unsigned copy_exact_keys(const CacheView& cache, const Rows& rows, const Block& block,
                                                    const PageAngles* angles) {
  const int warp = threadIdx.x / kWarp % kHeadWarps, lane = threadIdx.x % kWarp;
  unsigned stored = 0;
#pragma unroll 1
  for (int i = 0; i < kParts; ++i) {
    const int tile = block.first / kTileTokens + i * kPageTiles + warp;
    if (tile * kTileTokens >= rows.end || (tile + 1) * kTileTokens <= rows.begin) continue;
    const TileTokens tokens = tile_tokens(cache, rows, tile, lane);
    if (lane % kParts == i) stored = tokens.stored;
    copy_exact(cache, rows, block.head, true, tile, tokens, lane,
               [&](int t) { return angles[i].of(warp * kTileTokens + t, lane); });
  }
  return stored;
}

__device__ __forceinline__ float2 turned(float a, float b, float cosine, float sine) {
  return make_float2(fmaf(a, cosine, -b * sine), fmaf(b, cosine, a * sine));
}

/// Turns the warp's keys and writes them.
__device__ __forceinline__ void write_keys(const CacheView& cache, const Rows& rows, const LayerColumns& layer,
                                           const Block& block, const PageAngles* angles, unsigned all_stored,
                                           Sums& sums) {
  const int warp = threadIdx.x / kWarp % kHeadWarps, lane = threadIdx.x % kWarp, g = lane / 4, c = lane % 4;
  const float unit = layer.same[cache.kv_heads * kDim];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    float same[2][8];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      same[i / 8][i % 8] = layer.same[block.head * kDim + i / 8 * 64 + n * 32 + c * 8 + i % 8];
    }
    __half* begin = row_of(rows.k, rows, block.head, block.first + warp * kTileTokens + g) + n * 32 + c * 8;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const unsigned stored = __shfl_sync(0xffffffffu, all_stored, i);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if ((stored >> (g + 8 * r) & 1u) == 0) continue;
        uint32_t low[4], high[4];
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          const float4& angle = angles[i].of(warp * kTileTokens + g + 8 * r, 16 * n + 4 * c + q);
          const auto key = [&](int half, int e) {
            return fmaf(sums[i][8 * n + 4 * half + q][2 * r + e], unit, same[half][2 * q + e]);
          };
          const float2 first = turned(key(0, 0), key(1, 0), angle.x, angle.y);
          const float2 second = turned(key(0, 1), key(1, 1), angle.z, angle.w);
          low[q] = two_halves(first.x, second.x);
          high[q] = two_halves(first.y, second.y);
        }
        __half* to = begin + (i * kPageTokens + 8 * r) * kDim;
        *reinterpret_cast<uint4*>(to) = make_uint4(low[0], low[1], low[2], low[3]);
        *reinterpret_cast<uint4*>(to + kDim / 2) = make_uint4(high[0], high[1], high[2], high[3]);
      }
    }
  }
}

template <int heads>
__global__ void __launch_bounds__(heads* kHeadThreads, 2 / heads)
    dequantize_layer_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Rows rows,
                            const __grid_constant__ LayerColumns layer) {
  KVQUANT_DYNAMIC_SHARED(memory);
  release_next_kernel();
  uint8_t* begin = memory + (kOwnAlign - reinterpret_cast<uintptr_t>(memory) % kOwnAlign) % kOwnAlign;
  auto* stages = reinterpret_cast<Stage<heads>*>(begin);
  const int groups = (cache.kv_heads + heads - 1) / heads, own = threadIdx.x / kHeadThreads;
  Block block;  // the last head may be that of two groups of warps
  block.head = min(static_cast<int>(blockIdx.x) % groups * heads + own, cache.kv_heads - 1);
  block.first = (rows.begin / kUnit + static_cast<int>(blockIdx.x) / groups) * kUnit;
  block.end = min(cache.quantized(rows.sequence, cache.length(rows.sequence)), rows.end);
  auto* runs = reinterpret_cast<uint32_t*>(begin + kStages * sizeof(*stages));
  for (int i = threadIdx.x; i < layer.slabs * kTileRuns; i += heads * kHeadThreads) {
    runs[i] = describe_run(cache, layer.runs, i);
  }
  const int start = block.first + own_tile() * kTileTokens;
  const uint8_t* page = nullptr;
  if (start < block.end && start + kTileTokens > rows.begin) {
    page = cache.page(rows.sequence, start / kPageTokens) + start / kTileTokens % kPageTiles * cache.keys.tile_bytes;
  }
  // Codes are loaded two slabs ahead, and stored one ahead.
  Raw raw[kItems<heads>] = {};
  Sums sums = {};
  const auto load = [&](int slab, Stage<heads>& stage) {
    if (slab < layer.slabs) load_basis(layer, block.head, slab, stage.basis[own]);
    commit_copies();
  };
  load(0, stages[0]);
  load(1, stages[1]);
  __syncthreads();
  if (layer.slabs > 0) {
    load_codes<heads>(page, runs, 0, raw);
    store_codes<heads>(runs, 0, raw, stages[0].codes);
  }
  if (layer.slabs > 1) load_codes<heads>(page, runs, 1, raw);
#pragma unroll 1
  for (int slab = 0, at = 0; slab < layer.slabs; ++slab) {
    const int next = at + 1 == kStages ? 0 : at + 1, after = next + 1 == kStages ? 0 : next + 1;
    wait_copies<kStages - 2>();
    publish_operands();
    __syncthreads();
    multiply(stages[at].codes, stages[at].basis[own], sums);
    load(slab + 2, stages[after]);
    if (slab + 1 < layer.slabs) store_codes<heads>(runs, slab + 1, raw, stages[next].codes);
    if (slab + 2 < layer.slabs) load_codes<heads>(page, runs, slab + 2, raw);
    finish(sums);
    at = next;
  }
  wait_copies<0>();
  __syncthreads();
  auto* angles = reinterpret_cast<PageAngles*>(begin);
  for (int i = own; i < kUnitPages; i += heads) {
    const int page = block.first / kPageTokens + i;
    if (page * kPageTokens < rows.end) page_angles(cache, page, threadIdx.x % kHeadThreads, angles[i]);
  }
  __syncthreads();
  const unsigned stored = copy_exact_keys(cache, rows, block, angles);
  write_keys(cache, rows, layer, block, angles, stored, sums);
}

/// That a block can have on this GPU.
size_t most_shared_bytes() {
  int device = 0, bytes = 0;
  check_cuda("dequantize", cudaGetDevice(&device));
  check_cuda("dequantize", cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return static_cast<size_t>(bytes);
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
  const size_t runs = static_cast<size_t>(layer.slabs * kTileRuns) * sizeof(uint32_t);
  const auto start = [&](auto kernel, int heads, size_t bytes) {
    const int groups = (cache.kv_heads + heads - 1) / heads;
    launch("dequantize", kernel,
           {dim3(static_cast<unsigned>(units * groups)), static_cast<unsigned>(heads * kHeadThreads), bytes, stream},
           cache, rows, layer);
  };
  const size_t of_two = kAlign + kStages * sizeof(Stage<2>) + runs;
  if (can_start_early("dequantize") && of_two <= most_shared_bytes()) {
    start(dequantize_layer_kernel<2>, 2, of_two);
  } else {
    start(dequantize_layer_kernel<1>, 1, kStages * sizeof(Stage<1>) + runs);
  }
  dequantize_values(cache, rows, stream);
}

}  // namespace kvquant::cuda
