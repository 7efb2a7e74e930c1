/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// 16 tokens of a head as attention sees them, read by a warp, of any format in codes or fp16: token_reader.cuh for a
// tile at a time. Lane l holds n / 2 channels (or places) from l n / 2 on of all tokens, and those D / 2 behind them,
// which RoPE pairs with them; x[i][t]: of channel_of(l, i), token t.
#pragma once
#include "fp16_tile.cuh"
#include "token_reader.cuh"

namespace kvquant::cuda {

/// The codes of a channel's 16 tokens.
template <int bits>
struct CodeRow {
  uint32_t words[(bits + 1) / 2];

  __device__ __forceinline__ explicit CodeRow(const uint8_t* field) {
    if constexpr (bits == 3) {
      const auto at = reinterpret_cast<uintptr_t>(field);
      const auto* from = reinterpret_cast<const uint32_t*>(at & ~uintptr_t{3});
      const uint32_t low = from[0], high = from[1], shift = static_cast<uint32_t>(at & 2) * 8;
      words[0] = __funnelshift_r(low, high, shift);
      words[1] = high >> shift;
    } else if constexpr (bits == 2) {
      words[0] = *reinterpret_cast<const uint32_t*>(field);
    } else {
#pragma unroll
      for (int i = 0; i < bits / 4; ++i) {
        const uint2 two = reinterpret_cast<const uint2*>(field)[i];
        words[2 * i] = two.x;
        words[2 * i + 1] = two.y;
      }
    }
  }

  /// A token's code at bit `to` of what may hold others; to be called where the token is known, in an unrolled loop.
  __device__ __forceinline__ uint32_t shifted(int token, int to) const {
    const int bit = token * bits, word = bit / 32, from = bit % 32;
    if (from + bits > 32) return __funnelshift_r(words[word], words[(word + 1) % ((bits + 1) / 2)], from) << to;
    return from < to ? words[word] << (to - from) : words[word] >> (from - to);
  }
  __device__ __forceinline__ uint32_t code(int token) const { return shifted(token, 0) & ((1u << bits) - 1u); }
  /// As a number, less one of 0.5 s: bits 1 and up of 2^23, which spares a conversion. Twice that.
  __device__ __forceinline__ float twice(int token, float less) const {
    return __uint_as_float((shifted(token, 1) & ((2u << bits) - 2u)) | 0x4b000000u) - (8388608.0f + 2.0f * less);
  }
};

/// The same of a number of bits that a lane alone knows, one after the other; wide: it may be 8, else 4 at most.
template <bool wide>
struct PlaceRow {
  uint32_t now[1 + wide], later[1 + wide];  // of tokens 0 to 7, and of others
  int bits;

  __device__ __forceinline__ PlaceRow(const uint8_t* field, int bits) : bits(bits) {
    // Codes of 4 bits or less are in two words, those of 8 bits are aligned.
    const auto at = reinterpret_cast<uintptr_t>(field);
    const auto* from = reinterpret_cast<const uint32_t*>(at & ~uintptr_t{3});
    const uint32_t shift = static_cast<uint32_t>(at & 2) * 8, second = from[1];
    const uint32_t low = __funnelshift_r(from[0], second, shift), high = second >> shift;
    now[0] = low;
    later[0] = __funnelshift_rc(low, high, 8 * bits);
    if constexpr (wide) {
      now[1] = high;
      later[1] = 0;
      if (bits == 8) {
        later[0] = from[2];
        later[1] = from[3];
      }
    }
  }

  /// Tokens in their order.
  __device__ __forceinline__ float next(int token) {
    uint32_t(&rest)[1 + wide] = token < 8 ? now : later;
    const uint32_t code = rest[0] & ((1u << bits) - 1u);
    if constexpr (wide) {
      rest[0] = __funnelshift_r(rest[0], rest[1], bits);
      rest[1] >>= bits;
    } else {
      rest[0] >>= bits;
    }
    return __uint_as_float(code | 0x4b000000u) - 8388608.0f;
  }
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

/// The i-th channel of a lane.
template <int D>
__device__ __forceinline__ int channel_of(int lane, int i) {
  constexpr int kHalf = D / kWarp / 2;
  return i / kHalf * (D / 2) + lane * kHalf + i % kHalf;
}

/// Which of 16 tokens are among others, a bit each; token(i): the i-th of those, negative: none. A warp's work.
template <class Token>
__device__ __forceinline__ uint32_t tokens_among(int count, int first, int lane, const Token& token) {
  uint32_t found = 0;
  for (int i = lane; i < count; i += kWarp) {
    const int which = token(i), at = which - first;
    if (which >= 0 && at >= 0 && at < kTileTokens) found |= 1u << at;
  }
  return count == 0 ? 0 : __reduce_or_sync(0xffffffffu, found);
}

/// What codes of a side with levels stand for.
__device__ __forceinline__ const float* side_levels(const SideView& side) {
  return side.levels + (side.format == Format::kCodebook ? 1 << side.bits : 0);
}

/// Reads tiles of a side; a warp's own scratch holds FP32 [16 tokens][kStride].
template <int D>
struct SideTile {
  static constexpr int n = D / kWarp, kStride = D + 4, kScratchBytes = kTileTokens * kStride * 4;
  using Tile = float[n][kTileTokens];

  const SideView& side;
  const uint8_t* page;
  int tile, lane;
  const float* levels;  // what codes stand for, if the side has levels

  /// x += share times what is stored of a head.
  __device__ __forceinline__ void add(int kv_head, float share, float* scratch, Tile& x) const {
    if (side.format == Format::kStatic) {
      add_static(kv_head, share, x);
    } else if (side.format == Format::kFloat16) {
      add_halves(kv_head, share, x);
    } else if (side.bits == 2) {
      add_codes<2>(kv_head, share, x);
    } else if (side.bits == 3) {
      add_codes<3>(kv_head, share, x);
    } else if (side.bits == 4) {
      add_codes<4>(kv_head, share, x);
    } else {
      side.format == Format::kAffine ? add_affine<8>(kv_head, share, x) : add_norm<8>(kv_head, share, x);
    }
    if (side.format == Format::kCodebook && side.outliers > 0) put_outliers(kv_head, scratch, x);
  }

  __device__ __forceinline__ int channel(int i) const { return channel_of<D>(lane, i); }

  __device__ __forceinline__ void put(float* scratch, const Tile& x) const {
    __syncwarp();
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) {
#pragma unroll
      for (int i = 0; i < n; ++i) scratch[t * kStride + channel(i)] = x[i][t];
    }
    __syncwarp();
  }

  __device__ __forceinline__ void get(const float* scratch, Tile& x) const {
    __syncwarp();
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) {
#pragma unroll
      for (int i = 0; i < n; ++i) x[i][t] = scratch[t * kStride + channel(i)];
    }
  }

  /// x += share times what another warp has put.
  __device__ __forceinline__ void add(const float* scratch, float share, Tile& x) const {
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) {
#pragma unroll
      for (int i = 0; i < n; ++i) x[i][t] = fmaf(share, scratch[t * kStride + channel(i)], x[i][t]);
    }
  }

  /// From places to channels.
  __device__ __forceinline__ void reorder(int kv_head, float* scratch, Tile& x) const {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const int to = channel_at<D>(side, kv_head, channel(i));
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) scratch[t * kStride + to] = x[i][t];
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
    wide ? add_places<true>(kv_head, share, x) : add_places<false>(kv_head, share, x);
  }

  template <bool wide>
  __device__ __forceinline__ void add_places(int kv_head, float share, Tile& x) const {
    constexpr int kRun = D / kWidthRuns;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const int place = channel(i), bits = side.width[place / kRun];
      const float2 step = reinterpret_cast<const float2*>(side.steps)[kv_head * D + place];
      const float start = bits == 0 ? 0.0f : share * step.x, width = bits == 0 ? 0.0f : share * step.y;
      PlaceRow<wide> row(page + side.tile(kv_head, tile) + side.run_begin[place / kRun] + place % kRun * 2 * bits,
                         bits);
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) x[i][t] += fmaf(width, row.next(t), start);
    }
  }

  template <int bits>
  __device__ __forceinline__ void add_codes(int kv_head, float share, Tile& x) const {
    if (side.format == Format::kAffine) {
      add_affine<bits>(kv_head, share, x);
    } else if (side.format == Format::kCodebook) {
      add_codebook<bits>(kv_head, share, x);
    } else {
      add_norm<bits>(kv_head, share, x);
    }
  }

  template <int bits>
  __device__ __forceinline__ void add_affine(int kv_head, float share, Tile& x) const {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const uint8_t* scales = page + side.scales(tile, side.group(kv_head * D + channel(i)));
      const HalfRow scale(scales), zero(scales + 2 * kTileTokens);
      const CodeRow<bits> row(codes(kv_head, channel(i)));
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) {
        x[i][t] = fmaf(share * scale[t], fmaf(0.5f, row.twice(t, 0.0f), -zero[t]), x[i][t]);
      }
    }
  }

  template <int bits>
  __device__ __forceinline__ void add_codebook(int kv_head, float share, Tile& x) const {
    const bool by_channel = side.steps != nullptr;  // keys; of values each token has a range
    const uint8_t* ranges = page + (by_channel ? 0 : side.scales(tile, 0));
    const HalfRow widths(ranges), starts(ranges + 2 * kTileTokens);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float2 own =
          by_channel ? reinterpret_cast<const float2*>(side.steps)[kv_head * D + channel(i)] : make_float2(0.0f, 0.0f);
      const CodeRow<bits> row(codes(kv_head, channel(i)));
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) {
        const float start = by_channel ? own.x : starts[t], width = by_channel ? own.y : widths[t];
        x[i][t] = fmaf(share, fmaf(width, levels[row.code(t)], start), x[i][t]);
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

  template <int bits>
  __device__ __forceinline__ void add_norm(int kv_head, float share, Tile& x) const {
    const HalfRow norm(page + side.norms + tile * side.norm_tile_bytes + kv_head * kTileTokens * 2);
    constexpr float kMiddle = 0.5f * ((1 << bits) - 1);
    const bool even = side.level_step > 0.0f;
    const float step = even ? 0.5f * share * side.level_step : share;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const CodeRow<bits> row(codes(kv_head, channel(i)));
      if (even) {
#pragma unroll
        for (int t = 0; t < kTileTokens; ++t) x[i][t] = fmaf(norm[t] * step, row.twice(t, kMiddle), x[i][t]);
      } else {
#pragma unroll
        for (int t = 0; t < kTileTokens; ++t) x[i][t] = fmaf(norm[t] * step, levels[row.code(t)], x[i][t]);
      }
    }
  }

  __device__ __forceinline__ void add_halves(int kv_head, float share, Tile& x) const {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const HalfRow row(codes(kv_head, channel(i)));
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) x[i][t] = fmaf(share, row[t], x[i][t]);
    }
  }
};

/// Tokens as halves where Fp16Tile reads them.
template <int D>
__device__ __forceinline__ void put_halves(const float (&x)[D / kWarp][kTileTokens], int lane, unsigned char* to) {
  __syncwarp();
#pragma unroll
  for (int i = 0; i < D / kWarp; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* from = x[i] + half * 8;
      *reinterpret_cast<uint4*>(to + Fp16Tile<D>::swizzled(channel_of<D>(lane, i), half)) =
          make_uint4(pack_halves(from[0], from[1]), pack_halves(from[2], from[3]), pack_halves(from[4], from[5]),
                     pack_halves(from[6], from[7]));
    }
  }
  __syncwarp();
}

/// A side of 16 tokens that are kept exactly: natural basis, before RoPE.
template <int D>
__device__ __forceinline__ void read_exact_tile(const uint8_t* rows, int lane, float (&x)[D / kWarp][kTileTokens]) {
#pragma unroll
  for (int i = 0; i < D / kWarp; ++i) {
    const HalfRow row(rows + channel_of<D>(lane, i) * (2 * kExactTokens));
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) x[i][t] = row[t];
  }
}

}  // namespace kvquant::cuda
