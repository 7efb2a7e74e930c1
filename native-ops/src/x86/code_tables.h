/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// What codes of 1, 2 and 4 bits add to scores, tokens in lanes. The codes of 4, 2 or 1 places are put side by side to a
// nibble per token. Of 1 or 2 bits, what these places add is then a lookup where AVX-512 has one of 16 floats: a lookup
// and an addition per query replace 4 or 2 multiplications and the unpacking of as many codes. int2 at 8000 tokens
// takes 8 % less than with a multiplication per code.
#pragma once
#include <vector>

#include "../core/aligned.h"
#include "../core/layout.h"
#include "simd.h"

namespace kvquant {
namespace KVQUANT_ISA {

#if defined(__AVX512F__)

/// Whether CodeTables adds the codes of this width.
constexpr bool has_code_tables(int width) { return width == 1 || width == 2 || width == 4; }

/// Swaps the bits under low << distance with those under low, in each of 8 words.
inline __m512i swap_bits(__m512i x, int distance, uint64_t low) {
  const __m512i mask = _mm512_set1_epi64(static_cast<int64_t>(low));
  const __m512i differ = _mm512_and_si512(_mm512_xor_si512(_mm512_srli_epi64(x, distance), x), mask);
  return _mm512_ternarylogic_epi64(x, differ, _mm512_slli_epi64(differ, distance), 0x96);  // exclusive or of all
}

/// 8 words, each the codes of 4 / width places for the 16 tokens of a tile, as nibbles: even tokens in the lower half,
/// odd ones in the upper half, where nibble_shifts says. Of 4 places, those in the middle change places.
template <int width>
inline __m512i to_nibbles(__m512i x) {
  // The digits of a bit's index, of which two are swapped: c is the place, t the token, b the bit of the code.
  if constexpr (width == 4) return swap_bits(x, 28, 0x00000000f0f0f0f0);  // t3 t2 t1 t0 b1 b0 to t0 t2 t1 t3 b1 b0
  if constexpr (width == 2) return swap_bits(x, 30, 0x00000000cccccccc);  // c t3 t2 t1 t0 b to t0 t3 t2 t1 c b
  x = swap_bits(x, 31, 0x00000000aaaaaaaa);                               // c1 c0 t3 t2 t1 t0 to t0 c0 t3 t2 t1 c1
  return swap_bits(x, 14, 0x0000cccc0000cccc);                            // to t0 t1 t3 t2 c0 c1
}

/// Where the nibbles of tokens 0 to 15 begin in their half of a word.
template <int width>
inline __m512i nibble_shifts() {
  if constexpr (width == 4) return _mm512_set_epi32(28, 28, 20, 20, 12, 12, 4, 4, 24, 24, 16, 16, 8, 8, 0, 0);
  if constexpr (width == 2) return _mm512_set_epi32(28, 28, 24, 24, 20, 20, 16, 16, 12, 12, 8, 8, 4, 4, 0, 0);
  return _mm512_set_epi32(28, 28, 12, 12, 24, 24, 8, 8, 20, 20, 4, 4, 16, 16, 0, 0);
}

template <int head_dim>
class CodeTables {
 public:
  /// folded: the queries with steps folded in, [queries, head_dim], by place.
  CodeTables(const SideLayout& layout, int head, int queries, const float* folded)
      : tile_bytes_(layout.tile(head, 1) - layout.tile(head, 0)) {
    collect<1>(layout, head);
    collect<2>(layout, head);
    collect<4>(layout, head);
    tables_.resize(queries * places_.size() * kLanes);
    float* table = tables_.data();
    for (int g = 0; g < queries; ++g, folded += head_dim) {
      for (const int place : places_) {
        store(table, sums_of_places(folded + place, layout.width(place)));
        table += kLanes;
      }
    }
  }

  /// Adds to the scores of a page's tokens, [queries, kPageTokens], for queries from the first one on.
  template <int queries>
  void operator()(const uint8_t* page, int first, float* scores) const {
    uint64_t words[kPageTiles][head_dim + kChunk];
    for (int tile = 0; tile < kPageTiles; ++tile, page += tile_bytes_) {
      // A chunk may write past its end, where the next one begins.
      for (const Chunk& chunk : chunks_) {
        const __m512i codes = _mm512_loadu_si512(page + chunk.begin);
        _mm512_storeu_si512(words[tile] + chunk.word, chunk.width == 1   ? to_nibbles<1>(codes)
                                                      : chunk.width == 2 ? to_nibbles<2>(codes)
                                                                         : to_nibbles<4>(codes));
      }
    }
    const float* tables = tables_.data() + first * places_.size() * kLanes;
    Vec sum[queries][kPageTiles];
    for (int g = 0; g < queries; ++g) {
      for (int v = 0; v < kPageTiles; ++v) sum[g][v] = load(scores + g * kPageTokens + v * kLanes);
    }
    add_lookups<1>(words, 0, ends_[1], tables, sum);
    add_lookups<2>(words, ends_[1], ends_[2], tables, sum);
    add_products(words, ends_[2], ends_[4], tables, sum);
    for (int g = 0; g < queries; ++g) {
      for (int v = 0; v < kPageTiles; ++v) store(scores + g * kPageTokens + v * kLanes, sum[g][v]);
    }
  }

 private:
  static constexpr int kChunk = 8;

  /// Words that are read together: where in a page, and to which word on.
  struct Chunk {
    int64_t begin;
    int word, width;
  };

  template <int width>
  void collect(const SideLayout& layout, int head) {
    constexpr int step = 4 / width;
    int words = 0;  // of the chunk
    for (int place = 0; place < head_dim; place += step) {
      if (layout.width(place) != width) {
        words = 0;
        continue;
      }
      if (words == 0) chunks_.push_back({layout.place(head, 0, place), static_cast<int>(places_.size()), width});
      words = (words + 1) % kChunk;
      places_.push_back(place);
    }
    ends_[width] = static_cast<int>(places_.size());
  }

  /// What the codes of the places of a nibble add, for each nibble.
  static Vec sums_of_places(const float* folded, int width) {
    const __m512i nibble = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i mask = _mm512_set1_epi32((1 << width) - 1);
    constexpr int order[] = {0, 2, 1, 3};
    Vec sum = zero();
    for (int bit = 0; bit < 4; bit += width) {
      const Vec code = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(nibble, bit), mask));
      sum = fma(broadcast(folded[width == 1 ? order[bit] : bit / width]), code, sum);
    }
    return sum;
  }

  template <int width, size_t queries>
  void add_lookups(const uint64_t (*words)[head_dim + kChunk], int begin, int end, const float* tables,
                   Vec (&sum)[queries][kPageTiles]) const {
    const __m512i shifts = nibble_shifts<width>();
    for (int i = begin; i < end; ++i) {
      for (int tile = 0; tile < kPageTiles; ++tile) {
        const __m512i nibbles = _mm512_srlv_epi32(_mm512_set1_epi64(static_cast<int64_t>(words[tile][i])), shifts);
        for (size_t g = 0; g < queries; ++g) {
          const Vec table = load(tables + (g * places_.size() + i) * kLanes);
          sum[g][tile] = add(sum[g][tile], _mm512_permutexvar_ps(nibbles, table));
        }
      }
    }
  }

  /// The 4-bit codes, one place to a nibble: multiplied, which is quicker than a lookup for each query.
  template <size_t queries>
  void add_products(const uint64_t (*words)[head_dim + kChunk], int begin, int end, const float* tables,
                    Vec (&sum)[queries][kPageTiles]) const {
    const __m512i shifts = nibble_shifts<4>();
    const Vec numbers = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int i = begin; i < end; ++i) {
      for (int tile = 0; tile < kPageTiles; ++tile) {
        const __m512i nibbles = _mm512_srlv_epi32(_mm512_set1_epi64(static_cast<int64_t>(words[tile][i])), shifts);
        const Vec code = _mm512_permutexvar_ps(nibbles, numbers);
        for (size_t g = 0; g < queries; ++g) {
          sum[g][tile] = fma(broadcast(tables[(g * places_.size() + i) * kLanes + 1]), code, sum[g][tile]);
        }
      }
    }
  }

  const int64_t tile_bytes_;
  std::vector<Chunk> chunks_;
  std::vector<int> places_;  // the first one of each word
  int ends_[5] = {};         // of the words of a width
  AlignedFloats tables_;     // [queries, places_, 16]
};

#else

constexpr bool has_code_tables(int) { return false; }

template <int head_dim>
class CodeTables {
 public:
  CodeTables(const SideLayout&, int, int, const float*) {}
  template <int queries>
  void operator()(const uint8_t*, int, float*) const {}
};

#endif

}  // namespace KVQUANT_ISA
}  // namespace kvquant
