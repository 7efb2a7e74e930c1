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

/// The levels of a channel's codes (kNorm).
template <int bits>
class LevelReader {
 public:
  explicit LevelReader(const float* levels) : table_(levels) {}
  Vec operator()(const uint8_t* field, int part) const { return table_(field, part); }

 private:
  CodeTable<bits> table_;
};

/// 256 levels, which are equally spaced.
template <>
class LevelReader<8> {
 public:
  explicit LevelReader(const float* levels)
      : first_(broadcast(levels[0])), step_(broadcast((levels[255] - levels[0]) / 255)) {}
  Vec operator()(const uint8_t* field, int part) const { return fma(load_codes<8>(field, part), step_, first_); }

 private:
  Vec first_, step_;
};

/// Asks for the cache lines of [p, p + bytes).
template <int bytes>
inline void prefetch_run(const uint8_t* p) {
  for (int i = 0; i < bytes; i += 64) prefetch(p + i);
}

}  // namespace KVQUANT_ISA
}  // namespace kvquant
