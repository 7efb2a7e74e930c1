/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append of a prompt's chunk to latent2 in a basis of each head, head_dim 128: the same bytes as append_basis.cu and
// append.cu leave. Here keys; values and exact copies, beside and behind them: append_values.cu. A block stays with a
// head and goes from page to page, whose rows come while it codes another; a warp has two runs of places, whose rows of
// the basis, two halves for each element (latent_rows.h), stay where they are, high ones in registers. Tensor cores
// multiply them with tokens, which are halves and lie in such an order that a lane gets all those of a tile of a place:
// nothing is exchanged.
//
// Codes near a border are done again (latent_doubts.cuh), when a warp has several such codes or no page is left.
//
// An H100, 8192 tokens of 8 kv heads: 41 us, 38 % of the speed of a copy; 64 us in one kernel with values, a warp for
// all places of a tile, and five or six codes of a tile done again, where no more than the lengths of rows and tokens
// was known of sums. Keys take 31 us, values alone 17. Half as many blocks, beside which more values are coded: 54 us,
// three quarters: 48.
#include <algorithm>

#include "append_values.cuh"
#include "codes.cuh"
#include "kernels.h"
#include "latent_doubts.cuh"
#include "latent_rows.h"
#include "launch.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kDim = kRowDim, kMostWarps = kWidthRuns / 2;
constexpr int kKnownUnits = 32;  // units whose tokens are known ahead

/// A warp's part of shared memory.
struct alignas(16) Own {
  uint4 low[kRowSteps * kWarp];  // of the basis
  Doubts doubts;
};
/// A page's tokens that are coded, and the page.
struct Unit {
  TokenRun run;
  uint8_t* page;
};
/// Of two pages, one that is coded and one whose rows are on their way. Rows: see row_of. squares: of the longest
/// tokens of tiles, [tile][parts of a page].
struct alignas(16) Block {
  __half rows[2][kPageTokens * kRowStride];
  float squares[2][kPageTiles][kPageTiles];
  Unit units[kKnownUnits];
};

/// Parameters, so that all lanes know that they are the same for them.
struct LatentBlocks {
  int units, pairs;                                          // units of a head; pairs of stored runs
  int run[kWidthRuns], bits[kWidthRuns], begin[kWidthRuns];  // of stored runs
};

/// The row of a page's token: products of eight columns are of two neighbouring tokens of each tile.
__device__ __forceinline__ unsigned row_of(unsigned token) {
  return token % kTileTokens / 2 * 8 + token % kPageTokens / kTileTokens * 2 + token % 2;
}

/// Eight channels of a token of a head as halves, of a token that is not new or of another type.
__device__ __noinline__ uint4 load_eight(const CacheView& cache, const NewRows& rows, int b, int token, int kv_head,
                                         int channel) {
  const int fresh = token - cache.length(b);
  if (fresh >= 0) {
    const int64_t index = rows.key(cache, b, fresh, kv_head) + channel;
    const uint2 low = four_halves(rows.tokens.type, rows.tokens.qkv, index);
    const uint2 high = four_halves(rows.tokens.type, rows.tokens.qkv, index + 4);
    return make_uint4(low.x, low.y, high.x, high.y);
  }
  const auto* from =
      reinterpret_cast<const uint16_t*>(cache.window_page(b, token) + cache.exact_key(kv_head, channel)) +
      token % kExactTokens;
  const auto two = [&](int i) {
    return from[i * kExactTokens] | static_cast<uint32_t>(from[(i + 1) * kExactTokens]) << 16;
  };
  return make_uint4(two(0), two(2), two(4), two(6));
}

/// Copies keys of a page's tokens, or starts to.
__device__ __forceinline__ void stage_page(const CacheView& cache, const NewRows& rows, const TokenRun& run,
                                           int kv_head, __half* to) {
  constexpr int kChunks = kDim / 8;
  const int channel = static_cast<int>(threadIdx.x) % kChunks * 8, length = cache.length(run.b);
  const int each = static_cast<int>(blockDim.x) / kChunks, own = static_cast<int>(threadIdx.x) / kChunks;
  const auto at = [&](int token) { return to + row_of(static_cast<unsigned>(token)) * kRowStride + channel; };
  if (rows.tokens.type == ElementType::kFloat16) {
    const int64_t stride = static_cast<int64_t>(each) * (cache.heads + 2 * cache.kv_heads) * kDim;
    int token = max(run.begin, length) + own;
    const __half* from =
        static_cast<const __half*>(rows.tokens.qkv) + rows.key(cache, run.b, token - length, kv_head) + channel;
#pragma unroll 2
    for (; token < run.end; token += each, from += stride) copy_async(at(token), from);
    for (token = run.begin + own; token < min(run.end, length); token += each) {
      *reinterpret_cast<uint4*>(at(token)) = load_eight(cache, rows, run.b, token, kv_head, channel);
    }
  } else {
    for (int token = run.begin + own; token < run.end; token += each) {
      *reinterpret_cast<uint4*>(at(token)) = load_eight(cache, rows, run.b, token, kv_head, channel);
    }
  }
}

/// The squares of the longest of some tokens of each tile.
__device__ __forceinline__ void find_squares(const __half* rows, const TokenRun& run, int part,
                                             float (&squares)[kPageTiles][kPageTiles]) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, c = lane % 4;
  float low[4] = {}, high[4] = {};  // products of 16 tokens with themselves: 0 .. 7, 8 .. 15
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    uint32_t a[4], b[4];  // the same in another order: as pairs of registers
    load_matrices(a, rows + (part * 16 + lane % 16) * kRowStride + k * 16 + lane / 16 * 8);
    load_matrices(b, rows + (part * 16 + lane / 16 * 8 + lane % 8) * kRowStride + k * 16 + lane / 8 % 2 * 8);
    mma(low, a[0], a[1], a[2], a[3], b[0], b[1]);
    mma(high, a[0], a[1], a[2], a[3], b[2], b[3]);
  }
  const int token = c * kTileTokens + part * 4 + g % 2, page = run.begin / kPageTokens * kPageTokens;
  const auto square = [&](float x, int token) {  // no number is larger than all numbers
    return page + token >= run.begin && page + token < run.end ? __float_as_uint(x) : 0u;
  };
  unsigned most = max(square(g % 2 == 0 ? low[0] : low[1], token), square(g % 2 == 0 ? high[2] : high[3], token + 2));
  most = max(most, __shfl_xor_sync(0xffffffffu, most, 4));
  if (g == 2 * c) squares[c][part] = __uint_as_float(most);
}

/// Stores a tile's codes of a place, four in a word; of tokens outside [first, last) they stay.
__device__ __forceinline__ void put_tile(const uint32_t (&words)[4], int bits, int first, int last, uint8_t* field) {
  if (first >= last) return;
  if (bits == 8) {
    if (first == 0 && last == kTileTokens) {
      *reinterpret_cast<uint4*>(field) = make_uint4(words[0], words[1], words[2], words[3]);
    } else {
#pragma unroll 1
      for (int i = first; i < last; ++i) {
        const uint32_t word = i < 8 ? (i < 4 ? words[0] : words[1]) : i < 12 ? words[2] : words[3];
        field[i] = static_cast<uint8_t>(word >> i % 4 * 8);
      }
    }
    return;
  }
  const uint32_t low = words[0] | words[1] << 4 * bits, high = words[2] | words[3] << 4 * bits;  // up to 32 bits
  if (first == 0 && last == kTileTokens) {
    auto* to = reinterpret_cast<uint16_t*>(field);
    if (bits == 4) {
      *reinterpret_cast<uint2*>(field) = make_uint2(low, high);
    } else if (bits == 2) {
      *reinterpret_cast<uint32_t*>(field) = low | high << 16;
    } else if (bits == 1) {
      *to = static_cast<uint16_t>(low | high << 8);
    } else {
      to[0] = static_cast<uint16_t>(low);
      to[1] = static_cast<uint16_t>(low >> 16 | high << 8);
      to[2] = static_cast<uint16_t>(high >> 8);
    }
    return;
  }
  const uint64_t all = low | static_cast<uint64_t>(high) << 8 * bits;
#pragma unroll 1
  for (int i = 0; i < bits; ++i) {
    const auto below = [&](int token) { return (1u << min(max(token * bits - 16 * i, 0), 16)) - 1u; };
    const uint32_t ones = below(last) & ~below(first), now = static_cast<uint32_t>(all >> 16 * i);
    auto* to = reinterpret_cast<uint16_t*>(field) + i;
    if (ones != 0) *to = static_cast<uint16_t>((ones == 0xffffu ? 0u : *to & ~ones) | (now & ones));
  }
}

/// A warp's two runs: place g of each in a lane.
struct Pair {
  uint4 high[kRowSteps];
  const uint4* low;  // in shared memory, of the lane
  RowScale scale[2];
};

__device__ __forceinline__ void load_pair(const uint8_t* from, int lane, Own& own, Pair& pair) {
  const auto* fragments = reinterpret_cast<const uint4*>(from) + lane;
#pragma unroll
  for (int i = 0; i < kRowSteps; ++i) {
    copy_async(own.low + i * kWarp + lane, fragments + (kRowSteps + i) * kWarp);
    pair.high[i] = fragments[i * kWarp];
  }
  pair.low = own.low + lane;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    pair.scale[h] = reinterpret_cast<const RowScale*>(from + kPairFragments)[h * kRunPlaces + lane / 4];
  }
}

/// 2^bits.
__device__ __forceinline__ float levels_of(int bits) { return __int_as_float((127 + bits) << 23); }

/// What a lane has of a page: codes of a place of each run for a tile, four in a word, and which are to be done again,
/// a bit each: 16 run + token.
struct Coded {
  uint32_t words[2][4], open;
};

/// Codes a page.
__device__ __forceinline__ Coded code_page(const CacheView& cache, const Unit& unit, int kv_head,
                                           const LatentBlocks& blocks, const Pair& pair, const __half* staged,
                                           const float (&squares)[kPageTiles]) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, c = lane % 4;
  const float square = fmaxf(fmaxf(squares[0], squares[1]), fmaxf(squares[2], squares[3]));  // NaN: below
  const float norm = 1.001f * square * rsqrtf(fmaxf(square, 1e-30f));
  const bool numbers = squares[0] + squares[1] + squares[2] + squares[3] < 1e30f;
  constexpr float kRound = 12582912.0f;  // 1.5 2^23: its sum with a small number ends in that, rounded
  constexpr uint32_t kRoundBits = 0x4b400000u;
  float limit[2], levels[2];
  Coded coded;
  auto& words = coded.words;
  uint32_t& open = coded.open;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int bits = blocks.bits[2 * warp + h];
    levels[h] = levels_of(bits) - 1.0f;
    limit[h] = numbers ? fmaf(-pair.scale[h].of_norm, norm, 0.5f - pair.scale[h].always) : -1.0f;
  }
  open = 0;
#pragma unroll
  for (int q = 0; q < 4; ++q) {  // tokens 4 q to 4 q + 3
    float sums[2][2][4] = {};    // [half of the channels][two tokens]
    uint32_t b[2][kRowSteps / 2][4];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
#pragma unroll
      for (int k = 0; k < kRowSteps / 2; ++k) {
        load_matrices(b[e][k], staged + ((2 * q + e) * 8 + lane % 8) * kRowStride + k * 32 + lane / 8 * 8);
      }
    }
#pragma unroll
    for (int i = 0; i < kRowSteps; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int k = half * 4 + i % 4;
        const uint4 a = i < 4 ? pair.low[k * kWarp] : pair.high[k];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          mma(sums[half][e], a.x, a.y, a.z, a.w, b[e][k / 2][k % 2 * 2], b[e][k / 2][k % 2 * 2 + 1]);
        }
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float y[4];
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        const float before = sums[0][t / 2][2 * h + t % 2], sum = before + sums[1][t / 2][2 * h + t % 2];
        const float part = __saturatef(fmaf(sum, pair.scale[h].factor, pair.scale[h].offset));
        y[t] = fmaf(part, levels[h], kRound);
        const float apart = fabsf(fmaf(part, levels[h], kRound - y[t]));
        const float border = fmaf(-pair.scale[h].of_sum, fmaxf(fabsf(before), fabsf(sum)), limit[h]);
        if (!(apart < border)) open |= 1u << (16 * h + 4 * q + t);
      }
      const auto code = [&](int t) { return __float_as_uint(y[t]) - kRoundBits; };
      const int bits = blocks.bits[2 * warp + h];
      words[h][q] = ((code(3) << bits | code(2)) << bits | code(1)) << bits | code(0);
    }
  }
  const TokenRun& run = unit.run;
  const int tile = run.begin / kPageTokens * kPageTiles + c;
  const int first = max(run.begin - tile * kTileTokens, 0), last = min(run.end - tile * kTileTokens, kTileTokens);
  uint8_t* to = unit.page + cache.keys.tile(kv_head, c);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int bits = blocks.bits[2 * warp + h];
    if (bits != 0) put_tile(words[h], bits, first, last, to + blocks.begin[2 * warp + h] + g * 2 * bits);
  }
  const uint32_t there = first < last ? ((1u << last) - 1u) & ~((1u << first) - 1u) : 0u;
  open &= there | (blocks.bits[2 * warp + 1] != 0 ? there << 16 : 0u);
  return coded;
}

/// Puts a doubt of each lane that has one into the list; returns how many there are then.
__device__ __forceinline__ int add_doubts(const CacheView& cache, const NewRows& rows, const Unit& unit, int kv_head,
                                          const LatentBlocks& blocks, Coded& coded, unsigned lanes, Doubts& own,
                                          int doubts) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const TokenRun& run = unit.run;
  if (coded.open != 0) {
    const int at = __ffs(static_cast<int>(coded.open)) - 1, h = at / 16, in_tile = at % 16;
    const int token = (run.begin / kPageTokens * kPageTiles + lane % 4) * kTileTokens + in_tile;
    const int fresh = token - cache.length(run.b), bits = blocks.bits[2 * warp + h];
    const int place = blocks.run[2 * warp + h] * kRunPlaces + lane / 4;
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) word |= coded.words[i / 4][i % 4] & (i == at / 4 ? ~0u : 0u);
    const uint32_t taken = word >> in_tile % 4 * bits & ((1u << bits) - 1u);
    Doubt& doubt = own.list[doubts + __popc(lanes & ((1u << lane) - 1u))];
    doubt.field = unit.page + cache.keys.tile(kv_head, lane % 4) + blocks.begin[2 * warp + h] + lane / 4 * 2 * bits;
    doubt.what = static_cast<uint32_t>(place | in_tile << 8) | taken << 16 | (fresh < 0 ? 1u << 24 : 0u);
    doubt.token =
        fresh < 0 ? cache.window_page(run.b, token) + cache.exact_key(kv_head, 0) + token % kExactTokens * 2
                  : static_cast<const uint8_t*>(rows.tokens.qkv) +
                        rows.key(cache, run.b, fresh, kv_head) * (rows.tokens.type == ElementType::kFloat32 ? 4 : 2);
    coded.open &= coded.open - 1u;
  }
  __syncwarp();
  return doubts + __popc(lanes);
}

__global__ void __launch_bounds__(kMostWarps* kWarp, 2)
    append_latent_tiles_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows,
                               const __grid_constant__ LatentBlocks blocks, const uint8_t* basis) {
  KVQUANT_DYNAMIC_SHARED(memory);
  release_next_kernel();
  auto& block = *reinterpret_cast<Block*>(memory);
  const int kv_head = blockIdx.y, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  auto& own = reinterpret_cast<Own*>(memory + sizeof(Block))[warp];
  const int step = static_cast<int>(gridDim.x);
  Pair pair;
  load_pair(basis + (kv_head * blocks.pairs + warp) * kRowPairBytes, lane, own, pair);
  const auto find_units = [&](int first) {
    const int i = first + static_cast<int>(threadIdx.x) * step;
    if (threadIdx.x < kKnownUnits) {
      const TokenRun run = i < blocks.units ? unit_run<kPageTokens>(cache, rows, i) : TokenRun{0, 0, 0};
      block.units[threadIdx.x] = {run, run.begin < run.end ? cache.page(run.b, run.begin / kPageTokens) : nullptr};
    }
    __syncthreads();
  };
  // Starts copies of the n-th unit of the block.
  const auto stage = [&](int n) {
    const TokenRun run = block.units[n % kKnownUnits].run;
    if (run.begin < run.end) stage_page(cache, rows, run, kv_head, block.rows[n % 2]);
    commit_copies();
  };
  find_units(blockIdx.x);
  stage(0);
  if (lane < 2 && blocks.bits[2 * warp + lane] != 0) {  // rows of which codes are done again
    const int place = blocks.run[2 * warp + lane] * kRunPlaces;
    prefetch_far(cache.keys.basis + static_cast<int64_t>(kv_head * kDim + place) * kDim, kRunPlaces * kDim * 4);
  }
  int doubts = 0;
  const int count = (blocks.units - static_cast<int>(blockIdx.x) + step - 1) / step;
#pragma unroll 1
  for (int n = 0; n < count; ++n) {
    wait_copies<0>();
    __syncthreads();
    const Unit unit = block.units[n % kKnownUnits];
    const TokenRun& run = unit.run;
    for (int part = warp; part < kPageTiles; part += blocks.pairs) {
      find_squares(block.rows[n % 2], run, part, block.squares[n % 2]);
    }
    __syncthreads();
    if ((n + 1) % kKnownUnits == 0) find_units(static_cast<int>(blockIdx.x) + (n + 1) * step);
    stage(n + 1);
    Coded coded = {};
    if (run.begin < run.end) {
      coded = code_page(cache, unit, kv_head, blocks, pair, block.rows[n % 2], block.squares[n % 2][lane % 4]);
      __syncwarp();
    }
    const bool refilled = run.begin < run.end && run.begin < cache.length(run.b);  // slots of it take new tokens
    for (;;) {
      const unsigned lanes = __ballot_sync(0xffffffffu, coded.open != 0);
      if (lanes != 0 && doubts < kAgain) {
        doubts = add_doubts(cache, rows, unit, kv_head, blocks, coded, lanes, own.doubts, doubts);
      }
      if (doubts >= (lanes == 0 && (refilled || n + 1 == count) ? 1 : kAgain)) {
        const int again = min(doubts, kAgain);
        doubts -= again;
        code_again(cache, rows, kv_head, own.doubts, doubts, again);
      } else if (lanes == 0) {
        break;
      }
    }
    if (refilled) {
      __syncthreads();
      for (int tile = warp; tile < kPageTiles; tile += blocks.pairs) {
        refill(cache, rows, run, run.begin / kPageTokens * kPageTiles + tile, kv_head, true, lane);
      }
    }
  }
}

int stored_runs(const SideView& keys) {
  return static_cast<int>(std::count_if(keys.width, keys.width + kWidthRuns, [](int width) { return width != 0; }));
}

/// latent_rows_offset, of the copy of parameters, behind keys.latent.
const uint8_t* latent_rows(const CacheView& cache) {
  uint8_t widths[kWidthRuns];
  for (int i = 0; i < kWidthRuns; ++i) widths[i] = static_cast<uint8_t>(cache.keys.width[i]);
  const auto head = static_cast<size_t>(2 * latent_steps(widths).steps()) * kRunBytes + sizeof(float);
  return cache.keys.latent + align_rows(static_cast<size_t>(cache.kv_heads) * head);
}

}  // namespace

bool append_latent_tiles_supports(const CacheView& cache, const NewTokens& tokens) {
  return append_latent_supports(cache) && cache.keys.latent != nullptr && stored_runs(cache.keys) > 0 &&
         append_values_supports(cache, tokens);
}

void append_latent_tiles(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  constexpr int kBlocks = 264;  // that run at once
  LatentBlocks blocks = {};
  int runs = 0;
  for (int run = 0; run < kWidthRuns; ++run) {
    if (cache.keys.width[run] == 0) continue;
    blocks.run[runs] = run;
    blocks.bits[runs] = cache.keys.width[run];
    blocks.begin[runs++] = cache.keys.run_begin[run];
  }
  blocks.pairs = (runs + 1) / 2;
  blocks.units = tokens.count / kPageTokens + 2 * cache.batch;
  const dim3 grid(static_cast<unsigned>(std::min(blocks.units, std::max(1, kBlocks / cache.kv_heads))),
                  static_cast<unsigned>(cache.kv_heads));
  const size_t bytes = sizeof(Block) + static_cast<size_t>(blocks.pairs) * sizeof(Own);
  launch("append", append_latent_tiles_kernel, {grid, static_cast<unsigned>(blocks.pairs * kWarp), bytes, stream},
         cache, NewRows{tokens}, blocks, latent_rows(cache));
  append_values(cache, tokens, stream);
}

}  // namespace kvquant::cuda
