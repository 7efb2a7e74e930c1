/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Reads tokens back into the natural basis, keys after RoPE, for attention of a prompt's chunk over its past. A warp
// takes a token and kv head; a permutation of channels goes through shared memory. int2 has a kernel of its own: a
// block takes a tile and kv head, a thread a channel, so that each byte of codes is read once (8192 tokens of 8 kv
// heads on an H100: 76 us instead of 142).
#include "elements.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "token_reader.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kWarps = 8;

template <int D, class Element>
__global__ void __launch_bounds__(kWarps* kWarp) dequantize_kernel(const __grid_constant__ CacheView cache, Rows rows) {
  constexpr int n = D / kWarp;
  __shared__ float scratch[kWarps][D];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, kv_head = blockIdx.y, b = rows.sequence;
  const int token = rows.begin + blockIdx.x * kWarps + warp;
  if (token >= rows.end) return;
  const Place place = find_token(cache, b, token, cache.quantized(b, cache.length(b)));
  float k[n], v[n];
  if (place.exact != nullptr) {
    read_exact(cache, place, kv_head, true, lane, k);
    read_exact(cache, place, kv_head, false, lane, v);
    turn_head(cache, token, lane, k);
  } else {
    const uint8_t* page = cache.page(b, token / kPageTokens);
    read_key<D>(cache, page, kv_head, token, lane, scratch[warp], k);
    read_stored(cache.values, page, kv_head, token % kPageTokens, lane, v);
    if (cache.values.rotated) walsh_hadamard(v, lane);
  }
  const int64_t to = (static_cast<int64_t>(kv_head) * (rows.end - rows.begin) + token - rows.begin) * D + lane * n;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    static_cast<Element*>(rows.k)[to + i] = from_float<Element>(k[i]);
    static_cast<Element*>(rows.v)[to + i] = from_float<Element>(v[i]);
  }
}

/// What a token's head is written with: 4 channels a lane.
template <class Element>
__device__ __forceinline__ void store_four(void* to, int64_t index, const float (&x)[4]) {
  struct alignas(4 * sizeof(Element)) Four {
    Element at[4];
  } four;
#pragma unroll
  for (int i = 0; i < 4; ++i) four.at[i] = from_float<Element>(x[i]);
  *reinterpret_cast<Four*>(static_cast<Element*>(to) + index) = four;
}

constexpr int kTileDim = 128, kOwn = kTileDim / kWarp, kTileStride = kTileDim + 4;

/// The codes of a place of static keys, a thread a place, at their channels.
__device__ __forceinline__ void read_place(const CacheView& cache, const uint8_t* page, int kv_head, int tile,
                                           float (&k)[kTileTokens][kTileStride]) {
  const SideView& keys = cache.keys;
  const int place = threadIdx.x, run = place / (kTileDim / kWidthRuns), bits = keys.width[run];
  const int channel = channel_at<kTileDim>(keys, kv_head, place);
  const auto* words = reinterpret_cast<const uint16_t*>(page + keys.tile(kv_head, tile) + keys.run_begin[run] +
                                                        place % (kTileDim / kWidthRuns) * 2 * bits);
  const float2 step = reinterpret_cast<const float2*>(keys.steps)[kv_head * kTileDim + place];
  uint64_t codes[2] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < bits) codes[i / 4] |= static_cast<uint64_t>(words[i]) << (i % 4 * 16);
  }
#pragma unroll
  for (int token = 0; token < kTileTokens; ++token) {
    const int bit = token * bits;
    const uint64_t word = bit < 64 ? codes[0] : codes[1];
    const int code = static_cast<int>(word >> (bit % 64)) & ((1 << bits) - 1);
    k[token][channel] = bits == 0 ? 0.0f : step.x + step.y * static_cast<float>(code);
  }
}

/// Static codes of keys after RoPE, values of 2 bits with norms.
template <class Element>
__global__ void __launch_bounds__(kTileDim) dequantize_tiles(const __grid_constant__ CacheView cache, Rows rows) {
  __align__(16) __shared__ float k[kTileTokens][kTileStride], v[kTileTokens][kTileStride];
  const int lane = threadIdx.x % kWarp, kv_head = blockIdx.y, b = rows.sequence;
  const int first = (rows.begin / kTileTokens + blockIdx.x) * kTileTokens, tile = first % kPageTokens / kTileTokens;
  const int quantized = cache.quantized(b, cache.length(b));
  if (first < quantized) {
    const uint8_t* page = cache.page(b, first / kPageTokens);
    read_place(cache, page, kv_head, tile, k);
    const int c = threadIdx.x;
    const uint32_t codes = *reinterpret_cast<const uint32_t*>(page + cache.values.tile(kv_head, tile) + c * 4);
    const auto* norms = reinterpret_cast<const __half*>(
        page + cache.values.norms + tile * cache.values.norm_tile_bytes + kv_head * kTileTokens * 2);
    float levels[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) levels[i] = cache.values.levels[i];
#pragma unroll
    for (int token = 0; token < kTileTokens; ++token) {
      const uint32_t code = codes >> (2 * token) & 3u;
      const float level = code == 0 ? levels[0] : code == 1 ? levels[1] : code == 2 ? levels[2] : levels[3];
      v[token][c] = __half2float(norms[token]) * level;
    }
  }
  __syncthreads();
#pragma unroll 2
  for (int at = threadIdx.x / kWarp; at < kTileTokens; at += kTileDim / kWarp) {
    const int token = first + at;
    if (token < rows.begin || token >= rows.end) continue;
    const Place place = find_token(cache, b, token, quantized);
    float key[kOwn], value[kOwn];
    if (place.exact != nullptr) {
      read_exact(cache, place, kv_head, true, lane, key);
      read_exact(cache, place, kv_head, false, lane, value);
      turn_head(cache, token, lane, key);
    } else {
      float mean[kOwn] = {};
#pragma unroll
      for (int i = 0; i < kOwn && cache.keys.mean != nullptr; ++i) {
        mean[i] = cache.keys.mean[kv_head * kTileDim + lane * kOwn + i];
      }
      turn_head(cache, token, lane, mean);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        key[i] = k[at][lane * kOwn + i] + mean[i];
        value[i] = v[at][lane * kOwn + i];
      }
      if (cache.values.rotated) walsh_hadamard(value, lane);
    }
    const int64_t to =
        (static_cast<int64_t>(kv_head) * (rows.end - rows.begin) + token - rows.begin) * kTileDim + lane * kOwn;
    store_four<Element>(rows.k, to, key);
    store_four<Element>(rows.v, to, value);
  }
}

bool tiles_support(const CacheView& cache) {
  return cache.head_dim == kTileDim && cache.keys.format == Format::kStatic && cache.keys.basis_heads == 0 &&
         cache.keys_pre_rope == 0 && cache.values.format == Format::kNorm && cache.values.bits == 2;
}

template <int D>
void dequantize_dim(const CacheView& cache, const Rows& rows, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((rows.end - rows.begin + kWarps - 1) / kWarps);
  const LaunchShape shape{dim3(blocks, static_cast<unsigned>(cache.kv_heads)), kWarps * kWarp, 0, stream};
  if (rows.type == ElementType::kFloat32) launch("dequantize", dequantize_kernel<D, float>, shape, cache, rows);
  if (rows.type == ElementType::kFloat16) launch("dequantize", dequantize_kernel<D, __half>, shape, cache, rows);
}

}  // namespace

void dequantize(const CacheView& cache, const Rows& rows, cudaStream_t stream) {
  if (rows.begin >= rows.end) return;
  if (rows.type == ElementType::kFloat16) {
    if (dequantize_int_supports(cache)) return dequantize_int(cache, rows, stream);
    if (dequantize_latent_supports(cache)) return dequantize_latent(cache, rows, stream);
    if (dequantize_layer_supports(cache)) return dequantize_layer(cache, rows, stream);
    if (dequantize_rotated_supports(cache)) return dequantize_rotated(cache, rows, stream);
    if (dequantize_codebook_supports(cache)) return dequantize_codebook(cache, rows, stream);
    if (dequantize_halves_supports(cache)) return dequantize_halves(cache, rows, stream);
  }
  if (tiles_support(cache)) {
    const auto tiles = static_cast<unsigned>((rows.end - 1) / kTileTokens - rows.begin / kTileTokens + 1);
    const LaunchShape shape{dim3(tiles, static_cast<unsigned>(cache.kv_heads)), kTileDim, 0, stream};
    if (rows.type == ElementType::kFloat32) launch("dequantize", dequantize_tiles<float>, shape, cache, rows);
    if (rows.type == ElementType::kFloat16) launch("dequantize", dequantize_tiles<__half>, shape, cache, rows);
    return;
  }
  if (cache.head_dim == 64) {
    dequantize_dim<64>(cache, rows, stream);
  } else {
    dequantize_dim<128>(cache, rows, stream);
  }
}

}  // namespace kvquant::cuda
