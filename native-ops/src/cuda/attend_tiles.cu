/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Decode attention over any format in codes or fp16, head_dim 64 and 128: what serves formats and sizes that have no
// kernel of their own, with all tokens or those of chosen pages. A block takes a part of a sequence for a kv head. A
// warp reads 16 tokens at a time into registers as FP32 (side_tile.cuh), turns keys, and hands them as halves to the
// products of fp16_tile.cuh; meanwhile codes of its next tokens come to L1. Exact tokens are tiles like others; their
// values are rotated as those in codes are, and the sum is rotated back.
//
// Measured on an H100 at batch 8, 32 query and 8 kv heads, 16384 tokens, us a launch (torch's best fp16 attention 180
// with head_dim 128, 93 with 64): int2 with massive sinks 393, fp16 with a window 280; with head_dim 64 kvquant2 231,
// latent2 203, latent4 207, int4 with massive sinks 176. Before lanes held both channels of a pair of RoPE, the angle
// of a page was loaded once, widths were known to the compiler, levels lay in shared memory and codes were fetched
// ahead: 612, 380; 317, 292, 298, 266. attend_plain.cu, a token of one query head at a time, takes some 4300 for int2
// there. What limits it is the time that instructions take to return, with 12 or 16 warps a multiprocessor; before
// those steps more of them spilled registers (16 instead of 12 with head_dim 128: 5 % slower, 20 instead of 16 with 64:
// 2 to 15 %).
#include "attend_affine.h"
#include "exact_part.cuh"
#include "finish_keys.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "select_pages.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kWarps = 4;
/// Blocks of a multiprocessor: as many as registers allow.
template <int D>
constexpr int kBlocks = D == 64 ? 4 : 3;

/// Levels of a side at most.
constexpr int kLevels = 256;

/// Shared memory of a block, in bytes; a basis and sinks follow.
template <int D>
struct Shared {
  static constexpr int kScratch = (SideTile<D>::kScratchBytes + 127) / 128 * 128;  // of a warp; at last its sums
  static_assert(kHeads * kMergeStride<D> * 4 <= kScratch && Fp16Tile<D>::kBytes <= kScratch, "both fit");
  static constexpr int kAngles = kWarps * kScratch;
  static constexpr int kBias = kAngles + kPageTokens * D / 2 * 8;  // [kv heads of a block][8]
  static constexpr int kSideLevels = kBias + kWarps * kHeads * 4;
  static constexpr int kMerge = kSideLevels + 2 * kLevels * 4;
  static constexpr int kBasis = (kMerge + static_cast<int>(sizeof(MergeScratch<kWarps>)) + 127) / 128 * 128;
  static constexpr int kBasisBytes = D * kBasisStride<D> * 2;
};

/// Kv heads of a block.
__host__ __device__ inline int teams(const CacheView& cache) {
  return cache.keys.rotation_heads > 1 ? cache.keys.rotation_heads : 1;
}

template <int D>
int sinks_at(const CacheView& cache) {
  return Shared<D>::kBasis + (cache.keys.basis_heads != 0 ? Shared<D>::kBasisBytes : 0);
}

template <int D>
int shared_bytes(const CacheView& cache) {
  return sinks_at<D>(cache) + cache.sink_pages * kExactTokens * 4;
}

/// 16 tokens that lie together, in codes or exact.
struct TokenTile {
  const uint8_t* page;
  int tile;  // of the page
  bool coded;
  int position;    // of token t in lane t
  uint32_t valid;  // a bit per token
};

/// The tiles of a sequence that a kv head reads: of pages, of sinks, of the window.
struct TokenTiles {
  const CacheView& cache;
  const int32_t* sinks;  // [sink pages, 16], -1: none
  ReadPages pages;
  int b, lane, length, quantized, coded, first_run, count;

  __device__ TokenTiles(const CacheView& cache, const PageChoice& choice, const BlockHeads& heads, const int32_t* sinks,
                        int lane)
      : cache(cache), sinks(sinks), pages(cache, choice, heads.b, heads.kv_head), b(heads.b), lane(lane) {
    length = cache.length(b) + 1;
    quantized = cache.quantized(b, length);
    coded = pages.pages == nullptr ? (quantized + kTileTokens - 1) / kTileTokens : pages.count * kPageTiles;
    first_run = quantized / kTileTokens;
    const int runs = cache.window > 0 ? (length + kTileTokens - 1) / kTileTokens : 0;
    count = coded + cache.sink_pages + max(0, runs - first_run);
  }

  __device__ TokenTile operator[](int unit) const {
    const int slot = lane % kTileTokens;
    TokenTile found;
    bool counts;
    found.coded = unit < coded;
    found.tile = 0;
    if (found.coded) {
      const int page = pages[unit / kPageTiles];
      found.tile = unit % kPageTiles;
      found.position = page * kPageTokens + found.tile * kTileTokens + slot;
      counts = found.position < quantized;
      found.page = cache.page(b, page);
    } else if (unit < coded + cache.sink_pages) {
      found.page = cache.sink_page(b, unit - coded);
      found.position = sinks[(unit - coded) * kExactTokens + slot];
      counts = found.position >= 0;
    } else {
      const int first = (first_run + unit - coded - cache.sink_pages) * kTileTokens;
      found.page = cache.window_page(b, first);
      found.position = first + slot;
      counts = found.position >= quantized && found.position < length;
    }
    const bool may_be_sink = found.coded || unit >= coded + cache.sink_pages;
    const uint32_t others = may_be_sink ? ~tokens_among(cache.sink_pages * kExactTokens, found.position - slot, lane,
                                                        [this](int i) { return sinks[i]; })
                                        : ~0u;
    found.valid = __ballot_sync(0xffffffffu, counts) & others & 0xffffu;
    return found;
  }
};

/// Fetches a side of 16 tokens of a head to L1 without waiting: codes, not what scales them.
template <int D>
__device__ __forceinline__ void fetch(const SideView& side, const TokenTile& tokens, int kv_head, int64_t exact,
                                      int lane) {
  const uint8_t* from = tokens.page + (tokens.coded ? side.tile(kv_head, tokens.tile) : exact);
  if (lane * 128 < (tokens.coded ? side.tile_bytes : D * 2 * kExactTokens)) prefetch(from + lane * 128);
}

/// Sinks of a sequence, in shared memory.
__device__ void list_sinks(const CacheView& cache, int b, int32_t* sinks) {
  const int length = cache.length(b) + 1;
  for (int i = threadIdx.x; i < cache.sink_pages * kExactTokens; i += blockDim.x) {
    const auto* header = reinterpret_cast<const ExactHeader*>(cache.sink_page(b, i / kExactTokens));
    const int token = header->tokens[i % kExactTokens];
    sinks[i] = token < length ? token : -1;
  }
}

/// What codes of a side stand for, in shared memory.
__device__ void list_levels(const SideView& side, float* levels) {
  const bool has = side.format == Format::kNorm || side.format == Format::kCodebook;
  const float* from = side_levels(side);
  for (int i = threadIdx.x; i < 1 << side.bits && has; i += blockDim.x) levels[i] = from[i];
}

/// What scores of coded keys lack, by query head; queries: as turn_queries leaves them.
template <int D>
__device__ void find_bias(const CacheView& cache, int kv_head, const float* queries, float* bias) {
  const int lane = threadIdx.x % kWarp;
  for (int head = threadIdx.x / kWarp; head < kHeads; head += blockDim.x / kWarp) {
    float sum = 0.0f;
    for (int c = lane; c < D && cache.keys.noise != nullptr; c += kWarp) {
      const float q = queries[head * D + c];
      sum = fmaf(q * q, cache.keys.noise[kv_head * D + c], sum);
    }
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) bias[head] = 0.5f / kLog2e * sum;
  }
}

/// Mixes keys with those of the other teams, each in the scratch of the warp `size` further. The whole block calls it.
template <int D>
__device__ __forceinline__ void mix_teams(const CacheView& cache, const Team& team, const SideTile<D>& side,
                                          float* scratch, float (&x)[D / kWarp][kTileTokens]) {
  const int count = teams(cache);
  if (count == 1) return;
  side.put(scratch, x);
  __syncthreads();
#pragma unroll
  for (int t = 0; t < kTileTokens; ++t) {
#pragma unroll
    for (int i = 0; i < D / kWarp; ++i) x[i][t] = 0.0f;
  }
#pragma unroll 1
  for (int other = 0; other < count; ++other) {
    side.add(scratch + (other - team.own) * team.size * (Shared<D>::kScratch / 4), mixing(count, team.own, other), x);
  }
  __syncthreads();
}

template <int D>
__global__ void __launch_bounds__(kWarps* kWarp, kBlocks<D>)
    attend_tiles_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Attention p, int sinks_at) {
  using Tile = Fp16Tile<D>;
  using Layout = Shared<D>;
  constexpr int n = D / kWarp;
  KVQUANT_DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, count = teams(cache);
  const int size = static_cast<int>(blockDim.x) / kWarp / count;
  const Team team{warp / size, warp % size, size, 0};
  const BlockHeads heads = block_heads(cache, count, team.own);
  release_next_kernel();
  unsigned char* halves = shared + warp * Layout::kScratch;
  auto* scratch = reinterpret_cast<float*>(halves);
  auto* angles = reinterpret_cast<float2*>(shared + Layout::kAngles);
  auto* bias = reinterpret_cast<float*>(shared + Layout::kBias);
  auto* levels = reinterpret_cast<float*>(shared + Layout::kSideLevels);
  auto& merge = *reinterpret_cast<MergeScratch<kWarps>*>(shared + Layout::kMerge);
  auto* basis = reinterpret_cast<__half*>(shared + Layout::kBasis);
  auto* sinks = reinterpret_cast<int32_t*>(shared + sinks_at);

  list_sinks(cache, heads.b, sinks);
  list_levels(cache.keys, levels);
  list_levels(cache.values, levels + kLevels);
  fill_page_angles<D>(cache, angles);
  if (cache.keys.basis_heads != 0) fill_basis<D>(cache.keys, heads.kv_head, basis);
  // Queries lie in the scratch of the first warp of their team.
  const auto queries_of = [&](int own) { return reinterpret_cast<float*>(shared + own * size * Layout::kScratch); };
  for (int own = 0; own < count; ++own) turn_queries<D>(cache, p, block_heads(cache, count, own), queries_of(own));
  __syncthreads();
  for (int own = 0; own < count; ++own) {
    find_bias<D>(cache, heads.kv_head + own - team.own, queries_of(own), bias + own * kHeads);
  }
  uint32_t q[D / 8];
  load_operands<D>(queries_of(team.own), lane, q);
  __syncthreads();
  bias += team.own * kHeads;

  const TokenTiles tiles(cache, p.choice, heads, sinks, lane);
  const int begin = static_cast<int>(static_cast<int64_t>(tiles.count) * heads.part / p.parts);
  const int end = static_cast<int>(static_cast<int64_t>(tiles.count) * (heads.part + 1) / p.parts);
  Softmax softmax;
  float sums[Tile::kBlocks][4] = {};
  TokenTile next = {};
  if (begin < end) next = tiles[min(begin + team.place, end - 1)];
#pragma unroll 1
  for (int first = begin; first < end; first += size) {  // the same for all warps, which meet to mix keys
    const TokenTile own = next;
    next = tiles[min(first + size + team.place, end - 1)];
    fetch<D>(cache.keys, next, heads.kv_head, cache.exact_key(heads.kv_head, 0), lane);
    fetch<D>(cache.values, next, heads.kv_head, cache.exact_value(heads.kv_head, 0), lane);
    const uint32_t valid = first + team.place < end ? own.valid : 0;
    float scores[4] = {};
    {
      float k[n][kTileTokens] = {};
      const SideTile<D> side{cache.keys, own.page, own.tile, lane, levels};
      if (own.coded) side.add(heads.kv_head, 1.0f, scratch, k);
      mix_teams<D>(cache, team, side, scratch, k);
      if (valid == 0) continue;
      if (own.coded) {
        finish_keys<D>(cache, side, heads.kv_head, own.position, angles, basis, scratch, k);
        scores[0] = scores[2] = bias[2 * (lane % 4)];
        scores[1] = scores[3] = bias[2 * (lane % 4) + 1];
      } else {
        read_exact_tile<D>(own.page + cache.exact_key(heads.kv_head, 0), lane, k);
        turn_tokens<D, false>(cache, angles, own.position, lane, k);
      }
      put_halves<D>(k, lane, halves);
    }
    Tile::score(scores, halves, q, lane);
    Tile::weigh(softmax, sums, scores, valid, lane);
    float v[n][kTileTokens] = {};
    if (own.coded) {
      SideTile<D>{cache.values, own.page, own.tile, lane, levels + kLevels}.add(heads.kv_head, 1.0f, scratch, v);
    } else {
      read_exact_tile<D>(own.page + cache.exact_value(heads.kv_head, 0), lane, v);
      if (cache.values.rotated) transform_tokens(v, lane);
    }
    put_halves<D>(v, lane, halves);
    Tile::add_values(sums, halves, scores, valid, lane);
    __syncwarp();
  }
  __syncthreads();

  put_sums<D>(scratch, sums, lane);
  publish(merge, softmax, warp, lane);
  __syncthreads();
  for (int head = team.place; head < heads.count; head += size) {
    const int from = team.own * size;
    write_head(cache, p, heads, head,
               merge_head<D, kWarps>(merge, reinterpret_cast<const float*>(shared), Layout::kScratch / 4, head,
                                     cache.values.rotated, kHeads, from, from + size));
  }
}

}  // namespace

bool attend_tiles_supports(const CacheView& cache) {
  const auto side = [](const SideView& x) { return x.format != Format::kFloat32; };
  return side(cache.keys) && side(cache.values) && cache.keys.basis_heads <= 1;
}

AttentionShape attend_tiles_shape(const CacheView& cache) {
  if (attend_affine_supports(cache)) return attend_affine_shape(cache);
  const int bytes = cache.head_dim == 64 ? shared_bytes<64>(cache) : shared_bytes<128>(cache);
  return {kWarps / teams(cache), bytes, cache.head_dim == 64 ? kBlocks<64> : kBlocks<128>, kTileTokens, teams(cache)};
}

void attend_tiles(const CacheView& cache, const Attention& p, const AttentionShape& layout, cudaStream_t stream) {
  if (attend_affine_supports(cache)) return attend_affine(cache, p, stream);
  dim3 grid = attention_blocks(cache, p);
  grid.x /= static_cast<unsigned>(layout.together);
  const LaunchShape shape{grid, static_cast<unsigned>(layout.warps * layout.together * kWarp),
                          static_cast<size_t>(layout.shared_bytes), stream};
  if (cache.head_dim == 64) {
    launch("attend", attend_tiles_kernel<64>, shape, cache, p, sinks_at<64>(cache));
  } else {
    launch("attend", attend_tiles_kernel<128>, shape, cache, p, sinks_at<128>(cache));
  }
}

}  // namespace kvquant::cuda
