/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The functions of src/cuda/ptx.cuh, which documents them, in emulator/block.h.
#pragma once
#include <cuda_runtime.h>

#include "core/half.h"
#include "emulator/async.h"
#include "emulator/block.h"

namespace kvquant::cuda {

#define KVQUANT_DYNAMIC_SHARED(name) unsigned char* const name = emulator::dynamic_shared()

/// A lane's words of both operands of a product.
struct Operands {
  uint32_t a[4], b[2];
};

inline float half_of(uint32_t pair, int i) { return half_to_float(static_cast<uint16_t>(pair >> (16 * i))); }

/// A lane's four elements of a [16, depth] b [depth, 8].
struct LaneProduct {
  float x[4];

  LaneProduct(const Operands& own, int depth) {
    const emulator::Exchanged<Operands> all(own);
    const int g = emulator::current->lane / 4, c = emulator::current->lane % 4;
    for (float& sum : x) sum = 0.0f;
    for (int k = 0; k < depth; k += 2) {
      const Operands rows = all.of(4 * g + k % 8 / 2);
      const uint32_t a[2] = {rows.a[k / 8 * 2], rows.a[k / 8 * 2 + 1]};
      for (int column = 0; column < 2; ++column) {
        const uint32_t b = all.of(4 * (2 * c + column) + k % 8 / 2).b[k / 8];
        for (int i = 0; i < 2; ++i) {
          x[2 * i + column] += half_of(a[i], 0) * half_of(b, 0) + half_of(a[i], 1) * half_of(b, 1);
        }
      }
    }
  }
};

inline void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  const LaneProduct product({{a0, a1, a2, a3}, {b0, b1}}, 16);
  for (int i = 0; i < 4; ++i) c[i] += product.x[i];
}

inline void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  const LaneProduct product({{a0, a1, 0, 0}, {b0, 0}}, 8);
  for (int i = 0; i < 4; ++i) c[i] += product.x[i];
}

inline uint32_t halves_of(float low, float high) {
  return float_to_half(low) | static_cast<uint32_t>(float_to_half(high)) << 16;
}

inline void add_mma_halves(uint32_t& c0, uint32_t& c1, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                           uint32_t b1) {
  const LaneProduct product({{a0, a1, a2, a3}, {b0, b1}}, 16);
  c0 = halves_of(half_of(c0, 0) + product.x[0], half_of(c0, 1) + product.x[1]);
  c1 = halves_of(half_of(c1, 0) + product.x[2], half_of(c1, 1) + product.x[3]);
}

inline void mma_halves(uint32_t& c0, uint32_t& c1, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                       uint32_t b1) {
  c0 = c1 = 0;
  add_mma_halves(c0, c1, a0, a1, a2, a3, b0, b1);
}

inline uint32_t shared_address(const void* p) { return emulator::shared_address(p); }

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define KVQUANT_WARPGROUP_MMA 1

inline uint64_t operand_at(const void* begin, int row_step, int column_step) {
  return (shared_address(begin) & 0x3ffffu) >> 4 | static_cast<uint64_t>(row_step >> 4) << 16 |
         static_cast<uint64_t>(column_step >> 4) << 32;
}
inline uint64_t swizzled_operand(const void* begin) {
  return (shared_address(begin) & 0x3ffffu) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
inline void begin_products() { __syncwarp(); }
inline void commit_products() { __syncwarp(); }
inline void wait_products() {
  __syncwarp();
  emulator::wait_products();
}
template <int n>
void settle(float (&)[n][4]) {}
template <int transposed = 0>
void warpgroup_mma(float (&c)[16][4], uint64_t a, uint64_t b, int add) {
  emulator::warpgroup_mma(c, a, b, add != 0, transposed != 0);
}
#endif

template <int count>
void take_registers() {}
template <int count>
void give_registers() {}
inline void publish_operands() {}

/// Element [row][column] of an 8 x 8 matrix of halves whose rows were given by their addresses.
inline uint32_t element_of_row(const void* row, int column) { return static_cast<const uint16_t*>(row)[column]; }

inline uint32_t transpose8x8(uint32_t x) {
  const emulator::Exchanged<uint32_t> all(x);
  const int g = emulator::current->lane / 4, c = emulator::current->lane % 4;
  const auto element = [&](int row) { return all.of(4 * row + g / 2) >> (g % 2 * 16) & 0xffffu; };
  return element(2 * c) | element(2 * c + 1) << 16;
}

inline emulator::Exchanged<const void*> exchange_rows(const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    emulator::fail_block("a matrix's row is not at a multiple of 16 bytes");
  return emulator::Exchanged<const void*>(row);
}
inline void load_matrices(uint32_t (&x)[4], const void* row) {
  const auto rows = exchange_rows(row);
  const int g = emulator::current->lane / 4, c = emulator::current->lane % 4;
  for (int i = 0; i < 4; ++i) {
    const void* own = rows.of(8 * i + g);
    x[i] = element_of_row(own, 2 * c) | element_of_row(own, 2 * c + 1) << 16;
  }
}
inline void load_transposed(uint32_t (&x)[4], const void* row) {
  const auto rows = exchange_rows(row);
  const int g = emulator::current->lane / 4, c = emulator::current->lane % 4;
  for (int i = 0; i < 4; ++i) {
    x[i] = element_of_row(rows.of(8 * i + 2 * c), g) | element_of_row(rows.of(8 * i + 2 * c + 1), g) << 16;
  }
}

inline void copy_aligned(void* to, const void* from, int bytes) {
  const uintptr_t addresses = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if (addresses % static_cast<uintptr_t>(bytes) != 0) emulator::fail_block("a copy is not aligned");
  shared_address(to);
  emulator::copy_async(to, from, bytes);
}
inline void copy_async(void* to, const void* from) { copy_aligned(to, from, 16); }
inline void copy_eight(void* to, const void* from) { copy_aligned(to, from, 8); }
template <int to_offset, int from_offset>
void copy_async(void* to, const void* from) {
  copy_async(static_cast<char*>(to) + to_offset, static_cast<const char*>(from) + from_offset);
}
inline void commit_copies() { emulator::commit_copies(); }
template <int groups>
void wait_copies() {
  emulator::wait_copies(groups);
}

inline void set_arrivals(uint64_t* barrier, int count) { emulator::set_arrivals(barrier, count); }
inline void arrive(uint64_t* barrier) { emulator::arrive(barrier); }
inline void arrive_copied(uint64_t* barrier) { emulator::arrive_copied(barrier); }
inline void wait_arrivals(uint64_t* barrier, int phase) { emulator::wait_arrivals(barrier, phase); }

#if __CUDA_ARCH__ >= 900
#define KVQUANT_BULK_COPIES 1
inline void expect_bytes(uint64_t* barrier, int bytes) { emulator::expect_bytes(barrier, bytes); }
inline void copy_bulk(uint32_t to, const void* from, int bytes, uint64_t* barrier) {
  emulator::copy_bulk(emulator::at_shared_address(to), from, bytes, barrier);
}
#endif

inline void prefetch(const void*) {}
inline void prefetch_far(const void*, int) {}
inline void prefetch_far(const void*) {}
inline int peek(const int32_t* from) { return *from; }
inline uint32_t flip_and_mask(uint32_t x, uint32_t flip, uint32_t mask) { return (x ^ flip) & mask; }

template <int threads, int which = 1>
void meet() {
  emulator::meet_block(which, threads, true);
}
template <int threads>
void meet_at(int which) {
  emulator::meet_block(which, threads, true);
}
template <int threads>
void arrive_at(int which) {
  emulator::meet_block(which, threads, false);
}

inline uint32_t permute_bytes(uint32_t x, uint32_t y, uint32_t selector) { return __byte_perm(x, y, selector); }
inline uint32_t halves_towards_zero(float low, float high) {
  return __half_as_ushort(__float2half_rz(low)) | static_cast<uint32_t>(__half_as_ushort(__float2half_rz(high))) << 16;
}
inline float exp2_fast(float x) { return x < -126.0f ? 0.0f : exp2f(x); }
inline void wait_for_previous_kernel() {}
inline void release_next_kernel() {}

}  // namespace kvquant::cuda
