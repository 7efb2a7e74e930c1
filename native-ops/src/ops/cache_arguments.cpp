/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "cache_arguments.h"

#include <string>

namespace kvquant {
namespace {

bool power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

void check_side(const char* op, const char* name, const LayerParams& params, const SideParams& side) {
  const std::string prefix(name);
  const bool plain =
      (side.format == Format::kFloat32 && side.bits == 32) || (side.format == Format::kFloat16 && side.bits == 16);
  if (plain) return;
  if (side.format != Format::kAffine) {
    fail(op, prefix + " have format " + std::to_string(static_cast<int>(side.format)) + " with " +
                 std::to_string(side.bits) + " bits; allowed: 0 with 32, 1 with 16, 2 with 2, 3, 4 or 8");
  }
  if (side.bits != 2 && side.bits != 3 && side.bits != 4 && side.bits != 8) {
    fail(op, prefix + " have " + std::to_string(side.bits) + " bits; allowed: 2, 3, 4, 8");
  }
  if (side.group_size < 16 || side.group_size % 16 != 0 || params.channels() % side.group_size != 0) {
    fail(op, prefix + " have groups of " + std::to_string(side.group_size) +
                 " channels; allowed: multiples of 16 that divide " + std::to_string(params.channels()) + " channels");
  }
  if (side.rotation_heads != 0 && !power_of_two(params.head_dim)) {
    fail(op, prefix + " are rotated, which needs a head_dim that is a power of two, not " +
                 std::to_string(params.head_dim));
  }
  if (side.rotation_heads < 0 || side.rotation_heads > kMaxRotationHeads ||
      (side.rotation_heads > 0 && params.num_kv_heads % side.rotation_heads != 0)) {
    fail(op, prefix + " are rotated over " + std::to_string(side.rotation_heads) + " heads; allowed: 0 to " +
                 std::to_string(kMaxRotationHeads) + ", a divisor of " + std::to_string(params.num_kv_heads) +
                 " kv heads");
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
  if (params->num_heads < 1 || params->num_heads % params->num_kv_heads != 0) {
    fail(op, std::to_string(params->num_heads) + " heads are not a multiple of " +
                 std::to_string(params->num_kv_heads) + " kv heads");
  }
  expect_range(op, "window", params->window, 0, 1 << 20);
  expect_range(op, "max_sinks", params->max_sinks, 0, 1 << 16);
  if (params->sink_policy == SinkPolicy::kMassive && params->max_sinks < kMassiveEntries) {
    fail(op,
         "massive sinks need " + std::to_string(kMassiveEntries) + " slots, not " + std::to_string(params->max_sinks));
  }
  check_side(op, "keys", *params, params->keys);
  check_side(op, "values", *params, params->values);
  if (params->values.rotation_heads > 1 || params->values.order_offset != 0) {
    fail(op, "values can only be rotated head by head, in natural order");
  }
  const int64_t order_end = params->keys.order_offset + 2 * params->channels();
  if (params->keys.order_offset != 0 &&
      (params->keys.order_offset < static_cast<int>(sizeof(LayerParams)) || order_end > params->bytes)) {
    fail(op, "the channel order lies outside the packed parameters");
  }
  return params;
}

CacheArguments::CacheArguments(const char* op, const StableIValue* stack)
    : op_(op),
      lengths_(stack[0]),
      page_table_(stack[1]),
      exact_table_(stack[2]),
      pages_(stack[3]),
      exact_(stack[4]),
      rope_(stack[5]),
      params_(stack[6]),
      params(read_params(op, params_)),
      cache{params, PageLayout(*params), ExactLayout(*params), RopeTable(rope_.data<float>(), 0, params->head_dim)} {
  check_shapes();
  cache.rope = RopeTable(rope_.data<float>(), rope_.size(0), params->head_dim);
  cache.pages = pages_.data<uint8_t>();
  cache.exact = exact_.data<uint8_t>();
  cache.batch = lengths_.size(0);
  cache.lengths = lengths_.data<int32_t>();
  cache.page_table = page_table_.data<int32_t>();
  cache.exact_table = exact_table_.data<int32_t>();
  cache.page_columns = page_table_.size(1);
  cache.exact_columns = exact_table_.size(1);
  if (params->keys.format == Format::kAffine) {
    cache.key_groups.resize(params->channels());
    channel_groups(*params, params->keys, cache.key_groups.data());
  }
  if (params->values.format == Format::kAffine) {
    cache.value_groups.resize(params->channels());
    channel_groups(*params, params->values, cache.value_groups.data());
  }
}

void CacheArguments::check_shapes() const {
  lengths_.expect(op_, "lengths", DType::kInt32, 2);
  expect_size(op_, "lengths", lengths_.size(1), 2, "columns");
  page_table_.expect(op_, "page_table", DType::kInt32, 2);
  expect_size(op_, "page_table", page_table_.size(0), lengths_.size(0), "rows");
  exact_table_.expect(op_, "exact_table", DType::kInt32, 2);
  expect_size(op_, "exact_table", exact_table_.size(0), lengths_.size(0), "rows");
  pages_.expect(op_, "pages", DType::kUInt8, 2);
  expect_size(op_, "pages", pages_.size(1), PageLayout(*params).bytes, "bytes a page");
  exact_.expect(op_, "exact", DType::kUInt8, 2);
  rope_.expect(op_, "rope", DType::kFloat, 3);
  expect_size(op_, "rope", rope_.size(1), 2, "parts");
  expect_size(op_, "rope", rope_.size(2), params->head_dim / 2, "pairs of channels");
  expect_range(op_, "rope's rows", rope_.size(0), kPageTokens + 1, int64_t{1} << 31);
  if (!params->has_exact_pages()) return;
  expect_size(op_, "exact", exact_.size(1), ExactLayout(*params).bytes, "bytes a page");
  const int64_t ring = params->window == 0 ? 0 : (params->window + kExactTokens - 1) / kExactTokens + 1;
  expect_range(op_, "exact_table's columns", exact_table_.size(1), params->sink_pages() + ring, int64_t{1} << 31);
}

void CacheArguments::expect_ids(const char* name, const int32_t* ids, int64_t count, int64_t limit) const {
  for (int64_t i = 0; i < count; ++i) expect_range(op_, name, ids[i], 0, limit - 1);
}

void CacheArguments::expect_room_for(int64_t b, int64_t added) const {
  const int64_t length = cache.length(b), stored = cache.quantized(b, length + added);
  expect_range(op_, "a sequence's length", length + added, 0, cache.rope.positions());
  expect_range(op_, "a page table's tokens", stored, 0, cache.page_columns * kPageTokens);
  expect_ids("a page id", cache.page_table + b * cache.page_columns, (stored + kPageTokens - 1) / kPageTokens,
             pages_.size(0));
  if (!params->has_exact_pages()) return;
  const int64_t runs = (length + added + kExactTokens - 1) / kExactTokens;
  const int64_t columns = params->sink_pages() + (params->window == 0 ? 0 : std::min(cache.ring(), runs));
  expect_ids("an exact page id", cache.exact_table + b * cache.exact_columns, columns, exact_.size(0));
}

}  // namespace kvquant
