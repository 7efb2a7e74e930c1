/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Decode attention over fp16 pages, keys after RoPE. A block takes a part of a sequence's tiles for one kv head, its
// warps take tiles in turn, each through a buffer of its own: while it works on keys, its values are under way, and the
// other way round. With 16 warps on a multiprocessor some 100 KB are, more than memory needs to be busy.
#include "kernels.h"
#include "launch.cuh"
#include "queries.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kWarps = 8;

template <int D>
struct Shared {
  using Tile = Fp16Tile<D>;
  static constexpr int kWarpBytes = 2 * Tile::kBytes;  // keys, values; then sums
  static_assert(kHeads * kMergeStride<D> * 4 <= kWarpBytes, "sums fit where tiles were");
  static constexpr int kQueries = kWarps * kWarpBytes;
  static constexpr int kScratch = kQueries + kHeads * D * 4;
  static constexpr int kBytes = kScratch + static_cast<int>(sizeof(MergeScratch<kWarps>));
};

template <int D>
__global__ void __launch_bounds__(kWarps* kWarp, 2)
    attend_fp16_kernel(const __grid_constant__ CacheView cache, Attention p) {
  using Tile = Fp16Tile<D>;
  using Layout = Shared<D>;
  KVQUANT_DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const BlockHeads heads = block_heads(cache);
  release_next_kernel();
  const int tokens = cache.quantized(heads.b, cache.length(heads.b) + 1);
  const int tiles = (tokens + kTileTokens - 1) / kTileTokens;
  const int begin = static_cast<int>(static_cast<int64_t>(tiles) * heads.part / p.parts);
  const int end = static_cast<int>(static_cast<int64_t>(tiles) * (heads.part + 1) / p.parts);
  if (begin == end) return write_empty(cache, p, heads);

  unsigned char* keys = shared + warp * Layout::kWarpBytes;
  unsigned char* values = keys + Tile::kBytes;
  auto* queries = reinterpret_cast<float*>(shared + Layout::kQueries);
  auto& scratch = *reinterpret_cast<MergeScratch<kWarps>*>(shared + Layout::kScratch);
  const auto page_of = [&](int tile) { return tile < end ? cache.page(heads.b, tile / kPageTiles) : nullptr; };
  const auto copy_side = [&](const SideView& side, unsigned char* to, const uint8_t* page, int tile) {
    if (page != nullptr) Tile::copy(to, page + side.tile(heads.kv_head, tile % kPageTiles), lane);
    commit_copies();
  };

  int tile = begin + warp;
  const uint8_t* page = page_of(tile);
  const uint8_t* next = page_of(tile + kWarps);
  turn_queries<D>(cache, p, heads, queries);
  copy_side(cache.keys, keys, page, tile);
  copy_side(cache.values, values, page, tile);
  __syncthreads();
  uint32_t q[D / 8];
  load_operands<D>(queries, lane, q);

  Softmax softmax;
  float sums[Tile::kBlocks][4] = {};
  for (; tile < end; tile += kWarps) {
    const uint8_t* after = page_of(tile + 2 * kWarps);
    const int left = tokens - tile * kTileTokens;
    const uint32_t valid = left >= kTileTokens ? 0xffffu : (1u << left) - 1u;
    wait_copies<1>();
    __syncwarp();
    float scores[4] = {};
    Tile::score(scores, keys, q, lane);
    __syncwarp();
    copy_side(cache.keys, keys, next, tile + kWarps);
    Tile::weigh(softmax, sums, scores, valid, lane);
    wait_copies<1>();
    __syncwarp();
    Tile::add_values(sums, values, scores, valid, lane);
    __syncwarp();
    copy_side(cache.values, values, next, tile + kWarps);
    next = after;
  }
  wait_copies<0>();
  __syncwarp();

  put_sums<D>(reinterpret_cast<float*>(keys), sums, lane);
  publish(scratch, softmax, warp, lane);
  __syncthreads();
  merge_warps<D>(cache, p, heads, scratch, reinterpret_cast<const float*>(shared), Layout::kWarpBytes / 4, false);
}

}  // namespace

AttentionShape attend_fp16_shape(const CacheView& cache) {
  const int bytes = cache.head_dim == 64 ? Shared<64>::kBytes : Shared<128>::kBytes;
  return {kWarps, bytes, 2, kTileTokens};
}

void attend_fp16(const CacheView& cache, const Attention& p, const AttentionShape& layout, cudaStream_t stream) {
  const LaunchShape shape{attention_blocks(cache, p), kWarps * kWarp, static_cast<size_t>(layout.shared_bytes), stream};
  if (cache.head_dim == 64) {
    launch("attend", attend_fp16_kernel<64>, shape, cache, p);
  } else {
    launch("attend", attend_fp16_kernel<128>, shape, cache, p);
  }
}

}  // namespace kvquant::cuda
