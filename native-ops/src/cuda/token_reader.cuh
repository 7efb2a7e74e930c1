/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// One head of one token as attention sees it, read by a warp: the device's core/token_reader.h, written for reading.
// Lane l holds channels (or places) l n .. l n + n - 1; a channel and its partner in RoPE, D / 2 apart, are in lanes 16
// apart.
#pragma once
#include "cache_view.cuh"

namespace kvquant::cuda {

/// Where a token is read from. Sinks come before all else, then pages.
struct Place {
  const uint8_t* exact;  // page and slot of an exact copy; nullptr: the token is in a page, in codes or as it is
  int slot;
};

/// Looks for an exact copy of a token of a sequence; of it, tokens [0, quantized) are in pages.
__device__ inline Place find_token(const CacheView& cache, int b, int token, int quantized) {
  const bool anywhere = cache.sink_policy == SinkPolicy::kMassive;  // else sinks are among the first tokens
  for (int page = 0; page < cache.sink_pages && (anywhere || token < cache.max_sinks); ++page) {
    const uint8_t* exact = cache.sink_page(b, page);
    const auto* header = reinterpret_cast<const ExactHeader*>(exact);
    for (int slot = 0; slot < kExactTokens; ++slot) {
      if (header->tokens[slot] == token) return {exact, slot};
    }
  }
  if (token < quantized) return {nullptr, 0};
  return {cache.window_page(b, token), token % kExactTokens};
}

/// Turns a head to a position, in place.
template <int n>
__device__ void turn_head(const CacheView& cache, int position, int lane, float (&x)[n]) {
  const bool upper = lane >= kWarp / 2;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const float other = __shfl_xor_sync(0xffffffffu, x[i], kWarp / 2);
    const float2 angle = rope_angle(cache, position, (lane % (kWarp / 2)) * n + i);
    const float2 y = upper ? turn(other, x[i], angle) : turn(x[i], other, angle);
    x[i] = upper ? y.y : y.x;
  }
}

/// kStatic: by place.
template <int n>
__device__ void read_static(const SideView& side, const uint8_t* page, int kv_head, int slot, int lane, float (&x)[n]) {
  constexpr int kRun = n * kWarp / kWidthRuns;
  const uint8_t* codes = page + side.tile(kv_head, slot / kTileTokens);
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const int place = lane * n + i, bits = side.width[place / kRun];
    const float* step = side.steps + 2 * (kv_head * n * kWarp + place);
    const uint8_t* field = codes + side.run_begin[place / kRun] + place % kRun * 2 * bits;
    const auto code = static_cast<float>(bits == 0 ? 0 : get_code(field, slot % kTileTokens, bits));
    x[i] = bits == 0 ? 0.0f : __fadd_rn(step[0], __fmul_rn(step[1], code));
  }
}

/// kAffine.
template <int n>
__device__ void read_affine(const SideView& side, const uint8_t* page, int kv_head, int slot, int lane, float (&x)[n]) {
  const int tile = slot / kTileTokens, token = slot % kTileTokens;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const int channel = lane * n + i;
    const uint8_t* field = page + side.tile(kv_head, tile) + channel * 2 * side.bits;
    const auto* scales =
        reinterpret_cast<const __half*>(page + side.scales(tile, side.group(kv_head * n * kWarp + channel)));
    const float scale = __half2float(scales[token]), zero = __half2float(scales[kTileTokens + token]);
    x[i] = (static_cast<float>(get_code(field, token, side.bits)) - zero) * scale;
  }
}

/// kCodebook: ranges of channels (keys) or of the token (values); outliers stand in for what their codes say.
template <int n>
__device__ void read_codebook(const SideView& side, const uint8_t* page, int kv_head, int slot, int lane,
                              float (&x)[n]) {
  const int tile = slot / kTileTokens, token = slot % kTileTokens, first = (kv_head * kWarp + lane) * n;
  const float* levels = side.levels + (1 << side.bits);
  const auto* range = reinterpret_cast<const __half*>(page + side.scales(tile, 0));
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const uint8_t* field = page + side.tile(kv_head, tile) + (lane * n + i) * 2 * side.bits;
    const float step = side.steps != nullptr ? side.steps[2 * (first + i) + 1] : __half2float(range[token]);
    const float start = side.steps != nullptr ? side.steps[2 * (first + i)] : __half2float(range[kTileTokens + token]);
    x[i] = __fadd_rn(start, __fmul_rn(step, levels[get_code(field, token, side.bits)]));
  }
  for (int outlier = 0; outlier < side.outliers; ++outlier) {
    const uint8_t* at = page + side.outlier_slot(tile, outlier);
    const int channel = reinterpret_cast<const uint16_t*>(at)[kTileTokens + token];
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if (channel == first + i) x[i] = __half2float(reinterpret_cast<const __half*>(at)[token]);
    }
  }
}

/// kNorm, kFloat16, kFloat32.
template <int n>
__device__ void read_elements(const SideView& side, const uint8_t* page, int kv_head, int slot, int lane,
                              float (&x)[n]) {
  const int tile = slot / kTileTokens, token = slot % kTileTokens;
  float norm = 0.0f;
  if (side.format == Format::kNorm) {
    const uint8_t* norms = page + side.norms + tile * side.norm_tile_bytes + kv_head * kTileTokens * 2;
    norm = __half2float(reinterpret_cast<const __half*>(norms)[token]);
  }
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const uint8_t* field = page + side.tile(kv_head, tile) + (lane * n + i) * 2 * side.bits;
    if (side.format == Format::kNorm) x[i] = norm * side.levels[get_code(field, token, side.bits)];
    if (side.format == Format::kFloat16) x[i] = __half2float(reinterpret_cast<const __half*>(field)[token]);
    if (side.format == Format::kFloat32) x[i] = reinterpret_cast<const float*>(field)[token];
  }
}

/// What is stored of a side of a token: by place (kStatic), else by channel, rotated if the side is.
template <int n>
__device__ void read_stored(const SideView& side, const uint8_t* page, int kv_head, int slot, int lane, float (&x)[n]) {
  if (side.format == Format::kStatic) {
    read_static(side, page, kv_head, slot, lane, x);
  } else if (side.format == Format::kAffine) {
    read_affine(side, page, kv_head, slot, lane, x);
  } else if (side.format == Format::kCodebook) {
    read_codebook(side, page, kv_head, slot, lane, x);
  } else {
    read_elements(side, page, kv_head, slot, lane, x);
  }
}

/// The entry of core/rotation.h's matrix over the heads of a group; it is symmetric.
__device__ inline float mixing(int heads, int i, int j) {
  if (heads == 1) return 1.0f;
  if (heads == 3) return (i == j ? 1.0f : 0.0f) - 0.66666666666666667f;
  const float size = heads == 2 ? 0.70710678118654752f : 0.5f;
  return (__popc(i & j) & 1) != 0 ? -size : size;
}

/// Keys that are stored rotated over groups of heads: mixed as they are stored, then turned back once.
template <int n>
__device__ void read_rotated(const SideView& side, const uint8_t* page, int kv_head, int slot, int lane,
                             float (&x)[n]) {
  const int heads = side.rotation_heads, own = kv_head % heads;
  float sums[n] = {};
  for (int head = 0; head < heads; ++head) {
    read_stored(side, page, kv_head - own + head, slot, lane, x);
    const float share = mixing(heads, own, head);
#pragma unroll
    for (int i = 0; i < n; ++i) sums[i] = fmaf(share, x[i], sums[i]);
  }
#pragma unroll
  for (int i = 0; i < n; ++i) x[i] = sums[i];
  walsh_hadamard(x, lane);
}

/// Keys in a basis over one head or all: the rows of the inverse that are this head's channels, times all places.
template <int n>
__device__ void read_in_basis(const SideView& side, const uint8_t* page, int kv_head, int slot, int lane,
                              float (&x)[n]) {
  constexpr int D = n * kWarp;
  const int heads = side.basis_heads, own = kv_head % heads, size = heads * D;
  const float* rows = side.inverse + (static_cast<int64_t>(kv_head - own) * D + own * D + lane * n) * size;
  float sums[n] = {};
  for (int head = 0; head < heads; ++head) {
    read_stored(side, page, kv_head - own + head, slot, lane, x);
    for (int from = 0; from < kWarp; ++from) {
#pragma unroll
      for (int j = 0; j < n; ++j) {
        const float place = __shfl_sync(0xffffffffu, x[j], from);
#pragma unroll
        for (int i = 0; i < n; ++i) {
          sums[i] = fmaf(rows[static_cast<int64_t>(i) * size + head * D + from * n + j], place, sums[i]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < n; ++i) x[i] = sums[i];
}

template <int n>
__device__ void read_exact(const CacheView& cache, const Place& place, int kv_head, bool key, int lane, float (&x)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const int64_t offset = key ? cache.exact_key(kv_head, lane * n + i) : cache.exact_value(kv_head, lane * n + i);
    x[i] = __half2float(reinterpret_cast<const __half*>(place.exact + offset)[place.slot]);
  }
}

/// The channel at a place of a head.
template <int D>
__device__ int channel_at(const SideView& side, int kv_head, int place) {
  return side.order == nullptr ? place : side.order[kv_head * D + place] - kv_head * D;
}

/// The key of a token in codes as attention sees it: natural basis, after RoPE. scratch: D floats of the warp's own.
template <int D>
__device__ void read_key(const CacheView& cache, const uint8_t* page, int kv_head, int token, int lane, float* scratch,
                         float (&k)[D / kWarp]) {
  constexpr int n = D / kWarp;
  const SideView& keys = cache.keys;
  const int slot = token % kPageTokens;
  if (keys.basis_heads != 0) {
    read_in_basis(keys, page, kv_head, slot, lane, k);
  } else if (keys.rotation_heads != 0) {
    read_rotated(keys, page, kv_head, slot, lane, k);
  } else {
    read_stored(keys, page, kv_head, slot, lane, k);
    if (keys.format == Format::kStatic && keys.order != nullptr) {
      __syncwarp();
#pragma unroll
      for (int i = 0; i < n; ++i) scratch[channel_at<D>(keys, kv_head, lane * n + i)] = k[i];
      __syncwarp();
#pragma unroll
      for (int i = 0; i < n; ++i) k[i] = scratch[lane * n + i];
    }
  }
  float mean[n] = {};
#pragma unroll
  for (int i = 0; i < n && keys.mean != nullptr; ++i) mean[i] = keys.mean[kv_head * D + lane * n + i];
  if (cache.keys_pre_rope != 0) {
#pragma unroll
    for (int i = 0; i < n; ++i) k[i] += mean[i];
    turn_head(cache, token, lane, k);
  } else if (keys.mean != nullptr) {
    turn_head(cache, token, lane, mean);
#pragma unroll
    for (int i = 0; i < n; ++i) k[i] += mean[i];
  }
}

}  // namespace kvquant::cuda
