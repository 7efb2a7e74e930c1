/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#pragma once
#include "../core/layout.h"
#include "simd.h"

namespace kvquant {
namespace KVQUANT_ISA {

/// The stored elements of one channel for a vector of tokens, part of a tile: codes as they are, or values.
template <Format format, int bits>
inline Vec load_element(const uint8_t* field, int part) {
  if constexpr (format == Format::kAffine) {
    return load_codes<bits>(field, part);
  } else if constexpr (format == Format::kFloat16) {
    return load_halves(field + part * kLanes * 2);
  } else {
    return load(reinterpret_cast<const float*>(field) + part * kLanes);
  }
}

/// Asks for the cache lines of [p, p + bytes).
template <int bytes>
inline void prefetch_run(const uint8_t* p) {
  for (int i = 0; i < bytes; i += 64) prefetch(p + i);
}

}  // namespace KVQUANT_ISA
}  // namespace kvquant
