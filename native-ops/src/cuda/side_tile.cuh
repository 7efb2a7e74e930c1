/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// 16 tokens of a head as attention sees them, read by a warp, of any format in codes or fp16: token_reader.cuh for a
// tile at a time. Lane l holds channels (or places) l n .. l n + n - 1 of all tokens; x[i][t]: of channel i, token t.
#pragma once
#include "fp16_tile.cuh"
#include "token_reader.cuh"

namespace kvquant::cuda {

/// The codes of a channel's 16 tokens, one after the other; words: for 4 bits at most 2, for 8 bits 4.
template <int words>
struct CodeRow {
  uint32_t rest[words] = {};
  int bits;

  __device__ __forceinline__ CodeRow(const uint8_t* field, int bits) : bits(bits) {
    const auto* from = reinterpret_cast<const uint16_t*>(field);
#pragma unroll
    for (int i = 0; i < 2 * words; ++i) {
      if (i < bits) rest[i / 2] |= static_cast<uint32_t>(from[i]) << (i % 2 * 16);
    }
  }

  __device__ __forceinline__ uint32_t next() {
    const uint32_t code = rest[0] & ((1u << bits) - 1u);
#pragma unroll
    for (int i = 0; i + 1 < words; ++i) rest[i] = __funnelshift_r(rest[i], rest[i + 1], bits);
    rest[words - 1] >>= bits;
    return code;
  }

  /// As a number: the low bits of 2^23, which spares a conversion.
  __device__ __forceinline__ float number() { return __uint_as_float(next() | 0x4b000000u) - 8388608.0f; }
};

/// 16 halves that lie together.
struct HalfRow {
  uint4 words[2];

  __device__ __forceinline__ explicit HalfRow(const uint8_t* from)
      : words{reinterpret_cast<const uint4*>(from)[0], reinterpret_cast<const uint4*>(from)[1]} {}

  __device__ __forceinline__ float operator[](int i) const {
    const uint4& four = words[i / 8];
    const uint32_t word = i % 8 < 2 ? four.x : i % 8 < 4 ? four.y : i % 8 < 6 ? four.z : four.w;
    return i % 2 == 0 ? __low2float(as_half2(word)) : __high2float(as_half2(word));
  }
};

/// Reads tiles of a side; a warp's own scratch holds FP32 [16 tokens][kStride].
template <int D>
struct SideTile {
  static constexpr int n = D / kWarp, kStride = D + 4, kScratchBytes = kTileTokens * kStride * 4;
  using Tile = float[n][kTileTokens];

  const SideView& side;
  const uint8_t* page;
  int tile, lane;

  /// x += share times what is stored of a head.
  __device__ __forceinline__ void add(int kv_head, float share, float* scratch, Tile& x) const {
    if (side.format == Format::kStatic) {
      add_static(kv_head, share, x);
    } else if (side.format == Format::kAffine) {
      side.bits > 4 ? add_affine<4>(kv_head, share, x) : add_affine<2>(kv_head, share, x);
    } else if (side.format == Format::kCodebook) {
      add_codebook(kv_head, share, x);
      if (side.outliers > 0) put_outliers(kv_head, scratch, x);
    } else if (side.format == Format::kFloat16) {
      add_halves(kv_head, share, x);
    } else {
      side.bits > 4 ? add_norm<4>(kv_head, share, x) : add_norm<2>(kv_head, share, x);
    }
  }

  __device__ __forceinline__ void put(float* scratch, const Tile& x) const {
    __syncwarp();
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) {
#pragma unroll
      for (int i = 0; i < n; ++i) scratch[t * kStride + lane * n + i] = x[i][t];
    }
    __syncwarp();
  }

  __device__ __forceinline__ void get(const float* scratch, Tile& x) const {
    __syncwarp();
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) {
#pragma unroll
      for (int i = 0; i < n; ++i) x[i][t] = scratch[t * kStride + lane * n + i];
    }
  }

  /// x += share times what another warp has put.
  __device__ __forceinline__ void add(const float* scratch, float share, Tile& x) const {
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) {
#pragma unroll
      for (int i = 0; i < n; ++i) x[i][t] = fmaf(share, scratch[t * kStride + lane * n + i], x[i][t]);
    }
  }

  /// From places to channels.
  __device__ __forceinline__ void reorder(int kv_head, float* scratch, Tile& x) const {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const int channel = channel_at<D>(side, kv_head, lane * n + i);
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) scratch[t * kStride + channel] = x[i][t];
    }
    get(scratch, x);
  }

 private:
  __device__ __forceinline__ const uint8_t* codes(int kv_head, int channel) const {
    return page + side.tile(kv_head, tile) + channel * 2 * side.bits;
  }

  __device__ __forceinline__ void add_static(int kv_head, float share, Tile& x) const {
    bool wide = false;
#pragma unroll
    for (int run = 0; run < kWidthRuns; ++run) wide |= side.width[run] > 4;
    wide ? add_places<4>(kv_head, share, x) : add_places<2>(kv_head, share, x);
  }

  template <int words>
  __device__ __forceinline__ void add_places(int kv_head, float share, Tile& x) const {
    constexpr int kRun = D / kWidthRuns;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const int place = lane * n + i, bits = side.width[place / kRun];
      const float2 step = reinterpret_cast<const float2*>(side.steps)[kv_head * D + place];
      const float start = bits == 0 ? 0.0f : share * step.x, width = bits == 0 ? 0.0f : share * step.y;
      CodeRow<words> row(page + side.tile(kv_head, tile) + side.run_begin[place / kRun] + place % kRun * 2 * bits,
                         bits);
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) x[i][t] += fmaf(width, row.number(), start);
    }
  }

  template <int words>
  __device__ __forceinline__ void add_affine(int kv_head, float share, Tile& x) const {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const int channel = lane * n + i;
      const uint8_t* scales = page + side.scales(tile, side.group(kv_head * D + channel));
      const HalfRow scale(scales), zero(scales + 2 * kTileTokens);
      CodeRow<words> row(codes(kv_head, channel), side.bits);
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) {
        x[i][t] = fmaf(share * scale[t], row.number() - zero[t], x[i][t]);
      }
    }
  }

  __device__ __forceinline__ void add_codebook(int kv_head, float share, Tile& x) const {
    const float* levels = side.levels + (1 << side.bits);
    const bool by_channel = side.steps != nullptr;  // keys; of values each token has a range
    const uint8_t* ranges = page + (by_channel ? 0 : side.scales(tile, 0));
    const HalfRow widths(ranges), starts(ranges + 2 * kTileTokens);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const int channel = lane * n + i;
      const float2 own =
          by_channel ? reinterpret_cast<const float2*>(side.steps)[kv_head * D + channel] : make_float2(0.0f, 0.0f);
      CodeRow<2> row(codes(kv_head, channel), side.bits);
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) {
        const float start = by_channel ? own.x : starts[t], width = by_channel ? own.y : widths[t];
        x[i][t] = fmaf(share, fmaf(width, levels[row.next()], start), x[i][t]);
      }
    }
  }

  /// Outliers stand in for what their codes say. A lane takes a token's, of every second slot.
  __device__ __forceinline__ void put_outliers(int kv_head, float* scratch, Tile& x) const {
    put(scratch, x);
    const int token = lane % kTileTokens, first = kv_head * D;
    for (int slot = lane / kTileTokens; slot < side.outliers; slot += kWarp / kTileTokens) {
      const uint8_t* at = page + side.outlier_slot(tile, slot);
      const int channel = reinterpret_cast<const uint16_t*>(at)[kTileTokens + token] - first;
      if (channel < 0 || channel >= D) continue;
      scratch[token * kStride + channel] = __half2float(reinterpret_cast<const __half*>(at)[token]);
    }
    get(scratch, x);
  }

  template <int words>
  __device__ __forceinline__ void add_norm(int kv_head, float share, Tile& x) const {
    const HalfRow norm(page + side.norms + tile * side.norm_tile_bytes + kv_head * kTileTokens * 2);
    const float middle = 0.5f * static_cast<float>((1 << side.bits) - 1), step = share * side.level_step;
    const bool even = side.level_step > 0.0f;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      CodeRow<words> row(codes(kv_head, lane * n + i), side.bits);
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) {
        const float level = even ? step * (row.number() - middle) : share * side.levels[row.next()];
        x[i][t] = fmaf(norm[t], level, x[i][t]);
      }
    }
  }

  __device__ __forceinline__ void add_halves(int kv_head, float share, Tile& x) const {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const HalfRow row(codes(kv_head, lane * n + i));
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) x[i][t] = fmaf(share, row[t], x[i][t]);
    }
  }
};

/// The Walsh-Hadamard transform of every token.
template <int n>
__device__ __forceinline__ void transform_tokens(float (&x)[n][kTileTokens], int lane) {
#pragma unroll
  for (int t = 0; t < kTileTokens; ++t) {
    float token[n];
#pragma unroll
    for (int i = 0; i < n; ++i) token[i] = x[i][t];
    walsh_hadamard(token, lane);
#pragma unroll
    for (int i = 0; i < n; ++i) x[i][t] = token[i];
  }
}

/// Cosines and sines of positions 0 to 63 in shared memory, [64][D / 2], for turn_tokens.
template <int D>
__device__ __forceinline__ void fill_page_angles(const CacheView& cache, float2* angles) {
  for (int i = threadIdx.x; i < kPageTokens * D / 2; i += blockDim.x) {
    const int pair = i / kPageTokens, slot = i % kPageTokens;
    angles[slot * (D / 2) + pair] =
        make_float2(cache.rope[pair * kPageTokens + slot], cache.rope[(D / 2 + pair) * kPageTokens + slot]);
  }
}

/// Turns tokens to their positions, that of token t in lane t; or, given a mean, adds it turned to tokens that have
/// been turned before they were stored.
template <int D>
__device__ __forceinline__ void turn_tokens(const CacheView& cache, const float2* angles, int position,
                                            const float* mean, int lane, float (&x)[D / kWarp][kTileTokens]) {
  constexpr int n = D / kWarp;
  const int pair = lane % (kWarp / 2) * n;
  const float sign = lane < kWarp / 2 ? -1.0f : 1.0f;
  float own[n] = {}, partner[n] = {};
#pragma unroll
  for (int i = 0; i < n; ++i) {
    if (mean != nullptr) own[i] = mean[lane * n + i];
    partner[i] = __shfl_xor_sync(0xffffffffu, own[i], kWarp / 2);
  }
#pragma unroll
  for (int t = 0; t < kTileTokens; ++t) {
    const int to = max(0, __shfl_sync(0xffffffffu, position, t));
    const float* base = cache.rope + (static_cast<int64_t>(kPageTokens) + to / kPageTokens) * D + pair;
    const float2* within = angles + to % kPageTokens * (D / 2) + pair;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float c0 = base[i], s0 = base[D / 2 + i];
      const float cosine = c0 * within[i].x - s0 * within[i].y, sine = (s0 * within[i].x + c0 * within[i].y) * sign;
      const float other = __shfl_xor_sync(0xffffffffu, x[i][t], kWarp / 2);
      x[i][t] =
          mean != nullptr ? x[i][t] + fmaf(own[i], cosine, partner[i] * sine) : fmaf(x[i][t], cosine, other * sine);
    }
  }
}

/// Tokens as halves where Fp16Tile reads them.
template <int D>
__device__ __forceinline__ void put_halves(const float (&x)[D / kWarp][kTileTokens], int lane, unsigned char* to) {
  __syncwarp();
#pragma unroll
  for (int i = 0; i < D / kWarp; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* from = x[i] + half * 8;
      *reinterpret_cast<uint4*>(to + Fp16Tile<D>::swizzled(lane * (D / kWarp) + i, half)) =
          make_uint4(pack_halves(from[0], from[1]), pack_halves(from[2], from[3]), pack_halves(from[4], from[5]),
                     pack_halves(from[6], from[7]));
    }
  }
  __syncwarp();
}

/// Halves from one row of a basis to the next in shared memory: rows are in different banks.
template <int D>
constexpr int kBasisStride = D + 8;

/// The rows of a head's inverse basis, [channel][place] as halves in shared memory, for multiply_basis.
template <int D>
__device__ __forceinline__ void fill_basis(const SideView& side, int kv_head, __half* basis) {
  const float* from = side.inverse + static_cast<int64_t>(kv_head) * D * D;
  for (int i = threadIdx.x; i < D * D; i += blockDim.x) {
    basis[i / D * kBasisStride<D> + i % D] = __float2half_rn(from[i]);
  }
}

/// The channels of tokens [place][16 tokens] that are in a basis of their head; x leaves through scratch, which may
/// begin where places do.
template <int D>
__device__ __forceinline__ void multiply_basis(const __half* basis, const SideTile<D>& side, int lane, float* scratch,
                                               float (&x)[D / kWarp][kTileTokens]) {
  constexpr int kBlocks = D / 16;
  auto* places = reinterpret_cast<unsigned char*>(scratch);
  put_halves<D>(x, lane, places);
  uint32_t b[kBlocks][4];
  const int matrix = lane / 8;
#pragma unroll
  for (int k = 0; k < kBlocks; ++k) {
    load_transposed(b[k], places + Fp16Tile<D>::swizzled(16 * k + matrix % 2 * 8 + lane % 8, matrix / 2));
  }
  __syncwarp();
#pragma unroll 1
  for (int block = 0; block < kBlocks; ++block) {
    float sums[2][4] = {};
#pragma unroll
    for (int k = 0; k < kBlocks; ++k) {
      uint32_t a[4];
      const int row = 16 * block + matrix % 2 * 8 + lane % 8;
      load_matrices(a, basis + row * kBasisStride<D> + 16 * k + matrix / 2 * 8);
      mma(sums[0], a[0], a[1], a[2], a[3], b[k][0], b[k][1]);
      mma(sums[1], a[0], a[1], a[2], a[3], b[k][2], b[k][3]);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int token = i / 4 * 8 + 2 * (lane % 4) + i % 2, channel = 16 * block + i / 2 % 2 * 8 + lane / 4;
      scratch[token * SideTile<D>::kStride + channel] = sums[i / 4][i % 4];
    }
  }
  side.get(scratch, x);
}

/// From keys as they are stored, mixed over their group of heads, to keys as attention sees them: natural basis, after
/// RoPE. position: of token t in lane t; basis: fill_basis, if they are in one.
template <int D>
__device__ __forceinline__ void finish_keys(const CacheView& cache, const SideTile<D>& side, int kv_head, int position,
                                            const float2* angles, const __half* basis, float* scratch,
                                            float (&x)[D / kWarp][kTileTokens]) {
  constexpr int n = D / kWarp;
  const SideView& keys = cache.keys;
  const int lane = side.lane;
  if (keys.rotation_heads != 0) transform_tokens(x, lane);
  if (keys.basis_heads != 0) {
    multiply_basis<D>(basis, side, lane, scratch, x);
  } else if (keys.format == Format::kStatic && keys.order != nullptr) {
    side.reorder(kv_head, scratch, x);
  }
  const float* mean = keys.mean == nullptr ? nullptr : keys.mean + kv_head * D;
  if (cache.keys_pre_rope == 0) {
    if (mean != nullptr) turn_tokens<D>(cache, angles, position, mean, lane, x);
    return;
  }
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const float shift = mean == nullptr ? 0.0f : mean[lane * n + i];
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) x[i][t] += shift;
  }
  turn_tokens<D>(cache, angles, position, nullptr, lane, x);
}

/// A side of 16 tokens that are kept exactly: natural basis, before RoPE.
template <int D>
__device__ __forceinline__ void read_exact_tile(const uint8_t* rows, int lane, float (&x)[D / kWarp][kTileTokens]) {
#pragma unroll
  for (int i = 0; i < D / kWarp; ++i) {
    const HalfRow row(rows + (lane * (D / kWarp) + i) * (2 * kExactTokens));
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) x[i][t] = row[t];
  }
}

}  // namespace kvquant::cuda
