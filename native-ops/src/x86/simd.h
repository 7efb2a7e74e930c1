/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// A vector of floats in the instruction set that this file is compiled for (KVQUANT_ISA): 16 lanes with AVX-512, 8 with
// AVX2.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

/// The name of this instruction set's version of a function of namespace kvquant.
#define KVQUANT_CAT2(a, b) a##b
#define KVQUANT_CAT(a, b) KVQUANT_CAT2(a, b)
#define KVQUANT_FN(name) KVQUANT_CAT(KVQUANT_CAT(name, _), KVQUANT_ISA)

namespace kvquant {
namespace KVQUANT_ISA {

#if defined(__AVX512F__)

constexpr int kLanes = 16;
using Vec = __m512;

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec broadcast(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
inline Vec load_halves(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
inline Vec load_bfloats(const void* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))), 16));
}
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }    // a b + c
inline Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }  // a > b ? a : b, hence b where either is NaN
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }  // a < b ? a : b
inline Vec square_root(Vec x) { return _mm512_sqrt_ps(x); }
inline Vec absolute(Vec x) { return _mm512_abs_ps(x); }
inline Vec negative(Vec x) { return _mm512_xor_ps(x, _mm512_set1_ps(-0.0f)); }
/// a < b ? x : y, lane by lane.
inline Vec where_less(Vec a, Vec b, Vec x, Vec y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
inline Vec where_equal(Vec a, Vec b, Vec x, Vec y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), y, x);
}
/// Rounded to nearest even, kLanes halves.
inline void store_halves(void* p, Vec x) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Vec round_to_half(Vec x) {
  return _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Vec gather(const float* p, const uint16_t* indices) {
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(indices));
  return _mm512_i32gather_ps(_mm512_cvtepu16_epi32(words), p, 4);
}
inline float sum(Vec x) { return _mm512_reduce_add_ps(x); }
inline float maximum(Vec x) { return _mm512_reduce_max_ps(x); }
inline float minimum(Vec x) { return _mm512_reduce_min_ps(x); }
/// x where the lane's bit is set, else other.
inline Vec select(uint32_t bits, Vec x, Vec other) {
  return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), other, x);
}
inline Vec round_even(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/// x 2^n for integral n.
inline Vec scale2(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }

/// The codes of 16 tokens, bits wide each (1 to 4), at p, in the low bits of the lanes, with others' above them; 8
/// bytes at p are readable.
template <int bits>
inline __m512i code_fields(const uint8_t* p, int /*part*/) {
  const __m512i tokens = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  int32_t low;
  std::memcpy(&low, p, 4);
  __m512i fields = _mm512_set1_epi32(low);
  __m512i shifts = _mm512_mullo_epi32(tokens, _mm512_set1_epi32(bits));
  if constexpr (bits > 2) {
    // Tokens 8 to 15 lie in a second word.
    int32_t high;
    std::memcpy(&high, p + bits, 4);
    fields = _mm512_mask_set1_epi32(fields, 0xff00, high);
    shifts = _mm512_mullo_epi32(_mm512_and_si512(tokens, _mm512_set1_epi32(7)), _mm512_set1_epi32(bits));
  }
  return _mm512_srlv_epi32(fields, shifts);
}

/// What each code of 1 to 4 bits stands for. The table lookup looks at 4 bits of its index: shorter codes have copies.
template <int bits>
class CodeTable {
 public:
  explicit CodeTable(const float* levels) {
    alignas(64) float copies[16];
    for (int i = 0; i < 16; ++i) copies[i] = levels[i & ((1 << bits) - 1)];
    table_ = _mm512_load_ps(copies);
  }
  Vec operator()(const uint8_t* p, int part) const { return _mm512_permutexvar_ps(code_fields<bits>(p, part), table_); }

 private:
  __m512 table_;
};

/// The codes of 16 tokens as numbers.
template <int bits>
inline Vec load_codes(const uint8_t* p, int part) {
  if constexpr (bits == 8) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  } else {
    constexpr int mask = (1 << bits) - 1;
    const __m512 table =
        _mm512_setr_ps(0, 1 & mask, 2 & mask, 3 & mask, 4 & mask, 5 & mask, 6 & mask, 7 & mask, 8 & mask, 9 & mask,
                       10 & mask, 11 & mask, 12 & mask, 13 & mask, 14 & mask, 15 & mask);
    return _mm512_permutexvar_ps(code_fields<bits>(p, part), table);
  }
}

#else

constexpr int kLanes = 8;
using Vec = __m256;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec broadcast(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
inline Vec load_halves(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
inline Vec load_bfloats(const void* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))), 16));
}
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }    // a b + c
inline Vec fnma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a b
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }  // a > b ? a : b, hence b where either is NaN
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }  // a < b ? a : b
inline Vec square_root(Vec x) { return _mm256_sqrt_ps(x); }
inline Vec absolute(Vec x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
inline Vec negative(Vec x) { return _mm256_xor_ps(x, _mm256_set1_ps(-0.0f)); }
/// a < b ? x : y, lane by lane.
inline Vec where_less(Vec a, Vec b, Vec x, Vec y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
inline Vec where_equal(Vec a, Vec b, Vec x, Vec y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
/// Rounded to nearest even, kLanes halves.
inline void store_halves(void* p, Vec x) {
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Vec round_to_half(Vec x) {
  return _mm256_cvtph_ps(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Vec gather(const float* p, const uint16_t* indices) {
  const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(indices));
  return _mm256_i32gather_ps(p, _mm256_cvtepu16_epi32(words), 4);
}
inline float sum(Vec x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float maximum(Vec x) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline float minimum(Vec x) { return -maximum(_mm256_xor_ps(x, _mm256_set1_ps(-0.0f))); }
/// x where the lane's bit is set, else other.
inline Vec select(uint32_t bits, Vec x, Vec other) {
  const __m256i lane_bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane_bits);
  return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane_bits)));
}
inline Vec round_even(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/// x 2^n for integral n >= -126.
inline Vec scale2(Vec x, Vec n) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(x, _mm256_castsi256_ps(exponent));
}

/// The codes of tokens 8 part to 8 part + 7 of a tile, bits wide each (1 to 4), in the low bits of the lanes, with
/// others' above them; 4 bytes past them are readable.
template <int bits>
inline __m256i code_fields(const uint8_t* p, int part) {
  int32_t word;
  std::memcpy(&word, p + part * bits, 4);
  const __m256i shifts = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(bits));
  return _mm256_srlv_epi32(_mm256_set1_epi32(word), shifts);
}

/// What each code of 1 to 4 bits stands for. The table lookup looks at 3 bits of its index: shorter codes have copies,
/// of longer ones the fourth bit chooses between two tables.
template <int bits>
class CodeTable {
 public:
  explicit CodeTable(const float* levels) {
    alignas(32) float copies[8];
    for (int i = 0; i < 8; ++i) copies[i] = levels[i & ((1 << bits) - 1)];
    low_ = _mm256_load_ps(copies);
    high_ = bits == 4 ? _mm256_loadu_ps(levels + (bits == 4 ? 8 : 0)) : low_;
  }
  Vec operator()(const uint8_t* p, int part) const {
    const __m256i fields = code_fields<bits>(p, part);
    const Vec low = _mm256_permutevar8x32_ps(low_, fields);
    if constexpr (bits < 4) return low;
    const Vec high = _mm256_permutevar8x32_ps(high_, fields);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(fields, 28)));
  }

 private:
  __m256 low_, high_;
};

/// The codes of 8 tokens as numbers.
template <int bits>
inline Vec load_codes(const uint8_t* p, int part) {
  if constexpr (bits == 8) {
    p += part * bits;
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  } else {
    const __m256i fields = code_fields<bits>(p, part);
    if constexpr (bits <= 3) {
      constexpr int mask = (1 << bits) - 1;
      const __m256 table = _mm256_setr_ps(0, 1 & mask, 2 & mask, 3 & mask, 4 & mask, 5 & mask, 6 & mask, 7 & mask);
      return _mm256_permutevar8x32_ps(table, fields);
    }
    return _mm256_cvtepi32_ps(_mm256_and_si256(fields, _mm256_set1_epi32((1 << bits) - 1)));
  }
}

#endif

/// Asks for the cache line at p, which need not be mapped.
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

/// Vectors of a tile of 16 tokens.
constexpr int kParts = 16 / kLanes;

/// exp(x) for x <= 0 to 2e-7 relative; x below -87 gives exp(-87), which callers mask or neglect.
inline Vec exp_negative(Vec x) {
  x = max(x, broadcast(-87.0f));
  const Vec n = round_even(mul(x, broadcast(1.44269504088896341f)));
  Vec r = fnma(n, broadcast(0.693359375f), x);
  r = fnma(n, broadcast(-2.12194440e-4f), r);
  Vec p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(mul(p, r), r, add(r, broadcast(1.0f)));
  return scale2(p, n);
}

}  // namespace KVQUANT_ISA
}  // namespace kvquant
