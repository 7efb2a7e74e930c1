/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// A tile of keys in static codes on its way from shared memory to a page; a warp's work or, of a head_dim of 64, that
// of half a warp: lane is then one of 16.
#pragma once
#include "tile_rows.cuh"

namespace kvquant::cuda {

template <int D = kRowDim>
constexpr int kStaticRun = D / kWidthRuns;  // places of a run

/// Of tokens outside [first, last) codes stay as they are in `old`; `tile`: of the whole tile.
template <int D>
static __device__ __noinline__ void keep_codes(const CacheView& cache, int first, int last, const uint8_t* old,
                                               uint8_t* tile, int lane) {
  for (int place = lane; place < D; place += kHeadLanes<D>) {
    const int run = place / kStaticRun<D>, bits = cache.keys.width[run];
    const int field = cache.keys.run_begin[run] + place % kStaticRun<D> * 2 * bits;
    for (int half = 0; half < bits; ++half) {
      const auto below = [&](int token) { return (1u << min(max(token * bits - 16 * half, 0), 16)) - 1u; };
      const uint32_t ones = below(last) & ~below(first);
      auto& now = reinterpret_cast<uint16_t*>(tile + field)[half];
      now = static_cast<uint16_t>((now & ones) | (reinterpret_cast<const uint16_t*>(old + field)[half] & ~ones));
    }
  }
}

/// Copies a tile of codes, which a warp has left, to its page; tokens outside [first, last) stay as they are there.
/// to: nullptr of a head of 64 that is missing.
template <int D = kRowDim>
__device__ __forceinline__ void store_tile(const CacheView& cache, int first, int last, uint8_t* tile, uint8_t* to,
                                           int lane) {
  using Word = std::conditional_t<D == kRowDim, uint4, uint2>;  // tiles are multiples of it
  const bool mine = D == kRowDim || to != nullptr;
  __syncwarp();
  if (first != 0 || last != kTileTokens) {
    if (mine) keep_codes<D>(cache, first, last, to, tile, lane);
    __syncwarp();
  }
  for (int at = lane * sizeof(Word); mine && at < cache.keys.tile_bytes; at += kHeadLanes<D> * sizeof(Word)) {
    *reinterpret_cast<Word*>(to + at) = *reinterpret_cast<const Word*>(tile + at);
  }
  __syncwarp();
}

}  // namespace kvquant::cuda
