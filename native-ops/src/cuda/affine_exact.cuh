/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// What a sequence keeps exactly, sinks and the window, in attend_affine.cu: the parts of a sequence share it, 16 tokens
// at a time, after their rounds. Three warps of a block take each kv head's.
#pragma once
#include "affine_layout.cuh"
#include "finish_keys.cuh"

namespace kvquant::cuda::affine {

constexpr int kExactWarps = kWarps / kTeam;

template <int D>
struct Exact {
  const CacheView& cache;
  const Work& work;
  int sink, first_run, units;  // the token in a lane's slot of sinks; the first 16 tokens of the window; all 16 tokens

  __device__ __forceinline__ Exact(const CacheView& cache, const Work& work, int sink)
      : cache(cache), work(work), sink(sink) {
    first_run = work.coded / kTileTokens;
    units = cache.exact_runs(work.coded, work.length);
  }

  /// Whether there is a share for the block.
  __device__ __forceinline__ bool any() const { return work.part < units; }

  /// Leaves sums of the block's share, a warp's in its scratch. The whole block calls it.
  __device__ __forceinline__ void attend(const Attention& p, ExactState<D>& state, MergeScratch<kWarps>& merge) const {
    using Tile = Fp16Tile<D>;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, own = warp / kExactWarps;
    const int head = work.first_head + own, per_head = cache.heads / cache.kv_heads;
    fill_page_angles<D>(cache, &state.angles[0][0]);
    for (int i = 0; i < kTeam; ++i) {
      const int kv_head = work.first_head + i;
      turn_queries<D>(cache, p, {work.b, work.part, kv_head, kv_head * per_head + work.first_query, work.queries},
                      &state.queries[i][0][0]);
    }
    __syncthreads();
    uint32_t q[D / 8];
    load_operands<D>(&state.queries[own][0][0], lane, q);
    unsigned char* halves = state.scratch[warp];
    Softmax softmax;
    float sums[Tile::kBlocks][4] = {};
#pragma unroll 1
    for (int unit = work.part + warp % kExactWarps * work.parts; unit < units; unit += kExactWarps * work.parts) {
      const bool is_sink = unit < cache.sink_pages;
      const int first = (first_run + unit - cache.sink_pages) * kTileTokens;
      const int of_slot = __shfl_sync(0xffffffffu, sink, (unit * kExactTokens + lane % kExactTokens) % kWarp);
      const int position = is_sink ? of_slot : first + lane % kTileTokens;
      const bool exists = is_sink ? of_slot >= 0 : position >= work.coded && position < work.length;
      uint32_t valid = __ballot_sync(0xffffffffu, exists) & 0xffffu;
      const int place = sink - first;
      if (!is_sink) {
        valid &= ~__reduce_or_sync(0xffffffffu, sink >= 0 && place >= 0 && place < kTileTokens ? 1u << place : 0u);
      }
      if (valid == 0) continue;
      const uint8_t* page = is_sink ? cache.sink_page(work.b, unit) : cache.window_page(work.b, first);
      float scores[4] = {};
      {
        float k[D / kWarp][kTileTokens];
        read_exact_tile<D>(page + cache.exact_key(head, 0), lane, k);
        turn_tokens<D, false>(cache, &state.angles[0][0], exists ? position : 0, lane, k);
        put_halves<D>(k, lane, halves);
      }
      Tile::score(scores, halves, q, lane);
      Tile::weigh(softmax, sums, scores, valid, lane);
      __syncwarp();
      Tile::copy(halves, page + cache.exact_value(head, 0), lane);
      commit_copies();
      wait_copies<0>();
      __syncwarp();
      Tile::add_values(sums, halves, scores, valid, lane);
      __syncwarp();
    }
    put_sums<D>(reinterpret_cast<float*>(halves), sums, lane);
    publish(merge, softmax, warp, lane);
  }

  /// Adds the block's share for a query of a head, after a barrier.
  __device__ __forceinline__ void add(const ExactState<D>& state, const MergeScratch<kWarps>& merge, int head,
                                      int query, MergedHead<D / kWarp>& merged) const {
    merged.add(merge_head<D, kWarps>(merge, reinterpret_cast<const float*>(state.scratch), ExactState<D>::kScratch / 4,
                                     query, false, kHeads, head * kExactWarps, (head + 1) * kExactWarps));
  }
};

}  // namespace kvquant::cuda::affine
