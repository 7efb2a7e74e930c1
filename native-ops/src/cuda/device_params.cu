/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Parameters are tensors on the CPU, since operators read them to choose kernels; kernels need their tables on the
// device. Whoever owns parameters holds a copy there as long as they live, which their address finds. Without an owner
// an address says nothing about content, and copies are found by a hash of all bytes: about 5 us for 64 KB, beside
// launches, and nothing when a graph is replayed.
#include <cstring>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "core/codec.h"
#include "device_params.h"
#include "latent_rows.h"
#include "launch.cuh"
#include "layer_basis.h"

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

/// The bytes of a copy: the parameters, and the table of groups or the basis as products want it, if there is one.
std::vector<uint8_t> with_tables(const LayerParams& params) {
  const auto* data = reinterpret_cast<const uint8_t*>(&params);
  std::vector<uint8_t> all(data, data + params.bytes);
  if (has_group_table(params)) {
    all.resize(group_table_offset(params) + 2 * static_cast<size_t>(params.channels()));
    channel_groups(params, params.keys, reinterpret_cast<uint16_t*>(all.data() + group_table_offset(params)));
  }
  if (has_latent_basis(params)) {
    all.resize(latent_offset(params) + latent_bytes(params));
    write_latent_basis(params, all.data() + latent_offset(params));
    all.resize(latent_rows_offset(params) + latent_rows_bytes(params));
    write_latent_rows(params, all.data() + latent_rows_offset(params));
  }
  if (has_layer_basis(params)) {
    all.resize(latent_offset(params) + layer_basis_bytes(params));
    write_layer_basis(params, all.data() + latent_offset(params));
  }
  return all;
}

/// A copy that its owner frees.
struct Held {
  int64_t number, bytes;
  Tensor copy;
};

/// Copies by the address of what was copied, and the device.
struct Holder {
  std::mutex mutex;
  std::map<std::pair<const LayerParams*, int32_t>, Held> copies;
  int64_t last_number = 0;
};

/// Never destroyed: libtorch may be gone by then.
Holder& holder() {
  static auto* the_holder = new Holder;
  return *the_holder;
}

const uint8_t* held_params(const LayerParams& params, int32_t device) {
  Holder& held = holder();
  const std::lock_guard<std::mutex> lock(held.mutex);
  const auto found = held.copies.find({&params, device});
  return found == held.copies.end() ? nullptr : found->second.copy.data<uint8_t>();
}

}  // namespace

int64_t hold_params(const char* op, const LayerParams& params, int32_t device) {
  const std::vector<uint8_t> all = with_tables(params);
  Tensor copy = Tensor::empty(DType::kUInt8, {static_cast<int64_t>(all.size())}, {kDeviceType, device});
  cudaStream_t stream = current_stream(device);
  check_cuda(op, cudaMemcpyAsync(copy.data<void>(), all.data(), all.size(), cudaMemcpyHostToDevice, stream));
  check_cuda(op, cudaStreamSynchronize(stream));
  Holder& held = holder();
  const std::lock_guard<std::mutex> lock(held.mutex);
  const int64_t number = ++held.last_number;
  held.copies.erase({&params, device});
  held.copies.emplace(std::make_pair(&params, device), Held{number, params.bytes, std::move(copy)});
  return number;
}

const LayerParams* checked_params(const char* op, const Tensor& params) {
  params.expect(op, "params", DType::kUInt8, 1);
  const auto* address = params.data<const LayerParams>();
  {
    Holder& held = holder();
    const std::lock_guard<std::mutex> lock(held.mutex);
    const auto found = held.copies.lower_bound({address, 0});
    if (found != held.copies.end() && found->first.first == address && found->second.bytes == params.size(0)) {
      return address;
    }
  }
  return read_params(op, params);
}

void drop_params(int64_t number) {
  Holder& held = holder();
  const std::lock_guard<std::mutex> lock(held.mutex);
  for (auto it = held.copies.begin(); it != held.copies.end(); ++it) {
    if (it->second.number == number) {
      held.copies.erase(it);
      return;
    }
  }
}

const uint8_t* device_params(const char* op, const LayerParams& params) {
  static std::mutex mutex;
  static std::map<std::tuple<int, int32_t, uint64_t>, uint8_t*> copies;
  int device = 0;
  check_cuda(op, cudaGetDevice(&device));
  if (const uint8_t* held = held_params(params, device)) return held;
  const auto* data = reinterpret_cast<const uint8_t*>(&params);
  const std::tuple<int, int32_t, uint64_t> key{device, params.bytes,
                                               content_hash(data, static_cast<size_t>(params.bytes))};
  const std::lock_guard<std::mutex> lock(mutex);
  uint8_t*& copy = copies[key];
  if (copy == nullptr) {
    const std::vector<uint8_t> all = with_tables(params);
    void* memory = nullptr;
    check_cuda(op, cudaMalloc(&memory, all.size()));
    check_cuda(op, cudaMemcpy(memory, all.data(), all.size(), cudaMemcpyHostToDevice));
    copy = static_cast<uint8_t*>(memory);
  }
  return copy;
}

}  // namespace kvquant::cuda
