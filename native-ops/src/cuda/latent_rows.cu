/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/basis.h"
#include "core/half.h"
#include "latent_rows.h"

namespace kvquant::cuda {
namespace {

/// How far a sum may be from the portable operator's, in roundings, 2^-24, of the larger of it and the sum over the
/// first half of the channels, and of the product of both lengths.
///
/// The portable operator rounds 128 times, in the mean square by 2^-24 / sqrt(3) of what it has: if roundings are
/// independent, all together pass 4 sqrt(128), seven times their deviation, once in 10^11 sums, even if all that it has
/// is as large as the larger of those two. Tensor cores cut off up to two roundings for each 8 channels (Hopper: 16),
/// three quarters of which are allowed for. What either has in between may be larger than at the ends of halves, by a
/// share of the product of the lengths, of which there are also elements as two halves, which lose two bits, the
/// portable operator's products and its subtraction of the mean, and the addition of halves.
constexpr double kRounding = 1.01 * 0x1p-24, kOfSum = 45.0 + 24.0, kOfLengths = 5.0 + 2.0 + 1.0 + 1.0 + 1.0;

double length(const float* x) {
  double sum = 0.0;
  for (int i = 0; i < kLatentDim; ++i) sum += static_cast<double>(x[i]) * x[i];
  return std::sqrt(sum);
}

/// A place's row; half: whether its run is the first or the second of two.
void write_row(const LayerParams& params, int head, int place, int width, int half, uint8_t* pair) {
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
  auto* halves = reinterpret_cast<uint16_t*>(pair);
  for (int step = 0; step < kRowSteps; ++step) {
    for (int i = 0; i < 16; ++i) {
      const int c = i / 4;
      uint16_t* high = halves + (step * 32 + g * 4 + c) * 8 + i % 4 / 2 * 4 + half * 2 + i % 2;
      const float x = std::ldexp(row[row_channel(step, c, i % 4)], exponent);
      *high = float_to_half(x);
      high[kPairFragments / 4] = float_to_half(x - half_to_float(*high));
    }
  }
  const double levels = (1 << width) - 1, step = range[1], offset = -(of_mean + range[0]) / step;
  const double unit = kRounding / std::fabs(step), of_norm = kOfLengths * unit * length(row);
  RowScale scale = {};
  scale.factor = static_cast<float>(std::ldexp(1.0, -exponent) / step / levels);
  scale.offset = static_cast<float>(offset / levels);
  scale.of_norm = static_cast<float>(of_norm);
  scale.of_sum = static_cast<float>(std::ldexp(kOfSum * unit, -exponent));
  scale.always = static_cast<float>(of_norm * mean_length + kOfSum * unit * std::fabs(of_mean) +
                                    0x1p-20 * ((1 << width) + std::fabs(offset)));
  std::memcpy(pair + kPairFragments + (half * kRunPlaces + g) * sizeof(RowScale), &scale, sizeof(RowScale));
}

}  // namespace

int stored_runs(const uint8_t* widths) {
  return static_cast<int>(std::count_if(widths, widths + kWidthRuns, [](uint8_t width) { return width != 0; }));
}

void write_latent_rows(const LayerParams& params, uint8_t* to) {
  const int pairs = (stored_runs(params.keys.widths) + 1) / 2;
  for (int head = 0; head < params.num_kv_heads; ++head, to += pairs * kRowPairBytes) {
    for (int run = 0, stored = 0; run < kWidthRuns; ++run) {
      const int width = params.keys.widths[run];
      if (width == 0) continue;
      for (int i = 0; i < kRunPlaces; ++i) {
        write_row(params, head, run * kRunPlaces + i, width, stored % 2, to + stored / 2 * kRowPairBytes);
      }
      ++stored;
    }
  }
}

}  // namespace kvquant::cuda
