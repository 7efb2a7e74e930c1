/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "fiber.h"

#include <sys/mman.h>

#include <new>

namespace kvquant::emulator {
namespace {

constexpr size_t kStackBytes = 512 << 10;

/// Stacks begin at different places of the cache's sets.
constexpr size_t kColours = 64, kColourBytes = 64;

constexpr int kSavedRegisters = 6;

}  // namespace

Stacks::Stacks(int count) {
  void* memory =
      mmap(nullptr, kStackBytes * count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<unsigned char*>(memory);
}

void* Stacks::start(int fiber, void (*entry)()) const {
  unsigned char* end = memory_ + kStackBytes * (fiber + 1) - (fiber % kColours) * kColourBytes;
  auto** top = reinterpret_cast<void**>(end);
  *--top = nullptr;  // where it would return to, so that the stack is aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  return top - kSavedRegisters;
}

}  // namespace kvquant::emulator

// The registers that a function must keep; the return address is on the stack already.
asm(R"(
.text
.globl kvquant_switch_stacks
.hidden kvquant_switch_stacks
.type kvquant_switch_stacks, @function
kvquant_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size kvquant_switch_stacks, . - kvquant_switch_stacks
)");
