/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#pragma once
#include <cstdint>

#include "layout.h"

namespace kvquant {

/// The kMassiveEntries largest |entries| of x [rows, hidden], a layer's input over one prompt chunk: values descending,
/// and the rows that own them; equal values: the smaller row first. Where there are fewer entries: value 0, row -1.
void massive_entries(const float* x, int64_t rows, int64_t hidden, float* values, int32_t* owners);

}  // namespace kvquant
