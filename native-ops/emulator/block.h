/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Runs the blocks of a kernel one after another, on the thread that launches it. A CUDA thread is a fiber, which runs
// until it has to wait for others, or now and then is interrupted; who goes on then is chance, so that what barriers do
// not order happens in either order. Chance is the same each time, but for the environment variable
// KVQUANT_EMULATOR_SEED.
#pragma once
#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

/// CUDA's names of what all threads of a block know.
extern thread_local uint3 blockIdx;
extern thread_local dim3 gridDim, blockDim;

namespace kvquant::emulator {

constexpr int kWarpLanes = 32, kMostThreads = 1024, kNamedBarriers = 16;
/// Dynamic shared memory of a block, bytes: of an H100, an A100 and of consumers' GPUs.
constexpr int kMostShared = (KVQUANT_EMULATED_ARCH >= 900 ? 227 : KVQUANT_EMULATED_ARCH == 800 ? 163 : 99) << 10;

/// The thread that runs.
struct Thread {
  uint3 index;
  int number, lane, warp;
};
extern thread_local const Thread* current;

/// Runs kernel for every thread of every block. Dynamic shared memory begins as NaN. What no GPU would survive ends the
/// process, with a line on stderr: threads that wait for ever, copies that nobody waits for, writes behind the end.
void run_blocks(dim3 blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel);

/// Ends the process.
[[noreturn]] void fail_block(const char* problem);

/// Lets other threads run.
void yield();

/// True half of the time.
bool chance();

/// A number in [0, count).
uint32_t chance(uint32_t count);

/// Meets all lanes of the warp. size: at most kExchangeBytes; returns what lanes gave, kExchangeBytes apart, which
/// stays until the warp meets again.
constexpr int kExchangeBytes = 32;
const unsigned char* exchange(const void* own, size_t size);

/// exchange of one value: what a lane gave.
template <class T>
class Exchanged {
 public:
  explicit Exchanged(const T& own) : all_(exchange(&own, sizeof(T))) {
    static_assert(sizeof(T) <= kExchangeBytes, "it fits");
  }
  T of(int lane) const {
    T x;
    std::memcpy(&x, all_ + lane * kExchangeBytes, sizeof(T));
    return x;
  }

 private:
  const unsigned char* all_;
};

/// Arrives at a barrier of `threads` of the block, or of all that have not ended (0), and waits there, if asked to.
void meet_block(int barrier, int threads, bool wait);

/// Dynamic shared memory of the block.
unsigned char* dynamic_shared();

/// Addresses in shared memory: offsets in the dynamic one, or what stands for a variable's address.
uint32_t shared_address(const void* p);
unsigned char* at_shared_address(uint32_t address);

}  // namespace kvquant::emulator
