/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The inner loop of linear layers, one version per instruction set.
#pragma once
#include "linear.h"

namespace kvquant {

/// out[r, i - begin] = x[r] . weight[i] for r < rows and begin <= i < end; out rows are stride apart.
using DotRows = void (*)(const float* x, int64_t rows, const Weight& weight, int64_t begin, int64_t end, float* out,
                         int64_t stride);

void dot_rows_portable(const float* x, int64_t rows, const Weight& weight, int64_t begin, int64_t end, float* out,
                       int64_t stride);
void dot_rows_avx2(const float* x, int64_t rows, const Weight& weight, int64_t begin, int64_t end, float* out,
                   int64_t stride);
void dot_rows_avx512(const float* x, int64_t rows, const Weight& weight, int64_t begin, int64_t end, float* out,
                     int64_t stride);

}  // namespace kvquant
