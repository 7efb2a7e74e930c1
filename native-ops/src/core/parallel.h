/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// A small thread pool for operators. Workers spin briefly and then sleep; chunks are taken one by one from a counter,
// so that a caller waits only for chunks that were begun, not for a worker that another process keeps off its core.
#pragma once
#include <cstdint>
#include <functional>

namespace kvquant {

/// Threads that share the work, the caller included; at least 1.
void set_num_threads(int threads);
int num_threads();

/// Runs body(0) ... body(count - 1), in any order and on any thread; returns when all are done. Nested calls run in the
/// calling thread. Of the exceptions that the body throws, the first reaches the caller, when all are done.
void parallel_for(int64_t count, const std::function<void(int64_t)>& body);

}  // namespace kvquant
