/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "massive.h"

#include <cmath>

namespace kvquant {

void massive_entries(const float* x, int64_t rows, int64_t hidden, float* values, int32_t* owners) {
  int found = 0;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < hidden; ++i) {
      const float value = std::fabs(x[row * hidden + i]);
      if (std::isnan(value) || (found == kMassiveEntries && !(value > values[found - 1]))) continue;
      // Insertion into the sorted list; strict comparison keeps the earlier row first among equals.
      int place = found < kMassiveEntries ? found++ : kMassiveEntries - 1;
      for (; place > 0 && value > values[place - 1]; --place) {
        values[place] = values[place - 1];
        owners[place] = owners[place - 1];
      }
      values[place] = value;
      owners[place] = static_cast<int32_t>(row);
    }
  }
  for (; found < kMassiveEntries; ++found) {
    values[found] = 0;
    owners[found] = -1;
  }
}

}  // namespace kvquant
