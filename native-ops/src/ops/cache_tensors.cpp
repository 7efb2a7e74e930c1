/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "cache_tensors.h"

namespace kvquant {

CacheTensors::CacheTensors(const StableIValue* stack)
    : lengths(stack[0]),
      page_table(stack[1]),
      exact_table(stack[2]),
      pages(stack[3]),
      exact(stack[4]),
      rope(stack[5]),
      params(stack[6]) {}

void check_lengths(const char* op, const Tensor& lengths, DeviceType device) {
  lengths.expect(op, "lengths", DType::kInt32, 2, device);
  expect_size(op, "lengths", lengths.size(1), 2, "columns");
}

void check_rope(const char* op, const Tensor& rope, const LayerParams& params, DeviceType device) {
  rope.expect(op, "rope", DType::kFloat, 3, device);
  expect_size(op, "rope", rope.size(1), 2, "parts");
  expect_size(op, "rope", rope.size(2), params.head_dim / 2, "pairs of channels");
  expect_range(op, "rope's rows", rope.size(0), kPageTokens + 1, int64_t{1} << 31);
}

void CacheTensors::check(const char* op, const LayerParams& layer, DeviceType device) const {
  check_lengths(op, lengths, device);
  page_table.expect(op, "page_table", DType::kInt32, 2, device);
  expect_size(op, "page_table", page_table.size(0), lengths.size(0), "rows");
  exact_table.expect(op, "exact_table", DType::kInt32, 2, device);
  expect_size(op, "exact_table", exact_table.size(0), lengths.size(0), "rows");
  pages.expect(op, "pages", DType::kUInt8, 2, device);
  expect_size(op, "pages", pages.size(1), PageLayout(layer).bytes, "bytes a page");
  exact.expect(op, "exact", DType::kUInt8, 2, device);
  check_rope(op, rope, layer, device);
  if (!layer.has_exact_pages()) return;
  expect_size(op, "exact", exact.size(1), ExactLayout(layer).bytes, "bytes a page");
  const int64_t ring = layer.window == 0 ? 0 : (layer.window + kExactTokens - 1) / kExactTokens + 1;
  expect_range(op, "exact_table's columns", exact_table.size(1), layer.sink_pages() + ring, int64_t{1} << 31);
}

}  // namespace kvquant
