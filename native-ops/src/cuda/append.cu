/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append: stores the tokens that leave the window in pages (all new ones without a window), keeps exact copies of the
// recent ones and of sinks. The order of all additions is that of the portable operator, so that pages are the same to
// the bit.
//
// A block works on one tile (16 tokens) of one kv head, which lies in shared memory as fp32: turned, rotated, then
// coded with a thread for each channel, which owns all codes of that channel in the tile. Codes of other tokens of the
// tile are kept as they are, so that tokens may come one by one.
//
// Formats whose codes depend on more than one head are coded by append_tokens.cu.
//
// One token per sequence (decoding): one launch, a block per sequence and kv head; append_one.cu, append_latent.cu and
// append_layer.cu are for int2 and its like, latent2 and svdq. Prompts: first all tiles in parallel, then the exact
// copies, since the window may hold tokens that have yet to be coded; int2 and its like have append_int.cu, and so on.
// Values whose levels are not evenly spaced, which no format of the Java side has, come here.
#include "append.cuh"
#include "codes.cuh"
#include "kernels.h"
#include "launch.cuh"

namespace kvquant::cuda {
namespace {

/// A tile of one kv head; the odd stride lets threads walk along channels and along tokens alike.
template <int D>
struct Tile {
  float k[kTileTokens][D + 1], v[kTileTokens][D + 1];
  float rms[kTileTokens], inverse[kTileTokens];  // of values, about 1 / rms
};

template <int D>
__device__ void load_tile(const CacheView& cache, const NewRows& rows, const TileRun& run, Tile<D>& tile) {
  const int c = threadIdx.x, length = cache.length(run.b);
  const float mean = cache.keys.mean != nullptr ? cache.keys.mean[run.kv_head * D + c] : 0.0f;
  for (int token = run.begin; token < run.end; ++token) {
    float k, v;
    if (token >= length) {
      const int64_t index = rows.key(cache, run.b, token - length, run.kv_head) + c;
      k = rows.load(index);
      v = rows.load(index + cache.kv_heads * D);
    } else {
      const uint8_t* page = cache.window_page(run.b, token);
      k = __half2float(reinterpret_cast<const __half*>(page + cache.exact_key(run.kv_head, c))[token % kExactTokens]);
      v = __half2float(reinterpret_cast<const __half*>(page + cache.exact_value(run.kv_head, c))[token % kExactTokens]);
    }
    if (cache.keys.rounded) k = round_to_half(k);
    if (cache.values.rounded) v = round_to_half(v);
    if (cache.keys.mean != nullptr) k = __fsub_rn(k, mean);
    tile.k[token % kTileTokens][c] = k;
    tile.v[token % kTileTokens][c] = v;
  }
}

/// RoPE of keys and the rotation of values.
template <int D>
__device__ void transform_tile(const CacheView& cache, const TileRun& run, Tile<D>& tile) {
  constexpr int kHalf = D / 2, kLaneChannels = D / kWarp;
  if (cache.keys_pre_rope == 0) {
    for (int i = threadIdx.x; i < (run.end - run.begin) * kHalf; i += D) {
      const int token = run.begin + i / kHalf, pair = i % kHalf;
      float* x = tile.k[token % kTileTokens];
      const float2 y = turn(x[pair], x[pair + kHalf], rope_angle(cache, token, pair));
      x[pair] = y.x;
      x[pair + kHalf] = y.y;
    }
  }
  if (cache.values.rotated) {
    const int lane = threadIdx.x % kWarp;
    for (int j = run.first() + threadIdx.x / kWarp; j < run.last(); j += D / kWarp) {
      float x[kLaneChannels];
#pragma unroll
      for (int i = 0; i < kLaneChannels; ++i) x[i] = tile.v[j][lane * kLaneChannels + i];
      walsh_hadamard(x, lane);
#pragma unroll
      for (int i = 0; i < kLaneChannels; ++i) tile.v[j][lane * kLaneChannels + i] = x[i];
    }
  }
}

/// Writes the codes of tokens [first, last) of a channel, code(token), into its 2 * bits bytes.
template <int bits, class Code>
__device__ void put_codes(uint8_t* field, int first, int last, Code code) {
  uint32_t words[bits] = {}, masks[bits] = {};  // 16 bits each
#pragma unroll
  for (int token = 0; token < kTileTokens; ++token) {
    if (token < first || token >= last) continue;
    const int bit = token * bits, word = bit / 16, shift = bit % 16;
    const uint32_t value = static_cast<uint32_t>(code(token)) << shift, mask = ((1u << bits) - 1u) << shift;
    words[word] |= value & 0xffffu;
    masks[word] |= mask & 0xffffu;
    if (shift + bits > 16) {
      words[word + 1] |= value >> 16;
      masks[word + 1] |= mask >> 16;
    }
  }
  auto* to = reinterpret_cast<uint16_t*>(field);
#pragma unroll
  for (int word = 0; word < bits; ++word) {
    if (masks[word] == 0) continue;
    const uint32_t kept = masks[word] == 0xffffu ? 0u : to[word] & ~masks[word];
    to[word] = static_cast<uint16_t>(kept | words[word]);
  }
}

template <class Code>
__device__ void put_codes(int bits, uint8_t* field, int first, int last, Code code) {
  if (bits == 1) put_codes<1>(field, first, last, code);
  if (bits == 2) put_codes<2>(field, first, last, code);
  if (bits == 3) put_codes<3>(field, first, last, code);
  if (bits == 4) put_codes<4>(field, first, last, code);
  if (bits == 8) put_codes<8>(field, first, last, code);
}

template <int D>
__device__ void encode_static(const CacheView& cache, const TileRun& run, const Tile<D>& tile, uint8_t* page) {
  constexpr int kRun = D / kWidthRuns;
  const int place = threadIdx.x, bits = cache.keys.width[place / kRun];
  if (bits == 0) return;
  const int head = run.kv_head * D,
            channel = cache.keys.order != nullptr ? cache.keys.order[head + place] - head : place;
  const float start = cache.keys.steps[2 * (head + place)], step = cache.keys.steps[2 * (head + place) + 1];
  const float inverse = 1.0f / step;
  const int offset = cache.keys.run_begin[place / kRun] + place % kRun * 2 * bits;
  put_codes(bits, page + cache.keys.tile(run.kv_head, run.tile()) + offset, run.first(), run.last(),
            [&](int token) { return static_code(tile.k[token][channel], start, step, inverse, bits); });
}

/// The codes of a channel of values; leaves their levels where keys were.
template <int bits, int D>
__device__ void put_levels(const float* levels, const TileRun& run, Tile<D>& tile, uint8_t* field) {
  constexpr int kCount = (1 << bits) - 1;
  const int c = threadIdx.x;
  float level[kCount + 1], middles[kCount];
#pragma unroll
  for (int i = 0; i <= kCount; ++i) level[i] = levels[i];
#pragma unroll
  for (int i = 0; i < kCount; ++i) middles[i] = __fmul_rn(0.5f, __fadd_rn(level[i], level[i + 1]));
  put_codes<bits>(field, run.first(), run.last(), [&](int token) {
    const int code = nearest_level(tile.v[token][c], tile.rms[token], tile.inverse[token], middles);
    float chosen = level[0];
#pragma unroll
    for (int i = 1; i <= kCount; ++i) chosen = code == i ? level[i] : chosen;
    tile.k[token][c] = chosen;
    return code;
  });
}

/// The same for 8 bits, level by level.
template <int D>
__device__ void put_many_levels(const float* levels, const TileRun& run, Tile<D>& tile, uint8_t* field) {
  const int c = threadIdx.x;
  put_codes<8>(field, run.first(), run.last(), [&](int token) {
    const float x = tile.rms[token] > 0.0f ? divide(tile.v[token][c], tile.rms[token]) : 0.0f;
    int code = 0;
    for (int step = 128; step > 0; step /= 2) {  // the last level whose lower middle is below x
      const int next = code + step;
      if (x > __fmul_rn(0.5f, __fadd_rn(levels[next - 1], levels[next]))) code = next;
    }
    tile.k[token][c] = levels[code];
    return code;
  });
}

/// kvquant::SideEncoder's encode_norm; sums over channels are taken by one thread for each token, in channel order.
template <int D>
__device__ void encode_norm(const CacheView& cache, const TileRun& run, Tile<D>& tile, uint8_t* page) {
  const int c = threadIdx.x, bits = cache.values.bits, token = run.first() + c;
  float square = 0.0f;
  if (token < run.last()) {
    for (int i = 0; i < D; ++i) square = __fadd_rn(square, __fmul_rn(tile.v[token][i], tile.v[token][i]));
    tile.rms[token] = __fsqrt_rn(__fdiv_rn(square, static_cast<float>(D)));
    tile.inverse[token] = 1.0f / tile.rms[token];
  }
  __syncthreads();
  uint8_t* field = page + cache.values.tile(run.kv_head, run.tile()) + c * 2 * bits;
  if (bits == 2) {
    put_levels<2>(cache.values.levels, run, tile, field);
  } else if (bits == 3) {
    put_levels<3>(cache.values.levels, run, tile, field);
  } else if (bits == 4) {
    put_levels<4>(cache.values.levels, run, tile, field);
  } else {
    put_many_levels(cache.values.levels, run, tile, field);
  }
  __syncthreads();
  if (token < run.last()) {
    float product = 0.0f;
    for (int i = 0; i < D; ++i) product = __fadd_rn(product, __fmul_rn(tile.v[token][i], tile.k[token][i]));
    const float norm = norm_of(square, product);
    uint8_t* norms =
        page + cache.values.norms + run.tile() * cache.values.norm_tile_bytes + run.kv_head * kTileTokens * 2;
    reinterpret_cast<__half*>(norms)[token] = __float2half_rn(norm);
  }
}

template <int D>
__device__ void store_plain(const SideView& side, const TileRun& run, const float (&x)[kTileTokens][D + 1],
                            uint8_t* page) {
  const int c = threadIdx.x;
  uint8_t* field = page + side.tile(run.kv_head, run.tile()) + c * 2 * side.bits;
  for (int token = run.first(); token < run.last(); ++token) {
    if (side.format == Format::kFloat16) {
      reinterpret_cast<__half*>(field)[token] = __float2half_rn(x[token][c]);
    } else {
      reinterpret_cast<float*>(field)[token] = x[token][c];
    }
  }
}

template <int D>
__device__ void encode_tile(const CacheView& cache, const NewRows& rows, const TileRun& run, Tile<D>& tile) {
  load_tile(cache, rows, run, tile);
  __syncthreads();
  transform_tile(cache, run, tile);
  __syncthreads();
  uint8_t* page = cache.page(run.b, run.begin / kPageTokens);
  if (cache.keys.basis_heads != 0) {
    // append_basis has coded them.
  } else if (cache.keys.format == Format::kStatic) {
    encode_static(cache, run, tile, page);
  } else {
    store_plain<D>(cache.keys, run, tile.k, page);
  }
  __syncthreads();
  if (cache.values.format == Format::kNorm) {
    encode_norm(cache, run, tile, page);
  } else {
    store_plain<D>(cache.values, run, tile.v, page);
  }
}

/// A block per kv head and sequence does everything, in order.
template <int D>
__global__ void __launch_bounds__(D)
    append_sequences(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows) {
  __shared__ Tile<D> tile;
  const int kv_head = blockIdx.x, b = blockIdx.y, count = rows.count(b);
  if (count == 0) return;
  TileRun run;
  for (int index = 0; tile_run(cache, b, count, kv_head, index, &run); ++index) {
    encode_tile(cache, rows, run, tile);
    __syncthreads();
  }
  for (int i = 0; i < count; ++i) store_exact(cache, rows, b, i, kv_head, threadIdx.x);
  if (kv_head == 0 && cache.sink_policy == SinkPolicy::kFirst) {
    for (int page = 0; page < cache.sink_pages; ++page) update_sink_header(cache, b, count, page, threadIdx.x);
  }
}

/// A block per tile and kv head.
template <int D>
__global__ void __launch_bounds__(D)
    append_tiles(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows) {
  __shared__ Tile<D> tile;
  TileRun run;
  if (block_run(cache, rows, blockIdx.x, blockIdx.y, &run)) encode_tile(cache, rows, run, tile);
}

/// A block per exact page and kv head keeps exact copies of new tokens.
template <int D>
__global__ void __launch_bounds__(D)
    append_exact(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows) {
  const int columns = exact_columns(cache), column = blockIdx.x % columns, b = blockIdx.x / columns;
  const int before = cache.length(b), count = rows.count(b), first = column * kExactTokens;
  if (count == 0) return;
  for (int slot = 0; slot < kExactTokens; ++slot) {
    const int ring_page = column - cache.sink_pages;
    const int token = ring_page < 0 ? first + slot : slot_token(cache, before + count, ring_page, slot);
    if (token >= before && token < before + count) store_exact(cache, rows, b, token - before, blockIdx.y, threadIdx.x);
  }
  if (column < cache.sink_pages && blockIdx.y == 0 && cache.sink_policy == SinkPolicy::kFirst) {
    update_sink_header(cache, b, count, column, threadIdx.x);
  }
}

/// Whether all that a head's codes depend on is in that head, but for keys in a basis.
bool head_by_head(const CacheView& cache) {
  const auto plain = [](const SideView& side) {
    return side.format == Format::kFloat32 || side.format == Format::kFloat16;
  };
  const bool keys = (plain(cache.keys) && cache.keys.rotation_heads == 0) || cache.keys.format == Format::kStatic;
  return keys && (plain(cache.values) || cache.values.format == Format::kNorm);
}

template <int D>
void append_dim(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  const NewRows rows{tokens};
  const auto kv_heads = static_cast<unsigned>(cache.kv_heads), batch = static_cast<unsigned>(cache.batch);
  const bool by_head = head_by_head(cache);
  if (by_head && cache.keys.basis_heads != 0) append_basis(cache, tokens, stream);
  if (by_head && tokens.count <= cache.batch) {
    launch("append", append_sequences<D>, {dim3(kv_heads, batch), D, 0, stream}, cache, rows);
    return;
  }
  const auto n = static_cast<unsigned>(tokens.count);
  if (by_head) {
    launch("append", append_tiles<D>, {dim3(n / kTileTokens + 2 * batch, kv_heads), D, 0, stream}, cache, rows);
  } else if (tokens.count <= cache.batch && append_affine_supports(cache)) {
    append_affine(cache, tokens, stream);
  } else if (tokens.count > cache.batch && append_rotated_supports(cache, tokens)) {
    append_rotated(cache, tokens, stream);
  } else if (append_codebook_supports(cache, tokens)) {
    append_codebook(cache, tokens, stream);
    if (cache.window == 0) return;  // it keeps sinks, too
  } else {
    append_tokens(cache, tokens, stream);
  }
  // Massive sinks have been copied.
  const bool exact = cache.window > 0 || cache.sink_policy == SinkPolicy::kFirst;
  const auto columns = exact ? static_cast<unsigned>(exact_columns(cache)) : 0u;
  if (columns > 0) launch("append", append_exact<D>, {dim3(columns * batch, kv_heads), D, 0, stream}, cache, rows);
}

}  // namespace

void append(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  if (tokens.count == 0) return;
  if (tokens.count <= cache.batch && append_one_supports(cache)) return append_one(cache, tokens, stream);
  if (cache.sink_policy == SinkPolicy::kMassive) update_massive_sinks(cache, tokens, stream);
  if (tokens.count <= cache.batch) {
    if (append_latent_supports(cache)) return append_latent(cache, tokens, stream);
    if (append_layer_supports(cache, tokens)) return append_layer(cache, tokens, stream);
    if (append_codebook_one_supports(cache, tokens)) return append_codebook_one(cache, tokens, stream);
  }
  if (tokens.count > cache.batch) {
    if (append_int_supports(cache, tokens)) return append_int(cache, tokens, stream);
    if (append_halves_supports(cache, tokens)) return append_halves(cache, tokens, stream);
    if (cache.head_dim == 128 && append_rotated_supports(cache, tokens)) return append_rotated(cache, tokens, stream);
    if (append_latent_tiles_supports(cache, tokens)) return append_latent_tiles(cache, tokens, stream);
    if (append_layer_tiles_supports(cache, tokens) && append_values_supports(cache, tokens)) {
      append_layer_tiles(cache, tokens, stream);
      return append_values(cache, tokens, stream);
    }
  }
  if (cache.head_dim == 64) {
    append_dim<64>(cache, tokens, stream);
  } else {
    append_dim<128>(cache, tokens, stream);
  }
}

}  // namespace kvquant::cuda
