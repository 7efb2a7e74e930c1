/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The instructions that CUDA C++ has no name for, each as a function; nothing else in this folder holds assembly.
#pragma once
#ifdef KVQUANT_EMULATED
#include "emulator/ptx.h"
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace kvquant::cuda {

/// Dynamic shared memory of a kernel, bytes.
#define KVQUANT_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

/// c [16, 8] += a [16, 16] b [16, 8]. Lane 4 g + c holds rows g and g + 8 of a and c, column g of b. The fp32
/// accumulator is truncated, not rounded: sums of many terms of one sign drift.
__device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// c [16, 8] += a [16, 8] b [8, 8].
__device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b0));
}

/// c [16, 8] = a [16, 16] b [16, 8] in halves: c0 holds two elements of row g, c1 of row g + 8.
__device__ __forceinline__ void mma_halves(uint32_t& c0, uint32_t& c1, uint32_t a0, uint32_t a1, uint32_t a2,
                                           uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0,%1},{%2,%3,%4,%5},{%6,%7},{%8,%8};"
      : "=r"(c0), "=r"(c1)
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "r"(0));
}

/// The same, added to c.
__device__ __forceinline__ void add_mma_halves(uint32_t& c0, uint32_t& c1, uint32_t a0, uint32_t a1, uint32_t a2,
                                               uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0,%1},{%2,%3,%4,%5},{%6,%7},{%0,%1};"
      : "+r"(c0), "+r"(c1)
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/// Hopper's product of a warpgroup with a second operand in shared memory; elsewhere absent.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define KVQUANT_WARPGROUP_MMA 1

/// Where a second operand [16, 8 n] lies in shared memory: blocks of 8 columns and 8 rows, 128 bytes, a column's 8 rows
/// together. row_step, column_step: bytes from a block to the next in either direction.
__device__ __forceinline__ uint64_t operand_at(const void* begin, int row_step, int column_step) {
  return (static_cast<uint64_t>(shared_address(begin)) & 0x3ffffu) >> 4 | static_cast<uint64_t>(row_step >> 4) << 16 |
         static_cast<uint64_t>(column_step >> 4) << 32;
}

/// Where an operand lies whose rows, along the sum, are 128 bytes each, eight chunks of 16 bytes, that of index i of
/// row r at i ^ r % 8; begin: of a row whose number is a multiple of 8, at a multiple of 1024, plus 32 for each 16
/// elements.
__device__ __forceinline__ uint64_t swizzled_operand(const void* begin) {
  return (static_cast<uint64_t>(shared_address(begin)) & 0x3ffffu) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

/// Registers and shared memory that were written may be read by products from here on.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

/// Ends a group of products.
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// Waits for all groups.
__device__ __forceinline__ void wait_products() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }

/// Keeps reads of sums behind what comes before, which the compiler does not know to write them.
template <int n>
__device__ __forceinline__ void settle(float (&c)[n][4]) {
#pragma unroll
  for (int i = 0; i < n * 4; ++i) asm volatile("" : "+f"(c[i / 4][i % 4])::"memory");
}

/// c [64, 128] += a [64, 16] b [16, 128], both in shared memory, a warp 16 rows: c[i] is what mma has of columns 8 i to
/// 8 i + 7. add = 0: c is not read. transposed: a's rows lie along columns of what swizzled_operand has; begin then is
/// of a multiple of 8 columns.
template <int transposed = 0>
__device__ __forceinline__ void warpgroup_mma(float (&c)[16][4], uint64_t a, uint64_t b, int add) {
  asm volatile(
      "{.reg .pred add;setp.ne.b32 add,%66,0;wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"
      ",%64,%65,add,1,1,%67,0;}"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),
        "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),
        "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]),
        "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),
        "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3]), "+f"(c[8][0]), "+f"(c[8][1]), "+f"(c[8][2]),
        "+f"(c[8][3]), "+f"(c[9][0]), "+f"(c[9][1]), "+f"(c[9][2]), "+f"(c[9][3]), "+f"(c[10][0]), "+f"(c[10][1]),
        "+f"(c[10][2]), "+f"(c[10][3]), "+f"(c[11][0]), "+f"(c[11][1]), "+f"(c[11][2]), "+f"(c[11][3]), "+f"(c[12][0]),
        "+f"(c[12][1]), "+f"(c[12][2]), "+f"(c[12][3]), "+f"(c[13][0]), "+f"(c[13][1]), "+f"(c[13][2]), "+f"(c[13][3]),
        "+f"(c[14][0]), "+f"(c[14][1]), "+f"(c[14][2]), "+f"(c[14][3]), "+f"(c[15][0]), "+f"(c[15][1]), "+f"(c[15][2]),
        "+f"(c[15][3])
      : "l"(a), "l"(b), "r"(add), "n"(transposed));
}
#endif

/// Takes registers that other warpgroups have given up, up to so many a thread, or gives up all above; on Hopper.
template <int count>
__device__ __forceinline__ void take_registers() {
#ifdef KVQUANT_WARPGROUP_MMA
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count) : "memory");
#endif
}
template <int count>
__device__ __forceinline__ void give_registers() {
#ifdef KVQUANT_WARPGROUP_MMA
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count) : "memory");
#endif
}

/// What this thread wrote to shared memory may be read by products of warpgroups after a barrier.
__device__ __forceinline__ void publish_operands() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/// Transposes an 8 x 8 matrix of halves: lane 4 g + c gives elements 2 c and 2 c + 1 of row g and gets those of column
/// g.
__device__ __forceinline__ uint32_t transpose8x8(uint32_t x) {
  uint32_t y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0,%1;" : "=r"(y) : "r"(x));
  return y;
}

/// Loads four 8 x 8 matrices of halves, lane i naming row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&x)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(shared_address(row))
               : "memory");
}

/// load_matrices, each matrix transposed.
__device__ __forceinline__ void load_transposed(uint32_t (&x)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(shared_address(row))
               : "memory");
}

/// 16 bytes to shared memory, past L1, without waiting.
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

/// copy_async with offsets in bytes that are part of the instruction.
template <int to_offset, int from_offset>
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0+%2],[%1+%3],16;" ::"r"(shared_address(to)), "l"(from), "n"(to_offset),
               "n"(from_offset)
               : "memory");
}

/// 8 bytes, through L1.
__device__ __forceinline__ void copy_eight(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0],[%1],8;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

/// Ends a group of copies.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until at most so many of this thread's newest groups are under way.
template <int groups>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

/// A barrier in shared memory whose phases, 0 and 1 in turn, end when so many arrivals have come. One thread sets it
/// up; others use it after a barrier of the block.
__device__ __forceinline__ void set_arrivals(uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared.b64 [%0],%1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
__device__ __forceinline__ void arrive(uint64_t* barrier) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state,[%0]; }" ::"r"(shared_address(barrier)) : "memory");
}
/// Arrives when what this thread copies is there.
__device__ __forceinline__ void arrive_copied(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void wait_arrivals(uint64_t* barrier, int phase) {
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
#if __CUDA_ARCH__ >= 900
        "{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p,[%1],%2; selp.u32 %0,1,0,p; }"
#else
        "{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p,[%1],%2; selp.u32 %0,1,0,p; }"
#endif
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(phase)
        : "memory");
  }
}

/// Copies of whole blocks of bytes, by one thread each, that end a phase of a barrier; from Hopper on.
#if __CUDA_ARCH__ >= 900
#define KVQUANT_BULK_COPIES 1

/// Arrives; the phase ends when so many bytes have come too.
__device__ __forceinline__ void expect_bytes(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _,[%0],%1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}

/// Addresses and bytes: multiples of 16.
__device__ __forceinline__ void copy_bulk(uint32_t to, const void* from, int bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0],[%1],%2,[%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}
#endif

/// Fetches a line of 128 bytes to L1 without waiting.
__device__ __forceinline__ void prefetch(const void* line) { asm volatile("prefetch.global.L1 [%0];" ::"l"(line)); }

/// Fetches bytes, a multiple of 16 at such an address, to L2 without waiting.
__device__ __forceinline__ void prefetch_far(const void* from, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0],%1;" ::"l"(from), "r"(bytes) : "memory");
#endif
}

/// Fetches a sector of 32 bytes to L2 without waiting.
__device__ __forceinline__ void prefetch_far(const void* sector) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(sector) : "memory");
}

/// Reads what a kernel that still runs may write: nothing of it stays in L1.
__device__ __forceinline__ int peek(const int32_t* from) {
  int x;
  asm volatile("ld.relaxed.gpu.global.s32 %0,[%1];" : "=r"(x) : "l"(from) : "memory");
  return x;
}

/// (x ^ flip) & mask as one instruction: the compiler would share x ^ flip among masks.
__device__ __forceinline__ uint32_t flip_and_mask(uint32_t x, uint32_t flip, uint32_t mask) {
  uint32_t y;
  asm("lop3.b32 %0,%1,%2,%3,0x28;" : "=r"(y) : "r"(x), "r"(flip), "r"(mask));
  return y;
}

/// A barrier of `threads` of a block that warps may reach at different places of the program, which __syncthreads does
/// not allow.
template <int threads, int which = 1>
__device__ __forceinline__ void meet() {
  asm volatile("barrier.sync %0, %1;" ::"n"(which), "n"(threads) : "memory");
}
/// A barrier named by a variable, which is waited at or only arrived at.
template <int threads>
__device__ __forceinline__ void meet_at(int which) {
  asm volatile("bar.sync %0, %1;" ::"r"(which), "n"(threads) : "memory");
}
template <int threads>
__device__ __forceinline__ void arrive_at(int which) {
  asm volatile("bar.arrive %0, %1;" ::"r"(which), "n"(threads) : "memory");
}

/// __byte_perm of a selector whose four indices are 0 to 7: the compiler would mask each selector.
__device__ __forceinline__ uint32_t permute_bytes(uint32_t x, uint32_t y, uint32_t selector) {
  uint32_t z;
  asm("prmt.b32 %0,%1,%2,%3;" : "=r"(z) : "r"(x), "r"(y), "r"(selector));
  return z;
}

/// Two halves, rounded towards zero.
__device__ __forceinline__ uint32_t halves_towards_zero(float low, float high) {
  uint32_t y;
  asm("cvt.rz.f16x2.f32 %0,%1,%2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}

/// Waits for the results of the kernel before this one, if this one was launched early.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the kernel after this one start, if it was launched early.
__device__ __forceinline__ void release_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace kvquant::cuda
#endif
