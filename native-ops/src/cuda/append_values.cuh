/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Values with a norm of a prompt's chunk: the same bytes as append.cu leaves. A block takes a head of a page, or two of
// head_dim 64, which make one row. Rows of floats in shared memory pass from one layout to the other: two lanes of a
// token transform it; a thread of half of the warps sums a token, in the order of the portable operator; then a warp
// has a tile and a lane four channels of it, whose codes of all its tokens it shifts together in registers, so that
// nothing is exchanged. Loops are short: instructions must come from a cache, too.
//
// Of 4 bits, an H100, 8192 tokens of 8 kv heads, in append_int.cu's kernel without its keys: 22 us; 30 to 32 with a
// lane for a token, codes exchanged in shared memory. With two lanes of a token that keep its half in registers, behind
// keys: 24.
#pragma once
#include "even_levels.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "row_codes.cuh"

namespace kvquant::cuda {

constexpr int kValueThreads = kPageTiles * kWarp;
constexpr int kFloatStride = kRowDim + 4;  // of rows of floats: lanes that read rows then read different banks

/// Rows of halves where floats will be: the halves of 64 channels in the upper half of what these will take, so that
/// sixteen at a time, from the first on, can become floats.
struct SpreadRows {
  static constexpr int kStride = 2 * kFloatStride;
  static __device__ __forceinline__ int place(int channel) { return channel + 64 + (channel & 64); }
};

/// Shared memory of a block.
template <int D = kRowDim>
struct ValueBlock {
  float rows[kPageTokens][kFloatStride];  // values, then products with their levels
  TokenLevels tokens[kRowHeads<D>][kPageTokens];
};

/// core/rotation.h's transform of a tile, two lanes a token; rows: of its first token, as SpreadRows has them.
template <int D>
__device__ __forceinline__ void transform_tile(float (*rows)[kFloatStride], int lane) {
  constexpr int kChunk = 16, kChunks = kRowDim / kChunk;
  float* row = rows[lane % kTileTokens];
  float* own = row + lane / kTileTokens * (kRowDim / 2);
#pragma unroll 1
  for (int at = 0; at < kRowDim / 2; at += kChunk) {
    float x[kChunk];
    load_row(reinterpret_cast<const __half*>(own + kRowDim / 4 + at / 2), x);
    butterflies(x);
#pragma unroll
    for (int i = 0; i < kChunk; i += 4) {
      *reinterpret_cast<float4*>(own + at + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
    }
  }
  __syncwarp();
  const float scale = __fdiv_rn(1.0f, __fsqrt_rn(static_cast<float>(D)));
#pragma unroll 1
  for (int i = 0; i < kChunk / 4; i += 2) {
    float* from = row + (i + lane / kTileTokens) * 4;
    float x[4][kChunks];
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      const float4 four = *reinterpret_cast<const float4*>(from + j * kChunk);
      x[0][j] = four.x;
      x[1][j] = four.y;
      x[2][j] = four.z;
      x[3][j] = four.w;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) butterflies<kChunks, D / kChunk>(x[j]);
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      *reinterpret_cast<float4*>(from + j * kChunk) = make_float4(__fmul_rn(x[0][j], scale), __fmul_rn(x[1][j], scale),
                                                                  __fmul_rn(x[2][j], scale), __fmul_rn(x[3][j], scale));
    }
  }
}

/// The sum of a head's terms, in order.
template <int D, class Term>
__device__ __forceinline__ float sum_row(const float* row, Term term) {
  float sum = 0.0f;
#pragma unroll 4
  for (int i = 0; i < D; i += 4) {
    const float4 x = *reinterpret_cast<const float4*>(row + i);
    sum = __fadd_rn(sum, term(x.x));
    sum = __fadd_rn(sum, term(x.y));
    sum = __fadd_rn(sum, term(x.z));
    sum = __fadd_rn(sum, term(x.w));
  }
  return sum;
}

/// Codes of 16 tokens, bits each, that come four at a time, the last ones first.
template <int bits>
struct ChannelField {
  static constexpr int kWords = (bits + 1) / 2;
  uint32_t words[kWords] = {};

  __device__ __forceinline__ void push(uint32_t four) {
    if constexpr (bits == 8) {
#pragma unroll
      for (int i = kWords - 1; i > 0; --i) words[i] = words[i - 1];
      words[0] = four;
    } else {
      if constexpr (kWords == 2) words[1] = __funnelshift_l(words[0], words[1], 4 * bits);
      words[0] = words[0] << 4 * bits | four;
    }
  }
};

/// What the fields of four channels are in memory.
template <int bits>
__device__ __forceinline__ void join_fields(const ChannelField<bits> (&fields)[4], uint32_t (&words)[2 * bits]) {
  if constexpr (bits == 3) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      words[3 * i / 2] = fields[i].words[0];
      words[3 * i / 2 + 1] = __byte_perm(fields[i].words[1], fields[i + 1].words[0], 0x5410);
      words[3 * i / 2 + 2] = __byte_perm(fields[i + 1].words[0], fields[i + 1].words[1], 0x5432);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 2 * bits; ++i) words[i] = fields[i / (bits / 2)].words[i % (bits / 2)];
  }
}

/// Stores a lane's four channels of a tile; of tokens outside [first, last) codes stay as they are.
template <int bits>
__device__ __forceinline__ void store_fields(const ChannelField<bits> (&fields)[4], int first, int last, uint8_t* to) {
  uint32_t words[2 * bits];
  join_fields(fields, words);
  if (first != 0 || last != kTileTokens) {
    ChannelField<bits> ones[4];
#pragma unroll
    for (int j = kTileTokens / 4 - 1; j >= 0; --j) {
      const auto below = [&](int token) {
        return static_cast<uint32_t>((1ull << bits * min(max(token - 4 * j, 0), 4)) - 1ull);
      };
#pragma unroll
      for (int i = 0; i < 4; ++i) ones[i].push(below(last) & ~below(first));
    }
    uint32_t masks[2 * bits];
    join_fields(ones, masks);
#pragma unroll
    for (int i = 0; i < 2 * bits; ++i) {
      words[i] = (words[i] & masks[i]) | (reinterpret_cast<const uint32_t*>(to)[i] & ~masks[i]);
    }
  }
  if constexpr (bits == 3) {
#pragma unroll
    for (int i = 0; i < 3; ++i) reinterpret_cast<uint2*>(to)[i] = make_uint2(words[2 * i], words[2 * i + 1]);
  } else {
#pragma unroll
    for (int i = 0; i < bits / 2; ++i) {
      reinterpret_cast<uint4*>(to)[i] = make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
    }
  }
}

/// Codes of a tile, four channels a lane; rows, tokens: of its first token. Rows become products with levels. to:
/// nullptr of a head of 64 that is missing.
template <int bits, int D>
__device__ __forceinline__ void put_tile(const EvenLevels<bits>& levels, float (*rows)[kFloatStride],
                                         const TokenLevels* tokens, int first, int last, uint8_t* to, int lane) {
  constexpr int kAtOnce = 4;  // tokens
  // What remains of the large number when codes of kAtOnce tokens have been shifted together.
  constexpr uint32_t kRest = EvenLevels<bits>::kRoundBits * (1u + (1u << bits) + (1u << 2 * bits) + (1u << 3 * bits));
  ChannelField<bits> fields[4];
#pragma unroll 1
  for (int j = kTileTokens - kAtOnce; j >= 0; j -= kAtOnce) {
    float4* own[kAtOnce];
    float x[4 * kAtOnce], sums[4 * kAtOnce];
    bool doubt = false;
#pragma unroll
    for (int t = 0; t < kAtOnce; ++t) {
      own[t] = reinterpret_cast<float4*>(rows[j + t]) + lane;
      const float4 four = *own[t];
      const TokenLevels& token = tokens[j + t];
      x[4 * t] = four.x;
      x[4 * t + 1] = four.y;
      x[4 * t + 2] = four.z;
      x[4 * t + 3] = four.w;
#pragma unroll
      for (int i = 4 * t; i < 4 * t + 4; ++i) sums[i] = levels.rounded(x[i], token, doubt);
    }
    if (doubt) {
      float again[4 * kAtOnce];
#pragma unroll
      for (int i = 0; i < 4 * kAtOnce; ++i) again[i] = x[i];
      code_again(levels, tokens + j, again);
#pragma unroll
      for (int i = 0; i < 4 * kAtOnce; ++i) sums[i] = again[i];
    }
#pragma unroll
    for (int t = 0; t < kAtOnce; ++t) {
      float y[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) y[i] = __fmul_rn(x[4 * t + i], levels.level(sums[4 * t + i] - levels.kRound));
      *own[t] = make_float4(y[0], y[1], y[2], y[3]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t four = 0;
#pragma unroll
      for (int t = kAtOnce - 1; t >= 0; --t) four = (four << bits) + __float_as_uint(sums[4 * t + i]);
      fields[i].push(four - kRest);
    }
  }
  if (D == kRowDim || to != nullptr) store_fields(fields, first, last, to);
}

/// The values of a page of a head, or of two from kv_head on; a block's work.
template <int bits, int D = kRowDim>
__device__ __forceinline__ void append_value_page(const CacheView& cache, const NewRows& rows, const TokenRun& page,
                                                  int kv_head, ValueBlock<D>& block) {
  const SideView& side = cache.values;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int page_first = page.begin / kPageTokens * kPageTokens, first = page_first + warp * kTileTokens;
  const TokenRun run{page.b, max(page.begin, first), min(page.end, first + kTileTokens)};
  const bool mine = run.begin < run.end;
  auto* own = block.rows + warp * kTileTokens;
  if (mine) {
    stage_rows<false, SpreadRows, D>(cache, rows, run, kv_head, false, first, reinterpret_cast<__half*>(own), lane);
    commit_copies();
    wait_copies<0>();
    __syncwarp();
    transform_tile<D>(own, lane);
  }
  // Which warps sum heads of 128: others in the next block, as each has its own scheduler.
  const int thread = (threadIdx.x + (page_first / kPageTokens + kv_head) % 2 * kPageTokens) % kValueThreads;
  const int in_page = thread % kPageTokens, head = thread / kPageTokens, token = page_first + in_page;
  const bool sums = head < min(kRowHeads<D>, cache.kv_heads - kv_head) && token >= page.begin && token < page.end;
  const float* summed = block.rows[in_page] + head * D;
  const EvenLevels<bits> levels(side.level_step);
  float square = 0.0f;
  __syncthreads();
  if (sums) square = sum_row<D>(summed, [](float x) { return __fmul_rn(x, x); });
  if (head < kRowHeads<D>) {
    block.tokens[head][in_page] = levels.of(sums ? __fsqrt_rn(__fdiv_rn(square, static_cast<float>(D))) : 1.0f);
  }
  __syncthreads();
  uint8_t* to = cache.page(page.b, page_first / kPageTokens);
  if (mine) {
    const int own_head = lane / kHeadLanes<D>;
    uint8_t* field = to + side.tile(kv_head + own_head, warp) + lane % kHeadLanes<D> * 8 * bits;
    put_tile<bits, D>(levels, own, block.tokens[own_head] + warp * kTileTokens, run.begin - first, run.end - first,
                      present<D>(cache, kv_head, lane * 4) ? field : nullptr, lane);
  }
  __syncthreads();
  if (sums) {
    const float product = sum_row<D>(summed, [](float x) { return x; });
    uint8_t* norms =
        to + side.norms + in_page / kTileTokens * side.norm_tile_bytes + (kv_head + head) * kTileTokens * 2;
    reinterpret_cast<__half*>(norms)[in_page % kTileTokens] = __float2half_rn(norm_of(square, product));
  }
  if (mine && run.begin < cache.length(run.b)) {
    refill<D>(cache, rows, run, first / kTileTokens, kv_head, false, lane);
  }
}

}  // namespace kvquant::cuda
