/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Decode attention over keys in static codes, head_dim 128, on tensor cores, of all pages or of those that key sparsity
// chose. Keys are rebuilt as tiles of halves: from codes of channels (int), or in a basis (svdq: of all kv heads). Of
// all pages attend_int.cu and attend_latent.cu take what has values of 2 bits.
//
// A block takes a part of a sequence's pages for one kv head, two pages (8 tiles of 16 tokens) at a time. In a basis, k
// = mean + inverse (start + step c) = constant + (inverse step) (c - centre). The factor of codes, [128
// channels][stored places of all heads of the basis], lies in shared memory in halves for the life of the block; codes
// less their centre are exact in halves. Half of the warps are makers: each rebuilds 16 channels and those 64 above,
// which RoPE pairs with them, of a page: sums stay in registers and are turned in fp32 by the tile's base and a table
// for 16 positions. The other warps widen codes for them, and attend to the tiles of the group before, one each.
//
// What is kept exactly comes first, in the block of the first part, and is added at the end; tables and factors are
// made while pages are being chosen.
//
// An H100, 32 sequences of 32768 tokens, 32 heads, 8 kv heads, 1024 tokens chosen, choice included: svdq2.25 335 us,
// int2 140 us (by the plain kernel 3396 us), where torch's fp16 attention over all tokens takes 1381 us; svdq2.25
// without key sparsity 7.1 ms.
#include "launch.cuh"
#include "rebuilt_keys.cuh"
#include "select_pages.cuh"

namespace kvquant::cuda {
namespace rebuilt {
namespace {

/// The pages that a block attends to, two at a time.
struct Groups {
  const Block& block;
  ReadPages pages;
  int begin, end;

  __device__ __forceinline__ Groups(const Block& block, const Attention& p)
      : block(block), pages(block.cache, p.choice, block.heads.b, block.heads.kv_head) {
    const int64_t groups = (pages.count + kGroupPages - 1) / kGroupPages;
    begin = static_cast<int>(groups * block.heads.part / p.parts);
    end = static_cast<int>(groups * (block.heads.part + 1) / p.parts);
  }
  /// The last page stands in for one that is missing.
  __device__ __forceinline__ int page(int group, int i) const {
    return pages[min(kGroupPages * group + i, pages.count - 1)];
  }
  __device__ __forceinline__ bool missing(int group, int i) const { return kGroupPages * group + i >= pages.count; }
  __device__ __forceinline__ const uint8_t* data(int group, int i) const {
    return block.cache.page(block.heads.b, page(group, i));
  }
};

/// Attention of a warp to a tile of each group. Values are copied early as codes, and take the place of keys as halves.
struct TileAttention {
  const Block& block;
  const Groups& groups;
  const int tile, quantized;
  const uint32_t sinks;
  unsigned char* codes;
  uint32_t valid = 0;   // of the tile that has been started
  const uint8_t* page;  // of it
  float2 norms;
  Softmax softmax;
  float sums[KeyTile::kBlocks][4] = {};

  __device__ __forceinline__ TileAttention(const Block& block, const Groups& groups, uint32_t sinks)
      : block(block),
        groups(groups),
        tile(block.warp - kMakers),
        quantized(block.cache.quantized(block.heads.b, block.cache.length(block.heads.b) + 1)),
        sinks(sinks),
        codes(block.shared + block.layout.values + tile * block.layout.value_bytes) {}

  /// Starts copying values of a group's tile.
  __device__ __forceinline__ void start(int group) {
    const SideView& values = block.cache.values;
    const int in_page = tile % kPageTiles, first = groups.page(group, tile / kPageTiles) * kPageTokens;
    page = groups.data(group, tile / kPageTiles);
    valid = groups.missing(group, tile / kPageTiles)
                ? 0u
                : tokens_between(first + in_page * kTileTokens, 0, quantized, sinks);
    norms = make_float2(1.0f, 1.0f);
    if (block.layout.value_bytes > 0) {
      const uint8_t* from = page + values.tile(block.heads.kv_head, in_page);
      for (int i = 16 * block.lane; i < block.layout.value_bytes; i += 16 * kWarp) copy_async(codes + i, from + i);
      const auto* of_tile = reinterpret_cast<const __half*>(page + values.norms + in_page * values.norm_tile_bytes +
                                                            block.heads.kv_head * kTileTokens * 2);
      norms = make_float2(__half2float(of_tile[block.lane / 4]), __half2float(of_tile[block.lane / 4 + 8]));
    }
    commit_copies();
  }

  /// Adds the tile that has been started, whose keys are there now.
  __device__ __forceinline__ void add(unsigned char* keys) {
    if (valid == 0) return wait_copies<0>();
    const int lane = block.lane;
    float scores[4];
    {
      uint32_t q[kDim / 8];
      block.load_queries(q);
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[i] = block.state().biases[2 * (lane % 4) + i % 2];
      KeyTile::score(scores, keys, q, lane);
    }
    KeyTile::weigh(softmax, sums, scores, valid, lane);
    // What lies in slots without a token may be NaN.
    const float low = (valid >> (lane / 4) & 1u) != 0 ? norms.x : 0.0f;
    const float high = (valid >> (lane / 4 + 8) & 1u) != 0 ? norms.y : 0.0f;
    scores[0] *= low;
    scores[1] *= low;
    scores[2] *= high;
    scores[3] *= high;
    __syncwarp();
    if (block.layout.value_bytes == 0) {
      KeyTile::copy(keys, page + block.cache.values.tile(block.heads.kv_head, tile % kPageTiles), lane);
      commit_copies();
    }
    wait_copies<0>();
    __syncwarp();
    if (block.layout.value_bytes > 0) widen_values(keys);
    __syncwarp();
    KeyTile::add_values(sums, keys, scores, valid, lane);
    __syncwarp();
  }

  /// Leaves what tiles of this place came to for Block::merge.
  __device__ __forceinline__ void put() const {
    put_sums<kDim>(block.sums_of(tile), sums, block.lane);
    publish(block.state().scratch, softmax, tile, block.lane);
  }

 private:
  __device__ __forceinline__ void widen_values(unsigned char* to) const {
    const int bits = block.cache.values.bits;
    const uint32_t* levels = block.state().levels;
#pragma unroll 2
    for (int channel = block.lane; channel < kDim; channel += kWarp) {
      const unsigned char* from = codes + channel * 2 * bits;
      uint32_t out[8];
      if (bits == 4) {
        const uint2 x = *reinterpret_cast<const uint2*>(from);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          out[j] = levels[x.x >> (8 * j) & 0xffu];
          out[4 + j] = levels[x.y >> (8 * j) & 0xffu];
        }
      } else if (bits == 2) {
        const uint32_t x = *reinterpret_cast<const uint32_t*>(from);
#pragma unroll
        for (int j = 0; j < 8; ++j) out[j] = levels[x >> (4 * j) & 0xfu];
      } else if (bits == 3) {
        const auto* words = reinterpret_cast<const uint16_t*>(from);
        const uint64_t x = static_cast<uint64_t>(words[2]) << 32 | static_cast<uint32_t>(words[1]) << 16 | words[0];
#pragma unroll
        for (int j = 0; j < 8; ++j) out[j] = levels[static_cast<uint32_t>(x >> (6 * j)) & 0x3fu];
      } else {
#pragma unroll
        for (int j = 0; j < 8; ++j) out[j] = __byte_perm(levels[from[2 * j]], levels[from[2 * j + 1]], 0x5410);
      }
      *reinterpret_cast<uint4*>(to + KeyTile::swizzled(channel, 0)) = make_uint4(out[0], out[1], out[2], out[3]);
      *reinterpret_cast<uint4*>(to + KeyTile::swizzled(channel, 1)) = make_uint4(out[4], out[5], out[6], out[7]);
    }
  }
};

/// Makers multiply codes of a head of the basis while the others widen those of the next, and attend to the group
/// before. All meet after each head and after keys have been left as tiles.
__device__ __forceinline__ void run_products(const Block& block, const Groups& groups, uint32_t sinks) {
  const Layout& layout = block.layout;
  const int heads = block.cache.keys.basis_heads, steps = (groups.end - groups.begin) * heads;
  const auto buffer = [&](int step) { return block.shared + layout.codes + step % 2 * layout.codes_bytes(); };
  if (block.warp < kMakers) {
    meet<kThreads>();
    for (int group = groups.begin, step = 0; group < groups.end; ++group) {
      RebuiltKeys keys;
      for (int head = 0; head < heads; ++head, ++step) {
        keys.add(block, buffer(step), head);
        meet<kThreads>();
      }
      keys.finish(block, groups.page(group, block.warp / 4));
      meet<kThreads>();
    }
    meet<kThreads>();
    return;
  }
  KeyCodes<true> codes(block, block.warp - kMakers);
  const uint8_t* at[kGroupPages];
  int loaded = 0, loaded_head = 0;
  const auto load_next = [&] {
    if (loaded == steps) return;
    if (loaded_head == 0) {
      const int group = groups.begin + loaded / heads;
      at[0] = groups.data(group, 0);
      at[1] = groups.data(group, 1);
    }
    codes.load(at, loaded_head);
    ++loaded;
    loaded_head = loaded_head + 1 == heads ? 0 : loaded_head + 1;
  };
  load_next();
  codes.store(buffer(0));
  load_next();
  TileAttention attention(block, groups, sinks);
  unsigned char* tile = block.key_tile(attention.tile);
  meet<kThreads>();
  for (int group = groups.begin, step = 0; group < groups.end; ++group) {
    for (int head = 0; head < heads; ++head, ++step) {
      if (step + 1 < steps) codes.store(buffer(step + 1));
      if (head == 0) {
        if (group > groups.begin) attention.add(tile);
        attention.start(group);
      }
      load_next();
      meet<kThreads>();
    }
    meet<kThreads>();
  }
  attention.add(tile);
  meet<kThreads>();  // the sums take the place of factors
  attention.put();
}

/// Makers place keys of a group while the others attend to the one before, in two sets of tiles.
__device__ __forceinline__ void run_places(const Block& block, const Groups& groups, uint32_t sinks) {
  const auto tiles = [&](int group) { return block.key_tile(0) + group % 2 * (kTiles * kTileStride); };
  if (block.warp < kMakers) {
    KeyCodes<false> codes(block, block.warp);
    const PlacedKeys keys(block, codes);
    const auto load = [&](int group) {
      const uint8_t* const at[kGroupPages] = {groups.data(group, 0), groups.data(group, 1)};
      codes.load(at, 0);
    };
    load(groups.begin);
    for (int group = groups.begin; group < groups.end; ++group) {
      keys.finish(block, codes, groups.page(group, 0), groups.page(group, 1), tiles(group));
      if (group + 1 < groups.end) load(group + 1);
      meet<kThreads>();
    }
    return;
  }
  TileAttention attention(block, groups, sinks);
  for (int group = groups.begin; group < groups.end; ++group) {
    if (group > groups.begin) attention.add(tiles(group - 1) + attention.tile * kTileStride);
    attention.start(group);
    meet<kThreads>();
  }
  attention.add(tiles(groups.end - 1) + attention.tile * kTileStride);
  attention.put();
}

/// kProduct: keys are in a basis.
template <bool kProduct>
__global__ void __launch_bounds__(kThreads, 1)
    attend_rebuilt_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Attention p,
                          const __grid_constant__ Layout layout) {
  KVQUANT_DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const Block block{cache, layout, shared, block_heads(cache), lane, warp};
  const BlockHeads& heads = block.heads;
  release_next_kernel();
  const bool exact = heads.part == 0 && (cache.window > 0 || cache.sink_pages > 0);
  block.fill_tables(p);
  MergedHead<kDim / kWarp> merged;
  if (exact) merged = block.attend_exactly();
  if constexpr (kProduct) fill_factors(block);
  // Places beyond the stored ones have no codes, and factors of 0.
  for (int i = threadIdx.x; i < 2 * layout.codes_bytes() / 16; i += kThreads) {
    reinterpret_cast<uint4*>(shared + layout.codes)[i] = make_uint4(0, 0, 0, 0);
  }
  const uint32_t sinks = find_sinks(cache, heads.b, lane);
  __syncthreads();

  wait_for_previous_kernel();  // which chose pages
  const Groups groups(block, p);
  if (groups.begin == groups.end && !exact) return write_empty(cache, p, heads);
  if (groups.begin < groups.end) {
    if constexpr (kProduct) {
      run_products(block, groups, sinks);
    } else {
      run_places(block, groups, sinks);
    }
    merged.add(block.merge(cache.values.rotated));
  }
  if (warp < heads.count) write_head(cache, p, heads, warp, merged);
}

Layout describe(const CacheView& cache) {
  Layout layout = {};
  const bool basis = cache.keys.basis_heads > 0;
  for (int run = 0; run < kWidthRuns; ++run) {
    if (!basis || cache.keys.width[run] > 0) layout.run[layout.runs++] = static_cast<uint8_t>(run);
  }
  layout.places = (layout.runs * kRun + 15) / 16 * 16;
  layout.depth = layout.places * cache.keys.basis_heads;
  layout.row_bytes = basis ? 2 * layout.depth + 16 : 0;
  constexpr int kMergeBytes = kTiles * kHeads * kMergeStride<kDim> * static_cast<int>(sizeof(float));
  layout.codes = (std::max(kDim * layout.row_bytes, kMergeBytes) + 127) / 128 * 128;
  layout.keys = layout.codes + 2 * layout.codes_bytes();
  layout.values = layout.keys + (basis ? 1 : 2) * kTiles * kTileStride;
  layout.value_bytes = cache.values.format == Format::kNorm ? kDim * 2 * cache.values.bits : 0;
  layout.state = layout.values + kTiles * layout.value_bytes;
  layout.bytes = layout.state + static_cast<int>(sizeof(SharedState));
  return layout;
}

}  // namespace
}  // namespace rebuilt

bool attend_rebuilt_supports(const CacheView& cache) {
  const SideView &keys = cache.keys, &values = cache.values;
  const bool norms = values.format == Format::kNorm;
  return cache.head_dim == rebuilt::kDim && keys.format == Format::kStatic &&
         (keys.basis_heads > 0) == (cache.keys_pre_rope != 0) && (norms || values.format == Format::kFloat16) &&
         !(values.rotated && !norms) && cache.sink_policy != SinkPolicy::kMassive && cache.max_sinks <= kSinkBits &&
         rebuilt::describe(cache).runs > 0;
}

AttentionShape attend_rebuilt_shape(const CacheView& cache) {
  return {1, rebuilt::describe(cache).bytes, 1, rebuilt::kGroupPages * kPageTokens};
}

/// Blocks begin with the basis, which takes about as long as two pages.
int attend_rebuilt_parts(const CacheView& cache, int multiprocessors) {
  const int64_t pairs = static_cast<int64_t>(cache.batch) * cache.kv_heads * head_groups(cache);
  const int64_t groups = std::max(1, (pages_read(cache) + rebuilt::kGroupPages - 1) / rebuilt::kGroupPages);
  int64_t best = 1, least = 0;
  for (int64_t parts = 1; parts <= std::min<int64_t>(groups, 512); ++parts) {
    const int64_t rounds = (pairs * parts + multiprocessors - 1) / multiprocessors;
    const int64_t time = rounds * (1 + (groups + parts - 1) / parts);
    if (parts == 1 || time < least) {
      least = time;
      best = parts;
    }
  }
  return static_cast<int>(best);
}

void attend_rebuilt(const CacheView& cache, const Attention& attention, const AttentionShape& shape, bool early,
                    cudaStream_t stream) {
  const LaunchShape launched{attention_blocks(cache, attention), rebuilt::kThreads,
                             static_cast<size_t>(shape.shared_bytes), stream, early};
  if (cache.keys.basis_heads > 0) {
    launch("attend", rebuilt::attend_rebuilt_kernel<true>, launched, cache, attention, rebuilt::describe(cache));
  } else {
    launch("attend", rebuilt::attend_rebuilt_kernel<false>, launched, cache, attention, rebuilt::describe(cache));
  }
}

}  // namespace kvquant::cuda
