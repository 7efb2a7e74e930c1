/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/basis.h"
#include "core/half.h"
#include "latent_basis.h"

namespace kvquant::cuda {
namespace {

/// A head's basis in fp32, [runs][128 channels][8 places], starts and means in the first run.
std::vector<float> head_basis(const LayerParams& params, const LatentSteps& steps, int head) {
  const SideParams& keys = params.keys;
  const auto* inverse =
      packed_array<float>(params, keys.inverse_offset) + static_cast<int64_t>(head) * kLatentDim * kLatentDim;
  const auto* ranges = packed_array<float>(params, keys.steps_offset) + 2 * head * kLatentDim;
  const float* mean = side_mean(params, keys);
  std::vector<float> basis(static_cast<size_t>(2 * steps.steps()) * kLatentDim * kRunPlaces, 0.0f);
  for (int channel = 0; channel < kLatentDim; ++channel) {
    const auto at = [&](int run) {
      return basis.data() + (static_cast<size_t>(run) * kLatentDim + channel) * kRunPlaces;
    };
    double same = mean == nullptr ? 0.0 : mean[head * kLatentDim + channel];
    for (int i = 0; i < 2 * steps.steps(); ++i) {
      for (int j = 0; j < kRunPlaces && steps.run[i] >= 0; ++j) {
        const int place = steps.run[i] * kRunPlaces + j;
        const float x = inverse[channel * kLatentDim + place];
        at(i)[j] = x * ranges[2 * place + 1];
        same += static_cast<double>(x) * ranges[2 * place];
      }
    }
    at(0)[0] = static_cast<float>(same / kConstantCode);
  }
  return basis;
}

}  // namespace

LatentSteps latent_steps(const uint8_t* widths) {
  LatentSteps steps = {};
  std::fill_n(steps.run, 2 * kMostSteps, -1);
  std::vector<int> mixed = {-1}, pairs;  // runs
  int ends[5];
  for (int i = 0; i < 5; ++i) {
    int single = -1;
    for (int run = 0; run < kWidthRuns; ++run) {
      if (widths[run] != kLatentWidths[i]) continue;
      if (single >= 0) pairs.insert(pairs.end(), {single, run});
      single = single >= 0 ? -1 : run;
    }
    if (single >= 0) mixed.push_back(single);
    ends[i] = static_cast<int>(pairs.size()) / 2;
  }
  if (mixed.size() % 2 != 0) mixed.push_back(-1);
  steps.mixed = static_cast<int>(mixed.size()) / 2;
  for (int i = 0; i < 5; ++i) steps.ends[i] = steps.mixed + ends[i];
  mixed.insert(mixed.end(), pairs.begin(), pairs.end());
  for (size_t i = 0; i < mixed.size(); ++i) {
    steps.run[i] = mixed[i];
    steps.width[i] = mixed[i] < 0 ? 0 : widths[mixed[i]];
  }
  return steps;
}

bool has_latent_basis(const LayerParams& params) {
  return params.keys.format == Format::kStatic && params.keys.basis_heads == 1 && params.head_dim == kLatentDim;
}

size_t latent_bytes(const LayerParams& params) {
  const LatentSteps steps = latent_steps(params.keys.widths);
  return static_cast<size_t>(params.num_kv_heads) *
         (static_cast<size_t>(2 * steps.steps()) * kRunBytes + sizeof(float));
}

void write_latent_basis(const LayerParams& params, uint8_t* to) {
  const LatentSteps steps = latent_steps(params.keys.widths);
  const size_t size = static_cast<size_t>(steps.steps()) * kRunBytes;  // halves of a head
  std::vector<uint16_t> halves(size);
  for (int head = 0; head < params.num_kv_heads; ++head) {
    const std::vector<float> basis = head_basis(params, steps, head);
    float largest = 0.0f;
    for (const float x : basis) largest = std::max(largest, std::fabs(x));
    int exponent = 0;
    if (largest > 0.0f) std::frexp(largest, &exponent);
    exponent = std::clamp(15 - exponent, -60, 60);  // the largest becomes 2^14 .. 2^15
    for (size_t i = 0; i < size; ++i) halves[i] = float_to_half(std::ldexp(basis[i], exponent));
    // The place behind that of constants holds what their rounding lost.
    for (size_t i = 0; i < kLatentDim * kRunPlaces; i += kRunPlaces) {
      halves[i + 1] = float_to_half(std::ldexp(basis[i], exponent) - half_to_float(halves[i]));
    }
    std::memcpy(to + static_cast<size_t>(head) * size * 2, halves.data(), size * 2);
    const float unit = std::ldexp(1.0f, 24 - exponent);
    std::memcpy(to + static_cast<size_t>(params.num_kv_heads) * size * 2 + static_cast<size_t>(head) * 4, &unit, 4);
  }
}

}  // namespace kvquant::cuda
