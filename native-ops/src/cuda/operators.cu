/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The operators of namespace kvquant on CUDA, registered as operators.cpp does for the CPU, whose library defines the
// schemas and is loaded first. Work goes to libtorch's current stream; contents of device tensors are not checked,
// since reading them would stop the stream.
#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>
#include <vector>

#include "arguments.h"
#include "device_params.h"
#include "fused_ops.h"
#include "launch.cuh"

namespace kvquant::cuda {
namespace {

/// Checks qkv and starts and describes the new tokens.
NewTokens new_tokens(const char* op, const CacheView& view, const Tensor& qkv, const Tensor& starts) {
  const ElementType type = element_type(op, "qkv", qkv);
  qkv.expect(op, "qkv", qkv.dtype(), 2, kDeviceType);
  expect_size(op, "qkv", qkv.size(1), static_cast<int64_t>(view.heads + 2 * view.kv_heads) * view.head_dim, "columns");
  expect_range(op, "qkv's rows", qkv.size(0), 0, int64_t{1} << 30);
  starts.expect(op, "starts", DType::kInt32, 1, kDeviceType);
  expect_size(op, "starts", starts.size(0), view.batch + 1, "entries");
  return {qkv.data<void>(), type, starts.data<int32_t>(), static_cast<int>(qkv.size(0)), nullptr, nullptr};
}

void append_with_landmarks(const CacheArguments& arguments, const NewTokens& tokens) {
  const CacheView& view = arguments.view();
  cudaStream_t stream = current_stream(arguments.device().index);
  append(view, tokens, stream);
  if (view.sparse_tokens > 0 && tokens.count > 0) store_landmarks(view, tokens, stream);
}

/// append as in operators.cpp; qkv is FLOAT32, FLOAT16 or BFLOAT16.
void append_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "append";
  Tensor qkv(stack[0]), starts(stack[1]), massive_values(stack[2]), massive_rows(stack[3]);
  CacheArguments arguments(op, stack + 4);
  NewTokens tokens = new_tokens(op, arguments.view(), qkv, starts);
  if (massive_values.numel() > 0 && arguments.params().sink_policy == SinkPolicy::kMassive) {
    massive_values.expect(op, "massive_values", DType::kFloat, 2, kDeviceType);
    massive_rows.expect(op, "massive_positions", DType::kInt32, 2, kDeviceType);
    for (const Tensor* t : {&massive_values, &massive_rows}) {
      expect_size(op, "massive entries", t->size(0), arguments.view().batch, "rows");
      expect_size(op, "massive entries", t->size(1), kMassiveEntries, "columns");
    }
    tokens.massive_values = massive_values.data<float>();
    tokens.massive_rows = massive_rows.data<int32_t>();
  }
  const DeviceScope scope(op, arguments.device().index);
  arguments.find_params(op);
  append_with_landmarks(arguments, tokens);
}

/// massive_entries as in operators.cpp; x is FLOAT32, FLOAT16 or BFLOAT16.
void massive_entries_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "massive_entries";
  Tensor x(stack[0]), starts(stack[1]);
  const ElementType type = element_type(op, "x", x);
  x.expect(op, "x", x.dtype(), 2, kDeviceType);
  starts.expect(op, "starts", DType::kInt32, 1, kDeviceType);
  expect_range(op, "starts' entries", starts.size(0), 1, 65536);
  const int64_t batch = starts.size(0) - 1;
  const DeviceScope scope(op, x.device().index);
  Tensor values = Tensor::empty(DType::kFloat, {batch, kMassiveEntries}, x.device());
  Tensor rows = Tensor::empty(DType::kInt32, {batch, kMassiveEntries}, x.device());
  constexpr int64_t kPartElements = 1 << 15, kMostParts = 256;
  const int64_t elements = x.numel() / std::max<int64_t>(1, batch);
  const int64_t parts = std::max<int64_t>(1, std::min(kMostParts, elements / kPartElements));
  Tensor part_values = Tensor::empty(DType::kFloat, {batch * parts * kMassiveEntries}, x.device());
  Tensor part_owners = Tensor::empty(DType::kInt32, {batch * parts * kMassiveEntries}, x.device());
  const MassiveEntries entries{x.data<void>(),
                               type,
                               x.size(1),
                               starts.data<int32_t>(),
                               static_cast<int>(batch),
                               static_cast<int>(parts),
                               part_values.data<float>(),
                               part_owners.data<int32_t>(),
                               values.data<float>(),
                               rows.data<int32_t>()};
  massive_entries(entries, current_stream(x.device().index));
  stack[0] = values.release();
  stack[1] = rows.release();
}

/// What decides a plan; nothing else of a view does.
using PlanKey = std::array<int64_t, 15>;

PlanKey plan_key(const CacheView& view, int device) {
  const auto side = [](const SideView& v) {
    int64_t key = static_cast<int64_t>(v.format) << 32 | v.bits << 16 | v.rotation_heads << 8 | v.outliers;
    key = key * 31 + v.group_size * 2 + (v.order != nullptr ? 1 : 0);
    key = key * 31 + v.basis_heads;
    for (const int width : v.width) key = key * 31 + width;
    return key;
  };
  return {device,
          view.batch,
          view.page_columns,
          view.exact_columns,
          view.page_bytes,
          view.exact_bytes,
          static_cast<int64_t>(view.heads) << 16 | view.kv_heads,
          view.head_dim,
          static_cast<int64_t>(view.window) << 8 | view.sink_pages,
          view.ring,
          (attend_int_supports(view) ? 1 : 0) | (attend_rotated_supports(view) ? 2 : 0) |
              (attend_codebook_supports(view) ? 4 : 0) | (attend_latent_supports(view) ? 8 : 0),
          side(view.keys),
          side(view.values),
          view.keys_pre_rope,
          static_cast<int64_t>(view.sparse_tokens) << 1 | (attend_rebuilt_supports(view) ? 1 : 0)};
}

/// Layers of a step have the same plan, and to find it takes longer than a launch.
AttentionPlan remembered_plan(const CacheView& view, int device) {
  constexpr size_t kRemembered = 4;
  static thread_local std::vector<std::pair<PlanKey, AttentionPlan>> plans;
  const PlanKey key = plan_key(view, device);
  for (const auto& known : plans) {
    if (known.first == key) return known.second;
  }
  if (plans.size() == kRemembered) plans.erase(plans.begin());
  plans.emplace_back(key, plan_attention(view, device));
  return plans.back().second;
}

void check_queries(const char* op, const CacheArguments& arguments, const Tensor& qkv) {
  qkv.expect(op, "qkv", qkv.dtype(), 2, kDeviceType);
  expect_size(op, "qkv", qkv.size(0), arguments.view().batch, "rows");
  expect_size(op, "qkv", qkv.size(1), arguments.columns(), "columns");
}

/// The parameters have been found and qkv is checked.
Tensor attention(const char* op, const CacheArguments& arguments, const Tensor& qkv) {
  const ElementType type = element_type(op, "qkv", qkv);
  const Device device = arguments.device();
  const CacheView& view = arguments.view();
  const AttentionPlan plan = remembered_plan(view, device.index);
  const int64_t parts = static_cast<int64_t>(view.batch) * view.heads * plan.parts;
  Tensor out = Tensor::empty(qkv.dtype(), {view.batch, static_cast<int64_t>(view.heads) * view.head_dim}, device);
  Tensor scratch = Tensor::empty(DType::kFloat, {parts * (view.head_dim + 2)}, device);
  auto* sums = scratch.data<float>();
  auto* ranges = reinterpret_cast<float2*>(sums + parts * view.head_dim);
  Attention description{qkv.data<void>(), out.data<void>(), type, plan.parts, sums, ranges, plan.direct, {}};
  if (parts == 0) return out;
  if (view.sparse_tokens > 0) {
    const int heads = heads_at_once(view), stride = 1 + pages_read(view);
    const int64_t lists = static_cast<int64_t>(view.batch) * (view.kv_heads / heads) * stride;
    Tensor chosen = Tensor::empty(DType::kInt32, {lists}, device);
    Tensor scores =
        Tensor::empty(DType::kFloat, {static_cast<int64_t>(view.batch) * view.heads * view.page_columns}, device);
    // Freed memory is used again by what runs later on this stream.
    description.choice = {chosen.data<int32_t>(), stride, heads, scores.data<float>()};
    attend(view, plan, description, current_stream(device.index));
    return out;
  }
  attend(view, plan, description, current_stream(device.index));
  return out;
}

/// attend as in operators.cpp; the result has the dtype of qkv.
void attend_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "attend";
  Tensor qkv(stack[0]);
  CacheArguments arguments(op, stack + 1);
  check_queries(op, arguments, qkv);
  const DeviceScope scope(op, arguments.device().index);
  arguments.find_params(op);
  stack[0] = attention(op, arguments, qkv).release();
}

/// append_attend as in operators.cpp; the result has the dtype of qkv.
void append_attend_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "append_attend";
  Tensor qkv(stack[0]), starts(stack[1]);
  CacheArguments arguments(op, stack + 2);
  const NewTokens tokens = new_tokens(op, arguments.view(), qkv, starts);
  check_queries(op, arguments, qkv);
  const DeviceScope scope(op, arguments.device().index);
  arguments.find_params(op);
  append_with_landmarks(arguments, tokens);
  stack[0] = attention(op, arguments, qkv).release();
}

/// dequantize as in operators.cpp; k and v are FLOAT16, or FLOAT32 if that is how one of them is stored.
void dequantize_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "dequantize";
  const auto sequence = static_cast<int64_t>(stack[0]), begin = static_cast<int64_t>(stack[1]);
  const auto end = static_cast<int64_t>(stack[2]);
  CacheArguments arguments(op, stack + 3);
  expect_range(op, "sequence", sequence, 0, arguments.view().batch - 1);
  expect_range(op, "end", end, 0, int64_t{1} << 30);
  expect_range(op, "begin", begin, 0, end);
  const Device device = arguments.device();
  const DeviceScope scope(op, device.index);
  arguments.find_params(op);
  const CacheView& view = arguments.view();
  const bool wide = view.keys.format == Format::kFloat32 || view.values.format == Format::kFloat32;
  const DType dtype = wide ? DType::kFloat : DType::kHalf;
  Tensor k = Tensor::empty(dtype, {view.kv_heads, end - begin, view.head_dim}, device);
  Tensor v = Tensor::empty(dtype, {view.kv_heads, end - begin, view.head_dim}, device);
  const Rows rows{static_cast<int>(sequence),
                  static_cast<int>(begin),
                  static_cast<int>(end),
                  wide ? ElementType::kFloat32 : ElementType::kFloat16,
                  k.data<void>(),
                  v.data<void>()};
  dequantize(view, rows, current_stream(device.index));
  stack[0] = k.release();
  stack[1] = v.release();
}

/// rope_heads as in operators.cpp; the results have the dtype of qkv. Of the cache's arguments it uses lengths, rope
/// and params.
void rope_heads_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "rope_heads";
  Tensor qkv(stack[0]), starts(stack[1]), lengths(stack[2]), page_table(stack[3]), exact_table(stack[4]);
  Tensor pages(stack[5]), exact(stack[6]), rope(stack[7]), params_tensor(stack[8]);
  element_type(op, "qkv", qkv);
  const LayerParams& params = *checked_params(op, params_tensor);
  check_lengths(op, lengths, kDeviceType);
  check_rope(op, rope, params, kDeviceType);
  const CacheView view = position_view(op, params, lengths, rope);
  const NewTokens tokens = new_tokens(op, view, qkv, starts);
  const DeviceScope scope(op, qkv.device().index);
  Tensor q = Tensor::empty(qkv.dtype(), {view.heads, tokens.count, view.head_dim}, qkv.device());
  Tensor k = Tensor::empty(qkv.dtype(), {view.kv_heads, tokens.count, view.head_dim}, qkv.device());
  Tensor v = Tensor::empty(qkv.dtype(), {view.kv_heads, tokens.count, view.head_dim}, qkv.device());
  rope_heads(view, {tokens, q.data<void>(), k.data<void>(), v.data<void>()}, current_stream(qkv.device().index));
  stack[0] = q.release();
  stack[1] = k.release();
  stack[2] = v.release();
}

/// score_bias as in operators.cpp; the result is FLOAT32.
void score_bias_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "score_bias";
  Tensor q(stack[0]), packed(stack[1]);
  const LayerParams& params = *checked_params(op, packed);
  const ElementType type = element_type(op, "q", q);
  q.expect(op, "q", q.dtype(), 3, kDeviceType);
  expect_size(op, "q", q.size(0), params.num_heads, "heads");
  expect_size(op, "q", q.size(2), params.head_dim, "channels");
  const DeviceScope scope(op, q.device().index);
  CacheView view = {};
  view.heads = params.num_heads;
  view.kv_heads = params.num_kv_heads;
  view.head_dim = params.head_dim;
  view.score_scale = params.score_scale;
  if (params.keys.noise_offset != 0) {
    view.keys.noise = reinterpret_cast<const float*>(device_params(op, params) + params.keys.noise_offset);
  }
  Tensor out = Tensor::empty(DType::kFloat, {q.size(0), q.size(1)}, q.device());
  score_bias(view, {q.data<void>(), type, q.size(1), out.data<float>()}, current_stream(q.device().index));
  stack[0] = out.release();
}

struct Operator {
  const char* name;
  BoxedKernel kernel;
};

const Operator kOperators[] = {
    {"append", append_op},
    {"attend", attend_op},
    {"append_attend", append_attend_op},
    {"dequantize", dequantize_op},
    {"rope_heads", rope_heads_op},
    {"score_bias", score_bias_op},
    {"massive_entries", massive_entries_op},
};

const bool registered = [] {
  if (!find_torch_functions()) return false;
  TorchLibraryHandle kernels = nullptr;
  AOTITorchError error = aoti_torch_library_init_impl(kNamespace, kDispatchKey, __FILE__, __LINE__, &kernels);
  for (const Operator& op : kOperators) error |= aoti_torch_library_impl(kernels, op.name, op.kernel);
  error |= register_fused(kernels);
  if (error != 0) std::fprintf(stderr, "kvquant: libtorch refused to register the CUDA operators\n");
  return error == 0;
}();

}  // namespace
}  // namespace kvquant::cuda
