/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "block.h"

#include <cstdio>
#include <cstdlib>

#include "async.h"
#include "fiber.h"

thread_local uint3 blockIdx;
thread_local dim3 gridDim, blockDim;

namespace kvquant::emulator {

thread_local const Thread* current = nullptr;

namespace {

/// Some who meet, and how often they have met.
struct Meeting {
  uint32_t meetings = 0;
  int arrived = 0;

  /// wanted: who has to be there.
  void end_if_all(int wanted) {
    if (arrived > wanted) fail_block("more threads arrived at a barrier than it waits for");
    if (arrived == 0 || arrived < wanted) return;
    arrived = 0;
    ++meetings;
  }
};

struct Warp {
  Meeting meeting;
  int alive = 0;
  alignas(16) unsigned char exchanged[2][kWarpLanes][kExchangeBytes];  // of two meetings, in turn
};

struct Fiber : Thread {
  void* stack_pointer = nullptr;
  bool ended = false;
  const Meeting* waits_for = nullptr;  // it may go on once there were others than `met`
  uint32_t met = 0;

  bool may_run() const { return !ended && (waits_for == nullptr || waits_for->meetings != met); }
};

/// Warps are interrupted after so many meetings of their lanes, on average.
constexpr uint32_t kMeetingsAtOnce = 32;
/// In so many choices of who runs the slow warp is taken once for certain.
constexpr uint32_t kSlowness = 256;

constexpr size_t kGuardBytes = 64;
constexpr unsigned char kPoison = 0xff;

struct Machine {
  Stacks stacks{kMostThreads};
  alignas(1024) unsigned char shared[kMostShared + kGuardBytes];
  Fiber fibers[kMostThreads];
  Warp warps[kMostThreads / kWarpLanes];
  Meeting barriers[kNamedBarriers];
  int threads = 0, warps_in_block = 0, alive = 0;
  int slow_warp = 0;         // which others overtake wherever they may
  void* launcher = nullptr;  // stack pointer
  const std::function<void()>* kernel = nullptr;
  uint64_t random = 0x9e3779b97f4a7c15;

  Machine() {
    if (const char* seed = std::getenv("KVQUANT_EMULATOR_SEED")) random += 2 * std::strtoull(seed, nullptr, 10);
  }

  Fiber& running() { return const_cast<Fiber&>(static_cast<const Fiber&>(*current)); }
};

Machine& machine() {
  static thread_local auto* the_machine = new Machine;
  return *the_machine;
}

/// A lane of a warp that may run, from one on; nullptr: none.
Fiber* find_lane(Machine& m, int warp, int from) {
  for (int i = 0; i < kWarpLanes; ++i) {
    const int number = warp * kWarpLanes + (from + i) % kWarpLanes;
    if (number < m.threads && m.fibers[number].may_run()) return &m.fibers[number];
  }
  return nullptr;
}

/// Some thread that may run, of the slow warp seldom.
Fiber* find_any(Machine& m) {
  const int first = static_cast<int>(chance(m.warps_in_block)), avoided = chance(kSlowness) == 0 ? -1 : m.slow_warp;
  for (int i = 0; i < m.warps_in_block; ++i) {
    const int warp = (first + i) % m.warps_in_block;
    if (warp == avoided) continue;
    if (Fiber* found = find_lane(m, warp, static_cast<int>(chance(kWarpLanes)))) return found;
  }
  return avoided < 0 ? nullptr : find_lane(m, avoided, 0);
}

void switch_to(Fiber& to) {
  Fiber& from = machine().running();
  if (&from == &to) return;
  to.waits_for = nullptr;
  current = &to;
  kvquant_switch_stacks(&from.stack_pointer, to.stack_pointer);
}

/// Leaves a thread that waits or has ended: for another of its warp, as long as one can go on.
void switch_to_next() {
  Machine& m = machine();
  Fiber* next = find_lane(m, current->warp, current->lane + 1);
  if (next == nullptr) {
    if (chance()) go_on();
    next = find_any(m);
  }
  if (next == nullptr) fail_block("all threads wait for each other");
  switch_to(*next);
}

void wait_for(const Meeting& meeting, uint32_t met) {
  Fiber& own = machine().running();
  while (meeting.meetings == met) {
    own.waits_for = &meeting;
    own.met = met;
    switch_to_next();
  }
  own.waits_for = nullptr;
}

void run_thread() {
  Machine& m = machine();
  (*m.kernel)();
  end_thread();
  Fiber& own = m.running();
  own.ended = true;
  m.warps[own.warp].meeting.end_if_all(--m.warps[own.warp].alive);
  if (--m.alive > 0) {
    m.barriers[0].end_if_all(m.alive);
    switch_to_next();
  }
  current = nullptr;
  kvquant_switch_stacks(&own.stack_pointer, m.launcher);
}

void run_block(Machine& m, size_t shared_bytes) {
  std::memset(m.shared, kPoison, shared_bytes + kGuardBytes);
  for (Meeting& barrier : m.barriers) barrier = {};
  for (Warp& warp : m.warps) {
    warp.meeting = {};
    warp.alive = 0;
  }
  m.alive = m.threads;
  m.slow_warp = static_cast<int>(chance(m.warps_in_block));
  for (int i = 0; i < m.threads; ++i) {
    Fiber& fiber = m.fibers[i];
    fiber = {};
    fiber.index = {static_cast<unsigned>(i), 0, 0};
    fiber.number = i;
    fiber.lane = i % kWarpLanes;
    fiber.warp = i / kWarpLanes;
    fiber.stack_pointer = m.stacks.start(i, run_thread);
    ++m.warps[fiber.warp].alive;
  }
  start_block();
  Fiber* first = find_any(m);
  current = first;
  kvquant_switch_stacks(&m.launcher, first->stack_pointer);
  if (anything_left()) fail_block("copies or products were started that nobody waited for");
  for (size_t i = 0; i < kGuardBytes; ++i) {
    if (m.shared[shared_bytes + i] != kPoison) fail_block("the block wrote behind its shared memory");
  }
}

}  // namespace

void run_blocks(dim3 blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel) {
  Machine& m = machine();
  gridDim = blocks;
  blockDim = dim3(threads, 1, 1);
  if (threads > kMostThreads || shared_bytes > kMostShared) fail_block("a block has too many threads or bytes");
  m.threads = static_cast<int>(threads);
  m.warps_in_block = (m.threads + kWarpLanes - 1) / kWarpLanes;
  m.kernel = &kernel;
  for (unsigned z = 0; z < blocks.z; ++z) {
    for (unsigned y = 0; y < blocks.y; ++y) {
      for (unsigned x = 0; x < blocks.x; ++x) {
        blockIdx = {x, y, z};
        run_block(m, shared_bytes);
      }
    }
  }
}

void fail_block(const char* problem) {
  std::fprintf(stderr, "kvquant emulator: %s (block %u, %u, %u of %u, %u, %u; %u threads)\n", problem, blockIdx.x,
               blockIdx.y, blockIdx.z, gridDim.x, gridDim.y, gridDim.z, blockDim.x);
  std::abort();
}

uint32_t chance(uint32_t count) {
  uint64_t& x = machine().random;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return static_cast<uint32_t>(x >> 32) % count;
}

bool chance() { return chance(2) != 0; }

void yield() {
  if (chance()) go_on();
  if (Fiber* next = find_any(machine())) switch_to(*next);
}

const unsigned char* exchange(const void* own, size_t size) {
  Warp& warp = machine().warps[current->warp];
  const uint32_t met = warp.meeting.meetings;
  auto& exchanged = warp.exchanged[met % 2];
  std::memcpy(exchanged[current->lane], own, size);
  ++warp.meeting.arrived;
  warp.meeting.end_if_all(warp.alive);
  if (warp.meeting.meetings != met && chance(kMeetingsAtOnce) == 0) yield();
  wait_for(warp.meeting, met);
  return exchanged[0];
}

void meet_block(int barrier, int threads, bool wait) {
  Machine& m = machine();
  Meeting& meeting = m.barriers[barrier];
  const uint32_t met = meeting.meetings;
  ++meeting.arrived;
  meeting.end_if_all(threads > 0 ? threads : m.alive);
  if (wait) wait_for(meeting, met);
}

unsigned char* dynamic_shared() { return machine().shared; }

namespace {

/// Variables in shared memory are thread_local ones: so far from this one.
thread_local char origin;
constexpr ptrdiff_t kMostDistance = 1 << 30;
constexpr uint32_t kOfVariables = 0x80000000u;

}  // namespace

uint32_t shared_address(const void* p) {
  const ptrdiff_t offset = static_cast<const unsigned char*>(p) - machine().shared;
  if (offset >= 0 && offset < kMostShared) return static_cast<uint32_t>(offset);
  const ptrdiff_t distance = static_cast<const char*>(p) - &origin;
  if (distance < -kMostDistance || distance >= kMostDistance) fail_block("an address is not of shared memory");
  return kOfVariables + static_cast<uint32_t>(distance + kMostDistance);
}

unsigned char* at_shared_address(uint32_t address) {
  if (address < kOfVariables) return machine().shared + address;
  return reinterpret_cast<unsigned char*>(&origin) + (static_cast<ptrdiff_t>(address - kOfVariables) - kMostDistance);
}

}  // namespace kvquant::emulator
