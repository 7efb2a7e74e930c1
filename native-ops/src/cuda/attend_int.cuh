/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Decode attention over keys in static codes and values in codes with norms (int2, int3, int4, int8), head_dim 128 or
// 64, on tensor cores; the plain kernel takes a token at a time.
//
// The history of a sequence and kv head is cut into parts, a block each. The warps of a part go through its tokens in
// codes on their own and meet only at the end. A warp takes a batch of up to 4 groups of 128 tokens: first the products
// of all their keys, then their values, through two stages of shared memory that are filled ahead (int_stream.cuh).
// With few query heads to a kv head each group has its own columns of the products: softmax, the mean term and the
// operands of weights then cost as much for a batch as for a group. What is kept exactly, sinks and the recent window,
// is the last part, 16 tokens at a time as in attend_fp16.cu, keys turned on the way; a single part goes on to it
// itself, its first tokens copied while the last codes are worked on, and writes the output. A block takes several kv
// heads where that makes one wave of blocks of two; its warps are then split into teams.
//
// The kernel may be launched before the one ahead has ended. What belongs to the layer it does before it waits for that
// one: parameters, the query's angles, the table of waves and rows of angles for it. It also reads lengths and page
// ids, for the angles and to fetch its first keys to L2, and reads them again behind the wait, in one round with the
// queries: where lengths have changed, what depends on them is found anew. Loads behind copies wait for all that are
// under way, some 2000 clocks, fetched to L1 or not: small loads come before the copies of codes, and later rows of
// angles are copied among codes. Code is fetched when it first runs: what starts copies is in few places.
//
//   score = 2^(24 - p) S / sigma + constant + mean term, S the product of codes and queries in which steps, the score's
//   factor and a power of 2, sigma, are folded (static_keys.cuh); constant is what starts of codes and the bias amount
//   to; the mean term is mean_term.cuh's.
//
// Measured on an H100, us a launch, in one run (in brackets without waves at nodes, rows of angles among codes and
// whole exact tiles): 223 at batch 32, 32 query and 8 kv heads, 32768 tokens (235 to 240); 72.3 at 16, 32, 32, 4096
// (73.5); 37.0 at 1, 32, 8, 131072 (40.7); 19.7 at 1, 32, 8, 32768 (20.5); 98.7 at 8, 40, 40, 8192 (105). cuDNN over
// fp16 takes 1381, 351, 181, 51 and 471. Before, int4: 412, 121, 59.3, 25.9 and 157; int8: 806 and 239 in the first
// two.
//
// The same with head_dim 64, the first three: 144 (cuDNN 688), 42.8 (177) and 24.0 (92), by the plain kernel 34700,
// 2330 and 4370; int4: 218, 64.1 and 36.8; int8: 390, 108 and 56.6. Softmax costs as much as with head_dim 128, for
// half the bytes. There without gain: waves at nodes (25.5 instead of 24.4 in the third), two groups of tokens to a
// stage (151 instead of 149, 47.2 instead of 45.2), blocks of 4 warps, 4 or 5 to a multiprocessor (160 and 187, 52.7
// and 57.7).
//
// Of earlier runs: one kernel for one part and for several, small loads one after the other, sums of warps added up by
// a chain of factors 248, 78.6, 47.0, 23.4. A kv head to a block, exact tokens copied after the codes, launched after
// the kernel ahead: 246, 98.7, 48.0, 27.0. A group at a time, with unevenly spaced levels and exact tokens always in
// blocks of their own, the first three were 369, 147 and 71. The first is bound by issue slots.
//
// Of the second's time, by clocks in the kernel: 0.5 us go by from the last block's end until the next kernel passes
// its wait, 0.8 until small loads are there, 2.9 until copies are started and queries folded, 4.5 for the first mean
// term, behind which copies are there; half of the blocks end 6 to 9 us before the last. It reads 180 MB, 42 of them
// exact pages, which take the last 12 us. Queries kept without whole tiles: 74.0, whole tiles but queries turned again
// 75.2, neither 75.3. Whole tiles in blocks of their own: 38.6 in the third, 100 in the fifth. Twice or four times as
// many pages of keys to L2 ahead: 73.0 and 72.2 instead of 72.7, exact units dealt from the last warp of a team 72.5,
// with twice as many pages ahead 72.1 and in the fourth 19.8 instead of 20.3.
//
// Tried without gain, each against the kernel of its day: codes by bulk copies of 512 bytes (75.2 instead of 74.4 in
// the second, 43.8 instead of 40.6 in the third: a warp takes 3 us to start them), codes behind the first two stages
// fetched to L2 behind the wait (74.1 to 76.8, and 42.8), values of the first group fetched to L2 before it (21.3
// instead of 20.3 in the fourth), all exact tiles with the first (79.9 instead of 75.7 in the second), their angles
// fetched to L1 or loaded a unit ahead, blocks of exact tokens first, headers of sinks fetched ahead, parameters read
// before the wait (86 instead of 76), the last block of a head adding up its parts instead of a kernel (97 instead of
// 105 in the fifth, but 21.2 instead of 20.1 in the fourth, where that kernel hides how the next one begins), as many
// registers left free as a block of the combination takes (120 for a thread: 23.6 instead of 20.6 in the fourth), waves
// at nodes without rows of angles among codes (77.6 instead of 73.5 in the second), exact tokens first in half of the
// blocks (86 instead of 78.5), one loop over keys and values (86), both stages started before queries are folded (80),
// 9 to 65 parts for one sequence, 4 kv heads to a block.
#pragma once
#include "exact_part.cuh"
#include "fold_query.cuh"
#include "int_stream.cuh"
#include "launch.cuh"

namespace kvquant::cuda {

/// Whole tiles are copied at once only behind codes: where exact tokens have blocks of their own, that is slower.
template <int D, int warps, bool direct>
using IntExact = ExactUnits<D, direct ? IntBlock<D, warps>::kBarriers : 0>;

/// The query heads of a team.
__device__ __forceinline__ BlockHeads team_heads(const IntLayer& layer, int own) {
  const int block = static_cast<int>(blockIdx.x), shared_by = layer.head_groups > 1 ? block / layer.head_groups : block;
  const int kv_head = shared_by * layer.together + own, skipped = (block - shared_by * layer.head_groups) * kHeads;
  return {static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z), kv_head, kv_head * layer.queries + skipped,
          min(kHeads, layer.queries - skipped)};
}

/// The query heads of another team, given those of one.
__device__ __forceinline__ BlockHeads column_heads(const BlockHeads& heads, const Team& team, int own) {
  return {heads.b, heads.part, heads.kv_head + own - team.own, heads.first + (own - team.own) * heads.count,
          heads.count};
}

/// Whether turned queries of a block have a place until it comes to exact tokens.
__device__ __forceinline__ bool keeps(const IntLayer& layer, const BlockHeads& heads) {
  return layer.together * heads.count <= kKeptHeads;
}

/// A warp's groups of a part: [first, last) of [begin, end).
struct WarpGroups {
  int begin, end, batch_bits, first, last;

  __device__ __forceinline__ WarpGroups(int tokens, int part, int parts, const Team& team, int column_bits) {
    const int groups = (tokens + kGroupTokens - 1) / kGroupTokens;
    const auto begins = [&](int i) {
      return static_cast<int>(static_cast<unsigned>(groups) * static_cast<unsigned>(i) / static_cast<unsigned>(parts));
    };
    begin = parts > 1 ? begins(part) : 0;
    end = parts > 1 ? begins(part + 1) : groups;
    const int share = (end - begin) >> team.size_bits;
    batch_bits = min(3 - column_bits, share >= 4 ? 2 : share >= 2 ? 1 : 0);
    const int units = (end - begin + (1 << batch_bits) - 1) >> batch_bits;
    first = begin + ((units * team.place >> team.size_bits) << batch_bits);
    last = min(end, begin + ((units * (team.place + 1) >> team.size_bits) << batch_bits));
  }
};

/// Pages whose keys and norms a warp fetches before it waits for the kernel ahead.
constexpr int kPagesAhead = 2;

/// Fetches what a warp reads first to L2, while the kernel ahead may still run: what that one writes is seen in L2.
/// Only there: ids may not have been written yet.
__device__ __forceinline__ void fetch_groups(const CacheView& cache, const BlockHeads& heads, const WarpGroups& own,
                                             int tokens, int lane) {
  const int pages = min((tokens + kPageTokens - 1) / kPageTokens, cache.page_columns), page = 2 * own.first + lane;
  if (lane >= kPagesAhead || page >= min(2 * own.last, pages)) return;
  const int id = peek(cache.page_table + static_cast<int64_t>(heads.b) * cache.page_columns + page);
  if (id < 0 || id >= cache.page_count) return;
  const uint8_t* from = cache.pages + id * cache.page_bytes;
  prefetch_far(from + cache.keys.tile(heads.kv_head, 0), kPageTiles * cache.keys.tile_bytes);
#pragma unroll
  for (int i = 0; i < kPageTiles; ++i) {
    prefetch_far(from + cache.values.norms + i * cache.values.norm_tile_bytes + heads.kv_head * kNormBytes);
  }
}

/// The same for a team's queries.
template <int D>
__device__ __forceinline__ void fetch_queries(const CacheView& cache, const Attention& p, const BlockHeads& heads,
                                              int lane) {
  const int size = p.type == ElementType::kFloat32 ? 4 : 2;
  const int64_t row = static_cast<int64_t>(heads.b) * (cache.heads + 2 * cache.kv_heads) + heads.first;
  const auto* from = static_cast<const uint8_t*>(p.qkv) + row * (size * D);
  for (int at = lane * 32; at < heads.count * size * D; at += kWarp * 32) prefetch_far(from + at);
}

/// A part's tokens in codes. Leaves the warps' sums at the beginning of shared memory, Layout::kSums apart, and the
/// scratch for merge_head, before a barrier; false: the part has no tokens, though there are other parts.
template <int D, int warps, int value_bits, bool usual, class Exact>
__device__ __forceinline__ bool attend_codes(const CacheView& cache, const Attention& p, const IntLayer& layer,
                                             const BlockHeads& heads, Exact& exact, bool exact_follow,
                                             FoldInputs<D>& inputs, const WarpGroups& own, int2 ids, bool sink,
                                             unsigned char* shared, int warp, int lane) {
  using Layout = IntBlock<D, warps>;
  const Team& team = exact.team;
  const int tokens = exact.quantized, begin = own.begin, end = own.end;
  if (!exact_follow && begin == end && p.parts > 1) return false;

  auto* waves = reinterpret_cast<uint32_t*>(shared);
  auto* amplitudes = reinterpret_cast<float4*>(shared + Layout::kAmplitudes);
  auto* queries = reinterpret_cast<uint32_t*>(shared + Layout::kQueries);
  auto* factors = reinterpret_cast<float*>(shared + Layout::kFactors);
  unsigned char* stages = shared + Layout::kWarpBuffers + warp * layer.warp_bytes;
  unsigned char* norms = stages + kStages * layer.stage_bytes;

  // A warp's groups, `batch` of them at a time: each has its own columns of products.
  const int columns = 1 << layer.column_bits, batch_bits = own.batch_bits, batch = 1 << batch_bits;
  int first = own.first;
  const int last = own.last;
  const int pages = max(1, (tokens + kPageTokens - 1) / kPageTokens);
  const int32_t* table = cache.page_table + static_cast<int64_t>(heads.b) * cache.page_columns;
  const int g = lane / 4, c = lane % 4;
  const int mine = 2 * c >> layer.column_bits;  // which of the batch's groups the lane's scores belong to
  // Of second operands: whose columns the lane holds, and where its words are.
  const int place = team.own << layer.column_bits, pair = 2 * c & (columns - 1);  // of the kv head's columns of queries
  const int owner = g >> layer.column_bits, words_at = (place + (g & (columns - 1))) * 4 + c;
  const auto base_row = [&](int group) { return cache.rope + (kPageTokens + 2 * min(group, last - 1)) * D; };

  GroupStream<D, value_bits, usual, Exact> stream{cache,  layer, table, heads.kv_head, lane,  pages, batch, first, last,
                                                  stages, norms, exact, exact_follow,  first, first};
  stream.now = ids.x;
  stream.next = ids.y;
  if constexpr (D == 64 && !usual) {
    for (int i = 0; i < 4; ++i) stream.places |= static_cast<uint32_t>(layer.chunks[i * kWarp + lane]) << (8 * i);
  }
  const int all_columns = layer.together * columns;
  const auto keep = [&](int column) {
    const int own = column >> layer.column_bits, head = column - own * columns;
    float* kept = reinterpret_cast<float*>(shared + Layout::kKept) + (own * heads.count + head) * D;
    return exact_follow && keeps(layer, heads) && head < heads.count ? kept : nullptr;
  };
#pragma unroll 1
  for (int begun = 0; begun < kStages; ++begun) {  // one place for what starts copies: there it is long
    stream.start(begun);
    if (begun > 0) break;
    if (warp < all_columns)
      fold_query(cache, p.type, inputs, layer.halves, warp, lane, queries, amplitudes, factors, keep(warp));
    if constexpr (warps < kHeads) {
      for (int column = warp + warps; column < all_columns; column += warps) {
        const int own = column >> layer.column_bits;
        FoldInputs<D> others(cache, heads.kv_head + own - team.own, lane);
        others.load_angles(cache, exact.length - 1, lane);
        others.raw.load(cache, p, column_heads(heads, team, own), column - own * columns, lane);
        fold_query(cache, p.type, others, layer.halves, column, lane, queries, amplitudes, factors, keep(column));
      }
    }
  }
  wait_copies<2>();  // of rows
  __syncthreads();
  const uint32_t sinks = __ballot_sync(0xffffffffu, sink);

  Softmax softmax;
  ValueSums<D> sums;
  int stage = 0;
#pragma unroll 1
  for (; first < last; first += batch) {
    const int count = min(batch, last - first);
    float scores[kProducts][4] = {};
    if (cache.keys.mean != nullptr) {
      const int row = min(owner, count - 1);
      if (D == 128 && waves[kSlowFlag] != 0) {
        float* rows = batch_rows(waves, warp);
        start_slow(scores, waves, amplitudes + words_at, reinterpret_cast<const float4*>(rows + row * D) + c, lane);
        __syncwarp();
        copy_rows(cache, rows, first + batch, last, batch, lane);  // with the next copy of codes
      } else {
        start_fast<D>(scores, waves, amplitudes + words_at, base_row(first + row), lane);
        prefetch(base_row(first + batch + owner) + c * (D / 4));
      }
    }
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      wait_copies<1>();
      __syncwarp();
      const TileReader tile{stages + stage * layer.stage_bytes + g * layer.key_stride, key_swizzle(g)};
      const unsigned char* words = reinterpret_cast<const unsigned char*>(queries + (owner == i ? words_at : kWarp));
      add_steps(scores, layer.keys, tile, words, c);
      __syncwarp();
      stream.start(stage);
      stage ^= 1;
    }
    const int slot = (first + mine - stream.begin) % kMostBatch;
    const auto* lane_norms = reinterpret_cast<const uint4*>(norms + (slot * kGroupTiles + g) * kNormBytes);
    const uint4 n0 = lane_norms[0], n1 = lane_norms[1];
    const float2 unit = *reinterpret_cast<const float2*>(factors + place + pair);
    const float2 constant = *reinterpret_cast<const float2*>(factors + kHeads + place + pair);
#pragma unroll
    for (int f = 0; f < kProducts; ++f) {
      const float field = static_cast<float>(1 << (24 - field_position(f)));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[f][i] = fmaf(scores[f][i], (i % 2 == 0 ? unit.x : unit.y) * field, i % 2 == 0 ? constant.x : constant.y);
      }
    }
    WeightOperands operands;
    if (count << layer.column_bits == kHeads && (first + count) * kGroupTokens <= tokens && (first > 0 || sinks == 0)) {
      weigh<value_bits, false>(softmax, sums, scores, n0, n1, 0xffffu, operands);
    } else {
      const uint32_t valid = valid_tokens((first + mine) * kGroupTokens + g * kTileTokens, tokens, sinks);
      weigh<value_bits, true>(softmax, sums, scores, n0, n1, mine < count ? valid : 0, operands);
    }
    add_ones<value_bits>(sums, operands);
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      wait_copies<1>();
      __syncwarp();
      add_codes<value_bits>(sums, stages + stage * layer.stage_bytes, operands, owner == i ? 0xffffffffu : 0, lane);
      __syncwarp();
      stream.start(stage);
      stage ^= 1;
    }
    if (batch == 1) {  // the next batch's row may still be under way
      wait_copies<1>();
      __syncwarp();
    }
  }
  __syncthreads();  // waves and queries are no longer needed: sums take their place

  // 2^18: fields are codes times 2^(p - 24), weights have a factor of 2^(6 - p).
  const float factor = sums.norm_scale > 0.0f ? layer.level_step * 262144.0f * inverse_power(sums.norm_scale) : 0.0f;
  auto* out = reinterpret_cast<float*>(shared + warp * Layout::kSums) + 2 * c * kMergeStride<D> + g * 4;
#pragma unroll
  for (int m = 0; m < D / 16; ++m) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float sum = fmaf(-ValueCodes<value_bits>::kCentre, sums.ones[j % 2], sums.sums[m][j]) * factor;
      out[j % 2 * kMergeStride<D> + m / 2 * 32 + m % 2 * 2 + j / 2] = sum;
    }
  }
  publish(*reinterpret_cast<MergeScratch<warps>*>(shared + Layout::kScratch), softmax, warp, lane);
  return true;
}

/// A block per part, kv head (and group of 8 query heads), or some of these, and sequence. The last part is what is
/// kept exactly, unless there is only one, which then has all tokens. direct: there is only one.
template <int D, int warps, int value_bits, bool usual, bool direct>
__device__ __forceinline__ void attend_int_block(const CacheView& cache, const Attention& p, const IntLayer& layer) {
  using Layout = IntBlock<D, warps>;
  constexpr int kWarpHeads = kHeads / warps;  // that a warp merges
  KVQUANT_DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x % kWarp, warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarp, 0);
  const int size = 1 << layer.team_bits;
  const Team team{warp >> layer.team_bits, warp & (size - 1), size, layer.team_bits};
  const BlockHeads heads = team_heads(layer, team.own);
  BlockHeads block = column_heads(heads, team, 0);
  block.count *= layer.together;
  release_next_kernel();
  const bool has_exact = cache.window > 0 || cache.sink_pages > 0;
  const int parts = direct ? 1 : has_exact ? p.parts - 1 : p.parts, part = direct ? 0 : heads.part;
  const bool in_codes = direct || part < parts, exact_too = direct ? has_exact : !in_codes;
  auto& scratch = *reinterpret_cast<MergeScratch<warps>*>(shared + Layout::kScratch);
  unsigned char* stages = shared + Layout::kWarpBuffers + warp * layer.warp_bytes;
  // What does not depend on kernels before this one: it may have been launched early. Lengths seldom change: they are
  // taken for what they are now, then looked at again.
  const int32_t* lengths = cache.lengths + 2 * heads.b;
  const int positions = static_cast<int>(cache.rope_rows - kPageTokens) * kPageTokens;
  int length = min(max(peek(lengths), 0), positions - 1), least = peek(lengths + 1);
  const auto stored = [&]() { return cache.window == 0 ? length + 1 : cache.stored(length + 1, least); };
  IntExact<D, warps, direct> exact(cache, heads, team, stages, stages + layer.stage_bytes, lane, length + 1, stored());
  exact.set_up();
  WarpGroups own(exact.quantized, part, parts, team, layer.column_bits);
  if (in_codes) fetch_groups(cache, heads, own, exact.quantized, lane);
  if (team.place == 0) fetch_queries<D>(cache, p, heads, lane);
  const int folded = min(warp >> layer.column_bits, layer.together - 1);  // the kv head for which the warp folds
  FoldInputs<D> inputs(cache, heads.kv_head + folded - team.own, lane);
  inputs.load_angles(cache, length, lane);
  const bool slow = D == 128 && in_codes && cache.keys.mean != nullptr && slow_waves(cache, lane);
  if (in_codes && cache.keys.mean != nullptr) fill_waves<D>(cache, reinterpret_cast<uint32_t*>(shared), slow);
  const auto start_rows = [&]() {
    if (slow) {
      copy_rows(cache, batch_rows(reinterpret_cast<uint32_t*>(shared), warp), own.first, own.last, 1 << own.batch_bits,
                lane);
    }
    commit_copies();
  };
  start_rows();
  wait_for_previous_kernel();
  const int seen = lengths[0], seen_least = lengths[1];
  const int32_t* table = cache.page_table + static_cast<int64_t>(heads.b) * cache.page_columns;
  const auto page_id = [&](int from) {
    const int pages = min((exact.quantized + kPageTokens - 1) / kPageTokens, cache.page_columns);
    return table[max(min(2 * from + lane, pages - 1), 0)];
  };
  int2 ids = make_int2(page_id(own.first), page_id(own.first + kIdGroups));
  exact.find();
  const int sink_page = sink_page_of(cache, heads.b, lane);
  if (in_codes && warp < layer.together << layer.column_bits) {
    inputs.raw.load(cache, p, column_heads(heads, team, folded), warp - (folded << layer.column_bits), lane);
  }
  if (seen != length || (cache.window > 0 && seen_least != least)) {
    length = seen;
    least = seen_least;
    exact.count(length + 1, stored());
    own = WarpGroups(exact.quantized, part, parts, team, layer.column_bits);
    ids = make_int2(page_id(own.first), page_id(own.first + kIdGroups));
    exact.find();
    inputs.load_angles(cache, length, lane);
    wait_copies<0>();
    start_rows();
  }
  const bool sink = is_sink(cache, sink_page, exact.length, lane);
  // Behind the table of waves, which would take its place in L1.
  if (in_codes && !slow && own.first < own.last) {
    const int owner = lane / 4 >> layer.column_bits;
    prefetch(cache.rope + (kPageTokens + 2 * min(own.first + owner, own.last - 1)) * D + lane % 4 * (D / 4));
  }
  const auto merge = [&](int head, const unsigned char* sums, int stride, bool codes) {
    const int own = head < heads.count ? 0 : head / heads.count;
    return merge_head<D, warps>(scratch, reinterpret_cast<const float*>(sums), stride / 4, head - own * heads.count,
                                codes, codes ? 1 << layer.column_bits : kHeads, own * size, own * size + size);
  };
  MergedHead<D / kWarp> merged[kWarpHeads];
  if (in_codes) {
    if (!attend_codes<D, warps, value_bits, usual>(cache, p, layer, heads, exact, direct && exact_too, inputs, own, ids,
                                                   sink, shared, warp, lane)) {
      return write_empty(cache, p, block);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kWarpHeads; ++i) {
      const int head = warp + i * warps;
      if (head < block.count) merged[i] = merge(head, shared, Layout::kSums, true);
    }
  } else {
    exact.start(team.place, false);
    exact.start(team.place, true);
  }
  if (exact_too) {
    const auto* kept = reinterpret_cast<const float*>(shared + Layout::kKept);
    attend_exact<D, warps, Layout::kScratch>(p, block, exact, __ballot_sync(0xffffffffu, sink), shared,
                                             direct && keeps(layer, heads) ? kept : nullptr);
#pragma unroll
    for (int i = 0; i < kWarpHeads; ++i) {
      const int head = warp + i * warps;
      if (head < block.count) merged[i].add(merge(head, shared + Layout::kWarpBuffers, layer.warp_bytes, false));
    }
  }
#pragma unroll
  for (int i = 0; i < kWarpHeads; ++i) {
    if (warp + i * warps < block.count) write_head(cache, p, block, warp + i * warps, merged[i]);
  }
}

/// Kernels of their own for one part and for several: each keeps more in registers than one for both. usual: see
/// GroupStream; the code for other widths would have to be fetched around.
template <int D, int warps, int blocks, int value_bits, bool usual, bool direct>
__global__ void __launch_bounds__(warps* kWarp, blocks)
    attend_int_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Attention p,
                      const __grid_constant__ IntLayer layer) {
  attend_int_block<D, warps, value_bits, usual, direct>(cache, p, layer);
}

template <int D, int warps, int blocks, int value_bits, bool usual>
void launch_int(const CacheView& cache, const Attention& p, const IntLayer& layer, bool early, cudaStream_t stream) {
  const auto bytes = static_cast<size_t>(IntBlock<D, warps>::kWarpBuffers + warps * layer.warp_bytes);
  dim3 grid = attention_blocks(cache, p);
  grid.x /= static_cast<unsigned>(layer.together);
  const LaunchShape shape{grid, warps * kWarp, bytes, stream, early};
  if (p.parts == 1) {
    launch("attend", attend_int_kernel<D, warps, blocks, value_bits, usual, true>, shape, cache, p, layer);
  } else {
    launch("attend", attend_int_kernel<D, warps, blocks, value_bits, usual, false>, shape, cache, p, layer);
  }
}

template <int D, int warps>
void launch_two_bits(const CacheView& cache, const Attention& p, const IntLayer& layer, bool early,
                     cudaStream_t stream) {
  if (cache.keys.tile_bytes == ValueCodes<2, D>::kTileBytes && !layer.scattered) {
    launch_int<D, warps, 2, 2, true>(cache, p, layer, early, stream);
  } else {
    launch_int<D, warps, 2, 2, false>(cache, p, layer, early, stream);
  }
}

template <int D>
void launch_bits(const CacheView& cache, const Attention& p, const IntLayer& layer, int warps, bool early,
                 cudaStream_t stream) {
  if constexpr (D == 64) {
    if (warps == kManyWarps && cache.values.bits == 4) {
      return launch_int<D, kManyWarps, 2, 4, false>(cache, p, layer, early, stream);
    }
  }
  if (warps == kManyWarps) return launch_two_bits<D, kManyWarps>(cache, p, layer, early, stream);
  switch (cache.values.bits) {
    case 2:
      return launch_two_bits<D, kFewWarps>(cache, p, layer, early, stream);
    case 3:
      return launch_int<D, kFewWarps, 2, 3, false>(cache, p, layer, early, stream);
    case 4:
      return launch_int<D, kFewWarps, 2, 4, false>(cache, p, layer, early, stream);
    default:
      return launch_int<D, kFewWarps, 2, 8, false>(cache, p, layer, early, stream);
  }
}

/// launch_bits of head_dim 64, in a source of its own.
void attend_int_64(const CacheView& cache, const Attention& p, const IntLayer& layer, int warps, bool early,
                   cudaStream_t stream);

}  // namespace kvquant::cuda
