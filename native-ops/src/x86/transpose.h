/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// A block of kLanes vectors, turned between tokens in lanes and channels in lanes.
#pragma once
#include "simd.h"

namespace kvquant {
namespace KVQUANT_ISA {

/// Transposes 4 x 4 blocks: rows 4 i to 4 i + 3 become columns within every 128 bits.
inline void transpose_quarters(Vec* v) {
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) {
#if defined(__AVX512F__)
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(v[i], v[i + 1]));
    const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(v[i], v[i + 1]));
    const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(v[i + 2], v[i + 3]));
    const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(v[i + 2], v[i + 3]));
    v[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    v[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    v[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    v[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
#else
    const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(v[i], v[i + 1]));
    const __m256d b = _mm256_castps_pd(_mm256_unpackhi_ps(v[i], v[i + 1]));
    const __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(v[i + 2], v[i + 3]));
    const __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(v[i + 2], v[i + 3]));
    v[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
    v[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
    v[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
    v[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
#endif
  }
}

/// Transposes v [kLanes, kLanes].
inline void transpose(Vec* v) {
  transpose_quarters(v);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
#if defined(__AVX512F__)
    const Vec a = _mm512_shuffle_f32x4(v[i], v[i + 4], 0x44), b = _mm512_shuffle_f32x4(v[i], v[i + 4], 0xee);
    const Vec c = _mm512_shuffle_f32x4(v[i + 8], v[i + 12], 0x44), d = _mm512_shuffle_f32x4(v[i + 8], v[i + 12], 0xee);
    v[i] = _mm512_shuffle_f32x4(a, c, 0x88);
    v[i + 4] = _mm512_shuffle_f32x4(a, c, 0xdd);
    v[i + 8] = _mm512_shuffle_f32x4(b, d, 0x88);
    v[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
#else
    const Vec a = v[i], b = v[i + 4];
    v[i] = _mm256_permute2f128_ps(a, b, 0x20);
    v[i + 4] = _mm256_permute2f128_ps(a, b, 0x31);
#endif
  }
}

}  // namespace KVQUANT_ISA
}  // namespace kvquant
