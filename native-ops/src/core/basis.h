/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// From the natural basis, in which projections make keys and values, to the one in which a side stores them, and back.
#pragma once
#include "layout.h"

namespace kvquant {

/// An array of the packed parameters at a byte offset.
template <typename T>
inline const T* packed_array(const LayerParams& params, int32_t offset) {
  return reinterpret_cast<const T*>(reinterpret_cast<const uint8_t*>(&params) + offset);
}

/// x, [channels] in place: rotated, multiplied by the basis or sorted into places, whichever the side asks for.
void to_stored_basis(const LayerParams& params, const SideParams& side, float* x);

/// The inverse of to_stored_basis.
void from_stored_basis(const LayerParams& params, const SideParams& side, float* x);

/// The mean that is subtracted from a side's elements, [channels]; nullptr: none.
inline const float* side_mean(const LayerParams& params, const SideParams& side) {
  return side.mean_offset == 0 ? nullptr : packed_array<float>(params, side.mean_offset);
}

}  // namespace kvquant
