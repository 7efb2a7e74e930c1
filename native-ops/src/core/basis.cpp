/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "basis.h"

#include <algorithm>
#include <vector>

#include "rotation.h"

namespace kvquant {
namespace {

/// x = matrix x, group of heads by group; matrices [groups, n, n].
void multiply(const LayerParams& params, const SideParams& side, const float* matrices, float* x) {
  const int n = side.basis_heads * params.head_dim;
  std::vector<float> product(static_cast<size_t>(n));
  for (int first = 0; first < params.channels(); first += n) {
    for (int row = 0; row < n; ++row, matrices += n) {
      float sum = 0;
      for (int c = 0; c < n; ++c) sum += matrices[c] * x[first + c];
      product[row] = sum;
    }
    std::copy(product.begin(), product.end(), x + first);
  }
}

}  // namespace

void to_stored_basis(const LayerParams& params, const SideParams& side, float* x) {
  rotate_heads(x, params.num_kv_heads, params.head_dim, side.rotation_heads);
  if (side.basis_heads != 0) {
    multiply(params, side, packed_array<float>(params, side.basis_offset), x);
  } else if (side.format == Format::kStatic && side.order_offset != 0) {
    const auto* order = packed_array<int16_t>(params, side.order_offset);
    const std::vector<float> natural(x, x + params.channels());
    for (int place = 0; place < params.channels(); ++place) x[place] = natural[order[place]];
  }
}

void from_stored_basis(const LayerParams& params, const SideParams& side, float* x) {
  if (side.basis_heads != 0) {
    multiply(params, side, packed_array<float>(params, side.inverse_offset), x);
  } else if (side.format == Format::kStatic && side.order_offset != 0) {
    const auto* order = packed_array<int16_t>(params, side.order_offset);
    const std::vector<float> places(x, x + params.channels());
    for (int place = 0; place < params.channels(); ++place) x[order[place]] = places[place];
  }
  rotate_heads(x, params.num_kv_heads, params.head_dim, side.rotation_heads);
}

}  // namespace kvquant
