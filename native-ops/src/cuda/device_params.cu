/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Parameters are tensors on the CPU, since operators read them to choose kernels; kernels need their tables on the
// device. An address says nothing about content, so copies are found by a hash of all bytes: about 5 us for 64 KB,
// beside launches, and nothing when a graph is replayed.
#include <cstring>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "core/codec.h"
#include "device_params.h"
#include "launch.cuh"

namespace kvquant::cuda {
namespace {

/// Four interleaved chains of multiplications, so that they overlap.
uint64_t content_hash(const uint8_t* data, size_t bytes) {
  constexpr uint64_t kFactor = 0x9e3779b97f4a7c15ull;
  uint64_t chains[4] = {1, 2, 3, 4};
  size_t i = 0;
  for (; i + 32 <= bytes; i += 32) {
    for (int lane = 0; lane < 4; ++lane) {
      uint64_t word;
      std::memcpy(&word, data + i + 8 * lane, 8);
      chains[lane] = (chains[lane] ^ word) * kFactor;
      chains[lane] ^= chains[lane] >> 29;
    }
  }
  for (; i < bytes; ++i) chains[0] = (chains[0] ^ data[i]) * kFactor;
  uint64_t hash = bytes;
  for (const uint64_t chain : chains) {
    hash = (hash ^ chain) * kFactor;
    hash ^= hash >> 32;
  }
  return hash;
}

}  // namespace

const uint8_t* device_params(const char* op, const LayerParams& params) {
  static std::mutex mutex;
  static std::map<std::tuple<int, int32_t, uint64_t>, uint8_t*> copies;
  const auto* data = reinterpret_cast<const uint8_t*>(&params);
  const auto bytes = static_cast<size_t>(params.bytes);
  int device = 0;
  check_cuda(op, cudaGetDevice(&device));
  const std::tuple<int, int32_t, uint64_t> key{device, params.bytes, content_hash(data, bytes)};
  const std::lock_guard<std::mutex> lock(mutex);
  uint8_t*& copy = copies[key];
  if (copy == nullptr) {
    std::vector<uint8_t> all(data, data + bytes);
    if (has_group_table(params)) {
      all.resize(group_table_offset(params) + 2 * static_cast<size_t>(params.channels()));
      channel_groups(params, params.keys, reinterpret_cast<uint16_t*>(all.data() + group_table_offset(params)));
    }
    void* memory = nullptr;
    check_cuda(op, cudaMalloc(&memory, all.size()));
    check_cuda(op, cudaMemcpy(memory, all.data(), all.size(), cudaMemcpyHostToDevice));
    copy = static_cast<uint8_t*>(memory);
  }
  return copy;
}

}  // namespace kvquant::cuda
