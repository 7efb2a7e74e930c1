/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "layer_params.h"

#include <cmath>
#include <string>
#include <vector>

#include "../core/basis.h"

namespace kvquant {
namespace {

bool power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

/// An array of the packed parameters lies inside them, and its elements are aligned.
void check_array(const char* op, const std::string& what, const LayerParams& params, int64_t offset, int64_t elements,
                 int64_t size) {
  if (offset < static_cast<int64_t>(sizeof(LayerParams)) || offset % size != 0 ||
      offset + elements * size > params.bytes) {
    fail(op, what + " lies outside the packed parameters or is not aligned");
  }
}

void check_order(const char* op, const LayerParams& params, const SideParams& side) {
  const int64_t channels = params.channels();
  if (side.order_offset == 0) return;
  check_array(op, "the channel order", params, side.order_offset, channels, 2);
  const auto* order = packed_array<int16_t>(params, side.order_offset);
  std::vector<bool> seen(static_cast<size_t>(channels));
  for (int64_t i = 0; i < channels; ++i) {
    expect_range(op, "a channel of the order", order[i], 0, channels - 1);
    if (seen[order[i]]) fail(op, "channel " + std::to_string(order[i]) + " stands twice in the order");
    seen[order[i]] = true;
  }
}

void check_affine(const char* op, const std::string& name, const LayerParams& params, const SideParams& side) {
  if (side.group_size < 16 || side.group_size % 16 != 0 || params.channels() % side.group_size != 0) {
    fail(op, name + " have groups of " + std::to_string(side.group_size) +
                 " channels; allowed: multiples of 16 that divide " + std::to_string(params.channels()) + " channels");
  }
  check_order(op, params, side);
}

void check_basis(const char* op, const std::string& name, const LayerParams& params, const SideParams& side) {
  if (side.basis_heads == 0) return;
  if (side.basis_heads != 1 && side.basis_heads != params.num_kv_heads) {
    fail(op, name + " have a basis over " + std::to_string(side.basis_heads) + " heads; allowed: 0, 1, " +
                 std::to_string(params.num_kv_heads));
  }
  const int64_t elements = static_cast<int64_t>(params.channels()) * side.basis_heads * params.head_dim;
  if (params.keys_pre_rope == 0) fail(op, name + " have a basis, which needs keys before RoPE");
  check_array(op, "the basis of " + name, params, side.basis_offset, elements, 4);
  check_array(op, "the inverse basis of " + name, params, side.inverse_offset, elements, 4);
}

void check_waves(const char* op, const LayerParams& params, const SideParams& side) {
  if (side.wave_offset == 0) return;
  check_array(op, "the wave table", params, side.wave_offset, 2, 4);
  const int pairs = params.head_dim / 2;
  const WaveTable waves(params, pairs);
  expect_range(op, "the wave table's fast pairs", waves.fast, 0, pairs);
  expect_range(op, "the wave table's terms", waves.terms, 0, WaveTable::kMaxTerms);
  const int64_t elements = 2 + static_cast<int64_t>(waves.terms) * (kPageTokens + 2 * (pairs - waves.fast));
  check_array(op, "the wave table", params, side.wave_offset, elements, 4);
}

/// What places are: rows of a basis, or the channels of each head in some order.
void check_places(const char* op, const std::string& name, const LayerParams& params, const SideParams& side) {
  check_order(op, params, side);
  check_basis(op, name, params, side);
  if (side.order_offset == 0) return;
  if (side.basis_heads != 0) fail(op, name + " have an order and a basis; allowed: one of them");
  const auto* order = packed_array<int16_t>(params, side.order_offset);
  for (int place = 0; place < params.channels(); ++place) {
    if (order[place] / params.head_dim != place / params.head_dim) {
      fail(op, "channel " + std::to_string(order[place]) + " of the order is not in the head of its place, " +
                   std::to_string(place));
    }
  }
}

void check_static(const char* op, const std::string& name, const LayerParams& params, const SideParams& side) {
  if (params.head_dim % kWidthRuns != 0 || side.rotation_heads != 0) {
    fail(op, name + " have static codes, which need a head_dim that is a multiple of " + std::to_string(kWidthRuns) +
                 " and no rotation");
  }
  for (const uint8_t width : side.widths) {
    if (width > 4 && width != 8) {
      fail(op, name + " have codes of " + std::to_string(width) + " bits; allowed: 0 to 4, 8");
    }
  }
  check_array(op, "the steps of " + name, params, side.steps_offset, 2 * params.channels(), 4);
  check_array(op, "the mean of " + name, params, side.mean_offset, params.channels(), 4);
  if (side.noise_offset != 0) check_array(op, "the noise of " + name, params, side.noise_offset, params.channels(), 4);
  check_places(op, name, params, side);
  check_waves(op, params, side);
}

void check_width(const char* op, const std::string& name, const SideParams& side) {
  if (side.bits == 2 || side.bits == 3 || side.bits == 4 || side.bits == 8) return;
  fail(op, name + " have " + std::to_string(side.bits) + " bits; allowed: 2, 3, 4, 8");
}

/// Kernels look for the middles between neighbours.
void check_ascending(const char* op, const std::string& name, const float* levels, int count) {
  for (int i = 0; i + 1 < count; ++i) {
    if (!std::isfinite(levels[i + 1] - levels[i]) || !(levels[i] < levels[i + 1])) {
      fail(op, "the levels of " + name + " do not ascend");
    }
  }
}

/// Kernels take 256 levels for codes with a scale and a zero of 127.5.
void check_levels(const char* op, const std::string& name, const LayerParams& params, const SideParams& side) {
  const int count = 1 << side.bits;
  check_array(op, "the levels of " + name, params, side.levels_offset, count, 4);
  const auto* levels = packed_array<float>(params, side.levels_offset);
  check_ascending(op, name, levels, count);
  if (side.bits != 8) return;
  for (int i = 0; i < count; ++i) {
    const float uniform = levels[count - 1] * (static_cast<float>(i) / 127.5f - 1.0f);
    if (!(std::fabs(levels[i] - uniform) <= 1e-5f * levels[count - 1])) {
      fail(op, "the levels of " + name + " are not equally spaced around 0, as those of 8 bits must be");
    }
  }
}

void check_codebook(const char* op, const std::string& name, const LayerParams& params, const SideParams& side) {
  if (side.bits < 2 || side.bits > 4) {
    fail(op, name + " have a codebook of " + std::to_string(side.bits) + " bits; allowed: 2, 3, 4");
  }
  if (side.rotation_heads != 0 || side.order_offset != 0 || side.noise_offset != 0) {
    fail(op, name + " have a codebook, which allows for no rotation, order or noise");
  }
  const int count = 1 << side.bits, channels = params.channels();
  check_array(op, "the levels of " + name, params, side.levels_offset, 2 * count, 4);
  const auto* levels = packed_array<float>(params, side.levels_offset);
  check_ascending(op, name, levels, count);
  check_ascending(op, name, levels + count, count);
  expect_range(op, ("the outliers of " + name).c_str(), side.outliers, 0, channels / 2);
  if (side.outliers > 0 && channels > kNoChannel) {
    fail(op, name + " have outliers, which allow for " + std::to_string(kNoChannel) + " channels at most");
  }
}

void check_codes(const char* op, const std::string& name, const LayerParams& params, const SideParams& side) {
  if (side.format == Format::kAffine) {
    check_width(op, name, side);
    check_affine(op, name, params, side);
  } else if (side.format == Format::kStatic) {
    check_static(op, name, params, side);
  } else if (side.format == Format::kNorm) {
    check_width(op, name, side);
    check_levels(op, name, params, side);
  } else if (side.format == Format::kCodebook) {
    check_codebook(op, name, params, side);
  } else {
    fail(op, name + " have format " + std::to_string(static_cast<int>(side.format)) + " with " +
                 std::to_string(side.bits) + " bits; allowed: 0 with 32, 1 with 16, 2 and 4 with 2, 3, 4 or 8, 3, 5");
  }
}

void check_side(const char* op, const std::string& name, const LayerParams& params, const SideParams& side) {
  const bool plain =
      (side.format == Format::kFloat32 && side.bits == 32) || (side.format == Format::kFloat16 && side.bits == 16);
  if (!plain) check_codes(op, name, params, side);
  if (side.format != Format::kStatic && (side.mean_offset != 0 || side.basis_heads != 0)) {
    fail(op, name + " have a mean or a basis, which only static codes of keys can have");
  }
  if (side.format != Format::kCodebook && side.outliers != 0) {
    fail(op, name + " have outliers, which only codebooks can have");
  }
  if (side.rotation_heads != 0 && !power_of_two(params.head_dim)) {
    fail(op,
         name + " are rotated, which needs a head_dim that is a power of two, not " + std::to_string(params.head_dim));
  }
  if (side.rotation_heads < 0 || side.rotation_heads > kMaxRotationHeads ||
      (side.rotation_heads > 0 && params.num_kv_heads % side.rotation_heads != 0)) {
    fail(op, name + " are rotated over " + std::to_string(side.rotation_heads) + " heads; allowed: 0 to " +
                 std::to_string(kMaxRotationHeads) + ", a divisor of " + std::to_string(params.num_kv_heads) +
                 " kv heads");
  }
}

void check_sinks(const char* op, const LayerParams& params) {
  expect_range(op, "sink_policy", static_cast<int>(params.sink_policy), 0, 2);
  expect_range(op, "max_sinks", params.max_sinks, 0, 1 << 16);
  if (params.sink_policy == SinkPolicy::kNone && params.max_sinks != 0) {
    fail(op, "max_sinks is " + std::to_string(params.max_sinks) + ", but the sink policy is none; set it to 0");
  }
  if (params.sink_policy == SinkPolicy::kMassive && params.max_sinks < kMassiveEntries) {
    fail(op,
         "massive sinks need " + std::to_string(kMassiveEntries) + " slots, not " + std::to_string(params.max_sinks));
  }
}

}  // namespace

const LayerParams* read_params(const char* op, const Tensor& tensor) {
  tensor.expect(op, "params", DType::kUInt8, 1);
  const auto* params = tensor.data<const LayerParams>();
  if (tensor.size(0) < static_cast<int64_t>(sizeof(LayerParams)) || params->magic != kMagic ||
      params->bytes != tensor.size(0)) {
    fail(op, "params are not packed layer parameters of this version of the library");
  }
  expect_range(op, "num_kv_heads", params->num_kv_heads, 1, 1 << 16);
  expect_range(op, "head_dim", params->head_dim, 2, kMaxHeadDim);
  if (params->head_dim % 2 != 0)
    fail(op, "head_dim is " + std::to_string(params->head_dim) + ", which RoPE can not halve");
  expect_range(op, "num_heads", params->num_heads, 1, 1 << 20);
  if (params->num_heads % params->num_kv_heads != 0) {
    fail(op, std::to_string(params->num_heads) + " heads are not a multiple of " +
                 std::to_string(params->num_kv_heads) + " kv heads");
  }
  expect_range(op, "window", params->window, 0, 1 << 20);
  expect_range(op, "sparse_tokens", params->sparse_tokens, 0, 1 << 30);
  check_sinks(op, *params);
  check_side(op, "keys", *params, params->keys);
  check_side(op, "values", *params, params->values);
  const SideParams& values = params->values;
  if (params->keys.format == Format::kNorm || values.format == Format::kStatic) {
    fail(op, "keys can not have norms, values no static codes");
  }
  if (values.rotation_heads > 1 || values.order_offset != 0 || values.mean_offset != 0 || values.basis_heads != 0) {
    fail(op, "values can only be rotated head by head, in natural order, without a mean");
  }
  if (params->keys.format == Format::kCodebook) {
    if (params->keys_pre_rope == 0) fail(op, "keys have a codebook, which needs keys before RoPE");
    check_array(op, "the steps of keys", *params, params->keys.steps_offset, 2 * params->channels(), 4);
  }
  if (values.format == Format::kCodebook && values.steps_offset != 0) {
    fail(op, "values have a codebook, whose steps are those of tokens; only keys have steps of channels");
  }
  return params;
}

}  // namespace kvquant
