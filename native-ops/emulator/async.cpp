/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "async.h"

#include <cmath>
#include <deque>
#include <vector>

#include "block.h"
#include "core/half.h"

namespace kvquant::emulator {
namespace {

/// A copy, or, where `to` is nullptr, an arrival once the copies before it are done.
struct Copy {
  void* to;
  const void* from;
  int bytes;
  uint64_t* barrier;
  int group;
};

struct Product {
  float (*c)[4];
  uint64_t a, b;
  bool add, transposed;
};

/// What a thread has under way.
struct Pending {
  std::deque<Copy> copies;
  int groups = 0;  // that were committed
  std::vector<Product> products;
};

thread_local Pending pending[kMostThreads];
thread_local std::vector<Copy> bulk_copies;

/// What an mbarrier's 64 bits hold here.
struct Phases {
  uint16_t phase : 1, arrivals : 15;
  int16_t missing;
  int32_t bytes;  // announced and not there
};
static_assert(sizeof(Phases) == sizeof(uint64_t), "it takes the barrier's place");

Phases& phases(uint64_t* barrier) { return *reinterpret_cast<Phases*>(barrier); }

void end_phase_if_complete(Phases& barrier) {
  if (barrier.missing < 0) fail_block("more threads arrived at a phase than it waits for");
  if (barrier.missing > 0 || barrier.bytes != 0) return;
  barrier.phase ^= 1;
  barrier.missing = static_cast<int16_t>(barrier.arrivals);
}

void finish(const Copy& copy) {
  if (copy.to == nullptr) {
    arrive(copy.barrier);
  } else {
    std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
  }
}

void finish_bulk(size_t i) {
  const Copy copy = bulk_copies[i];
  bulk_copies.erase(bulk_copies.begin() + static_cast<ptrdiff_t>(i));
  finish(copy);
  Phases& barrier = phases(copy.barrier);
  barrier.bytes -= copy.bytes;
  end_phase_if_complete(barrier);
}

/// An element of an operand in shared memory: of its row, at place k of the sum.
float operand_element(uint64_t descriptor, int row, int k, bool transposed) {
  const auto field = [descriptor](int bit) { return static_cast<uint32_t>(descriptor >> bit & 0x3fff) << 4; };
  uint32_t at = field(0);
  if (descriptor >> 62 == 0) {  // blocks of 8 rows of 16 bytes
    at += static_cast<uint32_t>(k / 8) * field(16) + static_cast<uint32_t>(row / 8) * field(32) + row % 8 * 16 +
          k % 8 * 2;
  } else {  // rows of 128 bytes, whose chunks of 16 bytes change places
    at += transposed ? k * 128 + row * 2 : row * 128 + k * 2;
    at ^= (at >> 7 & 7) << 4;
  }
  return half_to_float(*reinterpret_cast<const uint16_t*>(at_shared_address(at)));
}

void multiply(const Product& p) {
  constexpr int kDepth = 16, kBlocks = 16;
  const int g = current->lane / 4, c = current->lane % 4, first_row = current->warp % 4 * 16 + g;
  float a[2][kDepth], b[kDepth];
  for (int k = 0; k < kDepth; ++k) {
    for (int i = 0; i < 2; ++i) a[i][k] = operand_element(p.a, first_row + 8 * i, k, p.transposed);
  }
  for (int i = 0; i < kBlocks * 2; ++i) {
    const int block = i / 2, side = i % 2;
    for (int k = 0; k < kDepth; ++k) b[k] = operand_element(p.b, block * 8 + 2 * c + side, k, false);
    for (int half = 0; half < 2; ++half) {
      float sum = 0.0f, &to = p.c[block][2 * half + side];
      for (int k = 0; k < kDepth; ++k) sum += a[half][k] * b[k];
      to = p.add ? to + sum : sum;
    }
  }
}

}  // namespace

void copy_async(void* to, const void* from, int bytes) {
  Pending& own = pending[current->number];
  const Copy copy{to, from, bytes, nullptr, own.groups};
  if (chance()) {
    finish(copy);
  } else {
    own.copies.push_back(copy);
  }
}

void commit_copies() { ++pending[current->number].groups; }

void wait_copies(int groups) {
  Pending& own = pending[current->number];
  while (!own.copies.empty() && own.copies.front().group < own.groups - groups) {
    finish(own.copies.front());
    own.copies.pop_front();
  }
}

void arrive_copied(uint64_t* barrier) {
  Pending& own = pending[current->number];
  own.copies.push_back({nullptr, nullptr, 0, barrier, own.groups});
}

void set_arrivals(uint64_t* barrier, int count) {
  phases(barrier) = {0, static_cast<uint16_t>(count), static_cast<int16_t>(count), 0};
}

void arrive(uint64_t* barrier) {
  --phases(barrier).missing;
  end_phase_if_complete(phases(barrier));
}

void expect_bytes(uint64_t* barrier, int bytes) {
  phases(barrier).bytes += bytes;
  arrive(barrier);
}

void wait_arrivals(uint64_t* barrier, int phase) {
  while (phases(barrier).phase == phase) yield();
}

void copy_bulk(void* to, const void* from, int bytes, uint64_t* barrier) {
  const uintptr_t addresses = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if ((addresses | static_cast<uintptr_t>(bytes)) % 16 != 0) fail_block("a bulk copy is not of multiples of 16 bytes");
  bulk_copies.push_back({to, from, bytes, barrier, 0});
  if (chance()) finish_bulk(bulk_copies.size() - 1);
}

void warpgroup_mma(float (*c)[4], uint64_t a, uint64_t b, bool add, bool transposed) {
  std::vector<Product>& products = pending[current->number].products;
  const Product product{c, a, b, add, transposed};
  if (products.empty() && chance()) return multiply(product);
  if (!add) {
    for (int i = 0; i < 64; ++i) c[i / 4][i % 4] = NAN;
  }
  products.push_back(product);
}

void wait_products() {
  std::vector<Product>& products = pending[current->number].products;
  for (const Product& product : products) multiply(product);
  products.clear();
}

void start_block() {
  bulk_copies.clear();
  for (Pending& own : pending) {
    own.copies.clear();
    own.products.clear();
    own.groups = 0;
  }
}

void go_on() {
  if (!bulk_copies.empty()) finish_bulk(chance(static_cast<uint32_t>(bulk_copies.size())));
  Pending& some = pending[chance(blockDim.x)];
  if (some.copies.empty()) return;
  finish(some.copies.front());
  some.copies.pop_front();
}

void end_thread() {
  commit_copies();
  wait_copies(0);
}

bool anything_left() {
  bool left = !bulk_copies.empty();
  for (const Pending& own : pending) left = left || !own.products.empty();
  return left;
}

}  // namespace kvquant::emulator
