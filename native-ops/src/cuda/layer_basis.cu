/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/basis.h"
#include "core/half.h"
#include "layer_basis.h"

namespace kvquant::cuda {
namespace {

/// How far a sum of n products may be from that of the portable operator, of the largest partial sum. The portable one
/// rounds n times by up to 2^-24 of what it has, 2^-24 / sqrt(3) in the mean square: if roundings are independent, all
/// together pass 4 sqrt(n) 2^-24, seven times their deviation, once in 10^11 sums; most partial sums are smaller than
/// the largest. Tensor cores cut off up to 2^-23 each 16 products, and some of each product.
double apart(int n) { return 4.0 * std::sqrt(n) * 0x1p-24 + 1.25 * (n / 16) * 0x1p-23; }

uint8_t* element(uint8_t* slab, int row, int channel) {
  const int chunk = channel % kSlab / 8;
  return slab + row * kSlabBytes + ((chunk ^ row % 8) * 8 + channel % 8) * 2;
}

/// The row of a place of a tile.
void write_row(const LayerParams& params, int head, int place, int in_tile, uint8_t* tile, PlaceScale* scale) {
  const SideParams& keys = params.keys;
  const int n = params.channels(), width = keys.widths[place / kRunPlaces];
  const float* row =
      packed_array<float>(params, keys.basis_offset) + (static_cast<int64_t>(head) * kLatentDim + place) * n;
  const float* range = packed_array<float>(params, keys.steps_offset) + 2 * (head * kLatentDim + place);
  const float* mean = side_mean(params, keys);
  float largest = 0.0f;
  double of_mean = 0.0, largest_of_mean = 0.0;
  for (int c = 0; c < n; ++c) {
    largest = std::max(largest, std::fabs(row[c]));
    if (mean != nullptr) of_mean += static_cast<double>(row[c]) * mean[c];
    largest_of_mean = std::max(largest_of_mean, std::fabs(of_mean));
  }
  int exponent = 0;
  if (largest > 0.0f) std::frexp(largest, &exponent);
  exponent = std::clamp(14 - exponent, -60, 60);  // the largest becomes 2^13 .. 2^14
  const float unit = std::ldexp(1.0f, exponent);
  for (int c = 0; c < n; ++c) {
    uint8_t* slab = tile + static_cast<size_t>(c / kSlab) * (2 * kTilePlaces * kSlabBytes);
    const float x = row[c] * unit;
    const uint16_t high = float_to_half(x), low = float_to_half(x - half_to_float(high));
    std::memcpy(element(slab, in_tile, c), &high, 2);
    std::memcpy(element(slab + kTilePlaces * kSlabBytes, in_tile, c), &low, 2);
  }
  const double step = range[1], offset = -(of_mean + range[0]) / step;
  scale->factor = static_cast<float>(std::ldexp(1.0, -exponent) / step);
  scale->offset = static_cast<float>(offset);
  scale->of_sum = static_cast<float>(apart(n) * std::fabs(std::ldexp(1.0, -exponent) / step));
  scale->always =
      static_cast<float>(apart(n) * largest_of_mean / std::fabs(step) + 0x1p-21 * ((1 << width) + std::fabs(offset)));
}

/// What keys are rebuilt with.
void write_columns(const LayerParams& params, const StoredRuns& runs, uint8_t* to) {
  const SideParams& keys = params.keys;
  const int n = params.channels(), tiles = runs.tiles(params.num_kv_heads);
  const int places = params.num_kv_heads * runs.count * kRunPlaces;
  const auto* inverse = packed_array<float>(params, keys.inverse_offset);
  const auto* ranges = packed_array<float>(params, keys.steps_offset);
  const float* mean = side_mean(params, keys);
  std::vector<int> place_of(static_cast<size_t>(places));
  for (int i = 0; i < places; ++i) {
    const int run = i / kRunPlaces;
    place_of[i] = run / runs.count * kLatentDim + runs.run[run % runs.count] * kRunPlaces + i % kRunPlaces;
  }
  float largest = 0.0f;
  for (int c = 0; c < n; ++c) {
    for (const int place : place_of) {
      largest = std::max(largest, std::fabs(inverse[static_cast<int64_t>(c) * n + place] * ranges[2 * place + 1]));
    }
  }
  int exponent = 0;
  if (largest > 0.0f) std::frexp(largest, &exponent);
  exponent = std::clamp(14 - exponent, -60, 60);  // the largest becomes 2^13 .. 2^14
  const float unit = std::ldexp(1.0f, exponent);
  auto* same = reinterpret_cast<float*>(to + layer_columns_bytes(params.num_kv_heads, runs));
  for (int head = 0; head < params.num_kv_heads; ++head) {
    for (int row = 0; row < kLatentDim; ++row) {
      const int c = head * kLatentDim + rebuilt_channel(row);
      const float* column = inverse + static_cast<int64_t>(c) * n;
      double constant = mean == nullptr ? 0.0 : mean[c];
      for (int i = 0; i < places; ++i) {
        const float* range = ranges + 2 * place_of[i];
        const float middle = static_cast<float>(1 << keys.widths[place_of[i] % kLatentDim / kRunPlaces]) / 2;
        constant += static_cast<double>(column[place_of[i]]) * (range[0] + static_cast<double>(range[1]) * middle);
        const uint16_t half = float_to_half(column[place_of[i]] * range[1] * unit);
        uint8_t* slab = to + (static_cast<size_t>(head) * tiles + i / kSlab) * (kLatentDim * kSlabBytes);
        std::memcpy(element(slab, row, i), &half, 2);
      }
      same[c] = static_cast<float>(constant);
    }
  }
  same[n] = 1.0f / unit;
}

}  // namespace

bool has_layer_basis(const LayerParams& params) {
  return params.keys.format == Format::kStatic && params.keys.basis_heads > 1 && params.head_dim == kLatentDim &&
         params.keys.basis_heads == params.num_kv_heads;
}

size_t layer_basis_bytes(const LayerParams& params) {
  const StoredRuns runs = stored_runs_of(params.keys.widths);
  return layer_rows_bytes(params.num_kv_heads, runs) + layer_columns_bytes(params.num_kv_heads, runs) +
         (static_cast<size_t>(params.channels()) + 1) * sizeof(float);
}

void write_layer_basis(const LayerParams& params, uint8_t* to) {
  const StoredRuns runs = stored_runs_of(params.keys.widths);
  std::memset(to, 0, layer_basis_bytes(params));
  const int tiles = runs.tiles(params.num_kv_heads);
  const size_t tile_bytes = static_cast<size_t>(params.channels() / kSlab) * 2 * kTilePlaces * kSlabBytes;
  auto* scales = reinterpret_cast<PlaceScale*>(to + tiles * tile_bytes);
  for (int i = 0; i < params.num_kv_heads * runs.count * kRunPlaces; ++i) {
    const int run = i / kRunPlaces, place = runs.run[run % runs.count] * kRunPlaces + i % kRunPlaces;
    write_row(params, run / runs.count, place, i % kTilePlaces, to + i / kTilePlaces * tile_bytes, scales + i);
  }
  write_columns(params, runs, to + layer_rows_bytes(params.num_kv_heads, runs));
}

}  // namespace kvquant::cuda
