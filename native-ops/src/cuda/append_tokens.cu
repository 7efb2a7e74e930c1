/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Append for formats whose codes depend on more than one head: groups of channels of a token, grouped rotations, bases
// over all heads, outliers of a token. A block takes the tokens of a tile one after another, all heads at once, as the
// portable operator does and with its order of additions: pages are the same to the bit. Written for reading.
#include <limits>

#include "append.cuh"
#include "codes.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "ptx.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kNowhere = std::numeric_limits<int>::max();

/// One side of a token, in a block's shared memory.
struct TokenSide {
  const CacheView& cache;
  const SideView& side;
  uint8_t* page;
  int tile, lane;   // of the token in its page
  float *x, *rest;  // [channels] each; rest is scratch

  __device__ int dim() const { return cache.head_dim; }
  __device__ int channels() const { return cache.kv_heads * cache.head_dim; }

  /// The bytes of the codes of a channel; not of kStatic.
  __device__ uint8_t* field(int channel) const {
    return page + side.tile(channel / dim(), tile) + channel % dim() * 2 * side.bits;
  }
  __device__ __half* halves(int64_t offset) const { return reinterpret_cast<__half*>(page + offset); }
};

__device__ inline float limited(float x) { return clamped(x, -kLargestHalf, kLargestHalf); }

/// kvquant::put_code.
__device__ inline void put_code(uint8_t* field, int token, int bits, int code) {
  const int bit = token * bits, shift = bit % 8;
  uint8_t* p = field + bit / 8;
  const unsigned mask = ((1u << bits) - 1u) << shift, value = static_cast<unsigned>(code) << shift;
  p[0] = static_cast<uint8_t>((p[0] & ~mask) | value);
  if (shift + bits > 8) p[1] = static_cast<uint8_t>((p[1] & ~(mask >> 8)) | (value >> 8));
}

/// kvquant::nearest_level.
__device__ inline int nearest_level(float x, const float* levels, int count) {
  int code = 0;
  while (code + 1 < count && x > __fmul_rn(0.5f, __fadd_rn(levels[code], levels[code + 1]))) ++code;
  return code;
}

/// k or v of a token, new or from the window, rounded and without the mean.
__device__ void load(const CacheView& cache, const NewRows& rows, int b, int token, const TokenSide& t) {
  const bool keys = &t.side == &cache.keys;
  const int length = cache.length(b);
  for (int c = threadIdx.x; c < t.channels(); c += kThreads) {
    const int head = c / t.dim(), channel = c % t.dim();
    float x;
    if (token >= length) {
      x = rows.load(rows.key(cache, b, token - length, head) + channel + (keys ? 0 : t.channels()));
    } else {
      const int64_t exact = keys ? cache.exact_key(head, channel) : cache.exact_value(head, channel);
      x = __half2float(reinterpret_cast<const __half*>(cache.window_page(b, token) + exact)[token % kExactTokens]);
    }
    if (t.side.rounded) x = round_to_half(x);
    t.x[c] = t.side.mean != nullptr ? __fsub_rn(x, t.side.mean[c]) : x;
  }
  __syncthreads();
}

__device__ void turn_keys(const TokenSide& t, int token) {
  const int half = t.dim() / 2;
  for (int i = threadIdx.x; i < t.channels() / 2; i += kThreads) {
    float* x = t.x + i / half * t.dim() + i % half;
    const float2 y = turn(x[0], x[half], rope_angle(t.cache, token, i % half));
    x[0] = y.x;
    x[half] = y.y;
  }
  __syncthreads();
}

/// kvquant::walsh_hadamard of every head.
__device__ void transform_heads(const TokenSide& t) {
  for (int half = 1; half < t.dim(); half *= 2) {
    for (int i = threadIdx.x; i < t.channels() / 2; i += kThreads) {
      float* x = t.x + i / half * 2 * half + i % half;
      const float a = x[0], b = x[half];
      x[0] = __fadd_rn(a, b);
      x[half] = __fsub_rn(a, b);
    }
    __syncthreads();
  }
  const float scale = __fdiv_rn(1.0f, __fsqrt_rn(static_cast<float>(t.dim())));
  for (int c = threadIdx.x; c < t.channels(); c += kThreads) t.x[c] = __fmul_rn(t.x[c], scale);
  __syncthreads();
}

/// kvquant::mix_heads of every group.
__device__ void mix_heads(const TokenSide& t) {
  const int heads = t.side.rotation_heads, n = t.dim();
  for (int i = threadIdx.x; i < t.channels() / heads; i += kThreads) {
    float* x = t.x + i / n * heads * n + i % n;
    if (heads == 2) {
      const float a = x[0], b = x[n];
      x[0] = __fmul_rn(__fadd_rn(a, b), 0.70710678118654752f);
      x[n] = __fmul_rn(__fsub_rn(a, b), 0.70710678118654752f);
    } else if (heads == 3) {
      const float mean = __fmul_rn(__fadd_rn(__fadd_rn(x[0], x[n]), x[2 * n]), 0.66666666666666667f);
      for (int h = 0; h < 3; ++h) x[h * n] = __fsub_rn(x[h * n], mean);
    } else if (heads == 4) {
      const float a = __fadd_rn(x[0], x[n]), b = __fsub_rn(x[0], x[n]);
      const float c = __fadd_rn(x[2 * n], x[3 * n]), d = __fsub_rn(x[2 * n], x[3 * n]);
      x[0] = __fmul_rn(__fadd_rn(a, c), 0.5f);
      x[n] = __fmul_rn(__fadd_rn(b, d), 0.5f);
      x[2 * n] = __fmul_rn(__fsub_rn(a, c), 0.5f);
      x[3 * n] = __fmul_rn(__fsub_rn(b, d), 0.5f);
    }
  }
  __syncthreads();
}

/// The place of each row of a basis over one head or all; or sorted into places.
__device__ void to_places(const TokenSide& t) {
  const int size = t.side.basis_heads * t.dim();
  for (int place = threadIdx.x; place < t.channels(); place += kThreads) {
    if (size == 0) {
      t.rest[place] = t.x[t.side.order[place]];
      continue;
    }
    const float *row = t.side.basis + static_cast<int64_t>(place) * size, *x = t.x + place / size * size;
    float sum = 0.0f;
    for (int c = 0; c < size; ++c) sum = __fadd_rn(sum, __fmul_rn(row[c], x[c]));
    t.rest[place] = sum;
  }
  __syncthreads();
  for (int place = threadIdx.x; place < t.channels(); place += kThreads) t.x[place] = t.rest[place];
  __syncthreads();
}

__device__ void encode_plain(const TokenSide& t) {
  for (int c = threadIdx.x; c < t.channels(); c += kThreads) {
    if (t.side.format == Format::kFloat16) {
      reinterpret_cast<__half*>(t.field(c))[t.lane] = __float2half_rn(t.x[c]);
    } else {
      reinterpret_cast<float*>(t.field(c))[t.lane] = t.x[c];
    }
  }
}

/// A warp takes a group.
__device__ void encode_affine(const TokenSide& t) {
  const SideView& side = t.side;
  const int lane = threadIdx.x % kWarp, size = side.group_size;
  for (int group = threadIdx.x / kWarp; group < t.channels() / size; group += kWarps) {
    const auto channel = [&](int i) { return side.order != nullptr ? side.order[group * size + i] : group * size + i; };
    float low = INFINITY, high = -INFINITY;
    for (int i = lane; i < size; i += kWarp) {
      low = fminf(low, t.x[channel(i)]);
      high = fmaxf(high, t.x[channel(i)]);
    }
    for (int step = 1; step < kWarp; step *= 2) {
      low = fminf(low, __shfl_xor_sync(0xffffffffu, low, step));
      high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, step));
    }
    const float2 range = affine_group(low, high, side);
    if (lane == 0) {
      __half* scales = t.halves(side.scales(t.tile, group));
      scales[t.lane] = __float2half_rn(range.x);
      scales[kTileTokens + t.lane] = __float2half_rn(range.y);
    }
    for (int i = lane; i < size; i += kWarp) {
      const int c = channel(i);
      put_code(t.field(c), t.lane, side.bits, affine_code(t.x[c], range, side));
    }
  }
}

__device__ void encode_static(const TokenSide& t) {
  const SideView& side = t.side;
  const int run_size = t.dim() / kWidthRuns;
  for (int c = threadIdx.x; c < t.channels(); c += kThreads) {
    const int place = c % t.dim(), run = place / run_size, bits = side.width[run];
    if (bits == 0) continue;
    const float code = rintf(__fdiv_rn(__fsub_rn(t.x[c], side.steps[2 * c]), side.steps[2 * c + 1]));
    uint8_t* field = t.page + side.tile(c / t.dim(), t.tile) + side.run_begin[run] + place % run_size * 2 * bits;
    put_code(field, t.lane, bits, static_cast<int>(fminf(fmaxf(0.0f, code), static_cast<float>((1 << bits) - 1))));
  }
}

/// Sums over a head are taken by one thread, in channel order.
__device__ void encode_norm(const TokenSide& t) {
  const SideView& side = t.side;
  const int n = t.dim();
  for (int head = threadIdx.x; head < t.cache.kv_heads; head += kThreads) {
    float square = 0.0f;
    for (int c = head * n; c < (head + 1) * n; ++c) square = __fadd_rn(square, __fmul_rn(t.x[c], t.x[c]));
    t.rest[head] = square;
  }
  __syncthreads();
  for (int c = threadIdx.x; c < t.channels(); c += kThreads) {
    const float rms = __fsqrt_rn(__fdiv_rn(t.rest[c / n], static_cast<float>(n)));
    const float x = rms > 0.0f ? __fdiv_rn(t.x[c], rms) : 0.0f;
    put_code(t.field(c), t.lane, side.bits, nearest_level(x, side.levels, 1 << side.bits));
  }
  __syncthreads();
  for (int head = threadIdx.x; head < t.cache.kv_heads; head += kThreads) {
    float product = 0.0f;
    for (int c = head * n; c < (head + 1) * n; ++c) {
      const float level = side.levels[get_code(t.field(c), t.lane, side.bits)];
      product = __fadd_rn(product, __fmul_rn(t.x[c], level));
    }
    const float norm = norm_of(t.rest[head], product);
    t.halves(side.norms + t.tile * side.norm_tile_bytes + head * kTileTokens * 2)[t.lane] = __float2half_rn(norm);
  }
}

/// The channel of the smallest (sign 1) or largest (sign -1) element of rest that is no NaN, the lowest channel of
/// several; kNowhere: none. The whole block asks.
__device__ int extreme(const TokenSide& t, float sign, int except = -1) {
  __shared__ float warp_keys[kWarps];
  __shared__ int warp_channels[kWarps];
  float key = INFINITY;
  int channel = kNowhere;
  const auto consider = [&](float other, int at) {
    if (other < key || (other == key && at < channel)) {
      key = other;
      channel = at;
    }
  };
  for (int c = threadIdx.x; c < t.channels(); c += kThreads) {
    if (c != except) consider(sign * t.rest[c], c);
  }
  for (int step = 1; step < kWarp; step *= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, key, step);
    consider(other, __shfl_xor_sync(0xffffffffu, channel, step));
  }
  if (threadIdx.x % kWarp == 0) {
    warp_keys[threadIdx.x / kWarp] = key;
    warp_channels[threadIdx.x / kWarp] = channel;
  }
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) consider(warp_keys[warp], warp_channels[warp]);
  __syncthreads();
  return channel;
}

/// Moves an extreme of rest into a slot; returns whether there was one.
__device__ bool take_outlier(const TokenSide& t, float sign, int slot) {
  const int channel = extreme(t, sign);
  if (channel == kNowhere) return false;
  if (threadIdx.x == 0) {
    __half* to = t.halves(t.side.outlier_slot(t.tile, slot));
    to[t.lane] = __float2half_rn(limited(t.x[channel]));
    reinterpret_cast<uint16_t*>(to)[kTileTokens + t.lane] = static_cast<uint16_t>(channel);
    t.rest[channel] = NAN;
  }
  __syncthreads();
  return true;
}

__device__ void empty_slots(const TokenSide& t, int first) {
  for (int slot = first + threadIdx.x; slot < t.side.outliers; slot += kThreads) {
    __half* to = t.halves(t.side.outlier_slot(t.tile, slot));
    to[t.lane] = __float2half_rn(0.0f);
    reinterpret_cast<uint16_t*>(to)[kTileTokens + t.lane] = kNoChannel;
  }
}

__device__ void put_level(const TokenSide& t, int channel, float x) {
  put_code(t.field(channel), t.lane, t.side.bits, nearest_level(x, t.side.levels, 1 << t.side.bits));
}

/// CodebookEncoder::encode_by_channel: rest holds how far elements lie beyond their ranges.
__device__ void encode_by_channel(const TokenSide& t) {
  for (int c = threadIdx.x; c < t.channels(); c += kThreads) {
    const float step = t.side.steps[2 * c + 1], relative = __fdiv_rn(__fsub_rn(t.x[c], t.side.steps[2 * c]), step);
    put_level(t, c, relative);
    const float distance = fabsf(relative);
    t.rest[c] = distance > 1.0f ? __fmul_rn(__fsub_rn(distance, 1.0f), step) : NAN;
  }
  __syncthreads();
  int slot = 0;
  while (slot < t.side.outliers && take_outlier(t, -1.0f, slot)) ++slot;
  empty_slots(t, slot);
}

/// CodebookEncoder::narrowing.
__device__ float narrowing(const TokenSide& t, float sign) {
  const int first = extreme(t, sign);
  if (first == kNowhere) return 0.0f;
  const int next = extreme(t, sign, first);
  return next == kNowhere ? 0.0f : sign * __fsub_rn(t.x[next], t.x[first]);
}

/// CodebookEncoder::encode_by_token: rest holds what is not chosen.
__device__ void encode_by_token(const TokenSide& t) {
  for (int c = threadIdx.x; c < t.channels(); c += kThreads) t.rest[c] = t.x[c];
  __syncthreads();
  int slot = 0;
  for (int i = 0; i < t.side.outliers / 2; ++i) slot += take_outlier(t, 1.0f, slot) ? 1 : 0;
  for (int i = 0; i < t.side.outliers / 2; ++i) slot += take_outlier(t, -1.0f, slot) ? 1 : 0;
  if (t.side.outliers % 2 != 0) {
    const float below = narrowing(t, 1.0f), above = narrowing(t, -1.0f);
    slot += take_outlier(t, above > below ? -1.0f : 1.0f, slot) ? 1 : 0;
  }
  empty_slots(t, slot);
  const int low = extreme(t, 1.0f), high = extreme(t, -1.0f);
  float start = 0.0f, step = 0.0f;
  if (low != kNowhere) {
    start = round_to_half(__fmul_rn(0.5f, __fadd_rn(limited(t.x[high]), limited(t.x[low]))));
    step = round_to_half(__fmul_rn(0.5f, __fsub_rn(limited(t.x[high]), limited(t.x[low]))));
  }
  if (threadIdx.x == 0) {
    __half* range = t.halves(t.side.scales(t.tile, 0));
    range[t.lane] = __float2half_rn(step);
    range[kTileTokens + t.lane] = __float2half_rn(start);
  }
  for (int c = threadIdx.x; c < t.channels(); c += kThreads) put_level(t, c, __fdiv_rn(__fsub_rn(t.x[c], start), step));
}

__device__ void encode(const TokenSide& t) {
  if (t.side.format == Format::kAffine) {
    encode_affine(t);
  } else if (t.side.format == Format::kStatic) {
    encode_static(t);
  } else if (t.side.format == Format::kNorm) {
    encode_norm(t);
  } else if (t.side.format != Format::kCodebook) {
    encode_plain(t);
  } else if (t.side.steps != nullptr) {
    encode_by_channel(t);
  } else {
    encode_by_token(t);
  }
  __syncthreads();
}

__device__ void append_side(const CacheView& cache, const SideView& side, const NewRows& rows, int b, int token,
                            float* shared) {
  const int slot = token % kPageTokens;
  const TokenSide t{cache,
                    side,
                    cache.page(b, token / kPageTokens),
                    slot / kTileTokens,
                    slot % kTileTokens,
                    shared,
                    shared + cache.kv_heads * cache.head_dim};
  load(cache, rows, b, token, t);
  if (&side == &cache.keys && cache.keys_pre_rope == 0) turn_keys(t, token);
  if (side.rotation_heads != 0) {
    transform_heads(t);
    mix_heads(t);
  }
  if (side.basis_heads != 0 || (side.format == Format::kStatic && side.order != nullptr)) to_places(t);
  encode(t);
}

__global__ void __launch_bounds__(kThreads)
    append_tokens_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ NewRows rows) {
  KVQUANT_DYNAMIC_SHARED(shared);
  auto* elements = reinterpret_cast<float*>(shared);
  TileRun run;
  if (!block_run(cache, rows, blockIdx.x, 0, &run)) return;
  for (int token = run.begin; token < run.end; ++token) {
    append_side(cache, cache.keys, rows, run.b, token, elements);
    append_side(cache, cache.values, rows, run.b, token, elements);
  }
}

}  // namespace

void append_tokens(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(tokens.count / kTileTokens + 2 * cache.batch);
  const size_t bytes = 2 * sizeof(float) * static_cast<size_t>(cache.kv_heads) * static_cast<size_t>(cache.head_dim);
  launch("append", append_tokens_kernel, {dim3(blocks), kThreads, bytes, stream}, cache, NewRows{tokens});
}

}  // namespace kvquant::cuda
