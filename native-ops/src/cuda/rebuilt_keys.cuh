/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Keys of attend_rebuilt.cu: codes from pages, products with the factors of a basis, tiles of halves.
#pragma once
#include "rebuilt_block.cuh"

namespace kvquant::cuda::rebuilt {

/// Codes [0, 2^bits) less this are as often negative as positive.
__device__ __forceinline__ float centre(int bits) { return static_cast<float>(1 << bits >> 1); }

/// Fills shared memory with factors of codes: a warp does 8 channels, a lane 4 places at a time.
__device__ inline void fill_factors(const Block& block) {
  const CacheView& cache = block.cache;
  const Layout& layout = block.layout;
  constexpr int kRows = kDim / kWarps;
  const SideView& keys = cache.keys;
  const int size = keys.basis_heads * kDim, first = block.warp * kRows;
  const float* rows = keys.inverse + (static_cast<int64_t>(block.heads.kv_head) * kDim + first) * size;
  float constants[kRows] = {};
  for (int at = 4 * block.lane; at < layout.depth; at += 4 * kWarp) {
    const int head = at / layout.places, place = at % layout.places, run = place / kRun;
    float4 factors[kRows] = {};
    float step[4] = {}, offset[4] = {};
    if (run < layout.runs) {
      const int from = layout.run[run] * kRun + place % kRun, bits = keys.width[layout.run[run]];
      const auto* steps = reinterpret_cast<const float4*>(keys.steps + 2 * ((block.first_head() + head) * kDim + from));
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        factors[row] = *reinterpret_cast<const float4*>(rows + static_cast<int64_t>(row) * size + head * kDim + from);
      }
      const float4 low = steps[0], high = steps[1];
      const float all[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        step[i] = all[2 * i + 1];
        offset[i] = fmaf(step[i], centre(bits), all[2 * i]);
      }
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const float4 x = factors[row];
      constants[row] += x.x * offset[0] + x.y * offset[1] + (x.z * offset[2] + x.w * offset[3]);
      *reinterpret_cast<uint2*>(block.shared + (first + row) * layout.row_bytes + 2 * at) =
          make_uint2(pack_halves(x.x * step[0], x.y * step[1]), pack_halves(x.z * step[2], x.w * step[3]));
    }
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) constants[row] += __shfl_xor_sync(0xffffffffu, constants[row], step);
    if (block.lane == row) {
      const int channel = block.heads.kv_head * kDim + first + row;
      block.state().constants[first + row] = constants[row] + (keys.mean != nullptr ? keys.mean[channel] : 0.0f);
    }
  }
}

/// The codes of a place for a tile, 2 bytes a bit.
__device__ __forceinline__ uint4 load_codes(const uint8_t* from, int bits) {
  uint4 x = make_uint4(0, 0, 0, 0);
  if (bits == 8) {
    x = *reinterpret_cast<const uint4*>(from);
  } else if (bits == 4) {
    const uint2 two = *reinterpret_cast<const uint2*>(from);
    x.x = two.x;
    x.y = two.y;
  } else if (bits == 2) {
    x.x = *reinterpret_cast<const uint32_t*>(from);
  } else if (bits > 0) {
    const auto* words = reinterpret_cast<const uint16_t*>(from);
    x.x = words[0];
    if (bits == 3) {
      x.x |= static_cast<uint32_t>(words[1]) << 16;
      x.y = words[2];
    }
  }
  return x;
}

/// Bytes 2 i and 2 i + 1 of x as halves, less the centre: 0x6400 and a byte are 1024 and its value.
template <int i>
__device__ __forceinline__ uint32_t two_codes(uint32_t x, __half2 centre) {
  return as_bits(__hsub2(as_half2(__byte_perm(x, 0x64646464u, i == 0 ? 0x4140 : 0x4342)), centre));
}

/// 16 codes as halves, in order.
__device__ __forceinline__ void widen(const uint4& codes, int bits, uint32_t (&out)[8]) {
  const __half2 less = __float2half2_rn(1024.0f + centre(bits));
  if (bits == 8) {
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = two_codes<0>(words[i], less);
      out[2 * i + 1] = two_codes<1>(words[i], less);
    }
  } else if (bits == 4) {
    const uint32_t words[2] = {codes.x, codes.y};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t even = words[i] & 0x0f0f0f0fu, odd = words[i] >> 4 & 0x0f0f0f0fu;
      const uint32_t low = __byte_perm(even, odd, 0x5140), high = __byte_perm(even, odd, 0x7362);
      out[4 * i] = two_codes<0>(low, less);
      out[4 * i + 1] = two_codes<1>(low, less);
      out[4 * i + 2] = two_codes<0>(high, less);
      out[4 * i + 3] = two_codes<1>(high, less);
    }
  } else if (bits == 2) {
    const uint32_t x = codes.x, zero = x & 0x03030303u, one = x >> 2 & 0x03030303u;
    const uint32_t two = x >> 4 & 0x03030303u, three = x >> 6 & 0x03030303u;
    const uint32_t a = __byte_perm(zero, one, 0x5140), b = __byte_perm(zero, one, 0x7362);
    const uint32_t c = __byte_perm(two, three, 0x5140), d = __byte_perm(two, three, 0x7362);
    out[0] = two_codes<0>(a, less);
    out[1] = two_codes<0>(c, less);
    out[2] = two_codes<1>(a, less);
    out[3] = two_codes<1>(c, less);
    out[4] = two_codes<0>(b, less);
    out[5] = two_codes<0>(d, less);
    out[6] = two_codes<1>(b, less);
    out[7] = two_codes<1>(d, less);
  } else {
    const uint64_t all = static_cast<uint64_t>(codes.y) << 32 | codes.x;
    const uint32_t mask = (1u << bits) - 1u;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t low = static_cast<uint32_t>(all >> (2 * i * bits)) & mask;
      const uint32_t high = static_cast<uint32_t>(all >> ((2 * i + 1) * bits)) & mask;
      out[i] = as_bits(__hsub2(as_half2(0x64006400u | high << 16 | low), less));
    }
  }
}

/// The codes of keys of two pages and a head of the basis, or the kv head, on their way to shared memory. A unit is a
/// run of one page, a lane a place of a tile; a warp has every fourth run of a page, always the same ones.
template <bool kProduct>
struct KeyCodes {
  static constexpr int kApart = kTiles / kGroupPages;  // runs
  int first_run, page, tile, in_run, to;               // to: in tiles of codes, of the first unit
  int from[kMostUnits], bits[kMostUnits];              // from: in the page, of the first head; of no unit -1 bits
  int head_bytes;
  uint4 words[kMostUnits];

  /// worker: the warp among those that read codes, of which there are as many as tiles.
  __device__ __forceinline__ KeyCodes(const Block& block, int worker) {
    const SideView& keys = block.cache.keys;
    // Lanes that store rows of codes side by side, or look for the same angles.
    in_run = kProduct ? block.lane % kRun : block.lane / kPageTiles;
    tile = kProduct ? block.lane / kRun : block.lane % kPageTiles;
    first_run = worker / kGroupPages;
    page = worker % kGroupPages;
    to = (page * kPageTiles + tile) * block.layout.places * kRowBytes + KeyTile::swizzled(first_run * kRun + in_run, 0);
    head_bytes = kPageTiles * keys.tile_bytes;
#pragma unroll
    for (int i = 0; i < kMostUnits; ++i) {
      const int run = first_run + i * kApart, stored = block.layout.run[run % kWidthRuns];
      bits[i] = run < block.layout.runs ? keys.width[stored] : -1;
      from[i] = static_cast<int>(keys.tile(block.first_head(), tile)) + keys.run_begin[stored] + in_run * 2 * bits[i];
    }
  }
  __device__ __forceinline__ void load(const uint8_t* const (&pages)[kGroupPages], int head) {
    const uint8_t* own = (page == 0 ? pages[0] : pages[1]) + head * head_bytes;
#pragma unroll
    for (int i = 0; i < kMostUnits; ++i) {
      if (bits[i] > 0) words[i] = load_codes(own + from[i], bits[i]);
    }
  }
  /// Codes as halves, [tile][place][16 tokens].
  __device__ __forceinline__ void store(unsigned char* tiles) const {
#pragma unroll
    for (int i = 0; i < kMostUnits; ++i) {
      if (bits[i] < 0) continue;
      uint32_t out[8];
      widen(words[i], bits[i], out);
      const int row = to + i * (kApart * kRun * kRowBytes);
      *reinterpret_cast<uint4*>(tiles + row) = make_uint4(out[0], out[1], out[2], out[3]);
      *reinterpret_cast<uint4*>(tiles + (row ^ 16)) = make_uint4(out[4], out[5], out[6], out[7]);
    }
  }
};

/// What the places of a warp's units stand for, where codes are those of channels after RoPE: start + step c, and the
/// mean, which is turned: of a pair the shares of this channel's and the other's.
struct PlacedKeys {
  struct Channel {
    int at;
    float step, offset, same, other;
  };
  Channel channels[kMostUnits];

  __device__ __forceinline__ PlacedKeys(const Block& block, const KeyCodes<false>& codes) {
    const SideView& keys = block.cache.keys;
    const int head = block.heads.kv_head * kDim;
#pragma unroll
    for (int i = 0; i < kMostUnits; ++i) {
      // All runs are read, in their order.
      const int in_head = (codes.first_run + i * KeyCodes<false>::kApart) * kRun + codes.in_run;
      const int place = head + in_head, bits = codes.bits[i];
      const int at = keys.order != nullptr ? keys.order[place] - head : in_head;
      const float step = bits > 0 ? keys.steps[2 * place + 1] : 0.0f, start = bits > 0 ? keys.steps[2 * place] : 0.0f;
      const float same = keys.mean != nullptr ? keys.mean[head + at] : 0.0f;
      const float other = keys.mean != nullptr ? keys.mean[head + (at ^ kPairs)] : 0.0f;
      channels[i] = {at, step, fmaf(step, centre(bits), start), same, at < kPairs ? -other : other};
    }
  }

  /// Leaves the keys of two pages as tiles [8].
  __device__ __forceinline__ void finish(const Block& block, const KeyCodes<false>& codes, int first, int second,
                                         unsigned char* tiles) const {
#pragma unroll
    for (int i = 0; i < kMostUnits; ++i) {
      const Channel& channel = channels[i];
      const int pair = channel.at % kPairs, page = codes.page == 0 ? first : second;
      const float2 base = rope_angle(block.cache, page * kPageTokens + codes.tile * kTileTokens, pair);
      const float cosine = channel.same * base.x + channel.other * base.y;
      const float sine = channel.other * base.x - channel.same * base.y;
      uint32_t out[8];
      widen(codes.words[i], codes.bits[i], out);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float4 angle = block.state().angles[pair][angle_at(pair, j)];
        const float2 code = __half22float2(as_half2(out[j]));
        out[j] = pack_halves(fmaf(channel.step, code.x, channel.offset) + cosine * angle.x + sine * angle.y,
                             fmaf(channel.step, code.y, channel.offset) + cosine * angle.z + sine * angle.w);
      }
      unsigned char* to = tiles + (codes.page * kPageTiles + codes.tile) * kTileStride;
      *reinterpret_cast<uint4*>(to + KeyTile::swizzled(channel.at, 0)) = make_uint4(out[0], out[1], out[2], out[3]);
      *reinterpret_cast<uint4*>(to + KeyTile::swizzled(channel.at, 1)) = make_uint4(out[4], out[5], out[6], out[7]);
    }
  }
};

/// A maker's keys while they are rebuilt: 16 channels and those 64 above, of a page; see mma for who holds what.
struct RebuiltKeys {
  float sums[2][2 * kPageTiles][4] = {};

  /// Adds the places of a head.
  __device__ __forceinline__ void add(const Block& block, const unsigned char* codes, int head) {
    const Layout& layout = block.layout;
    const int matrix = block.lane / 8, row = matrix % 2 * 8 + block.lane % 8, tile_bytes = layout.places * kRowBytes;
    const unsigned char* low =
        block.shared + (block.warp % 4 * 16 + row) * layout.row_bytes + 2 * (head * layout.places + matrix / 2 * 8);
    const unsigned char* high = low + kPairs * layout.row_bytes;
    // Places come in 16: what decides where halves of their rows lie stays the same.
    const unsigned char* tiles = codes + block.warp / 4 * kPageTiles * tile_bytes + KeyTile::swizzled(row, matrix / 2);
#pragma unroll 2
    for (int place = 0; place < layout.places; place += 16) {
      uint32_t a[2][4], b[kPageTiles][4];
      load_matrices(a[0], low + 2 * place);
      load_matrices(a[1], high + 2 * place);
#pragma unroll
      for (int tile = 0; tile < kPageTiles; ++tile) {
        load_transposed(b[tile], tiles + tile * tile_bytes + kRowBytes * place);
      }
#pragma unroll
      for (int i = 0; i < 2 * kPageTiles; ++i) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          mma(sums[side][i], a[side][0], a[side][1], a[side][2], a[side][3], b[i / 2][2 * (i % 2)],
              b[i / 2][2 * (i % 2) + 1]);
        }
      }
    }
  }

  /// Turns the keys of a page and leaves them as tiles.
  __device__ __forceinline__ void finish(const Block& block, int page) const {
    const int c = block.lane % 4;
    const SharedState& s = block.state();
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int pair = block.warp % 4 * 16 + row * 8 + block.lane / 4;
      const float low = s.constants[pair], high = s.constants[pair + kPairs];
      float2 bases[kPageTiles];
#pragma unroll
      for (int tile = 0; tile < kPageTiles; ++tile) {
        bases[tile] = rope_angle(block.cache, page * kPageTokens + tile * kTileTokens, pair);
      }
#pragma unroll
      for (int i = 0; i < 2 * kPageTiles; ++i) {
        const float2 base = bases[i / 2];
        unsigned char* to = block.key_tile(block.warp / 4 * kPageTiles + i / 2) + 4 * c;
        const float4 angle = s.angles[pair][angle_at(pair, 4 * (i % 2) + c)];
        const float2 one = make_float2(base.x * angle.x - base.y * angle.y, base.y * angle.x + base.x * angle.y);
        const float2 two = make_float2(base.x * angle.z - base.y * angle.w, base.y * angle.z + base.x * angle.w);
        const float x0 = sums[0][i][2 * row] + low, x1 = sums[0][i][2 * row + 1] + low;
        const float y0 = sums[1][i][2 * row] + high, y1 = sums[1][i][2 * row + 1] + high;
        *reinterpret_cast<uint32_t*>(to + KeyTile::swizzled(pair, i % 2)) =
            pack_halves(x0 * one.x - y0 * one.y, x1 * two.x - y1 * two.y);
        *reinterpret_cast<uint32_t*>(to + KeyTile::swizzled(pair + kPairs, i % 2)) =
            pack_halves(y0 * one.x + x0 * one.y, y1 * two.x + x1 * two.y);
      }
    }
  }
};

}  // namespace kvquant::cuda::rebuilt
