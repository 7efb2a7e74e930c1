/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Switches between stacks of one thread of the operating system, on x86-64.
#pragma once
#include <cstddef>

namespace kvquant::emulator {

/// Stacks of so many fibers; pages that nobody touched take no memory.
class Stacks {
 public:
  explicit Stacks(int count);

  /// A new fiber's stack pointer for switch_stacks; it begins with entry(), which must not return.
  void* start(int fiber, void (*entry)()) const;

 private:
  unsigned char* memory_;
};

/// Leaves the stack pointer of who calls in *from and goes on at `to`.
extern "C" void kvquant_switch_stacks(void** from, void* to);

}  // namespace kvquant::emulator
