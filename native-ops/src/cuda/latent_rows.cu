/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/basis.h"
#include "core/half.h"
#include "latent_rows.h"

namespace kvquant::cuda {
namespace {

/// How far sums may be apart, of the product of both lengths: 130 roundings of the portable operator, and what two
/// times 8 products of 16 terms lose, each term at most twice as much as a rounding; elements as two halves lose less.
constexpr double kApart = (130.0 + 2.0 * 2.0 * 8.0 * 17.0) * 0x1p-24;

double length(const float* x) {
  double sum = 0.0;
  for (int i = 0; i < kLatentDim; ++i) sum += static_cast<double>(x[i]) * x[i];
  return std::sqrt(sum);
}

/// A place's row; g: of its run.
void write_row(const LayerParams& params, int head, int place, int width, uint8_t* run) {
  const SideParams& keys = params.keys;
  const int g = place % kRunPlaces;
  const float* row =
      packed_array<float>(params, keys.basis_offset) + (static_cast<int64_t>(head) * kLatentDim + place) * kLatentDim;
  const float* range = packed_array<float>(params, keys.steps_offset) + 2 * (head * kLatentDim + place);
  const float* mean = side_mean(params, keys);
  float largest = 0.0f;
  double of_mean = 0.0, mean_length = 0.0;
  for (int c = 0; c < kLatentDim; ++c) largest = std::max(largest, std::fabs(row[c]));
  if (mean != nullptr) {
    mean += head * kLatentDim;
    mean_length = length(mean);
    for (int c = 0; c < kLatentDim; ++c) of_mean += static_cast<double>(row[c]) * mean[c];
  }
  int exponent = 0;
  if (largest > 0.0f) std::frexp(largest, &exponent);
  exponent = std::clamp(14 - exponent, -60, 60);  // the largest becomes 2^13 .. 2^14
  auto* halves = reinterpret_cast<uint16_t*>(run);
  for (int step = 0; step < kRowSteps; ++step) {
    for (int c = 0; c < 4; ++c) {
      uint16_t* lane = halves + (step * 32 + g * 4 + c) * 8;
      for (int i = 0; i < 4; ++i) {
        const float x = std::ldexp(row[row_channel(step, c) + i], exponent);
        lane[i] = float_to_half(x);
        lane[4 + i] = float_to_half(x - half_to_float(lane[i]));
      }
    }
  }
  const double step = range[1], offset = -(of_mean + range[0]) / step, apart = kApart * length(row) / std::fabs(step);
  RowScale scale;
  scale.factor = static_cast<float>(std::ldexp(1.0, -exponent) / step);
  scale.offset = static_cast<float>(offset);
  scale.of_norm = static_cast<float>(1.01 * apart);
  scale.always = static_cast<float>(1.01 * apart * mean_length + 0x1p-20 * ((1 << width) + std::fabs(offset)));
  std::memcpy(run + kRunFragments + g * sizeof(RowScale), &scale, sizeof(RowScale));
}

}  // namespace

int stored_runs(const uint8_t* widths) {
  return static_cast<int>(std::count_if(widths, widths + kWidthRuns, [](uint8_t width) { return width != 0; }));
}

void write_latent_rows(const LayerParams& params, uint8_t* to) {
  for (int head = 0; head < params.num_kv_heads; ++head) {
    for (int run = 0; run < kWidthRuns; ++run) {
      const int width = params.keys.widths[run];
      if (width == 0) continue;
      for (int i = 0; i < kRunPlaces; ++i) write_row(params, head, run * kRunPlaces + i, width, to);
      to += kRowRunBytes;
    }
  }
}

}  // namespace kvquant::cuda
