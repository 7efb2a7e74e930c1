/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "cache_arguments.h"

#include <string>

namespace kvquant {

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
  for (int64_t b = 0; b < cache.batch; ++b) {
    expect_range(op_, "a sequence's length", cache.length(b), 0, cache.rope.positions());
  }
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
