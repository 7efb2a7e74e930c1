/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The operators of namespace kvquant on CUDA, registered as operators.cpp does for the CPU, whose library defines the
// schemas and is loaded first. Work goes to libtorch's current stream; contents of device tensors are not checked,
// since reading them would stop the stream.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <dlfcn.h>

#include <cstdio>

#include "ops/layer_params.h"
#include "ops/tensor.h"

namespace kvquant {
namespace {

constexpr int kStepRows = 64;

/// The current stream of libtorch on a device.
cudaStream_t current_stream(int32_t device) {
  using GetStream = AOTITorchError (*)(int32_t, void**);
  static const auto get_stream = reinterpret_cast<GetStream>(
      dlsym(dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY), "aoti_torch_get_current_cuda_stream"));
  void* stream = nullptr;
  if (get_stream == nullptr || get_stream(device, &stream) != 0) fail("cuda", "libtorch gives no CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) fail(op, std::string("CUDA: ") + cudaGetErrorString(error));
}

struct RopeHeads {
  const void* qkv;         // [tokens, heads + 2 kv heads, head_dim]
  const int32_t* starts;   // [batch + 1]
  const int32_t* lengths;  // [batch, 2]
  const float* rope;       // see core/rope.h
  void *q, *k, *v;         // [heads or kv heads, tokens, head_dim]
  int64_t tokens, batch;
  int heads, kv_heads, head_dim;
};

/// One block a token and head; a thread turns one pair of channels.
template <class Element>
__global__ void rope_heads_kernel(RopeHeads p) {
  const int64_t token = blockIdx.x;
  const int head = blockIdx.y, half = p.head_dim / 2, pair = threadIdx.x;
  int64_t b = 0;
  while (b + 1 < p.batch && p.starts[b + 1] <= token) ++b;
  const int64_t position = p.lengths[2 * b] + token - p.starts[b];
  const auto* x = static_cast<const Element*>(p.qkv) +
                  (token * (p.heads + 2 * p.kv_heads) + head) * static_cast<int64_t>(p.head_dim);
  float first = static_cast<float>(x[pair]), second = static_cast<float>(x[pair + half]);
  const bool turned = head < p.heads + p.kv_heads;
  if (turned) {
    const float* base = p.rope + (kStepRows + position / kStepRows) * p.head_dim;
    const int64_t step = pair * kStepRows + position % kStepRows;
    const float c1 = p.rope[step], s1 = p.rope[half * kStepRows + step];
    const float cos = base[pair] * c1 - base[half + pair] * s1, sin = base[half + pair] * c1 + base[pair] * s1;
    const float a = first, c = second;
    first = a * cos - c * sin;
    second = c * cos + a * sin;
  }
  void* side = head < p.heads ? p.q : turned ? p.k : p.v;
  const int row = head < p.heads ? head : turned ? head - p.heads : head - p.heads - p.kv_heads;
  auto* out = static_cast<Element*>(side) + (row * p.tokens + token) * p.head_dim;
  out[pair] = static_cast<Element>(first);
  out[pair + half] = static_cast<Element>(second);
}

/// rope_heads as in operators.cpp; qkv and the results are FLOAT32, FLOAT16 or BFLOAT16. Of the cache's arguments it
/// uses lengths, rope and params, the last of which must be on the CPU.
void rope_heads_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "rope_heads";
  Tensor qkv(stack[0]), starts(stack[1]), lengths(stack[2]), page_table(stack[3]), exact_table(stack[4]);
  Tensor pages(stack[5]), exact(stack[6]), rope(stack[7]), params_tensor(stack[8]);
  const DType dtype = qkv.dtype();
  qkv.expect(op, "qkv", dtype, 2, DeviceType::kCuda);
  starts.expect(op, "starts", DType::kInt32, 1, DeviceType::kCuda);
  lengths.expect(op, "lengths", DType::kInt32, 2, DeviceType::kCuda);
  rope.expect(op, "rope", DType::kFloat, 3, DeviceType::kCuda);
  const LayerParams& params = *read_params(op, params_tensor);
  const int64_t heads = params.num_heads + 2 * params.num_kv_heads;
  expect_size(op, "qkv", qkv.size(1), heads * params.head_dim, "columns");
  expect_size(op, "starts", starts.size(0), lengths.size(0) + 1, "entries");
  expect_size(op, "rope", rope.size(2), params.head_dim / 2, "pairs of channels");
  const int64_t tokens = qkv.size(0), head_dim = params.head_dim;
  Tensor q = Tensor::empty(dtype, {params.num_heads, tokens, head_dim}, qkv.device());
  Tensor k = Tensor::empty(dtype, {params.num_kv_heads, tokens, head_dim}, qkv.device());
  Tensor v = Tensor::empty(dtype, {params.num_kv_heads, tokens, head_dim}, qkv.device());
  const RopeHeads p{qkv.data<void>(), starts.data<int32_t>(), lengths.data<int32_t>(), rope.data<float>(),
                    q.data<void>(),   k.data<void>(),         v.data<void>(),          tokens,
                    lengths.size(0),  params.num_heads,       params.num_kv_heads,     params.head_dim};
  const dim3 grid(static_cast<unsigned>(tokens), static_cast<unsigned>(heads));
  const cudaStream_t stream = current_stream(qkv.device().index);
  if (tokens > 0 && dtype == DType::kFloat) {
    rope_heads_kernel<float><<<grid, params.head_dim / 2, 0, stream>>>(p);
  } else if (tokens > 0 && dtype == DType::kHalf) {
    rope_heads_kernel<__half><<<grid, params.head_dim / 2, 0, stream>>>(p);
  } else if (tokens > 0 && dtype == DType::kBFloat16) {
    rope_heads_kernel<__nv_bfloat16><<<grid, params.head_dim / 2, 0, stream>>>(p);
  } else if (tokens > 0) {
    fail(op, std::string("qkv must be FLOAT32, FLOAT16 or BFLOAT16, not ") + dtype_name(dtype));
  }
  check_launch(op);
  stack[0] = q.release();
  stack[1] = k.release();
  stack[2] = v.release();
}

const bool registered = [] {
  if (!find_torch_functions()) return false;
  TorchLibraryHandle kernels = nullptr;
  AOTITorchError error = aoti_torch_library_init_impl("kvquant", "CUDA", __FILE__, __LINE__, &kernels);
  error |= aoti_torch_library_impl(kernels, "rope_heads", rope_heads_op);
  if (error != 0) std::fprintf(stderr, "kvquant: libtorch refused to register the CUDA operators\n");
  return error == 0;
}();

}  // namespace
}  // namespace kvquant
