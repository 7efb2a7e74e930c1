/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append of a prompt's chunk to svdq in a basis over all heads, head_dim 128, without a window: the part for keys, the
// same bytes as append_basis.cu leaves. A block takes 128 tokens and eight runs of stored places; tensor cores multiply
// tokens, which are halves, with the basis as two halves each (layer_basis.h), 64 channels at a time, three of which
// are on their way through shared memory. Where a sum is so near to a border between codes that the portable operator,
// whose sums are rounded, might have the other code, it is done again with its additions in its order: up to eight such
// codes of a warp at a time, whose products it makes together, a lane for the sum of one.
//
// An H100, svdq2.25, 8192 tokens of 8 kv heads, values of 4 bits included (append_values.cu): 91 us, 18 % of the speed
// of a copy, of which keys take 66; 105 us with products of warps, a wider margin around borders and values that branch
// for each code, 143 us with addresses worked out for each copy. No faster: codes done again in another kernel, rows
// for them brought to L2 ahead. Slower, 111 us: 128 places of a block, high and low parts in one sum, for half of the
// reads.
#include "codes.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "layer_basis.h"
#include "tile_rows.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = kRowDim, kWarps = 4, kThreads = kWarps * kWarp, kStages = 3;
constexpr int kUnit = 128, kTiles = kUnit / kTileTokens;  // tokens of a block
constexpr int kChunks = kSlab / 8, kOwnRows = kUnit * kChunks / kThreads;
constexpr int kAgain = 8;  // codes that a warp does again at a time
constexpr int kProductStride = kDim + 4, kCodeStride = kUnit + 16;

/// Of a stage: swizzled_operand.
constexpr int kAlign = 1024;

struct Stage {
  uint8_t tokens[kUnit * kSlabBytes], basis[2][kTilePlaces * kSlabBytes];
};
/// Lies where stages were.
struct Codes {
  uint8_t at[kTilePlaces][kCodeStride];
  float products[kWarps][kAgain][kProductStride];
  uint16_t doubts[kTilePlaces * kUnit];  // place * 128 + token
};
static_assert(sizeof(Codes) <= kStages * sizeof(Stage), "one memory for both");

struct LayerParts {
  StoredRuns runs;
  int tiles;
  const uint8_t* rows;  // of the basis
  const PlaceScale* scales;
};

/// What a block works on.
struct Part {
  TokenRun run;
  int first, tile;         // token; of places
  const uint16_t* tokens;  // keys of the first of the run, from the thread's chunk on
  int stride;              // from one token to the next

  /// Run i of the tile among those of all heads: its head, and which of the head's runs it is.
  __device__ int index(int i) const { return tile * kTileRuns + i; }
};

__device__ __forceinline__ int own_row(int i) { return threadIdx.x / kChunks + i * (kThreads / kChunks); }

__device__ __forceinline__ uint8_t* own_chunk(Stage& stage, int i) {
  return stage.tokens + own_row(i) * kSlabBytes + ((threadIdx.x % kChunks) ^ (own_row(i) % 8)) * 16;
}

/// Starts copies of a slab; offsets: of the thread's rows.
__device__ __forceinline__ void load_slab(const Part& part, const int (&offsets)[kOwnRows], const uint8_t* basis,
                                          int slab, Stage& stage) {
  const uint8_t* from = basis + static_cast<int64_t>(slab) * sizeof(stage.basis) + threadIdx.x * 16;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(stage.basis)) / 16 / kThreads; ++i) {
    copy_async(stage.basis[0] + (i * kThreads + threadIdx.x) * 16, from + i * kThreads * 16);
  }
  const uint16_t* tokens = part.tokens + slab * kSlab;
#pragma unroll
  for (int i = 0; i < kOwnRows; ++i) copy_async(own_chunk(stage, i), tokens + offsets[i]);
}

__device__ __forceinline__ uint32_t halves_of(uint32_t two) {
  return two_halves(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u));
}

/// What this thread has copied, from BFLOAT16.
__device__ __forceinline__ void convert_own(Stage& stage) {
#pragma unroll
  for (int i = 0; i < kOwnRows; ++i) {
    auto* at = reinterpret_cast<uint4*>(own_chunk(stage, i));
    const uint4 x = *at;
    *at = make_uint4(halves_of(x.x), halves_of(x.y), halves_of(x.z), halves_of(x.w));
  }
}

/// What a warp has of a block's products: sums of 16 tokens and a run, high parts of the basis and then low ones.
#ifdef KVQUANT_WARPGROUP_MMA
constexpr int kOwnTiles = 2, kOwnRuns = 8;
__device__ __forceinline__ int first_token(int tile) { return tile * 64 + threadIdx.x / kWarp * 16; }
__device__ __forceinline__ int first_run() { return 0; }

__device__ __forceinline__ void multiply(const Stage& stage, float (&sums)[kOwnTiles][2 * kOwnRuns][4]) {
  const uint64_t tokens = swizzled_operand(stage.tokens), basis = swizzled_operand(stage.basis);
  begin_products();
#pragma unroll
  for (int k = 0; k < kSlab / 16; ++k) {
#pragma unroll
    for (int i = 0; i < kOwnTiles; ++i) {
      warpgroup_mma(sums[i], tokens + i * (64 * kSlabBytes / 16) + 2 * k, basis + 2 * k, 1);
    }
  }
  commit_products();
  wait_products();
#pragma unroll
  for (int i = 0; i < kOwnTiles; ++i) settle(sums[i]);
}
#else
constexpr int kOwnTiles = 4, kOwnRuns = 4;
__device__ __forceinline__ int first_token(int tile) { return threadIdx.x / kWarp / 2 * 64 + tile * 16; }
__device__ __forceinline__ int first_run() { return threadIdx.x / kWarp % 2 * kOwnRuns; }

__device__ __forceinline__ void multiply(const Stage& stage, float (&sums)[kOwnTiles][2 * kOwnRuns][4]) {
  const int lane = threadIdx.x % kWarp;
  const uint8_t* tokens = stage.tokens + (first_token(0) + lane % 16) * kSlabBytes;
  const int row = first_run() * kRunPlaces + lane % 8 + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kSlab / 16; ++k) {
    uint32_t a[kOwnTiles][4], b[kOwnRuns][4];
    const int a_chunk = ((2 * k + lane / 16) ^ (lane % 8)) * 16, b_chunk = ((2 * k + lane / 8 % 2) ^ (lane % 8)) * 16;
#pragma unroll
    for (int i = 0; i < kOwnTiles; ++i) load_matrices(a[i], tokens + i * 16 * kSlabBytes + a_chunk);
#pragma unroll
    for (int i = 0; i < kOwnRuns; ++i) {  // of two runs each
      load_matrices(b[i], stage.basis[i / 2] + (row + i % 2 * 16) * kSlabBytes + b_chunk);
    }
#pragma unroll
    for (int j = 0; j < 2 * kOwnRuns; ++j) {
#pragma unroll
      for (int i = 0; i < kOwnTiles; ++i) {
        mma(sums[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
}
#endif

/// Does codes in doubt again, from `begin` on; a warp's work.
__device__ __forceinline__ void code_again(const CacheView& cache, const Part& part, const StoredRuns& runs, bool brain,
                                           int begin, int count, Codes& codes) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, heads = cache.kv_heads;
  auto& products = codes.products[warp];
  const int doubt = codes.doubts[begin + min(lane, count - 1)], run = part.index(doubt / kUnit / kRunPlaces);
  const int place = runs.run[run % runs.count] * kRunPlaces + doubt / kUnit % kRunPlaces;
  const int own_place = run / runs.count * kDim + place;
  const int own_token = part.first + doubt % kUnit - part.run.begin;
  const float* basis = cache.keys.basis + lane * 4;
  const uint16_t* tokens = part.tokens - threadIdx.x % kChunks * 8 + lane * 4;
  int row_at[kAgain], token_at[kAgain];
#pragma unroll
  for (int i = 0; i < kAgain; ++i) {
    row_at[i] = __shfl_sync(0xffffffffu, own_place, i) * heads * kDim;
    token_at[i] = __shfl_sync(0xffffffffu, own_token, i) * part.stride;
  }
  float4 row[kAgain], mean = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  uint2 token[kAgain];
  const auto load = [&](int head) {
#pragma unroll
    for (int i = 0; i < kAgain; ++i) {
      row[i] = *reinterpret_cast<const float4*>(basis + row_at[i] + head * kDim);
      token[i] = *reinterpret_cast<const uint2*>(tokens + token_at[i] + head * kDim);
    }
    if (cache.keys.mean != nullptr) mean = *reinterpret_cast<const float4*>(cache.keys.mean + head * kDim + lane * 4);
  };
  load(0);
  float sum = 0.0f;
#pragma unroll 1
  for (int head = 0; head < heads; ++head) {
#pragma unroll
    for (int i = 0; i < kAgain; ++i) {
      const uint2 two = brain ? make_uint2(halves_of(token[i].x), halves_of(token[i].y)) : token[i];
      const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&two.x));
      const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&two.y));
      // Less a mean of zero it is what it was.
      *reinterpret_cast<float4*>(products[i] + lane * 4) =
          make_float4(__fmul_rn(row[i].x, __fsub_rn(low.x, mean.x)), __fmul_rn(row[i].y, __fsub_rn(low.y, mean.y)),
                      __fmul_rn(row[i].z, __fsub_rn(high.x, mean.z)), __fmul_rn(row[i].w, __fsub_rn(high.y, mean.w)));
    }
    __syncwarp();
    if (head + 1 < heads) load(head + 1);
    const auto* fours = reinterpret_cast<const float4*>(products[lane % kAgain]);
#pragma unroll
    for (int i = 0; i < kDim / 4; ++i) {
      const float4 four = fours[i];
      sum = __fadd_rn(__fadd_rn(__fadd_rn(__fadd_rn(sum, four.x), four.y), four.z), four.w);
    }
    __syncwarp();
  }
  if (lane < count) {
    const float* range = cache.keys.steps + 2 * own_place;
    codes.at[doubt / kUnit][doubt % kUnit] = static_cast<uint8_t>(
        static_code(sum, range[0], range[1], 1.0f / range[1], cache.keys.width[place / kRunPlaces]));
  }
}

/// A tile's codes of a place, a byte each, as 16 * bits bits; bits < 8.
__device__ __forceinline__ uint64_t packed(uint4 codes, int bits) {
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
  uint64_t all = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t x = words[i];
    x = (x & 0x00ff00ffu) | (x & 0xff00ff00u) >> (8 - bits);
    x = (x & 0xffffu) | x >> (16 - 2 * bits);
    all |= static_cast<uint64_t>(x & ((1u << (4 * bits)) - 1u)) << (4 * bits * i);
  }
  return all;
}

/// Codes of a tile of a place to its page; of tokens outside [first, last) they stay.
__device__ __forceinline__ void put_tile(uint4 codes, int bits, int first, int last, uint8_t* field) {
  const bool whole = first == 0 && last == kTileTokens;
  if (whole && bits == 8) {
    *reinterpret_cast<uint4*>(field) = codes;
    return;
  }
  const uint64_t all = bits == 8 ? codes.x | static_cast<uint64_t>(codes.y) << 32 : packed(codes, bits);
  const uint64_t rest = codes.z | static_cast<uint64_t>(codes.w) << 32;  // 8 bits
  if (whole && bits == 4) {
    *reinterpret_cast<uint2*>(field) = make_uint2(static_cast<uint32_t>(all), static_cast<uint32_t>(all >> 32));
    return;
  }
  if (whole && bits == 2) {
    *reinterpret_cast<uint32_t*>(field) = static_cast<uint32_t>(all);
    return;
  }
  auto* to = reinterpret_cast<uint16_t*>(field);
#pragma unroll 1
  for (int i = 0; i < bits; ++i) {
    const auto below = [&](int token) { return (1u << min(max(token * bits - 16 * i, 0), 16)) - 1u; };
    const uint32_t ones = below(last) & ~below(first),
                   now = static_cast<uint32_t>((i < 4 ? all : rest) >> (i % 4 * 16));
    if (ones != 0) to[i] = static_cast<uint16_t>((ones == 0xffffu ? 0u : to[i] & ~ones) | (now & ones));
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    append_layer_tiles_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows,
                              const __grid_constant__ LayerParts parts) {
  KVQUANT_DYNAMIC_SHARED(memory);
  __shared__ int doubts;
  release_next_kernel();
  const TokenRun run = unit_run<kUnit>(cache, rows, blockIdx.x / parts.tiles);
  if (run.begin >= run.end) return;
  const int first = run.begin / kUnit * kUnit, stride = (cache.heads + 2 * cache.kv_heads) * kDim;
  const Part part{run, first, static_cast<int>(blockIdx.x % parts.tiles),
                  static_cast<const uint16_t*>(rows.tokens.qkv) +
                      rows.key(cache, run.b, run.begin - cache.length(run.b), 0) + threadIdx.x % kChunks * 8,
                  stride};
  int offsets[kOwnRows];  // of tokens that are not appended: of others
#pragma unroll
  for (int i = 0; i < kOwnRows; ++i) {
    offsets[i] = (min(max(first + own_row(i), run.begin), run.end - 1) - run.begin) * stride;
  }
  auto* stages = reinterpret_cast<Stage*>(memory + (kAlign - reinterpret_cast<uintptr_t>(memory) % kAlign) % kAlign);
  const int slabs = cache.kv_heads * kDim / kSlab;
  const uint8_t* basis = parts.rows + static_cast<int64_t>(part.tile) * slabs * sizeof(stages[0].basis);
  const bool brain = rows.tokens.type == ElementType::kBFloat16;
  if (threadIdx.x == 0) doubts = 0;
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    load_slab(part, offsets, basis, i, stages[i]);  // a layer has four slabs at least
    commit_copies();
  }
  float sums[kOwnTiles][2 * kOwnRuns][4] = {}, most[kOwnTiles][kOwnRuns][2] = {};
#pragma unroll 1
  for (int slab = 0, at = 0; slab < slabs; ++slab, at = at + 1 == kStages ? 0 : at + 1) {
    wait_copies<kStages - 2>();
    if (brain) convert_own(stages[at]);
    publish_operands();
    __syncthreads();
    const int next = slab + kStages - 1;
    if (next < slabs) load_slab(part, offsets, basis, next, stages[at == 0 ? kStages - 1 : at - 1]);
    commit_copies();
    multiply(stages[at], sums);
#pragma unroll
    for (int i = 0; i < kOwnTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kOwnRuns; ++j) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          most[i][j][r] = fmaxf(most[i][j][r], fmaxf(fabsf(sums[i][j][2 * r]), fabsf(sums[i][j][2 * r + 1])));
        }
      }
    }
  }
  wait_copies<0>();
  __syncthreads();
  auto& codes = *reinterpret_cast<Codes*>(stages);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, c = lane % 4;
  const int all_runs = cache.kv_heads * parts.runs.count;
#pragma unroll
  for (int j = 0; j < kOwnRuns; ++j) {
    const int in_tile = first_run() + j, index = part.index(in_tile);
    const int width = cache.keys.width[parts.runs.run[index % parts.runs.count]];
    const float levels = static_cast<float>((1 << width) - 1);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int place = in_tile * kRunPlaces + 2 * c + e;
      const float4 scale = reinterpret_cast<const float4*>(parts.scales)[part.tile * kTilePlaces + place];
#pragma unroll
      for (int i = 0; i < 2 * kOwnTiles; ++i) {
        const int token = first_token(i / 2) + i % 2 * 8 + g;
        const float sum = sums[i / 2][j][i % 2 * 2 + e] + sums[i / 2][j + kOwnRuns][i % 2 * 2 + e];
        const float at = fminf(fmaxf(fmaf(sum, scale.x, scale.y), 0.0f), levels), code = rintf(at);
        const bool clear =
            fabsf(at - code) < 0.5f - fmaf(scale.z, most[i / 2][j][i % 2], scale.w) && fabsf(sum) < 3e38f;
        codes.at[place][token] = static_cast<uint8_t>(static_cast<int>(code));
        const bool there = part.first + token >= run.begin && part.first + token < run.end && index < all_runs;
        if (!clear && there) codes.doubts[atomicAdd(&doubts, 1)] = static_cast<uint16_t>(place * kUnit + token);
      }
    }
  }
  __syncthreads();
  const int again = min((doubts + kWarps - 1) / kWarps, kAgain);
  for (int begin = warp * again; begin < doubts; begin += kWarps * again) {
    code_again(cache, part, parts.runs, brain, begin, min(doubts - begin, again), codes);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kTilePlaces * kTiles / kThreads; ++i) {
    const int item = i * kThreads + threadIdx.x, place = item % kRunPlaces, tile = item / kRunPlaces % kTiles;
    const int in_tile = item / (kRunPlaces * kTiles), index = part.index(in_tile),
              start = part.first + tile * kTileTokens;
    const int first = max(run.begin - start, 0), last = min(run.end - start, kTileTokens);
    if (first >= last || index >= all_runs) continue;
    const int own = parts.runs.run[index % parts.runs.count], bits = cache.keys.width[own];
    uint8_t* to = cache.page(run.b, start / kPageTokens) +
                  cache.keys.tile(index / parts.runs.count, start / kTileTokens % kPageTiles) +
                  cache.keys.run_begin[own] + place * 2 * bits;
    put_tile(*reinterpret_cast<const uint4*>(codes.at[in_tile * kRunPlaces + place] + tile * kTileTokens), bits, first,
             last, to);
  }
}

}  // namespace

bool append_layer_tiles_supports(const CacheView& cache, const NewTokens& tokens) {
  return cache.head_dim == kDim && cache.window == 0 && cache.keys.format == Format::kStatic &&
         cache.keys.basis_heads > 1 && cache.keys.latent != nullptr && cache.keys_pre_rope != 0 &&
         reinterpret_cast<uintptr_t>(cache.keys.basis) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(cache.keys.mean) % 16 == 0 && tokens.type != ElementType::kFloat32 &&
         aligned_rows(tokens);
}

void append_layer_tiles(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  LayerParts parts;
  parts.runs = stored_runs_of(cache.keys.width);
  if (parts.runs.count == 0) return;
  parts.tiles = parts.runs.tiles(cache.kv_heads);
  parts.rows = cache.keys.latent;
  parts.scales = reinterpret_cast<const PlaceScale*>(cache.keys.latent + layer_rows_bytes(cache.kv_heads, parts.runs)) -
                 parts.tiles * kTilePlaces;
  const auto blocks = static_cast<unsigned>((tokens.count / kUnit + 2 * cache.batch) * parts.tiles);
  launch("append", append_layer_tiles_kernel, {dim3(blocks), kThreads, kStages * sizeof(Stage) + kAlign, stream}, cache,
         NewRows{tokens}, parts);
}

}  // namespace kvquant::cuda
