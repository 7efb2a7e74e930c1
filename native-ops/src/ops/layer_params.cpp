/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "layer_params.h"

#include <string>
#include <vector>

namespace kvquant {
namespace {

bool power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

void check_codes(const char* op, const std::string& name, const LayerParams& params, const SideParams& side) {
  if (side.format != Format::kAffine) {
    fail(op, name + " have format " + std::to_string(static_cast<int>(side.format)) + " with " +
                 std::to_string(side.bits) + " bits; allowed: 0 with 32, 1 with 16, 2 with 2, 3, 4 or 8");
  }
  if (side.bits != 2 && side.bits != 3 && side.bits != 4 && side.bits != 8) {
    fail(op, name + " have " + std::to_string(side.bits) + " bits; allowed: 2, 3, 4, 8");
  }
  if (side.group_size < 16 || side.group_size % 16 != 0 || params.channels() % side.group_size != 0) {
    fail(op, name + " have groups of " + std::to_string(side.group_size) +
                 " channels; allowed: multiples of 16 that divide " + std::to_string(params.channels()) + " channels");
  }
}

void check_side(const char* op, const std::string& name, const LayerParams& params, const SideParams& side) {
  const bool plain =
      (side.format == Format::kFloat32 && side.bits == 32) || (side.format == Format::kFloat16 && side.bits == 16);
  if (!plain) check_codes(op, name, params, side);
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

void check_order(const char* op, const LayerParams& params, const uint8_t* data) {
  const int64_t begin = params.keys.order_offset, channels = params.channels();
  if (begin == 0) return;
  if (begin < static_cast<int64_t>(sizeof(LayerParams)) || begin % 2 != 0 || begin + 2 * channels > params.bytes) {
    fail(op, "the channel order lies outside the packed parameters or at an odd offset");
  }
  const auto* order = reinterpret_cast<const int16_t*>(data + begin);
  std::vector<bool> seen(static_cast<size_t>(channels));
  for (int64_t i = 0; i < channels; ++i) {
    expect_range(op, "a channel of the order", order[i], 0, channels - 1);
    if (seen[order[i]]) fail(op, "channel " + std::to_string(order[i]) + " stands twice in the order");
    seen[order[i]] = true;
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
  check_sinks(op, *params);
  check_side(op, "keys", *params, params->keys);
  check_side(op, "values", *params, params->values);
  if (params->values.rotation_heads > 1 || params->values.order_offset != 0) {
    fail(op, "values can only be rotated head by head, in natural order");
  }
  check_order(op, *params, tensor.data<const uint8_t>());
  return params;
}

}  // namespace kvquant
