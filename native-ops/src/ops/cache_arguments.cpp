/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "cache_arguments.h"

#include <string>

namespace kvquant {

CacheArguments::CacheArguments(const char* op, const StableIValue* stack)
    : op_(op),
      tensors_(stack),
      params(read_params(op, tensors_.params)),
      cache{params, PageLayout(*params), ExactLayout(*params),
            RopeTable(tensors_.rope.data<float>(), 0, params->head_dim)} {
  tensors_.check(op, *params, DeviceType::kCpu);
  cache.rope = RopeTable(tensors_.rope.data<float>(), tensors_.rope.size(0), params->head_dim);
  cache.pages = tensors_.pages.data<uint8_t>();
  cache.exact = tensors_.exact.data<uint8_t>();
  cache.batch = tensors_.lengths.size(0);
  cache.lengths = tensors_.lengths.data<int32_t>();
  cache.page_table = tensors_.page_table.data<int32_t>();
  cache.exact_table = tensors_.exact_table.data<int32_t>();
  cache.page_columns = tensors_.page_table.size(1);
  cache.exact_columns = tensors_.exact_table.size(1);
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

void CacheArguments::expect_ids(const char* name, const int32_t* ids, int64_t count, int64_t limit) const {
  for (int64_t i = 0; i < count; ++i) expect_range(op_, name, ids[i], 0, limit - 1);
}

void CacheArguments::expect_room_for(int64_t b, int64_t added) const {
  const int64_t length = cache.length(b), stored = cache.quantized(b, length + added);
  expect_range(op_, "a sequence's length", length + added, 0, cache.rope.positions());
  expect_range(op_, "a page table's tokens", stored, 0, cache.page_columns * kPageTokens);
  expect_ids("a page id", cache.page_table + b * cache.page_columns, (stored + kPageTokens - 1) / kPageTokens,
             tensors_.pages.size(0));
  if (!params->has_exact_pages()) return;
  const int64_t runs = (length + added + kExactTokens - 1) / kExactTokens;
  const int64_t columns = params->sink_pages() + (params->window == 0 ? 0 : std::min(cache.ring(), runs));
  expect_ids("an exact page id", cache.exact_table + b * cache.exact_columns, columns, tensors_.exact.size(0));
}

}  // namespace kvquant
