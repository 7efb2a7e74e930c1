/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Reads tokens back into the natural basis, keys after RoPE, for attention of a prompt's chunk over its past, where no
// kernel of its own serves a format. A warp takes 16 tokens of a head in registers (side_tile.cuh); FLOAT32 and keys in
// a basis it takes token by token. 8192 tokens of 8 kv heads on an H100: rotatekv4 102 us, kvquant2 with head_dim 64 32
// us, of static codes with head_dim 64 37 us (81 token by token).
#include "elements.cuh"
#include "finish_keys.cuh"
#include "kernels.h"
#include "launch.cuh"

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

/// What a lane writes of a token's head.
template <int n, class Element>
__device__ __forceinline__ void store_channels(void* to, int64_t index, const float (&x)[n]) {
  struct alignas(n * sizeof(Element)) Channels {
    Element at[n];
  } channels;
#pragma unroll
  for (int i = 0; i < n; ++i) channels.at[i] = from_float<Element>(x[i]);
  *reinterpret_cast<Channels*>(static_cast<Element*>(to) + index) = channels;
}

/// Warps of a block: a page of so many heads.
constexpr int kTileHeads = 2, kTileWarps = kPageTiles * kTileHeads;

template <int D>
constexpr int kTilesBytes = kTileWarps * SideTile<D>::kScratchBytes + kPageTokens * D / 2 * 8;

/// Tokens of a warp: [first, first + 16) of a head.
template <int D, class Element>
struct TileRows {
  static constexpr int n = D / kWarp;
  const Rows& rows;
  int kv_head, first, lane;

  __device__ bool wanted(int token) const { return token >= rows.begin && token < rows.end; }

  __device__ void store(void* to, int token, const float (&x)[n]) const {
    const int64_t row = static_cast<int64_t>(kv_head) * (rows.end - rows.begin) + token - rows.begin;
    store_channels<n, Element>(to, row * D + lane * n, x);
  }

  /// Those before end.
  __device__ void store(void* to, int end, const float (&x)[n][kTileTokens]) const {
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) {
      if (!wanted(first + t) || first + t >= end) continue;
      const int64_t row = static_cast<int64_t>(kv_head) * (rows.end - rows.begin) + first + t - rows.begin;
#pragma unroll
      for (int half = 0; half < n; half += n / 2) {
        float token[n / 2];
#pragma unroll
        for (int i = 0; i < n / 2; ++i) token[i] = x[half + i][t];
        store_channels<n / 2, Element>(to, row * D + channel_of<D>(lane, half), token);
      }
    }
  }
};

/// A warp takes a tile of a head. Tokens that are kept exactly come over those in codes.
template <int D, class Element>
__global__ void __launch_bounds__(kTileWarps* kWarp, 2)
    dequantize_tiles(const __grid_constant__ CacheView cache, const __grid_constant__ Rows rows) {
  constexpr int n = D / kWarp;
  KVQUANT_DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, b = rows.sequence;
  auto* scratch = reinterpret_cast<float*>(shared + warp * SideTile<D>::kScratchBytes);
  auto* angles = reinterpret_cast<float2*>(shared + kTileWarps * SideTile<D>::kScratchBytes);
  fill_page_angles<D>(cache, angles);
  __syncthreads();
  const int page = rows.begin / kPageTokens + blockIdx.x, tile = warp % kPageTiles;
  const int kv_head = blockIdx.y * kTileHeads + warp / kPageTiles, first = page * kPageTokens + tile * kTileTokens;
  if (kv_head >= cache.kv_heads || first >= rows.end || first + kTileTokens <= rows.begin) return;
  const TileRows<D, Element> out{rows, kv_head, first, lane};
  const int quantized = cache.quantized(b, cache.length(b));
  if (first < quantized) {
    const uint8_t* codes = cache.page(b, page);
    const SideTile<D> keys{cache.keys, codes, tile, lane, side_levels(cache.keys)};
    const int heads = max(1, cache.keys.rotation_heads), own = kv_head % heads;
    float x[n][kTileTokens] = {};
#pragma unroll 1
    for (int head = 0; head < heads; ++head) {
      keys.add(kv_head - own + head, mixing(heads, own, head), scratch, x);
    }
    finish_keys<D>(cache, keys, kv_head, first + lane % kTileTokens, angles, nullptr, scratch, x);
    out.store(rows.k, quantized, x);
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) {
#pragma unroll
      for (int i = 0; i < n; ++i) x[i][t] = 0.0f;
    }
    SideTile<D>{cache.values, codes, tile, lane, side_levels(cache.values)}.add(kv_head, 1.0f, scratch, x);
    if (cache.values.rotated) transform_tokens(x, lane);
    out.store(rows.v, quantized, x);
  }
  const uint32_t sinks = tokens_among(cache.sink_pages * kExactTokens, first, lane, [&](int i) {
    const auto* header = reinterpret_cast<const ExactHeader*>(cache.sink_page(b, i / kExactTokens));
    return header->tokens[i % kExactTokens];
  });
#pragma unroll 1
  for (int t = 0; t < kTileTokens; ++t) {
    const int token = first + t;
    if (!out.wanted(token) || (token < quantized && (sinks >> t & 1u) == 0)) continue;
    const Place place = find_token(cache, b, token, quantized);
    float k[n], v[n];
    read_exact(cache, place, kv_head, true, lane, k);
    read_exact(cache, place, kv_head, false, lane, v);
    turn_head(cache, token, lane, k);
    out.store(rows.k, token, k);
    out.store(rows.v, token, v);
  }
}

bool tiles_support(const CacheView& cache) {
  const auto side = [](const SideView& x) { return x.format != Format::kFloat32; };
  return side(cache.keys) && side(cache.values) && cache.keys.basis_heads == 0;
}

template <int D>
void dequantize_by_tiles(const CacheView& cache, const Rows& rows, cudaStream_t stream) {
  const int pages = (rows.end - 1) / kPageTokens - rows.begin / kPageTokens + 1;
  const LaunchShape shape{
      dim3(static_cast<unsigned>(pages), static_cast<unsigned>((cache.kv_heads + kTileHeads - 1) / kTileHeads)),
      kTileWarps * kWarp, kTilesBytes<D>, stream};
  if (rows.type == ElementType::kFloat32) launch("dequantize", dequantize_tiles<D, float>, shape, cache, rows);
  if (rows.type == ElementType::kFloat16) launch("dequantize", dequantize_tiles<D, __half>, shape, cache, rows);
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
    if (cache.head_dim == 64) return dequantize_by_tiles<64>(cache, rows, stream);
    return dequantize_by_tiles<128>(cache, rows, stream);
  }
  if (cache.head_dim == 64) {
    dequantize_dim<64>(cache, rows, stream);
  } else {
    dequantize_dim<128>(cache, rows, stream);
  }
}

}  // namespace kvquant::cuda
