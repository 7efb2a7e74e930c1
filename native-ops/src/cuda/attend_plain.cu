/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Decode attention written for reading: a warp takes a token at a time, whatever its format. It serves FLOAT32 and keys
// in a basis over several heads where they have no kernel of their own, and is what kernels are compared with on the
// device.
#include "elements.cuh"
#include "launch.cuh"
#include "query_state.cuh"
#include "select_pages.cuh"
#include "token_reader.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kWarps = 4;

/// The tokens that a kv head of a sequence reads: all in order; or, with key sparsity, those of the chosen pages, of
/// the window and sinks, wherever they are.
struct ReadTokens {
  const CacheView& cache;
  int b, position, quantized;
  bool chosen;
  ReadPages pages;
  int coded, recent, count;  // tokens of pages; and of the window; and slots of sinks

  __device__ ReadTokens(const CacheView& cache, const PageChoice& choice, int b, int kv_head, int position,
                        int quantized)
      : cache(cache),
        b(b),
        position(position),
        quantized(quantized),
        chosen(choice.lists != nullptr),
        pages(cache, choice, b, kv_head),
        coded(pages.count * kPageTokens),
        recent(coded + position + 1 - quantized),
        count(chosen ? recent + cache.sink_pages * kExactTokens : position + 1) {}

  /// The i-th token and where it is; false: there is none, or it comes at another place.
  __device__ bool find(int i, int* token, Place* place) const {
    if (chosen && i >= recent) {
      const uint8_t* page = cache.sink_page(b, (i - recent) / kExactTokens);
      const int slot = (i - recent) % kExactTokens;
      *token = reinterpret_cast<const ExactHeader*>(page)->tokens[slot];
      *place = {page, slot};
      return *token >= 0 && *token <= position;
    }
    *token = i;
    if (chosen) *token = i < coded ? pages[i / kPageTokens] * kPageTokens + i % kPageTokens : quantized + i - coded;
    if (chosen && i < coded && *token >= quantized) return false;
    *place = find_token(cache, b, *token, quantized);
    if (!chosen) return true;
    return i < coded ? place->exact == nullptr : place->exact == cache.window_page(b, *token);
  }
};

/// A block per part, query head and sequence; its warps take the part's tokens in turn.
template <int D, class Element>
__global__ void __launch_bounds__(kWarps* kWarp)
    attend_plain_kernel(const __grid_constant__ CacheView cache, Attention p) {
  constexpr int n = D / kWarp;
  __shared__ float shared_maximum[kWarps], shared_weights[kWarps], shared_sums[2][kWarps][D], scratch[kWarps][D];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int part = blockIdx.x, head = blockIdx.y, b = blockIdx.z;
  const int kv_head = head / (cache.heads / cache.kv_heads), position = cache.length(b);
  const int quantized = cache.quantized(b, position + 1);
  const auto* row =
      static_cast<const Element*>(p.qkv) + (static_cast<int64_t>(b) * (cache.heads + 2 * cache.kv_heads) + head) * D;
  const float scale = cache.score_scale * kLog2e;
  const SideView& keys = cache.keys;

  // The query as it is turned; what the scores of coded keys lack.
  float q[n], bias = 0.0f;
#pragma unroll
  for (int i = 0; i < n; ++i) q[i] = to_float(row[lane * n + i]);
  turn_head(cache, position, lane, q);
  if (keys.noise != nullptr) {
    float noise[n], squares[n];
#pragma unroll
    for (int i = 0; i < n; ++i) {
      noise[i] = keys.noise[kv_head * D + lane * n + i];
      squares[i] = q[i] * q[i];
    }
    bias = 0.5f * cache.score_scale * scale * dot(squares, noise);
  }

  QueryState<n> state;
  const ReadTokens tokens(cache, p.choice, b, kv_head, position, quantized);
  const int begin = static_cast<int>(static_cast<int64_t>(tokens.count) * part / p.parts);
  const int end = static_cast<int>(static_cast<int64_t>(tokens.count) * (part + 1) / p.parts);
  for (int i = begin + warp; i < end; i += kWarps) {
    int token;
    Place place;
    if (!tokens.find(i, &token, &place)) continue;
    float k[n], v[n], score;
    if (place.exact != nullptr) {
      read_exact(cache, place, kv_head, true, lane, k);
      read_exact(cache, place, kv_head, false, lane, v);
      turn_head(cache, token, lane, k);
      score = dot(q, k) * scale;
    } else {
      const uint8_t* page = cache.page(b, token / kPageTokens);
      read_key<D>(cache, page, kv_head, token, lane, scratch[warp], k);
      read_stored(cache.values, page, kv_head, token % kPageTokens, lane, v);
      score = dot(q, k) * scale + bias;
    }
    state.add(score, v, place.exact == nullptr && cache.values.rotated);
  }

  // The block's warps, in order.
  if (lane == 0) {
    shared_maximum[warp] = state.maximum;
    shared_weights[warp] = state.weights;
  }
#pragma unroll
  for (int i = 0; i < n; ++i) {
    shared_sums[0][warp][lane * n + i] = state.natural[i];
    shared_sums[1][warp][lane * n + i] = state.rotated[i];
  }
  __syncthreads();
  if (warp > 0) return;
  float maximum = kLowest, weights = 0.0f, natural[n] = {}, rotated[n] = {};
  for (int w = 0; w < kWarps; ++w) maximum = fmaxf(maximum, shared_maximum[w]);
  for (int w = 0; w < kWarps; ++w) {
    const float factor = exp2f(shared_maximum[w] - maximum);
    weights += shared_weights[w] * factor;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      natural[i] += shared_sums[0][w][lane * n + i] * factor;
      rotated[i] += shared_sums[1][w][lane * n + i] * factor;
    }
  }
  walsh_hadamard(rotated, lane);
  const int64_t to = (static_cast<int64_t>(b) * cache.heads + head) * p.parts + part;
#pragma unroll
  for (int i = 0; i < n; ++i) p.sums[to * D + lane * n + i] = natural[i] + rotated[i];
  if (lane == 0) p.ranges[to] = make_float2(maximum, weights);
}

template <int D>
void attend_dim(const CacheView& cache, const Attention& p, cudaStream_t stream) {
  const LaunchShape shape{
      dim3(static_cast<unsigned>(p.parts), static_cast<unsigned>(cache.heads), static_cast<unsigned>(cache.batch)),
      kWarps * kWarp, 0, stream};
  if (p.type == ElementType::kFloat32) launch("attend", attend_plain_kernel<D, float>, shape, cache, p);
  if (p.type == ElementType::kFloat16) launch("attend", attend_plain_kernel<D, __half>, shape, cache, p);
  if (p.type == ElementType::kBFloat16) launch("attend", attend_plain_kernel<D, __nv_bfloat16>, shape, cache, p);
}

}  // namespace

void attend_plain(const CacheView& cache, const Attention& attention, cudaStream_t stream) {
  if (cache.head_dim == 64) {
    attend_dim<64>(cache, attention, stream);
  } else {
    attend_dim<128>(cache, attention, stream);
  }
}

}  // namespace kvquant::cuda
