/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Decode attention over keys before RoPE and values in codes of codebooks with outliers (kvquant2, 3 and 4), head_dim
// 128, on tensor cores; the plain kernel takes a token at a time.
//
// A block takes a part of a sequence for up to 8 kv heads, a warp each, 32 tokens at a time. A warp makes halves of its
// head's codes of keys in shared memory (codebook_tile.cuh). A token's outliers are of any heads: the block looks
// through them once and puts them where they belong, over what their codes said; hence two barriers. Then a warp turns
// its keys by their place in the tile or in half a page, in halves, and finds scores; queries are turned back by the
// positions of two tiles (codebook_warp.cuh). The same follows with values, in the same place. What comes next is
// loaded meanwhile. Exact tokens are tiles like others, dealt to the parts in turn.
//
// Measured on an H100, us a launch of kvquant2 with every slot for an outlier in use: 590 at batch 32, 32 query and 8
// kv heads, 32768 tokens (cuDNN over fp16: 1380); 174 at 16, 32, 32, 4096 (351). Of 617 and 185 in the same run: with
// angles of keys for both halves of a tile and for every tile of a page, with barriers at which warps did nothing else.
// A tile at a time, outliers through registers, it was 755 and 217; with 4 heads to a block it is 646 and 203. The data
// pipe of shared memory is busy 73 % of the time, issue slots 55 %; warps wait for what they read from shared memory
// and for results. Starting early and fetching first pages to L2 made it 3 to 7 % slower. Outliers in lists of heads,
// so that half of the barriers go, took 1.7 times as long with 32 kv heads. 16 heads to a block, half as many looks at
// outliers: 181 instead of 174 to 176. Angles in registers with four query heads to a kv head: 613. Queries turned at
// one place of the program for all kinds of units: 178 and 602. The next outliers loaded before the last are put: 178.
#include <algorithm>

#include "codebook_warp.cuh"
#include "exact_part.cuh"
#include "launch.cuh"

namespace kvquant::cuda {
namespace {

/// Two neighbouring elements of queries.
__device__ __forceinline__ float2 load_pair(const Attention& p, int64_t at) {
  if (p.type == ElementType::kFloat32) return *reinterpret_cast<const float2*>(static_cast<const float*>(p.qkv) + at);
  const uint32_t x = __ldg(static_cast<const uint32_t*>(p.qkv) + at / 2);
  return p.type == ElementType::kFloat16 ? __half22float2(as_half2(x))
                                         : make_float2(__int_as_float(static_cast<int>(x << 16)),
                                                       __int_as_float(static_cast<int>(x & 0xffff0000u)));
}

/// A head's queries after RoPE, times the score's factor and log2(e): FP32 [columns, 128]. A warp takes a kv head.
__device__ __forceinline__ void put_queries(const CacheView& cache, const Attention& p, const BlockHeads& heads,
                                            int lane, float* to) {
  const int position = cache.length(heads.b);
  const float2 first = rope_angle(cache, position, 2 * lane), second = rope_angle(cache, position, 2 * lane + 1);
  const float scale = cache.score_scale * kLog2e;
  const int64_t row = static_cast<int64_t>(heads.b) * (cache.heads + 2 * cache.kv_heads) + heads.first;
  constexpr int kTogether = 4;
  for (int head = 0; head < heads.count; head += kTogether) {
    float2 x[kTogether], y[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int64_t at = (row + min(head + i, heads.count - 1)) * kDim + 2 * lane;
      x[i] = load_pair(p, at);
      y[i] = load_pair(p, at + kPairs);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (head + i >= heads.count) break;
      const float2 a = turn(x[i].x, y[i].x, first), b = turn(x[i].y, y[i].y, second);
      auto* out = reinterpret_cast<float2*>(to + (head + i) * kDim) + lane;
      out[0] = make_float2(a.x * scale, b.x * scale);
      out[kPairs / 2] = make_float2(a.y * scale, b.y * scale);
    }
  }
}

/// Where a thread puts outliers: of two tokens.
struct OutlierPlaces {
  unsigned char* tiles;
  int at;                            // of channel 0
  uint32_t first_channel, channels;  // of the block

  template <int bits>
  __device__ __forceinline__ void put(uint32_t values, uint32_t channel_pair, int offset) const {
    channel_pair ^= channel_pair >> 3 & 0x00030003u;  // as place_of_channel has them
    const uint32_t a = (channel_pair & 0xffffu) - first_channel, b = (channel_pair >> 16) - first_channel;
    unsigned char* to = tiles + at + offset;
    if (a < channels) *reinterpret_cast<uint16_t*>(to + a * 16) = static_cast<uint16_t>(values);
    to += 2 * (place_of<bits>(1) - place_of<bits>(0));
    if (b < channels) *reinterpret_cast<uint16_t*>(to + b * 16) = static_cast<uint16_t>(values >> 16);
  }
  /// Puts outliers of two tiles in their places, `words` words of each, tile_bytes apart.
  template <int bits>
  __device__ __forceinline__ void put_all(const unsigned char* slots, int channels_at, int words,
                                          int tile_bytes) const {
    const auto* values = reinterpret_cast<const uint32_t*>(slots);
    const auto* channel_pairs = reinterpret_cast<const uint32_t*>(slots + channels_at);
    const int step = blockDim.x;
#pragma unroll 1
    for (int i = threadIdx.x; i < 2 * words; i += 2 * step) {
      const int next = i + step;
      const bool two = next < 2 * words;
      const uint32_t value = values[i], channel_pair = channel_pairs[i];
      const uint32_t other_value = two ? values[next] : 0, other_pair = two ? channel_pairs[next] : 0;
      put<bits>(value, channel_pair, i < words ? 0 : tile_bytes);
      if (two) put<bits>(other_value, other_pair, next < words ? 0 : tile_bytes);
    }
  }
};

template <int bits, bool paired, bool held>
__global__ void __launch_bounds__(kThreads, 2)
    attend_codebook_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Attention p) {
  KVQUANT_DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x % kWarp, warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarp, 0);
  const int block_heads = blockDim.x / kWarp, queries_per_head = cache.heads / cache.kv_heads,
            groups = head_groups(cache);
  const int first_head = static_cast<int>(blockIdx.x) / groups * block_heads, kv_head = first_head + warp;
  const int skipped = static_cast<int>(blockIdx.x) % groups * kHeads;
  const BlockHeads heads{static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z), kv_head,
                         kv_head * queries_per_head + skipped, min(kHeads, queries_per_head - skipped)};
  const Layout layout(block_heads, min(kHeads, queries_per_head), max(cache.keys.outliers, cache.values.outliers));
  release_next_kernel();

  auto* queries = reinterpret_cast<float*>(shared + layout.queries) + warp * heads.count * kDim;
  unsigned char* outliers = shared + layout.outliers;
  unsigned char* ranges = shared + layout.ranges + warp * (2 * kRangeBytes);
  const int half_bytes = block_heads * kHeadHalf, tile_bytes = 2 * half_bytes;
  HeadWarp<paired, held> own{
      shared + layout.tiles + warp * kHeadHalf,
      half_bytes,
      lane,
      0,
      0,
      {},
      {},
      reinterpret_cast<uint4*>(shared + layout.operands) + warp * 4 * Layout::operand_stride(heads.count),
      heads.count,
      shared + layout.zeros,
      0,
      0,
      {}};
  // A lane's column: of query `column % kPaired` for tile `column / kPaired`, if paired.
  const int column = lane / 4, query = paired ? column % kPaired : column;
  if (query < heads.count) {
    own.own_q = reinterpret_cast<const unsigned char*>(own.q + lane % 4 + 4 * query);
    if (paired) own.own_q += column / kPaired * (heads.count * 4 * 16);
    own.q_step = Layout::operand_stride(heads.count) * 16;
    own.q_tile = heads.count * 4 * 16;
  }
  if (threadIdx.x < 4) reinterpret_cast<uint32_t*>(shared + layout.zeros)[threadIdx.x] = 0;
  own.key_rows = own.rows_at(lane / 16, lane / 8 % 2);
  own.value_rows = own.rows_at(lane / 8 % 2, lane / 16);
  auto* scratch = reinterpret_cast<volatile int*>(ranges) + lane;
  const auto hold = [&](int& x) {
    *scratch = x;
    x = *scratch;
  };
  hold(own.key_rows);
  hold(own.value_rows);

  const ExactUnits<kDim> exact(cache, heads, {0, 0, 1, 0}, nullptr, nullptr, lane);
  const int tokens = exact.quantized, units = (tokens + kUnitTokens - 1) / kUnitTokens;
  const int begin = static_cast<int>(static_cast<int64_t>(units) * heads.part / p.parts);
  const int end = static_cast<int>(static_cast<int64_t>(units) * (heads.part + 1) / p.parts);
  const int32_t* table = cache.page_table + static_cast<int64_t>(heads.b) * cache.page_columns;
  const int last_page = max(0, (tokens - 1) / kPageTokens);

  // What is loaded ahead: a unit's codes of keys, then of values, ranges and outliers. Where they begin in a page.
  LaneCodes<bits> codes[2];
  uint32_t range = 0;
  const int thread = threadIdx.x;
  const int keys_at = static_cast<int>(cache.keys.tile(kv_head, 0)) + lane * 8 * bits;
  const int values_at = static_cast<int>(cache.values.tile(kv_head, 0)) + lane * 8 * bits;
  const int ranges_at = static_cast<int>(cache.values.scales(0, 0)) + lane * 4;
  const int key_slots_at = static_cast<int>(cache.keys.outlier_slot(0, 0)) + thread * 16;
  const int value_slots_at = static_cast<int>(cache.values.outlier_slot(0, 0)) + thread * 16;
  const int key_words = cache.keys.outliers * 8, value_words = cache.values.outliers * 8;  // of a tile
  const uint8_t* page = nullptr;
  int next_id = 0;
  const auto load_codes = [&](int at, int unit) {
    const uint8_t* from = page + (at + (unit & 1) * (kDim * 4 * bits));
    codes[0].load(from);
    codes[1].load(from + kDim * 2 * bits);
  };
  // Values and channels lie apart, 32 bytes of a slot each.
  const int copied_to = thread / 4 * (kSlotBytes / 2) + thread % 2 * 16 + thread / 2 % 2 * layout.channels;
  const auto copy_outliers = [&](int at, int words, int unit) {
    const uint8_t* from = page + (at + (unit & 1) * (words * (2 * kSlotBytes / 8)));
    unsigned char* to = outliers + copied_to;
    for (int i = 16 * thread; i < words * (2 * kSlotBytes / 8); i += 16 * blockDim.x) {
      copy_async(to, from);
      from += 16 * blockDim.x;
      to += 8 * blockDim.x;
    }
    commit_copies();
  };
  const auto load_keys = [&](int unit) {
    if (unit >= end) return;
    if ((unit & 1) == 0 || unit == begin) {
      page = cache.pages + (unit == begin ? table[unit / 2] : next_id) * cache.page_bytes;
      next_id = table[min(unit / 2 + 1, last_page)];
    }
    load_codes(keys_at, unit);
  };
  load_keys(begin);
  if (begin < end) copy_outliers(key_slots_at, key_words, begin);
  const uint32_t sinks = find_sinks(cache, heads.b, lane);
  const KeyReader<bits> reader(cache.keys.levels + (1 << bits), cache.keys.steps + 2 * (kv_head * kDim + 4 * lane));
  LevelTable<bits> value_levels(cache.values.levels + (1 << bits));
  value_levels.hold(reinterpret_cast<uint32_t*>(ranges) + lane);
  put_queries(cache, p, heads, lane, queries);
  auto* row_angles = reinterpret_cast<uint4*>(shared);
  RowAngles<held>::template fill<bits>(cache, row_angles);
  auto* step_angles = reinterpret_cast<float4*>(shared + layout.step) + lane;
  if (warp == 0) {
    const float* cosines = cache.rope + 2 * lane * kPageTokens + kTileTokens;
    const float* sines = cosines + kPairs * kPageTokens;
    *step_angles = make_float4(cosines[0], cosines[kPageTokens], sines[0], sines[kPageTokens]);
  }
  own.angles.template start<bits>(cache, row_angles, lane);
  auto* tiles_written = reinterpret_cast<uint64_t*>(shared + layout.barrier);
  if (thread == 0) set_arrivals(tiles_written, block_heads);
  __syncthreads();

  const int token_pair = thread % 8;
  OutlierPlaces places{shared + layout.tiles, token_pair / 4 * half_bytes + place_of<bits>(2 * token_pair % 8) * 2,
                       static_cast<uint32_t>(first_head * kDim), static_cast<uint32_t>(block_heads * kDim)};
  int place = lane_place(lane);
  hold(places.at);
  hold(place);
  // Of a lane's two halves of a range: of a tile steps come first, then starts.
  int range_at = lane / 4 * 16 + place_of<bits>(2 * lane % 8) * 2;
  // Units in which all tokens are to be read.
  const int clean_begin = sinks != 0 ? 1 : 0, clean_end = tokens / kUnitTokens;
  int exact_unit = heads.part;
#pragma unroll 1
  for (int unit = begin; unit < end || exact_unit < exact.units; ++unit) {
    const bool coded = unit < end;
    const uint8_t* exact_page = nullptr;
    int first = unit * kUnitTokens;
    if (coded) {
      put_keys<bits>(codes[0], reader, own.tiles, place, half_bytes);
      put_keys<bits>(codes[1], reader, own.tiles + tile_bytes, place, half_bytes);
      wait_copies<0>();
      __syncwarp();
      if (lane == 0) arrive(tiles_written);
      load_codes(values_at, unit);
      range = __ldg(reinterpret_cast<const uint32_t*>(page + (ranges_at + (unit & 1) * (2 * kRangeBytes))));
      if (held || (unit & 1) == 0 || unit == begin) own.turn_queries_back(cache, queries, first, *step_angles);
      wait_arrivals(tiles_written, 0);
      places.put_all<bits>(outliers, layout.channels, key_words, tile_bytes);
    } else {
      first = exact.token(exact_unit);
      exact_page =
          exact_unit < cache.sink_pages ? cache.sink_page(heads.b, exact_unit) : cache.window_page(heads.b, first);
      put_exact<bits>(exact_page + cache.exact_key(kv_head, 0), own.tiles, place, half_bytes, lane);
      own.turn_queries_back(cache, queries, first, *step_angles);
    }
    __syncthreads();
    if (coded) copy_outliers(value_slots_at, value_words, unit);
    float scores[HeadWarp<paired, held>::kTiles][4];
    uint32_t weights[2][2];
    own.score(scores, tile_bytes, static_cast<unsigned>(first) / kUnitTokens % 2);
    uint32_t valid = ~0u;
    if (!coded || unit < clean_begin || unit >= clean_end) {
      valid = coded ? valid_tokens(first, tokens, sinks) | valid_tokens(first + kTileTokens, tokens, sinks) << 16
                    : exact.valid(exact_unit, sinks);
      valid = bits_at_places<bits>(valid);
      own.exclude(scores, valid);
    }
    own.weigh(scores, weights);
    if (coded) {
      *reinterpret_cast<uint16_t*>(ranges + range_at) = static_cast<uint16_t>(range);
      *reinterpret_cast<uint16_t*>(ranges + range_at + 2 * (place_of<bits>(1) - place_of<bits>(0))) =
          static_cast<uint16_t>(range >> 16);
      __syncwarp();
      const auto* tile_ranges = reinterpret_cast<const uint4*>(ranges);
      put_values<bits>(codes[0], value_levels, tile_ranges, own.tiles, place, half_bytes);
      put_values<bits>(codes[1], value_levels, tile_ranges + 4, own.tiles + tile_bytes, place, half_bytes);
      wait_copies<0>();
      __syncwarp();
      if (lane == 0) arrive(tiles_written);
      load_keys(unit + 1);
      wait_arrivals(tiles_written, 1);
      places.put_all<bits>(outliers, layout.channels, value_words, tile_bytes);
    } else {
      __syncwarp();
      put_exact<bits>(exact_page + cache.exact_value(kv_head, 0), own.tiles, place, half_bytes, lane);
      exact_unit += p.parts;
    }
    __syncthreads();
    if (unit + 1 < end) copy_outliers(key_slots_at, key_words, unit + 1);
    if (valid != ~0u) HeadWarp<paired, held>::clear_values(own.tiles, place, half_bytes, tile_bytes, valid);
    own.add_values(own.tiles, weights[0]);
    own.add_values(own.tiles + tile_bytes, weights[1]);
    __syncwarp();  // tiles are read before others take their place
  }
  own.write(cache, p, heads);
}

/// Kv heads of a block.
int heads_together(const CacheView& cache) {
  int heads =
      cache.heads / cache.kv_heads > kPaired ? kMostHeads / 2 : kMostHeads;  // shared memory for two blocks or three
  while (cache.kv_heads % heads != 0) --heads;
  return heads;
}

}  // namespace

bool attend_codebook_supports(const CacheView& cache) {
  const SideView &keys = cache.keys, &values = cache.values;
  return keys.format == Format::kCodebook && values.format == Format::kCodebook && keys.bits == values.bits &&
         keys.bits >= 2 && keys.bits <= 4 && keys.steps != nullptr && values.steps == nullptr &&
         cache.keys_pre_rope != 0 && cache.head_dim == kDim && cache.sink_policy != SinkPolicy::kMassive &&
         cache.max_sinks <= kSinkBits;
}

AttentionShape attend_codebook_shape(const CacheView& cache) {
  const int heads = heads_together(cache), columns = std::min(kHeads, cache.heads / cache.kv_heads);
  const int slots = std::max(cache.keys.outliers, cache.values.outliers);
  // A block's warps work on the same tokens: as one warp that takes them one after another.
  return {1, Layout(heads, columns, slots).bytes, 2 * kMostHeads / heads, kUnitTokens, heads};
}

template <int bits>
static void attend_bits(const CacheView& cache, const Attention& p, const LaunchShape& shape) {
  const int queries = cache.heads / cache.kv_heads;
  if constexpr (bits == 2) {
    if (queries == 1) return launch("attend", attend_codebook_kernel<bits, true, true>, shape, cache, p);
  }
  if (queries <= kPaired) {
    launch("attend", attend_codebook_kernel<bits, true, false>, shape, cache, p);
  } else {
    launch("attend", attend_codebook_kernel<bits, false, false>, shape, cache, p);
  }
}

void attend_codebook(const CacheView& cache, const Attention& p, cudaStream_t stream) {
  const int heads = heads_together(cache);
  const dim3 blocks(static_cast<unsigned>(cache.kv_heads / heads * head_groups(cache)),
                    static_cast<unsigned>(cache.batch), static_cast<unsigned>(p.parts));
  const LaunchShape shape{blocks, static_cast<unsigned>(heads * kWarp),
                          static_cast<size_t>(attend_codebook_shape(cache).shared_bytes), stream};
  if (cache.keys.bits == 2) attend_bits<2>(cache, p, shape);
  if (cache.keys.bits == 3) attend_bits<3>(cache, p, shape);
  if (cache.keys.bits == 4) attend_bits<4>(cache, p, shape);
}

}  // namespace kvquant::cuda
