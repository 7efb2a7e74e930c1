/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The operators of namespace kvquant on CUDA, registered as operators.cpp does for the CPU, whose library defines the
// schemas and is loaded first. Work goes to libtorch's current stream; contents of device tensors are not checked,
// since reading them would stop the stream.
#include <cstdio>

#include "arguments.h"
#include "device_params.h"
#include "launch.cuh"

namespace kvquant::cuda {
namespace {

/// Checks qkv and starts and describes the new tokens.
NewTokens new_tokens(const char* op, const CacheView& view, const Tensor& qkv, const Tensor& starts) {
  const ElementType type = element_type(op, "qkv", qkv);
  qkv.expect(op, "qkv", qkv.dtype(), 2, DeviceType::kCuda);
  expect_size(op, "qkv", qkv.size(1), static_cast<int64_t>(view.heads + 2 * view.kv_heads) * view.head_dim, "columns");
  expect_range(op, "qkv's rows", qkv.size(0), 0, int64_t{1} << 30);
  starts.expect(op, "starts", DType::kInt32, 1, DeviceType::kCuda);
  expect_size(op, "starts", starts.size(0), view.batch + 1, "entries");
  return {qkv.data<void>(), type, starts.data<int32_t>(), static_cast<int>(qkv.size(0)), nullptr, nullptr};
}

/// append as in operators.cpp; qkv is FLOAT32, FLOAT16 or BFLOAT16.
void append_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "append";
  Tensor qkv(stack[0]), starts(stack[1]), massive_values(stack[2]), massive_rows(stack[3]);
  CacheArguments arguments(op, stack + 4);
  NewTokens tokens = new_tokens(op, arguments.view(), qkv, starts);
  if (massive_values.numel() > 0 && arguments.params().sink_policy == SinkPolicy::kMassive) {
    massive_values.expect(op, "massive_values", DType::kFloat, 2, DeviceType::kCuda);
    massive_rows.expect(op, "massive_positions", DType::kInt32, 2, DeviceType::kCuda);
    for (const Tensor* t : {&massive_values, &massive_rows}) {
      expect_size(op, "massive entries", t->size(0), arguments.view().batch, "rows");
      expect_size(op, "massive entries", t->size(1), kMassiveEntries, "columns");
    }
    tokens.massive_values = massive_values.data<float>();
    tokens.massive_rows = massive_rows.data<int32_t>();
  }
  const DeviceScope scope(op, arguments.device().index);
  arguments.find_params(op);
  append(arguments.view(), tokens, current_stream(arguments.device().index));
}

/// massive_entries as in operators.cpp; x is FLOAT32, FLOAT16 or BFLOAT16.
void massive_entries_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "massive_entries";
  Tensor x(stack[0]), starts(stack[1]);
  const ElementType type = element_type(op, "x", x);
  x.expect(op, "x", x.dtype(), 2, DeviceType::kCuda);
  starts.expect(op, "starts", DType::kInt32, 1, DeviceType::kCuda);
  expect_range(op, "starts' entries", starts.size(0), 1, 65536);
  const int64_t batch = starts.size(0) - 1;
  const DeviceScope scope(op, x.device().index);
  Tensor values = Tensor::empty(DType::kFloat, {batch, kMassiveEntries}, x.device());
  Tensor rows = Tensor::empty(DType::kInt32, {batch, kMassiveEntries}, x.device());
  const MassiveEntries entries{
      x.data<void>(),      type, x.size(1), starts.data<int32_t>(), static_cast<int>(batch), values.data<float>(),
      rows.data<int32_t>()};
  massive_entries(entries, current_stream(x.device().index));
  stack[0] = values.release();
  stack[1] = rows.release();
}

/// attend as in operators.cpp; the result has the dtype of qkv.
void attend_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "attend";
  Tensor qkv(stack[0]);
  CacheArguments arguments(op, stack + 1);
  const ElementType type = element_type(op, "qkv", qkv);
  qkv.expect(op, "qkv", qkv.dtype(), 2, DeviceType::kCuda);
  expect_size(op, "qkv", qkv.size(0), arguments.view().batch, "rows");
  expect_size(op, "qkv", qkv.size(1), arguments.columns(), "columns");
  const Device device = arguments.device();
  const DeviceScope scope(op, device.index);
  arguments.find_params(op);
  const CacheView& view = arguments.view();
  const AttentionPlan plan = plan_attention(view, device.index);
  const int64_t rows = static_cast<int64_t>(view.batch) * view.heads;
  Tensor out = Tensor::empty(qkv.dtype(), {view.batch, static_cast<int64_t>(view.heads) * view.head_dim}, device);
  Tensor sums = Tensor::empty(DType::kFloat, {rows, plan.parts, view.head_dim}, device);
  Tensor ranges = Tensor::empty(DType::kFloat, {rows, plan.parts, 2}, device);
  const Attention attention{qkv.data<void>(),   out.data<void>(),      type,       plan.parts,
                            sums.data<float>(), ranges.data<float2>(), plan.direct};
  if (rows > 0) attend(view, plan, attention, current_stream(device.index));
  stack[0] = out.release();
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
  const LayerParams& params = *read_params(op, params_tensor);
  check_lengths(op, lengths, DeviceType::kCuda);
  check_rope(op, rope, params, DeviceType::kCuda);
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
  const LayerParams& params = *read_params(op, packed);
  const ElementType type = element_type(op, "q", q);
  q.expect(op, "q", q.dtype(), 3, DeviceType::kCuda);
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
    {"append", append_op},         {"attend", attend_op},         {"dequantize", dequantize_op},
    {"rope_heads", rope_heads_op}, {"score_bias", score_bias_op}, {"massive_entries", massive_entries_op},
};

const bool registered = [] {
  if (!find_torch_functions()) return false;
  TorchLibraryHandle kernels = nullptr;
  AOTITorchError error = aoti_torch_library_init_impl("kvquant", "CUDA", __FILE__, __LINE__, &kernels);
  for (const Operator& op : kOperators) error |= aoti_torch_library_impl(kernels, op.name, op.kernel);
  if (error != 0) std::fprintf(stderr, "kvquant: libtorch refused to register the CUDA operators\n");
  return error == 0;
}();

}  // namespace
}  // namespace kvquant::cuda
