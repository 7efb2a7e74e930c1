/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// CUDA C++ for g++, as far as src/cuda uses it: what nvcc knows by itself, for code that runs in emulator/block.h.
// Comes before all else that sources include, in the place of CUDA's header of this name; types and arithmetic of
// halves are those of CUDA's own headers, whose host versions round as a GPU does.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>

// Some of these use names that mean something else from here on.
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <vector>

#include "emulator/block.h"

/// Runs the kernel before it returns: streams and early starts do not matter.
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  kvquant::emulator::run_blocks(config->gridDim, config->blockDim.x, config->dynamicSmemBytes,
                                [&] { kernel(arguments...); });
  return cudaSuccess;
}

// From here on, since CUDA's headers take it for nvcc.
#define __CUDA_ARCH__ KVQUANT_EMULATED_ARCH
#if KVQUANT_EMULATED_ARCH == 900
#define __CUDA_ARCH_FEAT_SM90_ALL 1
#endif

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __noinline__
#define __noinline__ __attribute__((noinline))
#undef __shared__
#define __shared__ static thread_local  // blocks of a thread of the operating system run one after another
#define threadIdx (kvquant::emulator::current->index)

using std::isinf;
using std::isnan;

// Of two types, as CUDA's overloads convert them.
template <class A, class B>
constexpr auto min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return std::min<T>(a, b);
}
template <class A, class B>
constexpr auto max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return std::max<T>(a, b);
}

// Arithmetic. The compiler contracts no multiplication and addition here.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __saturatef(float x) { return x > 0.0f ? fminf(x, 1.0f) : 0.0f; }

inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  const auto one = [](float x, float y, float z) {
    return __double2half(static_cast<double>(x) * y + static_cast<double>(z));
  };
  return __halves2half2(one(__low2float(a), __low2float(b), __low2float(c)),
                        one(__high2float(a), __high2float(b), __high2float(c)));
}

// Bits.
template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "all bits");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
inline float __uint_as_float(uint32_t x) { return bits_as<float>(x); }
inline float __int_as_float(int x) { return bits_as<float>(x); }
inline uint32_t __float_as_uint(float x) { return bits_as<uint32_t>(x); }
inline int __float_as_int(float x) { return bits_as<int>(x); }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (shift % 32));
}
inline uint32_t __funnelshift_rc(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> std::min(shift, 32u));
}
inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) << (shift % 32) >> 32);
}
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t which = selector >> (4 * i);
    uint32_t byte = static_cast<uint32_t>(bytes >> (which % 8 * 8)) & 0xffu;
    if ((which & 8) != 0) byte = byte >> 7 != 0 ? 0xffu : 0u;  // its sign
    result |= byte << (8 * i);
  }
  return result;
}

// Memory. Threads give way only where they wait, so that these need nothing more.
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T, class Change>
T emulate_atomic(T* p, Change change) {
  const T before = *p;
  *p = change(before);
  return before;
}
template <class T, class Operand>
T atomicAdd(T* p, Operand x) {
  return emulate_atomic(p, [x](T y) { return static_cast<T>(y + x); });
}
template <class T, class Operand>
T atomicMin(T* p, Operand x) {
  return emulate_atomic(p, [x](T y) { return std::min<T>(y, x); });
}
template <class T, class Operand>
T atomicMax(T* p, Operand x) {
  return emulate_atomic(p, [x](T y) { return std::max<T>(y, x); });
}
template <class T, class Operand>
T atomicXor(T* p, Operand x) {
  return emulate_atomic(p, [x](T y) { return static_cast<T>(y ^ x); });
}
inline size_t __cvta_generic_to_shared(const void* p) { return kvquant::emulator::shared_address(p); }
inline void* __cvta_shared_to_generic(size_t address) {
  return kvquant::emulator::at_shared_address(static_cast<uint32_t>(address));
}

// Warps and blocks. All lanes that have not ended take part.
inline void expect_all_lanes(uint32_t mask) {
  if (mask != 0xffffffffu) kvquant::emulator::fail_block("some lanes of a warp would meet, which is not emulated");
}
template <class T>
kvquant::emulator::Exchanged<T> exchange_all(uint32_t mask, T own) {
  expect_all_lanes(mask);
  return kvquant::emulator::Exchanged<T>(own);
}
template <class T, class Combine>
T reduce_all(uint32_t mask, T own, Combine combine) {
  const auto all = exchange_all(mask, own);
  T result = all.of(0);
  for (int lane = 1; lane < kvquant::emulator::kWarpLanes; ++lane) result = combine(result, all.of(lane));
  return result;
}
template <class T>
T __shfl_sync(uint32_t mask, T x, int lane) {
  return exchange_all(mask, x).of(lane % kvquant::emulator::kWarpLanes);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T x, int lanes) {
  return exchange_all(mask, x).of(kvquant::emulator::current->lane ^ lanes);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T x, int lanes) {
  const int own = kvquant::emulator::current->lane;
  return exchange_all(mask, x).of(own < lanes ? own : own - lanes);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T x, int lanes) {
  const int own = kvquant::emulator::current->lane;
  return exchange_all(mask, x).of(own + lanes < kvquant::emulator::kWarpLanes ? own + lanes : own);
}
inline uint32_t __reduce_or_sync(uint32_t mask, uint32_t x) { return reduce_all(mask, x, std::bit_or<uint32_t>()); }
template <class T>
T __reduce_min_sync(uint32_t mask, T x) {
  return reduce_all(mask, x, [](T a, T b) { return std::min(a, b); });
}
template <class T>
T __reduce_max_sync(uint32_t mask, T x) {
  return reduce_all(mask, x, [](T a, T b) { return std::max(a, b); });
}
inline uint32_t __ballot_sync(uint32_t mask, bool x) {
  return __reduce_or_sync(mask, static_cast<uint32_t>(x) << kvquant::emulator::current->lane);
}
inline bool __any_sync(uint32_t mask, bool x) { return __ballot_sync(mask, x) != 0; }
inline bool __all_sync(uint32_t mask, bool x) { return !__any_sync(mask, !x); }
inline void __syncwarp(uint32_t mask = 0xffffffffu) { exchange_all(mask, 0); }
inline void __syncthreads() { kvquant::emulator::meet_block(0, 0, true); }
