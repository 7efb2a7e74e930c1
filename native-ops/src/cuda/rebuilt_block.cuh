/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// A block of attend_rebuilt.cu: its shared memory, tables, attention to what is kept exactly, and sums.
#pragma once
#include "exact_part.cuh"

namespace kvquant::cuda::rebuilt {

constexpr int kDim = 128, kPairs = kDim / 2, kThreads = 512, kWarps = kThreads / kWarp;
constexpr int kRun = kDim / kWidthRuns;  // places of a run
constexpr int kGroupPages = 2, kTiles = kGroupPages * kPageTiles;
constexpr int kMakers = kWarps / 2;                                  // warps that make keys; the others attend to them
constexpr int kMostUnits = kWidthRuns * kGroupPages / (kWarps / 2);  // of a warp: a unit is a run of a page
constexpr int kRowBytes = kTileTokens * 2;                           // of a place or channel of a tile of halves
constexpr int kTileStride = kDim * kRowBytes + 32;                   // the excess keeps tiles in different banks
using KeyTile = Fp16Tile<kDim>;
static_assert(kWarps - kMakers == kTiles, "a warp attends to a tile");

/// Where things lie in a block's shared memory, and which runs of places are read: with a basis those that are stored.
struct Layout {
  int runs, places, depth;  // runs of a head; their places, filled up to 16; of all heads of the basis
  int row_bytes;            // of a channel's factors: an odd number of 16 bytes, for ldmatrix
  int codes, keys, values, state, bytes;
  int value_bytes;  // of a tile's codes of values; 0: values are read as they are
  uint8_t run[kWidthRuns];

  __host__ __device__ int codes_bytes() const { return depth > 0 ? places * kTiles * kRowBytes : 0; }
};

struct SharedState {
  float4 angles[kPairs][kTileTokens / 2];  // {cosine, sine} of two positions; see angle_at
  float queries[kHeads][kDim], constants[kDim], biases[kHeads];
  uint32_t operands[kHeads][kDim / 2 + 4];  // queries as halves; the excess keeps heads in different banks
  uint32_t levels[256];                     // of values: see fill_levels
  MergeScratch<kTiles> scratch;
};

/// Bits of the 16 tokens from first on that are in [begin, end) and no sinks.
__device__ __forceinline__ uint32_t tokens_between(int first, int begin, int end, uint32_t sinks) {
  const auto below = [first](int limit) { return (1u << min(max(limit - first, 0), kTileTokens)) - 1u; };
  return below(end) & ~below(begin) & ~(first < kSinkBits ? sinks >> first : 0u);
}

/// Which entry of a pair's angles holds positions 2 i and 2 i + 1: lanes that read other pairs get other banks.
__device__ __forceinline__ int angle_at(int pair, int i) { return i ^ ((pair & 1) << 2 | (pair >> 1 & 3)); }

struct Block {
  const CacheView& cache;
  const Layout& layout;
  unsigned char* shared;
  BlockHeads heads;
  int lane, warp;

  __device__ SharedState& state() const { return *reinterpret_cast<SharedState*>(shared + layout.state); }
  __device__ unsigned char* key_tile(int tile) const { return shared + layout.keys + tile * kTileStride; }
  /// The first head whose places keys are made of.
  __device__ int first_head() const { return heads.kv_head - heads.kv_head % max(1, cache.keys.basis_heads); }

  __device__ void fill_tables(const Attention& p) const;
  __device__ MergedHead<kDim / kWarp> attend_exactly() const;
  __device__ MergedHead<kDim / kWarp> merge(bool rotated) const;

  /// Second operands for KeyTile::score.
  __device__ __forceinline__ void load_queries(uint32_t (&q)[kDim / 8]) const {
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) q[i] = state().operands[lane / 4][4 * i + lane % 4];
  }
  /// The place of a tile's sums until they are merged: that of factors.
  __device__ float* sums_of(int tile) const {
    return reinterpret_cast<float*>(shared) + tile * kHeads * kMergeStride<kDim>;
  }
};

/// Halves of the levels that two codes of values stand for, or one of 8 bits.
__device__ inline void fill_levels(const SideView& values, uint32_t* levels) {
  const int bits = values.bits, mask = (1 << bits) - 1;
  for (int i = threadIdx.x; i < (bits == 8 ? 256 : 1 << (2 * bits)); i += kThreads) {
    levels[i] = bits == 8 ? pack_halves(values.levels[i], 0.0f)
                          : pack_halves(values.levels[i & mask], values.levels[i >> bits]);
  }
}

__device__ inline void Block::fill_tables(const Attention& p) const {
  SharedState& s = state();
  turn_queries<kDim>(cache, p, heads, &s.queries[0][0]);
  for (int i = threadIdx.x; i < kPairs * kTileTokens / 2; i += kThreads) {
    const int pair = i / (kTileTokens / 2), at = i % (kTileTokens / 2);
    const float *cosines = cache.rope + pair * kPageTokens + 2 * at, *sines = cosines + kPairs * kPageTokens;
    s.angles[pair][angle_at(pair, at)] = make_float4(cosines[0], sines[0], cosines[1], sines[1]);
  }
  if (layout.value_bytes > 0) fill_levels(cache.values, s.levels);
  __syncthreads();
  for (int i = threadIdx.x; i < kHeads * kDim / 2; i += kThreads) {
    const int head = i / (kDim / 2), at = i % (kDim / 2);
    s.operands[head][at] = pack_halves(s.queries[head][2 * at], s.queries[head][2 * at + 1]);
  }
  if (warp < kHeads) {  // what scores of coded keys lack: see core/score_bias.h
    float sum = 0.0f;
    for (int c = lane; c < kDim && cache.keys.noise != nullptr; c += kWarp) {
      const float q = s.queries[warp][c];
      sum = fmaf(q * q, cache.keys.noise[heads.kv_head * kDim + c], sum);
    }
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) s.biases[warp] = 0.5f / kLog2e * sum;
  }
  __syncthreads();
}

/// After sums of all tiles have been put: their sum for a warp's own head, of the first 8 warps.
__device__ inline MergedHead<kDim / kWarp> Block::merge(bool rotated) const {
  MergedHead<kDim / kWarp> merged;
  __syncthreads();
  if (warp < kHeads) {
    merged = merge_head<kDim, kTiles>(state().scratch, sums_of(0), kHeads * kMergeStride<kDim>, warp, rotated);
  }
  __syncthreads();
  return merged;
}

/// Sinks and the window: one of the first 8 warps takes 16 tokens, turns their keys and attends to them.
__device__ inline MergedHead<kDim / kWarp> Block::attend_exactly() const {
  const uint32_t sinks = find_sinks(cache, heads.b, lane);
  const int length = cache.length(heads.b) + 1, begin = cache.quantized(heads.b, length);
  const int first_run = begin / kTileTokens, runs = (length + kTileTokens - 1) / kTileTokens;
  const int units = cache.sink_pages + (cache.window > 0 ? runs - first_run : 0);
  unsigned char* own = key_tile(warp % kTiles);
  Softmax softmax;
  float sums[KeyTile::kBlocks][4] = {};
  for (int unit = warp; warp < kTiles && unit < units; unit += kTiles) {
    const bool of_sinks = unit < cache.sink_pages;
    const int token = (of_sinks ? unit : first_run + unit - cache.sink_pages) * kTileTokens;
    const uint32_t valid = of_sinks ? sinks >> token & 0xffffu : tokens_between(token, begin, length, sinks);
    if (valid == 0) continue;
    const uint8_t* page = of_sinks ? cache.sink_page(heads.b, unit) : cache.window_page(heads.b, token);
    for (int pair = lane; pair < kPairs; pair += kWarp) {
      const float2 base = rope_angle(cache, token, pair);
      const auto* low = reinterpret_cast<const __half2*>(page + cache.exact_key(heads.kv_head, pair));
      const auto* high = reinterpret_cast<const __half2*>(page + cache.exact_key(heads.kv_head, pair + kPairs));
#pragma unroll
      for (int i = 0; i < kTileTokens / 2; ++i) {
        const float4 angle = state().angles[pair][angle_at(pair, i)];
        const float2 x = __half22float2(low[i]), y = __half22float2(high[i]);
        const float2 one = make_float2(base.x * angle.x - base.y * angle.y, base.y * angle.x + base.x * angle.y);
        const float2 two = make_float2(base.x * angle.z - base.y * angle.w, base.y * angle.z + base.x * angle.w);
        const int half = i / 4, byte = i % 4 * 4;
        *reinterpret_cast<uint32_t*>(own + KeyTile::swizzled(pair, half) + byte) =
            pack_halves(x.x * one.x - y.x * one.y, x.y * two.x - y.y * two.y);
        *reinterpret_cast<uint32_t*>(own + KeyTile::swizzled(pair + kPairs, half) + byte) =
            pack_halves(y.x * one.x + x.x * one.y, y.y * two.x + x.y * two.y);
      }
    }
    __syncwarp();
    uint32_t q[kDim / 8];
    load_queries(q);
    float scores[4] = {};
    KeyTile::score(scores, own, q, lane);
    __syncwarp();
    KeyTile::copy(own, page + cache.exact_value(heads.kv_head, 0), lane);
    commit_copies();
    KeyTile::weigh(softmax, sums, scores, valid, lane);
    wait_copies<0>();
    __syncwarp();
    KeyTile::add_values(sums, own, scores, valid, lane);
    __syncwarp();
  }
  if (warp < kTiles) {
    put_sums<kDim>(sums_of(warp), sums, lane);
    publish(state().scratch, softmax, warp, lane);
  }
  return merge(false);
}

}  // namespace kvquant::cuda::rebuilt
