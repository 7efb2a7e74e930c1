/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#pragma once
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <new>
#include <utility>
#include <vector>

namespace kvquant {

/// Allocates at cache lines: a vector register that straddles two costs two accesses.
template <class T>
struct CacheLineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kAlignment{64};

  CacheLineAllocator() = default;
  template <class U>
  CacheLineAllocator(const CacheLineAllocator<U>&) {}

  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kAlignment)); }
  void deallocate(T* p, size_t) { ::operator delete(p, kAlignment); }
  bool operator==(const CacheLineAllocator&) const { return true; }
  bool operator!=(const CacheLineAllocator&) const { return false; }
};

using AlignedFloats = std::vector<float, CacheLineAllocator<float>>;

/// Points at arrays of so many zeros each, which begin at cache lines, in memory, which grows as needed.
inline void carve(AlignedFloats& memory, std::initializer_list<std::pair<float**, int64_t>> arrays) {
  int64_t total = 0;
  for (const auto& [pointer, size] : arrays) total += (size + 15) / 16 * 16;
  memory.assign(static_cast<size_t>(total), 0.0f);
  float* next = memory.data();
  for (const auto& [pointer, size] : arrays) {
    *pointer = next;
    next += (size + 15) / 16 * 16;
  }
}

}  // namespace kvquant
