/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// What libtorch is told of the operators that have kernels for CUDA.
#pragma once

namespace kvquant {

#define KVQUANT_CACHE                                                                                               \
  "Tensor lengths, Tensor page_table, Tensor exact_table, Tensor(a!) pages, Tensor(b!) exact, Tensor rope, Tensor " \
  "params"
#define KVQUANT_CACHE_READ \
  "Tensor lengths, Tensor page_table, Tensor exact_table, Tensor pages, Tensor exact, Tensor rope, Tensor params"

constexpr char kAppendSchema[] =
    "append(Tensor qkv, Tensor starts, Tensor massive_values, Tensor massive_positions, " KVQUANT_CACHE ") -> ()";
constexpr char kAttendSchema[] = "attend(Tensor qkv, " KVQUANT_CACHE_READ ") -> Tensor";
constexpr char kAppendAttendSchema[] = "append_attend(Tensor qkv, Tensor starts, " KVQUANT_CACHE ") -> Tensor";
constexpr char kDequantizeSchema[] =
    "dequantize(int sequence, int begin, int end, " KVQUANT_CACHE_READ ") -> (Tensor, Tensor)";
constexpr char kScoreBiasSchema[] = "score_bias(Tensor q, Tensor params) -> Tensor";
constexpr char kRopeHeadsSchema[] =
    "rope_heads(Tensor qkv, Tensor starts, " KVQUANT_CACHE_READ ") -> (Tensor, Tensor, Tensor)";
constexpr char kMassiveEntriesSchema[] = "massive_entries(Tensor x, Tensor starts) -> (Tensor, Tensor)";
constexpr char kNormSchema[] = "norm(Tensor x, Tensor weight, float eps) -> Tensor";
constexpr char kGateSchema[] = "gate(Tensor x) -> Tensor";
constexpr char kDeviceInfoSchema[] = "device_info(Tensor device) -> Tensor";
constexpr char kHoldParamsSchema[] = "hold_params(Tensor params, Tensor device) -> Tensor";
constexpr char kDropParamsSchema[] = "drop_params(Tensor number) -> ()";

#undef KVQUANT_CACHE
#undef KVQUANT_CACHE_READ

}  // namespace kvquant
