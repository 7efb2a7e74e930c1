/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// The operators of namespace kvquant, registered through libtorch's C interface. Shapes, dtypes and ranges are checked
// here.
//
// Every operator on a cache ends with the same seven arguments (CacheArguments):
//   lengths      INT32 [batch, 2]            tokens before this call; tokens from the start without an exact copy
//   page_table   INT32 [batch, columns]      page of tokens 64 i .. 64 i + 63
//   exact_table  INT32 [batch, columns]      sink pages, then the ring of window pages
//   pages        UINT8 [pages, page bytes]
//   exact        UINT8 [exact pages, exact page bytes]
//   rope         FLOAT32 [64 + n, 2, head_dim / 2], see rope.h; covers 64 n positions
//   params       UINT8 [bytes], see layout.h
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "../core/dispatch.h"
#include "../core/linear.h"
#include "../core/massive.h"
#include "../core/parallel.h"
#include "../core/score_bias.h"
#include "cache_arguments.h"
#include "fused.h"
#include "schemas.h"
#include "tensor.h"
#include "weight_tensors.h"

namespace kvquant {
namespace {

int64_t qkv_columns(const LayerParams& params) {
  return static_cast<int64_t>(params.num_heads + 2 * params.num_kv_heads) * params.head_dim;
}

/// Checks that starts [batch + 1] cuts the rows into one run per sequence.
const int32_t* check_starts(const char* op, const Tensor& starts, int64_t batch, int64_t rows) {
  starts.expect(op, "starts", DType::kInt32, 1);
  expect_size(op, "starts", starts.size(0), batch + 1, "entries");
  const auto* data = starts.data<int32_t>();
  expect_range(op, "the first of starts", data[0], 0, 0);
  for (int64_t b = 0; b < batch; ++b) expect_range(op, "an entry of starts", data[b + 1], data[b], rows);
  expect_size(op, "starts", data[batch], rows, "rows at its end");
  return data;
}

/// append(qkv FLOAT32 [tokens, (heads + 2 kv heads) head_dim], starts INT32 [batch + 1], massive_values FLOAT32 [batch,
/// 20], massive_positions INT32 [batch, 20], cache...); while decoding the massive tensors are empty.
void append_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "append";
  Tensor qkv(stack[0]), starts(stack[1]), massive_values(stack[2]), massive_positions(stack[3]);
  CacheArguments arguments(op, stack + 4);
  const LayerCache& cache = arguments.cache;
  qkv.expect(op, "qkv", DType::kFloat, 2);
  expect_size(op, "qkv", qkv.size(1), qkv_columns(*cache.params), "columns");
  NewTokens tokens{qkv.data<float>(), check_starts(op, starts, cache.batch, qkv.size(0)), nullptr, nullptr};
  if (massive_values.numel() > 0) {
    massive_values.expect(op, "massive_values", DType::kFloat, 2);
    massive_positions.expect(op, "massive_positions", DType::kInt32, 2);
    for (const Tensor* t : {&massive_values, &massive_positions}) {
      expect_size(op, "massive entries", t->size(0), cache.batch, "rows");
      expect_size(op, "massive entries", t->size(1), kMassiveEntries, "columns");
    }
    tokens.massive_values = massive_values.data<float>();
    tokens.massive_positions = massive_positions.data<int32_t>();
    for (int64_t i = 0; i < massive_positions.numel(); ++i) {
      expect_range(op, "a massive position", tokens.massive_positions[i], -1, tokens.count(i / kMassiveEntries) - 1);
      if (std::isnan(tokens.massive_values[i])) fail(op, "a massive value is NaN: the layer's input is not finite");
    }
  }
  arguments.expect_room([&](int64_t b) { return tokens.count(b); });
  append(cache, tokens);
}

/// attend(qkv FLOAT32 [batch, (heads + 2 kv heads) head_dim], cache...) -> FLOAT32 [batch, heads head_dim]: attention
/// of the token just appended to every sequence; lengths are those before it was appended.
void attend_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "attend";
  Tensor qkv(stack[0]);
  CacheArguments arguments(op, stack + 1);
  const LayerCache& cache = arguments.cache;
  qkv.expect(op, "qkv", DType::kFloat, 2);
  expect_size(op, "qkv", qkv.size(0), cache.batch, "rows");
  expect_size(op, "qkv", qkv.size(1), qkv_columns(*cache.params), "columns");
  arguments.expect_room([](int64_t) { return int64_t{1}; });
  Tensor out = Tensor::empty(DType::kFloat,
                             {cache.batch, static_cast<int64_t>(cache.params->num_heads) * cache.params->head_dim});
  attend(cache, qkv.data<float>(), out.data<float>());
  stack[0] = out.release();
}

/// append_attend(qkv, starts, cache...) -> FLOAT32 [batch, heads head_dim]: append of a decoding step, then attend.
void append_attend_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "append_attend";
  Tensor qkv(stack[0]), starts(stack[1]);
  CacheArguments arguments(op, stack + 2);
  const LayerCache& cache = arguments.cache;
  qkv.expect(op, "qkv", DType::kFloat, 2);
  expect_size(op, "qkv", qkv.size(0), cache.batch, "rows");
  expect_size(op, "qkv", qkv.size(1), qkv_columns(*cache.params), "columns");
  const NewTokens tokens{qkv.data<float>(), check_starts(op, starts, cache.batch, qkv.size(0)), nullptr, nullptr};
  arguments.expect_room([&](int64_t b) { return tokens.count(b); });
  Tensor out = Tensor::empty(DType::kFloat,
                             {cache.batch, static_cast<int64_t>(cache.params->num_heads) * cache.params->head_dim});
  append(cache, tokens);
  attend(cache, qkv.data<float>(), out.data<float>());
  stack[0] = out.release();
}

/// dequantize(sequence, begin, end, cache...) -> (k, v) FLOAT32 [kv heads, end - begin, head_dim], after RoPE.
void dequantize_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "dequantize";
  const auto sequence = static_cast<int64_t>(stack[0]), begin = static_cast<int64_t>(stack[1]);
  const auto end = static_cast<int64_t>(stack[2]);
  CacheArguments arguments(op, stack + 3);
  const LayerCache& cache = arguments.cache;
  expect_range(op, "sequence", sequence, 0, cache.batch - 1);
  expect_range(op, "end", end, 0, cache.length(sequence));
  expect_range(op, "begin", begin, 0, end);
  arguments.expect_room([](int64_t) { return int64_t{0}; });
  const std::initializer_list<int64_t> sizes{cache.params->num_kv_heads, end - begin, cache.params->head_dim};
  Tensor k = Tensor::empty(DType::kFloat, sizes), v = Tensor::empty(DType::kFloat, sizes);
  dequantize(cache, sequence, begin, end, k.data<float>(), v.data<float>());
  stack[0] = k.release();
  stack[1] = v.release();
}

/// rope_heads(qkv, starts, cache...) -> (q, k, v) FLOAT32 [heads, tokens, head_dim]: the new tokens of a prompt by
/// head, q and k turned to their positions.
void rope_heads_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "rope_heads";
  Tensor qkv(stack[0]), starts(stack[1]);
  CacheArguments arguments(op, stack + 2);
  const LayerCache& cache = arguments.cache;
  const LayerParams& params = *cache.params;
  qkv.expect(op, "qkv", DType::kFloat, 2);
  expect_size(op, "qkv", qkv.size(1), qkv_columns(params), "columns");
  const int32_t* first = check_starts(op, starts, cache.batch, qkv.size(0));
  for (int64_t b = 0; b < cache.batch; ++b) {
    expect_range(op, "a sequence's length", cache.length(b) + first[b + 1] - first[b], 0, cache.rope.positions());
  }
  const int64_t tokens = qkv.size(0), heads = params.num_heads + 2 * params.num_kv_heads, head_dim = params.head_dim;
  Tensor q = Tensor::empty(DType::kFloat, {params.num_heads, tokens, head_dim});
  Tensor k = Tensor::empty(DType::kFloat, {params.num_kv_heads, tokens, head_dim});
  Tensor v = Tensor::empty(DType::kFloat, {params.num_kv_heads, tokens, head_dim});
  const auto* from = qkv.data<float>();
  float *q_out = q.data<float>(), *k_out = k.data<float>(), *v_out = v.data<float>();
  for (int64_t b = 0; b < cache.batch; ++b) {
    parallel_for((first[b + 1] - first[b] + 15) / 16, [&](int64_t chunk) {
      const int64_t begin = first[b] + chunk * 16, end = std::min<int64_t>(begin + 16, first[b + 1]);
      for (int64_t t = begin; t < end; ++t) {
        const int64_t position = cache.length(b) + t - first[b];
        for (int64_t h = 0; h < heads; ++h) {
          const float* x = from + (t * heads + h) * head_dim;
          if (h < params.num_heads) {
            cache.rope.apply(x, position, q_out + (h * tokens + t) * head_dim);
          } else if (h < params.num_heads + params.num_kv_heads) {
            cache.rope.apply(x, position, k_out + ((h - params.num_heads) * tokens + t) * head_dim);
          } else {
            std::copy_n(x, head_dim, v_out + ((h - params.num_heads - params.num_kv_heads) * tokens + t) * head_dim);
          }
        }
      }
    });
  }
  stack[0] = q.release();
  stack[1] = k.release();
  stack[2] = v.release();
}

/// score_bias(q FLOAT32 [heads, tokens, head_dim] after RoPE, params) -> FLOAT32 [heads, tokens]: what is added to the
/// scores of coded keys.
void score_bias_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "score_bias";
  Tensor q(stack[0]), packed(stack[1]);
  const LayerParams& params = *read_params(op, packed);
  q.expect(op, "q", DType::kFloat, 3);
  expect_size(op, "q", q.size(0), params.num_heads, "heads");
  expect_size(op, "q", q.size(2), params.head_dim, "channels");
  const int64_t tokens = q.size(1);
  Tensor out = Tensor::empty(DType::kFloat, {q.size(0), tokens});
  const auto* from = q.data<float>();
  auto* to = out.data<float>();
  for (int64_t i = 0; i < q.size(0) * tokens; ++i) {
    const int head = static_cast<int>(i / tokens / params.queries_per_kv_head());
    to[i] = has_score_bias(params) ? score_bias(params, head, from + i * params.head_dim, params.score_scale) : 0.0f;
  }
  stack[0] = out.release();
}

/// massive_entries(x FLOAT32 [tokens, hidden], starts INT32 [batch + 1]) -> (values FLOAT32, rows INT32) [batch, 20]:
/// for each sequence the largest |entries| of a layer's input and the rows, within the sequence, that own them.
void massive_entries_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "massive_entries";
  Tensor x(stack[0]), starts(stack[1]);
  x.expect(op, "x", DType::kFloat, 2);
  starts.expect(op, "starts", DType::kInt32, 1);
  expect_range(op, "starts' entries", starts.size(0), 1, int64_t{1} << 31);
  const int64_t batch = starts.size(0) - 1;
  const int32_t* first = check_starts(op, starts, batch, x.size(0));
  Tensor values = Tensor::empty(DType::kFloat, {batch, kMassiveEntries});
  Tensor rows = Tensor::empty(DType::kInt32, {batch, kMassiveEntries});
  for (int64_t b = 0; b < batch; ++b) {
    massive_entries(x.data<float>() + first[b] * x.size(1), first[b + 1] - first[b], x.size(1),
                    values.data<float>() + b * kMassiveEntries, rows.data<int32_t>() + b * kMassiveEntries);
  }
  stack[0] = values.release();
  stack[1] = rows.release();
}

/// layout(params) -> INT64 [2]: bytes of a page and of an exact page.
void layout_op(StableIValue* stack, uint64_t, uint64_t) {
  Tensor tensor(stack[0]);
  const LayerParams* params = read_params("layout", tensor);
  Tensor out = Tensor::empty(DType::kInt64, {2});
  out.data<int64_t>()[0] = PageLayout(*params).bytes;
  out.data<int64_t>()[1] = ExactLayout(*params).bytes;
  stack[0] = out.release();
}

/// configure(settings INT32 [2]: threads, variant; -1: leave) -> INT32 [3]: threads, variant in use, best variant here.
void configure_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "configure";
  Tensor settings(stack[0]);
  settings.expect(op, "settings", DType::kInt32, 1);
  expect_size(op, "settings", settings.size(0), 2, "entries");
  const auto* wanted = settings.data<int32_t>();
  if (wanted[0] != -1) {
    expect_range(op, "threads", wanted[0], 1, 1024);
    set_num_threads(wanted[0]);
  }
  if (wanted[1] != -1 && !use_variant(static_cast<Variant>(wanted[1]))) {
    fail(op, "variant " + std::to_string(wanted[1]) + " is not available on this processor; the best is " +
                 std::to_string(static_cast<int>(best_variant())));
  }
  Tensor out = Tensor::empty(DType::kInt32, {3});
  out.data<int32_t>()[0] = num_threads();
  out.data<int32_t>()[1] = static_cast<int32_t>(current_variant());
  out.data<int32_t>()[2] = static_cast<int32_t>(best_variant());
  stack[0] = out.release();
}

/// view_bfloat16(raw INT8 [..., 2 n]) -> BFLOAT16 [..., n] over the same bytes, which must outlive the result: BFLOAT16
/// can not cross DJL's JNI.
void view_bfloat16_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "view_bfloat16";
  Tensor raw(stack[0]);
  raw.expect(op, "raw", DType::kInt8, raw.dim());
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < raw.dim(); ++i) sizes.push_back(raw.size(i));
  if (sizes.empty() || sizes.back() % 2 != 0) fail(op, "raw's last axis must have an even number of bytes");
  sizes.back() /= 2;
  stack[0] = Tensor::wrap(raw.data<void>(), DType::kBFloat16, sizes).release();
}

/// norm_qkv(x FLOAT32 [rows, hidden], norm [hidden], eps, q, k, v [out, hidden], q_bias, k_bias, v_bias [out or 0]) ->
/// FLOAT32 [rows, all outs]: RMS norm, then the three projections side by side.
void norm_qkv_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "norm_qkv";
  Tensor x(stack[0]), norm(stack[1]);
  const auto eps = static_cast<float>(as_double(stack[2]));
  Tensor q(stack[3]), k(stack[4]), v(stack[5]), q_bias(stack[6]), k_bias(stack[7]), v_bias(stack[8]);
  x.expect(op, "x", DType::kFloat, 2);
  const int64_t rows = x.size(0), hidden = x.size(1);
  const Weight weights[] = {read_weight(op, "q", q, &q_bias), read_weight(op, "k", k, &k_bias),
                            read_weight(op, "v", v, &v_bias)};
  int64_t columns = 0;
  for (const Weight& w : weights) {
    expect_size(op, "a projection", w.columns, hidden, "columns");
    columns += w.rows;
  }
  Tensor out = Tensor::empty(DType::kFloat, {rows, columns});
  std::vector<float> normed(static_cast<size_t>(rows * hidden));
  rms_norm(x.data<float>(), rows, read_norm(op, norm, hidden), eps, normed.data());
  auto* to = out.data<float>();
  for (const Weight& w : weights) {
    linear(normed.data(), rows, w, to, columns, false);
    to += w.rows;
  }
  stack[0] = out.release();
}

/// norm_mlp(x FLOAT32 [rows, hidden], norm [hidden], eps, gate, up [inner, hidden], gate_bias, up_bias [inner or 0]) ->
/// FLOAT32 [rows, inner]: RMS norm, silu(gate) * up.
void norm_mlp_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "norm_mlp";
  Tensor x(stack[0]), norm(stack[1]);
  const auto eps = static_cast<float>(as_double(stack[2]));
  Tensor gate(stack[3]), up(stack[4]), gate_bias(stack[5]), up_bias(stack[6]);
  x.expect(op, "x", DType::kFloat, 2);
  const int64_t rows = x.size(0), hidden = x.size(1);
  const Weight g = read_weight(op, "gate", gate, &gate_bias), u = read_weight(op, "up", up, &up_bias);
  expect_size(op, "gate", g.columns, hidden, "columns");
  expect_size(op, "up", u.columns, hidden, "columns");
  expect_size(op, "up", u.rows, g.rows, "rows");
  Tensor out = Tensor::empty(DType::kFloat, {rows, g.rows});
  std::vector<float> normed(static_cast<size_t>(rows * hidden)), gates(static_cast<size_t>(rows * g.rows));
  rms_norm(x.data<float>(), rows, read_norm(op, norm, hidden), eps, normed.data());
  linear(normed.data(), rows, g, gates.data(), g.rows, false);
  linear(normed.data(), rows, u, out.data<float>(), g.rows, false);
  silu_mul(gates.data(), out.data<float>(), rows * g.rows, out.data<float>());
  stack[0] = out.release();
}

/// linear_add(x FLOAT32 [rows, in], weight [out, in], bias [out or 0], residual FLOAT32 [rows, out]) -> FLOAT32 [rows,
/// out].
void linear_add_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "linear_add";
  Tensor x(stack[0]), weight(stack[1]), bias(stack[2]), residual(stack[3]);
  x.expect(op, "x", DType::kFloat, 2);
  const Weight w = read_weight(op, "weight", weight, &bias);
  expect_size(op, "weight", w.columns, x.size(1), "columns");
  residual.expect(op, "residual", DType::kFloat, 2);
  expect_size(op, "residual", residual.size(0), x.size(0), "rows");
  expect_size(op, "residual", residual.size(1), w.rows, "columns");
  Tensor out = Tensor::empty(DType::kFloat, {x.size(0), w.rows});
  std::copy_n(residual.data<float>(), residual.numel(), out.data<float>());
  linear(x.data<float>(), x.size(0), w, out.data<float>(), w.rows, true);
  stack[0] = out.release();
}

/// norm_linear(x FLOAT32 [rows, hidden], norm [hidden], eps, weight [out, hidden]) -> FLOAT32 [rows, out].
void norm_linear_op(StableIValue* stack, uint64_t, uint64_t) {
  const char* op = "norm_linear";
  Tensor x(stack[0]), norm(stack[1]);
  const auto eps = static_cast<float>(as_double(stack[2]));
  Tensor weight(stack[3]);
  x.expect(op, "x", DType::kFloat, 2);
  const Weight w = read_weight(op, "weight", weight, nullptr);
  expect_size(op, "weight", w.columns, x.size(1), "columns");
  Tensor out = Tensor::empty(DType::kFloat, {x.size(0), w.rows});
  std::vector<float> normed(static_cast<size_t>(x.numel()));
  rms_norm(x.data<float>(), x.size(0), read_norm(op, norm, x.size(1)), eps, normed.data());
  linear(normed.data(), x.size(0), w, out.data<float>(), w.rows, false);
  stack[0] = out.release();
}

struct Operator {
  const char* name;
  const char* schema;
  BoxedKernel kernel;
};

const Operator kOperators[] = {
    {"append", kAppendSchema, append_op},
    {"attend", kAttendSchema, attend_op},
    {"append_attend", kAppendAttendSchema, append_attend_op},
    {"dequantize", kDequantizeSchema, dequantize_op},
    {"score_bias", kScoreBiasSchema, score_bias_op},
    {"rope_heads", kRopeHeadsSchema, rope_heads_op},
    {"massive_entries", kMassiveEntriesSchema, massive_entries_op},
    {"layout", "layout(Tensor params) -> Tensor", layout_op},
    {"configure", "configure(Tensor settings) -> Tensor", configure_op},
    {"view_bfloat16", "view_bfloat16(Tensor raw) -> Tensor", view_bfloat16_op},
    {"norm_qkv",
     "norm_qkv(Tensor x, Tensor norm, float eps, Tensor q, Tensor k, Tensor v, Tensor q_bias, Tensor k_bias, Tensor "
     "v_bias) -> Tensor",
     norm_qkv_op},
    {"norm_mlp",
     "norm_mlp(Tensor x, Tensor norm, float eps, Tensor gate, Tensor up, Tensor gate_bias, Tensor up_bias) -> Tensor",
     norm_mlp_op},
    {"linear_add", "linear_add(Tensor x, Tensor weight, Tensor bias, Tensor residual) -> Tensor", linear_add_op},
    {"norm_linear", "norm_linear(Tensor x, Tensor norm, float eps, Tensor weight) -> Tensor", norm_linear_op},
};

/// Registers everything when the library is loaded; the libraries stay registered for the life of the process.
const bool registered = [] {
  if (!find_torch_functions()) return false;
  TorchLibraryHandle definitions = nullptr, kernels = nullptr;
  AOTITorchError error = aoti_torch_library_init_def("kvquant", __FILE__, __LINE__, &definitions);
  error |= aoti_torch_library_init_impl("kvquant", "CPU", __FILE__, __LINE__, &kernels);
  for (const Operator& op : kOperators) {
    error |= aoti_torch_library_def(definitions, op.schema);
    error |= aoti_torch_library_impl(kernels, op.name, op.kernel);
  }
  error |= define_fused(definitions, kernels);
  if (error != 0) std::fprintf(stderr, "kvquant: libtorch refused to register the operators\n");
  return error == 0;
}();

}  // namespace
}  // namespace kvquant
