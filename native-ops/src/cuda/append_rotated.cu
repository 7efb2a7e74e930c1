/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append of a prompt's chunk to rotatekv2, 3 and 4, but for keys in an order across the layer (append_ordered.cu): the
// same bytes as append_tokens.cu leaves. Two lanes take a token's head, half of it in registers each, or one takes a
// head of head_dim 64; a warp takes 16 tokens, a tile, and a block four heads, or eight, which are mixed in shared
// memory where they are rotated together; from there a warp takes its heads' channels or, in an order, those of its
// groups. How elements become codes without a division for each: code_limits.cuh, token_codes.cuh. Exact copies of
// head_dim 64: append.cu.
//
// An H100, 8192 tokens of 8 kv heads: 26 us, 60 % of the speed of a copy, of 4 bits 29 us (append_tokens.cu: 340), 60
// %, of 3 bits 29 us, 58 %, in an order 28 and 30 us, 56 and 59 %; of head_dim 64 17 to 18 us, 46 to 48 %. Of 2 bits
// with a lane for a token's head, 12 warps on a multiprocessor instead of 20 and twice the code, 49 %. Blocks that
// fetch the rows of their next tokens while they work were slower.
#include <algorithm>

#include "kernels.h"
#include "launch.cuh"
#include "token_codes.cuh"

namespace kvquant::cuda {
namespace {

/// Channels of a warp and of a lane, which is a head of head_dim 64.
constexpr int kOwn = kRowDim, kHalf = kRowHalf, kWarps = 4, kThreads = kWarps * kWarp;
/// Kv heads of a block.
template <int D>
constexpr int kHeads = kWarps * kOwn / D;

/// Shared memory of a block: rows first, then elements, [channels][tokens of a tile]; see element_row.
template <int bits>
struct Elements {
  union {
    __half rows[kWarps][kTileTokens * kRowStride];
    float at[kWarps * kOwn][kTileTokens];
  };
  int offsets[kWarps][2][kHalf + 4];                                  // of elements of places of an order: bytes
  alignas(16) typename TokenCodes<bits>::Field codes[kWarps * kOwn];  // of channels, in the order of elements
};

/// Where a channel of four heads lies: channels 64 apart meet different banks.
__device__ __forceinline__ int element_row(int channel) { return channel ^ (channel / kHalf & 1); }

/// core/rotation.h's mix_heads, without the factor 0.5 for four heads; a thread takes four tokens of a channel.
template <int D, int bits>
__device__ __forceinline__ void mix_heads(Elements<bits>& shared, int together) {
  auto* fours = reinterpret_cast<float4*>(shared.at);
  constexpr int kHead = D * kTileTokens / 4, kAll = kOwn * kTileTokens / 4;
  // Of a channel of four heads; element_row's places of head_dim 64 differ from head to head.
  const auto first = [](int i) { return D == kOwn ? i : i / kHead * (4 * kHead) + i % kHead; };
  const auto other = [](int i) { return D == kOwn ? i : i ^ kTileTokens / 4; };
  const auto add = [](float4 a, float4 b) {
    return make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w));
  };
  const auto subtract = [](float4 a, float4 b) {
    return make_float4(__fsub_rn(a.x, b.x), __fsub_rn(a.y, b.y), __fsub_rn(a.z, b.z), __fsub_rn(a.w, b.w));
  };
  const auto less = [](float4 a) {
    constexpr float kSize = 0.70710678118654752f;
    return make_float4(__fmul_rn(a.x, kSize), __fmul_rn(a.y, kSize), __fmul_rn(a.z, kSize), __fmul_rn(a.w, kSize));
  };
#pragma unroll 2
  for (int i = threadIdx.x; i < kAll; i += kThreads) {
    float4 *even = fours + first(i), *odd = fours + other(first(i));
    const float4 x0 = even[0], x1 = odd[kHead], x2 = even[2 * kHead], x3 = odd[3 * kHead];
    const float4 a = add(x0, x1), b = subtract(x0, x1), c = add(x2, x3), d = subtract(x2, x3);
    even[0] = together == 4 ? add(a, c) : less(a);
    odd[kHead] = together == 4 ? add(b, d) : less(b);
    even[2 * kHead] = together == 4 ? subtract(a, c) : less(c);
    odd[3 * kHead] = together == 4 ? subtract(b, d) : less(d);
  }
}

/// Mixes heads, without the factor 0.5 for four, and gives each warp its head's channels or, in an order, those of its
/// group, place after place. All warps of a block must call it.
template <int D, int bits>
__device__ __forceinline__ void exchange_elements(const SideView& side, int channels, int first_head, bool ordered,
                                                  float (&x)[kHalf], Elements<bits>& shared) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, half = lane / kTileTokens;
  const int first = first_head * D;
  // Neighbouring channels change places in the upper half: element_row.
  float* even = &shared.at[warp * kOwn + half * (kHalf + 1)][lane % kTileTokens];
  float* odd = &shared.at[warp * kOwn + half * (kHalf - 1)][lane % kTileTokens];
  __syncthreads();  // all have read their rows
#pragma unroll
  for (int i = 0; i < kHalf; ++i) (i % 2 == 0 ? even : odd)[i * kTileTokens] = x[i];
  if (ordered) {
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      const int place = first + i * kOwn + threadIdx.x;
      const int row = place < channels ? element_row(side.order[place] - first) : 0;
      shared.offsets[i][threadIdx.x / kHalf][threadIdx.x % kHalf] = row * static_cast<int>(sizeof(shared.at[0]));
    }
  }
  __syncthreads();
  if (side.rotation_heads > 1) {
    mix_heads<D>(shared, side.rotation_heads);
    __syncthreads();
  }
  if (!ordered) {
#pragma unroll
    for (int i = 0; i < kHalf; ++i) x[i] = (i % 2 == 0 ? even : odd)[i * kTileTokens];
    return;
  }
  const auto* from = reinterpret_cast<const char*>(&shared.at[0][lane % kTileTokens]);
#pragma unroll
  for (int i = 0; i < kHalf; i += 4) {
    const int4 at = *reinterpret_cast<const int4*>(shared.offsets[warp][half] + i);
    x[i] = *reinterpret_cast<const float*>(from + at.x);
    x[i + 1] = *reinterpret_cast<const float*>(from + at.y);
    x[i + 2] = *reinterpret_cast<const float*>(from + at.z);
    x[i + 3] = *reinterpret_cast<const float*>(from + at.w);
  }
}

/// From codes of places to codes of channels; there: whether the warp has a group. All warps of a block must call it.
template <int bits>
__device__ __forceinline__ void exchange_codes(TokenCodes<bits>& codes, bool there, Elements<bits>& shared) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, half = lane / kTileTokens;
  using Field = typename TokenCodes<bits>::Field;
  struct alignas(2 * sizeof(Field)) Two {
    Field low, high;
  };
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    if (!there) continue;
    const int2 at = *reinterpret_cast<const int2*>(shared.offsets[warp][half] + codes.channel(i, lane));
    shared.codes[at.x / static_cast<int>(sizeof(shared.at[0]))] = codes.fields[i];
    shared.codes[at.y / static_cast<int>(sizeof(shared.at[0]))] = codes.fields[i + 1];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const int own = warp * kOwn + half * kHalf + codes.channel(i, lane);
    const Two two = *reinterpret_cast<const Two*>(shared.codes + own);
    codes.fields[i] = half == 0 ? two.low : two.high;  // element_row
    codes.fields[i + 1] = half == 0 ? two.high : two.low;
  }
}

/// What a block does at a time: a tile of four heads of a side.
struct Item {
  TokenRun run;
  int first_head;
  bool keys;
};

/// Blocks of items (keys unless their order goes across the layer, then values), then of exact pages.
struct RotatedBlocks {
  int units, values, items;
};

template <int D>
__device__ __forceinline__ Item item_at(const CacheView& cache, const NewRows& rows, const RotatedBlocks& blocks,
                                        int index) {
  const bool keys = index < blocks.items - blocks.values;
  const int at = keys ? index : index - (blocks.items - blocks.values);
  return {unit_run<kTileTokens>(cache, rows, at % blocks.units), at / blocks.units * kHeads<D>, keys};
}

/// The kv head of a lane, of a block's.
template <int D>
__device__ __forceinline__ int own_head(int first_head) {
  const int thread = threadIdx.x;
  return first_head + (D == kOwn ? thread / kWarp : thread / kTileTokens);
}

template <int D>
__device__ __forceinline__ void transform(float (&x)[kHalf], int lane) {
  if constexpr (D == kOwn) {
    transform_half(x, lane);
  } else {
    butterflies(x);
#pragma unroll
    for (int i = 0; i < kHalf; ++i) x[i] *= 0.125f;
  }
}

/// Copies the rows of two heads of head_dim 64, or of one where there is no other, next to each other; see stage_rows.
__device__ __forceinline__ void stage_pairs(const CacheView& cache, const NewRows& rows, const TokenRun& run,
                                            int kv_head, bool keys, int first, __half* to, int lane) {
  const int length = cache.length(run.b), channels = min(2, cache.kv_heads - kv_head) * kHalf;
  const int64_t side = keys ? 0 : cache.kv_heads * kHalf;
  const auto source = [&](int token) { return rows.key(cache, run.b, token - length, kv_head) + side; };
  const int begin = max(run.begin, length);
  if (rows.tokens.type == ElementType::kFloat16) {
    const int channel = lane % 16 * 8;
    const auto* from = static_cast<const __half*>(rows.tokens.qkv) + channel;
#pragma unroll 4
    for (int token = begin + lane / 16; token < run.end; token += 2) {
      if (channel < channels) copy_async(to + (token - first) * kRowStride + channel, from + source(token));
    }
  } else {
    const int channel = lane * 4;
#pragma unroll 8
    for (int token = begin; token < run.end; ++token) {
      if (channel >= channels) continue;
      *reinterpret_cast<uint2*>(to + (token - first) * kRowStride + channel) =
          four_halves(rows.tokens.type, rows.tokens.qkv, source(token) + channel);
    }
  }
  for (int token = run.begin; token < min(run.end, length); ++token) {
    const uint8_t* page = cache.window_page(run.b, token);
    for (int channel = lane; channel < channels; channel += kWarp) {
      const int head = kv_head + channel / kHalf, own = channel % kHalf;
      const int64_t offset = keys ? cache.exact_key(head, own) : cache.exact_value(head, own);
      to[(token - first) * kRowStride + channel] = reinterpret_cast<const __half*>(page + offset)[token % kExactTokens];
    }
  }
}

template <int bits, int D>
__device__ __forceinline__ void append_item(const CacheView& cache, const NewRows& rows, const Item& item,
                                            float (&x)[kHalf], Elements<bits>& shared) {
  const bool keys = item.keys, ordered = keys && cache.keys.order != nullptr;
  const SideView& side = keys ? cache.keys : cache.values;
  const TokenRun& run = item.run;
  const int lane = threadIdx.x % kWarp, kv_head = own_head<D>(item.first_head);
  if (side.rotation_heads != 0) transform<D>(x, lane);
  if (ordered || side.rotation_heads > 1) {
    exchange_elements<D>(side, cache.kv_heads * D, item.first_head, ordered, x, shared);
  }
  float low = INFINITY, high = -INFINITY;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    low = fminf(low, x[i]);
    high = fmaxf(high, x[i]);
  }
  if (D == kOwn) {
    low = fminf(low, __shfl_xor_sync(0xffffffffu, low, kTileTokens));
    high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, kTileTokens));
  }
  const bool doubled = side.rotation_heads == 4;  // elements; products with 2 and 0.5 are exact
  const float size = doubled ? 2.0f : 1.0f, unit = doubled ? 0.5f : 1.0f;
  const float2 range = affine_group(low * unit, high * unit, side);
  TokenCodes<bits> codes;
  codes.encode(x, range, size);
  codes.transpose(lane);
  if (ordered) exchange_codes(codes, kv_head < cache.kv_heads, shared);
  if (kv_head >= cache.kv_heads) return;
  const int first = run.begin / kTileTokens * kTileTokens, tile = first / kTileTokens % kPageTiles;
  const int begin = run.begin - first, end = run.end - first;
  uint8_t* page = cache.page(run.b, first / kPageTokens);
  codes.store(begin, end, page + side.tile(kv_head, tile) + (D == kOwn ? lane / kTileTokens * (kHalf * 2 * bits) : 0),
              lane);
  const int in_tile = lane % kTileTokens;
  if (in_tile >= begin && in_tile < end) {
    auto* scales = reinterpret_cast<__half*>(page + side.scales(tile, kv_head));
    if (D == kOwn) {
      scales[lane] = __float2half_rn(lane < kTileTokens ? range.x : range.y);
    } else {
      scales[in_tile] = __float2half_rn(range.x);
      scales[kTileTokens + in_tile] = __float2half_rn(range.y);
    }
  }
  if (D == kOwn && run.begin < cache.length(run.b)) refill(cache, rows, run, first / kTileTokens, kv_head, keys, lane);
}

template <int bits, int D>
__global__ void __launch_bounds__(kThreads, 5)
    append_rotated_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows,
                          const __grid_constant__ RotatedBlocks blocks) {
  __align__(16) __shared__ Elements<bits> shared;
  const int block = blockIdx.x, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (block == 0) wait_for_previous_kernel();  // what comes next may rely on massive sinks, too
  if constexpr (D == kOwn) {
    if (block >= blocks.items) return append_exact(cache, rows, block - blocks.items);
  }
  const Item item = item_at<D>(cache, rows, blocks, block);
  if (item.run.begin >= item.run.end) return;
  const int kv_head = item.first_head + warp * (kOwn / D);  // the first of the warp's
  if (kv_head < cache.kv_heads) {
    const int first = item.run.begin / kTileTokens * kTileTokens;
    if constexpr (D == kOwn) {
      stage_rows(cache, rows, item.run, kv_head, item.keys, first, shared.rows[warp], lane);
    } else {
      stage_pairs(cache, rows, item.run, kv_head, item.keys, first, shared.rows[warp], lane);
    }
  }
  commit_copies();
  wait_copies<0>();
  __syncwarp();
  float x[kHalf];
  load_row(shared.rows[warp] + lane % kTileTokens * kRowStride + lane / kTileTokens * kHalf, x);
  append_item<bits, D>(cache, rows, item, x, shared);
}

template <int D>
void launch_blocks(const CacheView& cache, const NewTokens& tokens, bool across, cudaStream_t stream) {
  const auto groups = [&](int heads) { return (cache.kv_heads + heads - 1) / heads; };
  RotatedBlocks blocks;
  blocks.units = tokens.count / kTileTokens + 2 * cache.batch;
  blocks.values = blocks.units * groups(kHeads<D>);
  blocks.items = across ? blocks.values : 2 * blocks.values;
  const int exact = D == kOwn ? cache.batch * exact_columns(cache) * groups(2) : 0;
  const dim3 all(static_cast<unsigned>(blocks.items + exact));
  // Has nothing to do with massive sinks, which the kernels ahead bring up to date.
  const bool early = cache.sink_policy == SinkPolicy::kMassive && can_start_early("append");
  const int bits = cache.keys.bits;
  const auto kernel = bits == 2   ? append_rotated_kernel<2, D>
                      : bits == 3 ? append_rotated_kernel<3, D>
                                  : append_rotated_kernel<4, D>;
  launch("append", kernel, {all, kThreads, 0, stream, early}, cache, NewRows{tokens}, blocks);
}

}  // namespace

bool append_rotated_supports(const CacheView& cache, const NewTokens& tokens) {
  const auto side = [&](const SideView& x) {
    return x.format == Format::kAffine && x.bits >= 2 && x.bits <= 4 && x.group_size == cache.head_dim &&
           x.mean == nullptr && x.basis_heads == 0 && x.rotation_heads != 3 && x.rotation_heads <= 4 && !x.float_zero;
  };
  // In an order across the layer.
  const bool wide = cache.head_dim == kRowDim && append_ordered_supports(cache);
  return (cache.head_dim == 64 || cache.head_dim == 128) && side(cache.keys) && side(cache.values) &&
         cache.keys.bits == cache.values.bits && cache.keys_pre_rope != 0 && cache.values.order == nullptr &&
         (cache.keys.order == nullptr || cache.keys.local_order || wide) &&
         cache.kv_heads % std::max({1, cache.keys.rotation_heads, cache.values.rotation_heads}) == 0 &&
         aligned_rows(tokens);
}

void append_rotated(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  if (cache.head_dim == 64) return launch_blocks<64>(cache, tokens, false, stream);
  const bool across = cache.keys.order != nullptr && !cache.keys.local_order;
  launch_blocks<kRowDim>(cache, tokens, across, stream);
  if (across) append_ordered(cache, tokens, stream);
}

}  // namespace kvquant::cuda
