/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// What the warps of a block of attend_latent.cu share, and what each does beside rebuilding keys: copies, queries,
// softmax, values.
#pragma once
#include "elements.cuh"
#include "latent_keys.cuh"

namespace kvquant::cuda {

/// Warps by what they do: rebuild and score keys, unpack codes, all else.
constexpr int kScorers = kRowGroups, kUnpackers = 2, kAdders = 2, kLatentWarps = kScorers + kUnpackers + kAdders;
constexpr int kLatentThreads = kLatentWarps * kWarp, kLatentWarpBits = 3, kLatentBlocks = 2;
/// Of a thread, at first, then by what it does.
constexpr int kLatentRegisters = 65536 / (kLatentBlocks * kLatentThreads), kScorerRegisters = 152,
              kOtherRegisters = 104;
/// Pages that are in shared memory at once, and from one that is copied to the one whose keys are scored.
constexpr int kRing = 4, kLead = 3;

struct LatentLayer {
  LatentKeys keys;
  int key_bytes;                // of a page and kv head
  int value_bytes;              // the same
  int basis_at;                 // in shared memory
  int basis_bytes, code_bytes;  // of the codes of a page, once they are unpacked
  float level_step;
};

struct LatentShared {
  __half queries[2][kHeads * kTurnedStride<kDim>];  // of a page and the next one
  uint2 weights[2][kScorers][kWarp];                // second operands
  alignas(16) int raise[2][kScorers];               // whether a warp must raise references before it can weigh
  float maxima[kScorers][kHeads], norms[kScorers], bias[kAdders][kHeads];
  uint64_t copied[kRing];  // barriers of copies
  float weight_sums[kScorers][kHeads], one_sums[kScorers][kHeads], references[kHeads], norm_scale;
};

constexpr int kNormPageBytes = kPageTiles * kNormBytes;
constexpr int kOutBytes = kHeads * kMergeStride<kDim> * 4;  // sums of values, at last, from the beginning on
constexpr int kSharedAt = (kTurnBytes + 127) / 128 * 128;
constexpr int kNormsAt = (kSharedAt + static_cast<int>(sizeof(LatentShared)) + 127) / 128 * 128;
constexpr int kValuesAt = kNormsAt + kRing * kNormPageBytes;
/// What attend_exact has, and what it may not touch before all warps are there.
constexpr int kScratchAt = 29696, kExactAt = kScratchAt + static_cast<int>(sizeof(MergeScratch<kLatentWarps>));
constexpr int kExactStride = 2 * Fp16Tile<kDim>::kBytes;  // a warp's tiles of exact tokens
static_assert(kOutBytes <= kSharedAt, "sums fit where angles were");
static_assert(kNormsAt <= kExactAt && kExactAt % 128 == 0, "exact tokens come where nothing is read any more");

/// An adder's part of queries: a lane has a pair of channels of all columns, turned, times the score's factor.
struct PairQueries {
  float2 x[kHeads];
  int pair, count;

  __device__ __forceinline__ PairQueries(const CacheView& cache, const Attention& p, const BlockHeads& heads, int pair)
      : pair(pair), count(heads.count) {
    const float2 angle = rope_angle(cache, cache.length(heads.b), pair);
    const float scale = cache.score_scale * kLog2e;
    const int64_t first = static_cast<int64_t>(heads.b) * (cache.heads + 2 * cache.kv_heads) + heads.first;
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
      x[i] = make_float2(0.0f, 0.0f);
      if (i >= count) continue;
      const float2 y = turn(load_element(p.type, p.qkv, (first + i) * kDim + pair),
                            load_element(p.type, p.qkv, (first + i) * kDim + pair + kDim / 2), angle);
      x[i] = make_float2(y.x * scale, y.y * scale);
    }
  }

  /// Turned back, in halves.
  __device__ __forceinline__ void store(float2 angle, __half* to, int columns) const {
    to += pair;
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
      if (i >= columns) break;
      to[i * kTurnedStride<kDim>] = __float2half_rn(fmaf(x[i].x, angle.x, x[i].y * angle.y));
      to[i * kTurnedStride<kDim> + kDim / 2] = __float2half_rn(fmaf(x[i].y, angle.x, -x[i].x * angle.y));
    }
  }
};

/// What all warps of a block that have sums agree on, of columns 2 c and 2 c + 1.
struct LatentScale {
  float reference[2] = {kLowest, kLowest}, norm_scale = 0.0f, limit = -1.0f;

  /// Raises references to maxima that scorers left; returns the factors of weights and of weights times norms.
  __device__ __forceinline__ float4 raise(const LatentShared& shared, int c) {
    float maximum0 = reference[0], maximum1 = reference[1], norm = 0.0f;
    for (int w = 0; w < kScorers; ++w) {
      maximum0 = fmaxf(maximum0, shared.maxima[w][2 * c]);
      maximum1 = fmaxf(maximum1, shared.maxima[w][2 * c + 1]);
      norm = fmaxf(norm, shared.norms[w]);
    }
    const float keep0 = exp2_fast(reference[0] - maximum0), keep1 = exp2_fast(reference[1] - maximum1);
    reference[0] = maximum0;
    reference[1] = maximum1;
    float keep = 1.0f;
    if (norm > limit) {  // as ValueSums::make_room
      const int exponent = norm > 0.0f ? ((__float_as_int(norm) >> 23) & 0xff) - 127 : 0;
      const float wanted = __int_as_float((127 - min(max(exponent, -40), 20)) << 23);
      keep = norm_scale > 0.0f ? wanted / norm_scale : 0.0f;
      norm_scale = wanted;
      limit = 8.0f / wanted;
    }
    return make_float4(keep0, keep1, keep0 * keep, keep1 * keep);
  }
};

/// Whether any scorer asked to raise references.
__device__ __forceinline__ bool must_raise(const int (&flags)[kScorers]) {
  const int4 x = *reinterpret_cast<const int4*>(flags);
  return (x.x | x.y | x.z | x.w) != 0;
}

/// A scorer's part in softmax.
struct LatentSoftmax {
  LatentScale scale;
  float weights[2] = {}, ones[2] = {};

  __device__ __forceinline__ bool exceeds(const float (&scores)[4], float norm) const {
    return fmaxf(fmaxf(scores[0], scores[2]) - scale.reference[0], fmaxf(scores[1], scores[3]) - scale.reference[1]) >
               kSlack ||
           norm > scale.limit;
  }

  /// Leaves maxima for LatentScale::raise.
  __device__ __forceinline__ static void put_maxima(LatentShared& shared, const float (&scores)[4], float norm,
                                                    int warp, int lane) {
    float maximum0 = fmaxf(scores[0], scores[2]), maximum1 = fmaxf(scores[1], scores[3]);
#pragma unroll
    for (int step = 4; step < kWarp; step *= 2) {
      maximum0 = fmaxf(maximum0, __shfl_xor_sync(0xffffffffu, maximum0, step));
      maximum1 = fmaxf(maximum1, __shfl_xor_sync(0xffffffffu, maximum1, step));
      norm = fmaxf(norm, __shfl_xor_sync(0xffffffffu, norm, step));
    }
    if (lane < 4) {
      shared.maxima[warp][2 * lane] = maximum0;
      shared.maxima[warp][2 * lane + 1] = maximum1;
    }
    if (lane == 0) shared.norms[warp] = norm;
  }

  __device__ __forceinline__ void raise(const LatentShared& shared, int c) {
    const float4 keep = scale.raise(shared, c);
    weights[0] *= keep.x;
    weights[1] *= keep.y;
    ones[0] *= keep.z;
    ones[1] *= keep.w;
  }

  /// Weights of product f times norms, as operands. Tokens of rows g + 8 are negative, as norm_values.cuh has them.
  template <int value_bits>
  __device__ __forceinline__ uint2 weigh(const float (&scores)[4], float norm0, float norm1, int f) {
    const int position = ValueCodes<value_bits>::position(f);
    const float unit = scale.norm_scale * static_cast<float>(1 << (6 - position));
    const float one = 1.0f / static_cast<float>(1 << (24 - position));
    const float a = norm0 * unit, b = -norm1 * unit;
    float w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float weight = exp2_fast(scores[i] - scale.reference[i % 2]);
      weights[i % 2] += weight;
      w[i] = round_to_half(weight * (i < 2 ? a : b));
      ones[i % 2] = fmaf(w[i], one, ones[i % 2]);
    }
    uint32_t operand[2];
    weight_operand(operand, w[0], w[1], w[2], w[3]);
    return make_uint2(operand[0], operand[1]);
  }
};

/// An adder's sums: [i] of channels 64 adder + 32 (i / 2) + 4 g + 2 (i % 2) (rows g) and + 1 (rows g + 8).
struct LatentSums {
  static constexpr int kBlocks = kDim / 16 / kAdders;
  float sums[kBlocks][4] = {};

  __device__ __forceinline__ void multiply(float factor0, float factor1) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      sums[i][0] *= factor0;
      sums[i][1] *= factor1;
      sums[i][2] *= factor0;
      sums[i][3] *= factor1;
    }
  }

  /// Adds the values of a page. Lanes c and c + 2 have tiles 2 (c % 2) and the next one, tokens 0 to 3 and 8 to 11 or
  /// those 4 on, as rows of weights are dealt.
  template <int value_bits>
  __device__ __forceinline__ void add(const unsigned char* values, const uint2 (&operands)[kScorers][kWarp], int adder,
                                      int lane) {
    using Codes = ValueCodes<value_bits>;
    constexpr int kFours = kBlocks / 2;
    const int tile = lane % 2 * 2, first = lane / 4 * Codes::kFourBytes;
    const unsigned char* from = values + tile * Codes::kTileBytes + adder * (Codes::kTileBytes / kAdders);
    ChannelCodes<value_bits> codes[kFours][8];
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      read_four(codes[i], from, first, i * 8 * Codes::kFourBytes, 0);
      read_four(codes[i] + 4, from + Codes::kTileBytes, first, i * 8 * Codes::kFourBytes, 0);
#pragma unroll
      for (int j = 0; j < 8; ++j) codes[i][j].start(lane % 4 / 2 != 0);
    }
    float added[kBlocks][4] = {};  // apart: the accumulator is truncated
#pragma unroll
    for (int f = 0; f < kScorers; ++f) {
      const uint32_t mask = ((1u << value_bits) - 1u) * 0x00010001u << Codes::position(f);
      const uint2 b = operands[f][lane];
#pragma unroll
      for (int i = 0; i < kFours; ++i) {
#pragma unroll
        for (int j = 0; f > 0 && j < 8; ++j) codes[i][j].go_on(f);
        const auto field = [&](int j) { return flip_and_mask(codes[i][j].now, 0xffff0000u, mask); };
        mma(added[2 * i], field(0), field(1), field(4), field(5), b.x, b.y);
        mma(added[2 * i + 1], field(2), field(3), field(6), field(7), b.x, b.y);
      }
    }
#pragma unroll
    for (int i = 0; i < kBlocks * 4; ++i) sums[i / 4][i % 4] += added[i / 4][i % 4];
  }
};

/// Where pages lie in shared memory.
struct LatentStream {
  const LatentLayer& layer;
  unsigned char* shared;
  int begin;

  __device__ __forceinline__ int slot(int page) const { return (page - begin) & (kRing - 1); }
  __device__ __forceinline__ unsigned char* codes(int page) const {
    return shared + layer.basis_at + layer.basis_bytes + ((page - begin) & 1) * layer.code_bytes;
  }
  __device__ __forceinline__ unsigned char* keys(int page) const {
    return shared + layer.basis_at + layer.basis_bytes + 2 * layer.code_bytes + slot(page) * layer.key_bytes;
  }
  __device__ __forceinline__ unsigned char* values(int page) const {
    return shared + kValuesAt + slot(page) * layer.value_bytes;
  }
  __device__ __forceinline__ unsigned char* norms(int page) const {
    return shared + kNormsAt + slot(page) * kNormPageBytes;
  }
};

/// Waits for what a turn copied; all who read it do.
__device__ __forceinline__ void wait_copied(LatentShared& shared, int turn) {
#ifdef KVQUANT_BULK_COPIES
  wait_arrivals(shared.copied + (turn & (kRing - 1)), static_cast<int>(static_cast<unsigned>(turn) / kRing & 1u));
#endif
}

/// What an adder copies: in turn t, counted from 0, keys and norms of page begin + t and values of the page kLead
/// before. Lane 0 has keys, lane 1 values, lanes 2 to 5 norms of a tile each.
struct LatentCopies {
  const CacheView& cache;
  LatentShared& shared;
  const int32_t* table;
  const uint8_t* from;  // in the page at 0
  unsigned char* to;    // of page 0 of the ring
  int bytes, stride, value_bytes, begin, end, last, lag, lane;
  int id = 0;  // of the next turn's page

  __device__ __forceinline__ LatentCopies(const CacheView& cache, const LatentStream& stream, LatentShared& shared,
                                          const BlockHeads& heads, int pages, int end, int lane)
      : cache(cache),
        shared(shared),
        table(cache.page_table + static_cast<int64_t>(heads.b) * cache.page_columns),
        value_bytes(stream.layer.value_bytes),
        begin(stream.begin),
        end(end),
        last(max(1, pages) - 1),
        lag(lane == 1 ? kLead : 0),
        lane(lane) {
    const int tile = max(0, min(lane - 2, kPageTiles - 1));
    from = cache.pages + (lane == 0 ? cache.keys.tile(heads.kv_head, 0)
                          : lane == 1
                              ? cache.values.tile(heads.kv_head, 0)
                              : cache.values.norms + tile * cache.values.norm_tile_bytes + heads.kv_head * kNormBytes);
    to = lane == 0 ? stream.keys(begin) : lane == 1 ? stream.values(begin) : stream.norms(begin) + tile * kNormBytes;
    stride = lane == 0 ? stream.layer.key_bytes : lane == 1 ? stream.layer.value_bytes : kNormPageBytes;
    bytes = lane < 2 ? stride : lane < 2 + kPageTiles ? kNormBytes : 0;
    load_id(0);
  }

  /// Before all else, by the one adder that copies.
  __device__ __forceinline__ void set_up() const {
#ifdef KVQUANT_BULK_COPIES
    if (lane == 0) {
      for (int i = 0; i < kRing; ++i) set_arrivals(shared.copied + i, 1);
      publish_operands();
    }
    __syncwarp();
#endif
  }

  __device__ __forceinline__ void load_id(int turn) { id = table[min(max(begin, begin + turn - lag), last)]; }

  __device__ __forceinline__ void start(int turn) {
    const int page = begin + turn - lag;
    const bool wanted = page >= begin && page < end && bytes > 0;
    const uint8_t* source = from + id * cache.page_bytes;
    unsigned char* target = to + ((turn - lag) & (kRing - 1)) * stride;
#ifdef KVQUANT_BULK_COPIES
    uint64_t* barrier = shared.copied + (turn & (kRing - 1));
    const int all = (begin + turn < end ? stride + kNormPageBytes : 0) +  // lane 0's stride: of keys
                    (turn >= kLead && begin + turn - kLead < end ? value_bytes : 0);
    if (lane == 0) expect_bytes(barrier, all);
    __syncwarp();
    if (wanted) copy_bulk(shared_address(target), source, bytes, barrier);
#else
    for (int i = 0; i < 2 + kPageTiles; ++i) {
      const int size = __shfl_sync(0xffffffffu, wanted ? bytes : 0, i);
      const auto first =
          reinterpret_cast<const uint8_t*>(__shfl_sync(0xffffffffu, reinterpret_cast<unsigned long long>(source), i));
      const auto place =
          reinterpret_cast<unsigned char*>(__shfl_sync(0xffffffffu, reinterpret_cast<unsigned long long>(target), i));
      for (int at = lane * 16; at < size; at += kWarp * 16) copy_async(place + at, first + at);
    }
    commit_copies();
#endif
    load_id(turn + 1);
  }

  /// Waits for all copies but those of the newest turn, where a turn has no barrier to wait for.
  __device__ __forceinline__ void wait_before_newest() const {
#ifndef KVQUANT_BULK_COPIES
    wait_copies<1>();
#endif
  }
};

}  // namespace kvquant::cuda
