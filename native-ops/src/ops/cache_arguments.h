/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The cache arguments that several operators share, checked once: lengths, page_table, exact_table, pages, exact, rope,
// params.
#pragma once
#include "../core/cache.h"
#include "cache_tensors.h"
#include "layer_params.h"

namespace kvquant {

class CacheArguments {
 public:
  /// Takes the seven tensors at stack[0 .. 7).
  CacheArguments(const char* op, const StableIValue* stack);

  /// Checks that every sequence may grow by added(b) tokens: positions, pages and exact pages that will be touched
  /// exist.
  template <class Added>
  void expect_room(Added added) const {
    for (int64_t b = 0; b < cache.batch; ++b) expect_room_for(b, added(b));
  }

 private:
  void expect_room_for(int64_t b, int64_t added) const;
  void expect_ids(const char* name, const int32_t* ids, int64_t count, int64_t limit) const;

  const char* op_;
  CacheTensors tensors_;

 public:
  const LayerParams* params;
  LayerCache cache;
};

}  // namespace kvquant
