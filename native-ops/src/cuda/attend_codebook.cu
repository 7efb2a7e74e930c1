/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Decode attention over keys before RoPE and values in codes of codebooks with outliers (kvquant2, 3 and 4), head_dim
// 128, on tensor cores; the plain kernel takes a token at a time.
//
// A block takes a part of a sequence for up to 8 kv heads, a warp each, 32 tokens at a time. A warp makes halves of its
// head's codes of keys in shared memory (codebook_tile.cuh). A token's outliers are of any heads: the block looks
// through them once and puts them where they belong, over what their codes said; hence two barriers. Then a warp turns
// its keys by their place in the page, in halves, and finds scores; queries are turned back by the page's first
// position. The same follows with values, in the same place. What comes next is loaded meanwhile. Exact tokens are
// tiles like others, dealt to the parts in turn.
//
// Measured on an H100, us a launch of kvquant2 with every slot for an outlier in use: 615 at batch 32, 32 query and 8
// kv heads, 32768 tokens (cuDNN over fp16: 1380); 180 at 16, 32, 32, 4096 (351). A tile at a time, outliers through
// registers, it was 755 and 217; with 4 heads to a block it is 646 and 203. What limits it is shared memory: its data
// pipe is busy 82 % of the time, issue slots 49 %. Starting early and fetching first pages to L2 made it 3 to 7 %
// slower. Columns of products that are to spare can hold queries turned back by 8 positions more, so that both halves
// of a tile share angles: within 2 % either way. By 16 positions more, so that two tiles share them, and with barriers
// in shared memory at which warps arrive early: 177 to 179 in the second and 585 to 609 in the first, not worth that
// racecheck takes copies of other lanes than the one that arrives for races. Outliers in lists of heads, so that half
// of the barriers go, took 1.7 times as long with 32 kv heads.
#include <algorithm>

#include "codebook_tile.cuh"
#include "exact_part.cuh"
#include "launch.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = 128, kPairs = kDim / 2, kMostHeads = 8, kThreads = kMostHeads * kWarp;
constexpr int kUnitTokens = 2 * kTileTokens;
constexpr int kHeadHalf = kDim * 16;  // bytes of a head's 8 tokens
constexpr int kAngleBytes = kPageTiles * 8 * kWarp * 16, kRangeBytes = 4 * kTileTokens;
constexpr int kSlotBytes = 4 * kTileTokens;  // of 16 outliers: values, then channels

/// A block's shared memory, in bytes.
struct Layout {
  int operands, queries, tiles, ranges, zeros, outliers, bytes;

  __host__ __device__ Layout(int heads, int columns, int slots)
      : operands(kAngleBytes),
        queries(operands + heads * 4 * operand_stride(columns) * 16),
        tiles(queries + heads * columns * kDim * 4),
        ranges(tiles + 4 * heads * kHeadHalf),
        zeros(ranges + heads * 2 * kRangeBytes),
        outliers(zeros + 16),
        bytes(outliers + 2 * slots * kSlotBytes) {}

  /// Of operands of 16 pairs, in 16 bytes; an odd multiple of 64 bytes spreads those who write them over the banks.
  static __host__ __device__ int operand_stride(int columns) { return 4 * (columns | 1); }
};

/// Cosines and sines of a page's positions as keys' operands want them: [4 tiles][8 times 8 pairs][32 lanes] of
/// cosines, sines of the lane's two pairs for rows g, g + 8.
template <int bits>
__device__ __forceinline__ void fill_page_angles(const CacheView& cache, uint4* angles) {
#pragma unroll 4
  for (int i = threadIdx.x; i < kPageTiles * 8 * kWarp; i += blockDim.x) {
    const int lane = i % kWarp, pair = i / kWarp % 8 * 8 + 2 * (lane % 4);
    const float* cosines = cache.rope + pair * kPageTokens + i / (8 * kWarp) * kTileTokens + token_at<bits>(lane / 4);
    const float* sines = cosines + kPairs * kPageTokens;
    const auto load = [](const float* at) { return pack_halves(__ldg(at), __ldg(at + kPageTokens)); };
    angles[i] = make_uint4(load(cosines), load(cosines + 8), load(sines), load(sines + 8));
  }
}

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
    const uint32_t a = (channel_pair & 0xffffu) - first_channel, b = (channel_pair >> 16) - first_channel;
    unsigned char* to = tiles + at + offset;
    if (a < channels) *reinterpret_cast<uint16_t*>(to + place_of_channel(a)) = static_cast<uint16_t>(values);
    to += 2 * (place_of<bits>(1) - place_of<bits>(0));
    if (b < channels) *reinterpret_cast<uint16_t*>(to + place_of_channel(b)) = static_cast<uint16_t>(values >> 16);
  }

  /// Puts outliers of two tiles in their places, `words` words of each, tile_bytes apart. A slot has 8 words of values,
  /// then 8 of channels.
  template <int bits>
  __device__ __forceinline__ void put_all(const unsigned char* slots, int words, int tile_bytes) const {
    const auto* from = reinterpret_cast<const uint32_t*>(slots) + threadIdx.x / 8 * 16 + threadIdx.x % 8;
#pragma unroll 1
    for (int i = threadIdx.x; i < 2 * words; i += blockDim.x) {
      put<bits>(from[0], from[8], i < words ? 0 : tile_bytes);
      from += 2 * blockDim.x;
    }
  }
};

/// A warp's head: two tiles of halves in shared memory become scores, weights and sums.
struct HeadWarp {
  static constexpr int kBlocks = kDim / 16;
  unsigned char* tiles;  // of the head
  int half_bytes, lane;
  int key_rows, value_rows;  // rows_at
  Softmax softmax;
  float sums[kBlocks][4] = {};
  uint4* q;  // second operands: of the four blocks of pairs [lanes] words of their first channels, then of the others
  int columns;
  const unsigned char* own_q;  // the lane's words, q_step bytes from block to block; zeros for columns without a head
  int q_step;

  /// Turns queries, FP32 [columns, 128], back by the position of a page.
  __device__ __forceinline__ void turn_queries_back(const CacheView& cache, const float* queries, int page) {
    const float* base = cache.rope + (static_cast<int64_t>(kPageTokens) + page) * kDim + 2 * lane;
    const float2 cosine = __ldg(reinterpret_cast<const float2*>(base));
    const float2 sine = __ldg(reinterpret_cast<const float2*>(base + kPairs));
    queries += 2 * lane;
    auto* to = reinterpret_cast<uint32_t*>(q + lane / 8 * Layout::operand_stride(columns) + lane % 4) + lane / 4 % 2;
#pragma unroll 2
    for (int head = 0; head < columns; ++head) {
      const float2 x = *reinterpret_cast<const float2*>(queries + head * kDim);
      const float2 y = *reinterpret_cast<const float2*>(queries + head * kDim + kPairs);
      to[16 * head] = pack_halves(fmaf(x.x, cosine.x, y.x * sine.x), fmaf(x.y, cosine.y, y.y * sine.y));
      to[16 * head + 2] = pack_halves(fmaf(y.x, cosine.x, -x.x * sine.x), fmaf(y.y, cosine.y, -x.y * sine.y));
    }
  }

  /// Where a lane's rows of the first blocks of channels are in a tile; in every second block 32 is exchanged.
  __device__ __forceinline__ int rows_at(int upper, int half) const {
    return half * half_bytes + upper * 128 + ((lane % 8) ^ upper) * 16;
  }

  /// Scores (base 2) of both tiles; angles: the lane's of the first.
  __device__ __forceinline__ void score(float (&scores)[2][4], int tile_bytes, const uint4* angles) const {
    float others[2][4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned char* rows = tiles + (i % 2 == 0 ? key_rows : key_rows ^ 32) + 256 * i;
      const uint4 words = *reinterpret_cast<const uint4*>(own_q + i * q_step);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        uint32_t a[4], b[4];
        load_transposed(a, rows + u * tile_bytes);
        load_transposed(b, rows + u * tile_bytes + 1024);
#pragma unroll
        for (int at = 0; at < 2; ++at) {
          const uint4 angle = angles[(8 * u + 2 * i + at) * kWarp];
          turn_halves(a[2 * at], b[2 * at], angle.x, angle.z);
          turn_halves(a[2 * at + 1], b[2 * at + 1], angle.y, angle.w);
        }
        mma(scores[u], a[0], a[1], a[2], a[3], words.x, words.y);
        mma(others[u], b[0], b[1], b[2], b[3], words.z, words.w);
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) scores[i / 4][i % 4] += others[i / 4][i % 4];
  }

  /// Scores become weights as second operands.
  __device__ __forceinline__ void weigh(float (&scores)[2][4], uint32_t (&weights)[2][2]) {
    const float maximum0 = fmaxf(fmaxf(scores[0][0], scores[0][2]), fmaxf(scores[1][0], scores[1][2]));
    const float maximum1 = fmaxf(fmaxf(scores[0][1], scores[0][3]), fmaxf(scores[1][1], scores[1][3]));
    if (__any_sync(0xffffffffu, softmax.must_raise(maximum0, maximum1))) {
      const float2 keep = softmax.raise(maximum0, maximum1);
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        sums[i][0] *= keep.x;
        sums[i][1] *= keep.y;
        sums[i][2] *= keep.x;
        sums[i][3] *= keep.y;
      }
    }
#pragma unroll
    for (int u = 0; u < 2; ++u) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[u][i] = exp2_fast(scores[u][i] - softmax.reference[i % 2]);
        softmax.weights[i % 2] += scores[u][i];
      }
      weights[u][0] = transpose8x8(pack_halves(scores[u][0], scores[u][1]));
      weights[u][1] = transpose8x8(pack_halves(scores[u][2], scores[u][3]));
    }
  }

  /// Scores of tokens that are not to be read; valid: a bit for each place of both tiles.
  __device__ __forceinline__ void exclude(float (&scores)[2][4], uint32_t valid) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (((valid >> (lane / 4 + i / 2 * 8)) & 1u) == 0) scores[i / 4][i % 4] = -INFINITY;  // they may be NaN
    }
  }

  /// Clears their values, which may be anything.
  __device__ __noinline__ static void clear_values(unsigned char* tiles, int place, int half_bytes, int tile_bytes,
                                                   uint32_t valid) {
    for (int i = 0; i < 16; ++i) {
      const int k = i % 4, half = i / 4 % 2, u = i / 8;
      auto* words = reinterpret_cast<uint32_t*>(tiles + u * tile_bytes + half * half_bytes + (place ^ (16 * k)));
      for (int j = 0; j < 4; ++j) {
        const uint32_t pair = valid >> (i / 4 * 8 + 2 * j);
        words[j] &= (pair & 1u) * 0xffffu | (pair >> 1 & 1u) * 0xffff0000u;
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ void add_values(const unsigned char* tile, const uint32_t (&weights)[2]) {
    const unsigned char *even = tile + value_rows, *odd = tile + (value_rows ^ 32);
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      uint32_t a[4];
      load_matrices(a, (i % 2 == 0 ? even : odd) + 256 * i);
      mma(sums[i], a[0], a[1], a[2], a[3], weights[0], weights[1]);
    }
  }

  /// Leaves the part's sums for combine().
  __device__ __forceinline__ void write(const CacheView& cache, const Attention& p, const BlockHeads& heads) {
#pragma unroll
    for (int step = 4; step < kWarp; step *= 2) {
      softmax.weights[0] += __shfl_xor_sync(0xffffffffu, softmax.weights[0], step);
      softmax.weights[1] += __shfl_xor_sync(0xffffffffu, softmax.weights[1], step);
    }
    const int g = lane / 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = 2 * (lane % 4) + i;
      if (column >= heads.count) continue;
      const int64_t to = (static_cast<int64_t>(heads.b) * cache.heads + heads.first + column) * p.parts + heads.part;
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
        p.sums[to * kDim + 16 * j + g] = sums[j][i];
        p.sums[to * kDim + 16 * j + g + 8] = sums[j][2 + i];
      }
      if (g == 0) p.ranges[to] = make_float2(softmax.reference[i], softmax.weights[i]);
    }
  }

 private:
  static __device__ __forceinline__ void turn_halves(uint32_t& a, uint32_t& b, uint32_t cosine, uint32_t sine) {
    const __half2 x = as_half2(a), y = as_half2(b), c = as_half2(cosine), s = as_half2(sine);
    a = as_bits(__hfma2(x, c, __hneg2(__hmul2(y, s))));
    b = as_bits(__hfma2(y, c, __hmul2(x, s)));
  }
};

template <int bits>
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

  auto* angles = reinterpret_cast<uint4*>(shared);
  auto* queries = reinterpret_cast<float*>(shared + layout.queries) + warp * heads.count * kDim;
  unsigned char* outliers = shared + layout.outliers;
  unsigned char* ranges = shared + layout.ranges + warp * (2 * kRangeBytes);
  const int half_bytes = block_heads * kHeadHalf, tile_bytes = 2 * half_bytes;
  HeadWarp own{shared + layout.tiles + warp * kHeadHalf,
               half_bytes,
               lane,
               0,
               0,
               {},
               {},
               reinterpret_cast<uint4*>(shared + layout.operands) + warp * 4 * Layout::operand_stride(heads.count),
               heads.count,
               shared + layout.zeros,
               0};
  if (lane < 4 * heads.count) {
    own.own_q = reinterpret_cast<const unsigned char*>(own.q + lane);
    own.q_step = Layout::operand_stride(heads.count) * 16;
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
  const auto copy_outliers = [&](int at, int words, int unit) {
    const uint8_t* from = page + (at + (unit & 1) * (words * (2 * kSlotBytes / 8)));
    for (int i = 16 * thread; i < words * (2 * kSlotBytes / 8); i += 16 * blockDim.x) {
      copy_async(outliers + i, from);
      from += 16 * blockDim.x;
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
  fill_page_angles<bits>(cache, angles);
  __syncthreads();

  const int token_pair = thread % 8;
  OutlierPlaces places{shared + layout.tiles, token_pair / 4 * half_bytes + place_of<bits>(2 * token_pair % 8) * 2,
                       static_cast<uint32_t>(first_head * kDim), static_cast<uint32_t>(block_heads * kDim)};
  int place = lane_place(lane);
  int angles_at = lane * 16;
  hold(angles_at);
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
      load_codes(values_at, unit);
      range = __ldg(reinterpret_cast<const uint32_t*>(page + (ranges_at + (unit & 1) * (2 * kRangeBytes))));
      wait_copies<0>();
      __syncthreads();
      places.put_all<bits>(outliers, key_words, tile_bytes);
    } else {
      first = exact.token(exact_unit);
      exact_page =
          exact_unit < cache.sink_pages ? cache.sink_page(heads.b, exact_unit) : cache.window_page(heads.b, first);
      put_exact<bits>(exact_page + cache.exact_key(kv_head, 0), own.tiles, place, half_bytes, lane);
    }
    if (!coded || (unit & 1) == 0 || unit == begin) {
      own.turn_queries_back(cache, queries, first / kPageTokens);
    }
    __syncthreads();
    if (coded) copy_outliers(value_slots_at, value_words, unit);
    float scores[2][4] = {};
    uint32_t weights[2][2];
    const auto* tile_angles = reinterpret_cast<const uint4*>(
        shared + (angles_at + (static_cast<unsigned>(first) / kTileTokens % kPageTiles) * (8 * kWarp * 16)));
    own.score(scores, tile_bytes, tile_angles);
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
      load_keys(unit + 1);
      wait_copies<0>();
      __syncthreads();
      places.put_all<bits>(outliers, value_words, tile_bytes);
    } else {
      __syncwarp();
      put_exact<bits>(exact_page + cache.exact_value(kv_head, 0), own.tiles, place, half_bytes, lane);
      exact_unit += p.parts;
    }
    __syncthreads();
    if (unit + 1 < end) copy_outliers(key_slots_at, key_words, unit + 1);
    if (valid != ~0u) HeadWarp::clear_values(own.tiles, place, half_bytes, tile_bytes, valid);
    own.add_values(own.tiles, weights[0]);
    own.add_values(own.tiles + tile_bytes, weights[1]);
    __syncwarp();  // tiles are read before others take their place
  }
  own.write(cache, p, heads);
}

/// Kv heads of a block.
int heads_together(const CacheView& cache) {
  int heads = cache.heads / cache.kv_heads > 4 ? kMostHeads / 2 : kMostHeads;  // shared memory for two blocks or three
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

void attend_codebook(const CacheView& cache, const Attention& p, cudaStream_t stream) {
  const int heads = heads_together(cache);
  const dim3 blocks(static_cast<unsigned>(cache.kv_heads / heads * head_groups(cache)),
                    static_cast<unsigned>(cache.batch), static_cast<unsigned>(p.parts));
  const LaunchShape shape{blocks, static_cast<unsigned>(heads * kWarp),
                          static_cast<size_t>(attend_codebook_shape(cache).shared_bytes), stream};
  if (cache.keys.bits == 2) launch("attend", attend_codebook_kernel<2>, shape, cache, p);
  if (cache.keys.bits == 3) launch("attend", attend_codebook_kernel<3>, shape, cache, p);
  if (cache.keys.bits == 4) launch("attend", attend_codebook_kernel<4>, shape, cache, p);
}

}  // namespace kvquant::cuda
