/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// From tensors to a CacheView.
#include <algorithm>
#include <cmath>

#include "arguments.h"
#include "core/basis.h"
#include "device_params.h"
#include "launch.cuh"
#include "layer_basis.h"

namespace kvquant::cuda {
namespace {

void check_supported(const char* op, const LayerParams& params) {
  if (params.head_dim != 64 && params.head_dim != 128) {
    fail(op, "head_dim " + std::to_string(params.head_dim) + " has no CUDA kernel; allowed: 64, 128; run on the CPU");
  }
}

/// Whether an order leaves each channel within the kv heads that attend_rotated.cu takes together.
bool is_local(const LayerParams& params, const SideParams& side) {
  const int16_t* order = packed_array<int16_t>(params, side.order_offset);
  const int range = kRotatedHeads * params.head_dim;
  int others = 0;
  for (int begin = 0; begin < params.channels(); begin += range) {
    const int end = std::min(begin + range, params.channels());
    for (int place = begin; place < end; ++place) others += order[place] < begin || order[place] >= end;
  }
  return others == 0;
}

/// SideView::level_step.
float level_step(const float* levels, int bits) {
  const int count = 1 << bits;
  const float step = 2.0f * levels[count / 2];
  for (int i = 0; i < count; ++i) {
    if (levels[i] != step * (static_cast<float>(i) - 0.5f * static_cast<float>(count - 1))) return 0.0f;
  }
  return step;
}

SideView side_view(const LayerParams& params, const SideParams& side, const SideLayout& layout) {
  SideView view = {};
  view.format = side.format;
  view.bits = side.bits;
  view.rotated = side.rotation_heads != 0;
  view.rotation_heads = side.rotation_heads;
  view.group_size = side.group_size;
  view.basis_heads = side.basis_heads;
  view.outliers = layout.outliers();
  view.clip = side.clip;
  view.float_zero = side.float_zero != 0;
  view.rounded = is_quantized(side) || params.window > 0;
  view.local_order = side.format == Format::kAffine && side.order_offset != 0 && is_local(params, side);
  view.begin = layout.tile(0, 0);
  view.tile_bytes = static_cast<int>(layout.tile(0, 1) - layout.tile(0, 0));
  view.norms = layout.norms(0, 0);
  view.norm_tile_bytes = layout.norms(1, 0) - layout.norms(0, 0);
  view.outliers_begin = layout.outlier_values(0, 0);
  if (side.format == Format::kNorm) {
    view.level_step = level_step(packed_array<float>(params, side.levels_offset), side.bits);
  }
  for (int run = 0; run < kWidthRuns && side.format == Format::kStatic; ++run) {
    const int place = run * (params.head_dim / kWidthRuns);
    view.width[run] = layout.width(place);
    view.run_begin[run] = static_cast<int>(layout.place(0, 0, place) - layout.tile(0, 0));
  }
  return view;
}

void find_arrays(const uint8_t* params, const SideParams& side, SideView* view) {
  const auto array = [params](int32_t offset) {
    return offset == 0 ? nullptr : reinterpret_cast<const float*>(params + offset);
  };
  view->mean = array(side.mean_offset);
  view->steps = array(side.steps_offset);
  view->levels = array(side.levels_offset);
  view->noise = array(side.noise_offset);
  view->basis = array(side.basis_offset);
  view->inverse = array(side.inverse_offset);
  view->order = reinterpret_cast<const int16_t*>(array(side.order_offset));
}

}  // namespace

DeviceScope::DeviceScope(const char* op, int32_t device) : device_(device) {
  check_cuda(op, cudaGetDevice(&previous_));
  if (previous_ != device_) check_cuda(op, cudaSetDevice(device_));
}

DeviceScope::~DeviceScope() {
  if (previous_ != device_) cudaSetDevice(previous_);
}

ElementType element_type(const char* op, const char* name, const Tensor& tensor) {
  const DType dtype = tensor.dtype();
  if (dtype == DType::kFloat) return ElementType::kFloat32;
  if (dtype == DType::kHalf) return ElementType::kFloat16;
  if (dtype == DType::kBFloat16) return ElementType::kBFloat16;
  fail(op, std::string(name) + " must be FLOAT32, FLOAT16 or BFLOAT16, not " + dtype_name(dtype));
}

CacheView position_view(const char* op, const LayerParams& params, const Tensor& lengths, const Tensor& rope) {
  expect_range(op, "lengths' rows", lengths.size(0), 0, 65535);
  CacheView view = {};
  view.heads = params.num_heads;
  view.kv_heads = params.num_kv_heads;
  view.head_dim = params.head_dim;
  view.score_scale = params.score_scale;
  view.lengths = lengths.data<int32_t>();
  view.rope = rope.data<float>();
  view.rope_rows = rope.size(0);
  view.batch = static_cast<int>(lengths.size(0));
  return view;
}

CacheArguments::CacheArguments(const char* op, const StableIValue* stack)
    : tensors_(stack), params_(checked_params(op, tensors_.params)) {
  tensors_.check(op, *params_, kDeviceType);
  check_supported(op, *params_);
  view_ = position_view(op, *params_, tensors_.lengths, tensors_.rope);
  const PageLayout pages(*params_);
  const ExactLayout exact(*params_);
  view_.window = params_->window;
  view_.sink_policy = params_->sink_policy;
  view_.sink_pages = params_->sink_pages();
  view_.max_sinks = params_->max_sinks;
  view_.keys_pre_rope = params_->keys_pre_rope;
  view_.keys = side_view(*params_, params_->keys, pages.keys);
  view_.values = side_view(*params_, params_->values, pages.values);
  view_.page_bytes = pages.bytes;
  view_.sparse_tokens = params_->sparse_tokens;
  view_.landmarks = pages.landmarks;
  view_.exact_bytes = exact.bytes;
  view_.exact_values = exact.values_begin;
  view_.pages = tensors_.pages.data<uint8_t>();
  view_.exact = tensors_.exact.data<uint8_t>();
  view_.page_table = tensors_.page_table.data<int32_t>();
  view_.exact_table = tensors_.exact_table.data<int32_t>();
  view_.page_columns = static_cast<int>(tensors_.page_table.size(1));
  view_.page_count = static_cast<int>(std::min<int64_t>(tensors_.pages.size(0), INT32_MAX));
  view_.exact_columns = static_cast<int>(tensors_.exact_table.size(1));
  view_.ring = view_.exact_columns - view_.sink_pages;
}

void CacheArguments::find_params(const char* op) {
  const uint8_t* device = device_params(op, *params_);
  find_arrays(device, params_->keys, &view_.keys);
  find_arrays(device, params_->values, &view_.values);
  if (has_group_table(*params_)) {
    view_.keys.groups = reinterpret_cast<const uint16_t*>(device + group_table_offset(*params_));
  }
  if (has_latent_basis(*params_) || has_layer_basis(*params_)) view_.keys.latent = device + latent_offset(*params_);
}

}  // namespace kvquant::cuda
