/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Decode attention written for reading: every token is read back, then softmax(q K') V. The oracle of the fast
// versions.
#include <limits>

#include "attend.h"
#include "landmarks.h"
#include "parallel.h"
#include "score_bias.h"
#include "token_reader.h"

namespace kvquant {
namespace {

/// Online softmax of one query: running maximum, sum of weights, weighted sum of values.
struct QueryState {
  double maximum = -std::numeric_limits<double>::infinity();
  double sum = 0;
  std::vector<double> output;

  void add(double score, const float* v) {
    const double raised = std::max(maximum, score);
    const double keep = std::exp(maximum - raised), weight = std::exp(score - raised);
    sum = sum * keep + weight;
    for (size_t i = 0; i < output.size(); ++i) output[i] = output[i] * keep + weight * v[i];
    maximum = raised;
  }
};

/// Of each query head, the pages that it reads.
std::vector<std::vector<bool>> pages_read(const LayerCache& cache, int64_t b, const float* roped_q, int64_t length) {
  const LayerParams& params = *cache.params;
  const int heads = params.heads_at_once(), queries = heads * params.queries_per_kv_head();
  std::vector<std::vector<bool>> read;
  for (int first = 0; first < params.num_kv_heads; first += heads) {
    std::vector<bool> chosen(static_cast<size_t>(length / kPageTokens + 1));
    const float* q = roped_q + first * params.queries_per_kv_head() * params.head_dim;
    for (int64_t page : select_pages(cache, b, first, heads, q, params.score_scale, cache.quantized(b, length))) {
      chosen[page] = true;
    }
    read.insert(read.end(), queries, chosen);
  }
  return read;
}

void attend_sequence(const LayerCache& cache, int64_t b, const float* qkv, float* out) {
  const LayerParams& params = *cache.params;
  const int head_dim = params.head_dim, per_head = params.queries_per_kv_head();
  const int64_t position = cache.length(b);
  std::vector<float> q(static_cast<size_t>(params.num_heads) * head_dim);
  for (int h = 0; h < params.num_heads; ++h) cache.rope.apply(qkv + h * head_dim, position, q.data() + h * head_dim);

  std::vector<double> biases(params.num_heads);
  for (int h = 0; h < params.num_heads && has_score_bias(params); ++h) {
    biases[h] = score_bias(params, h / per_head, q.data() + h * head_dim, params.score_scale);
  }
  const std::vector<std::vector<bool>> pages = pages_read(cache, b, q.data(), position + 1);
  std::vector<QueryState> states(params.num_heads);
  for (QueryState& state : states) state.output.assign(head_dim, 0.0);
  const TokenReader reader(cache, b, position + 1);
  std::vector<float> k(params.channels()), v(params.channels());
  for (int64_t token = 0; token <= position; ++token) {
    const bool coded = reader.read(token, k.data(), v.data());
    for (int h = 0; h < params.num_heads; ++h) {
      if (coded && !pages[h][token / kPageTokens]) continue;
      const int kv = h / per_head * head_dim;
      double score = 0;
      for (int i = 0; i < head_dim; ++i) score += static_cast<double>(q[h * head_dim + i]) * k[kv + i];
      states[h].add(score * params.score_scale + (coded ? biases[h] : 0), v.data() + kv);
    }
  }
  for (int h = 0; h < params.num_heads; ++h) {
    for (int i = 0; i < head_dim; ++i) out[h * head_dim + i] = static_cast<float>(states[h].output[i] / states[h].sum);
  }
}

}  // namespace

void attend_portable(const LayerCache& cache, const float* qkv, float* out) {
  const LayerParams& params = *cache.params;
  const int64_t row = static_cast<int64_t>(params.num_heads + 2 * params.num_kv_heads) * params.head_dim;
  parallel_for(cache.batch, [&](int64_t b) {
    attend_sequence(cache, b, qkv + b * row, out + b * params.num_heads * params.head_dim);
  });
}

}  // namespace kvquant
