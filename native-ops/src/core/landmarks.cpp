/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "landmarks.h"

#include <cmath>
#include <cstring>
#include <numeric>

#include "parallel.h"

namespace kvquant {
namespace {

/// The upper half of a float, to nearest even: a landmark needs range more than digits, and reads back by a shift.
uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/// q . landmark in eight sums side by side, which compilers turn into vectors.
float dot(const float* q, const uint16_t* landmark, int n) {
  constexpr int lanes = 8;
  float sums[lanes] = {};
  int c = 0;
  for (; c + lanes <= n; c += lanes) {
    for (int i = 0; i < lanes; ++i) {
      const uint32_t bits = static_cast<uint32_t>(landmark[c + i]) << 16;
      float x;
      std::memcpy(&x, &bits, 4);
      sums[i] += q[c + i] * x;
    }
  }
  for (; c < n; ++c) {
    const uint32_t bits = static_cast<uint32_t>(landmark[c]) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    sums[0] += q[c] * x;
  }
  return std::accumulate(sums, sums + lanes, 0.0f);
}

void store_page(const LayerCache& cache, const std::vector<Sink>& sinks, int64_t b, int64_t begin) {
  const int channels = cache.params->channels(), head_dim = cache.params->head_dim;
  std::vector<float> k(static_cast<size_t>(channels) * kPageTokens), v(k.size());
  dequantize(cache, b, begin, begin + kPageTokens, k.data(), v.data());
  bool is_sink[kPageTokens] = {};
  int count = kPageTokens;
  for (const Sink& sink : sinks) {
    if (sink.token < begin || sink.token >= begin + kPageTokens) continue;
    is_sink[sink.token - begin] = true;
    --count;
  }
  auto* landmarks = reinterpret_cast<uint16_t*>(cache.page(b, begin) + cache.page_layout.landmarks);
  for (int h = 0; h < cache.params->num_kv_heads; ++h) {
    for (int c = 0; c < head_dim; ++c) {
      float sum = 0;
      for (int t = 0; t < kPageTokens; ++t) {
        if (!is_sink[t]) sum += k[(h * kPageTokens + t) * head_dim + c];
      }
      landmarks[h * head_dim + c] = to_bfloat16(sum / static_cast<float>(std::max(1, count)));
    }
  }
}

/// Turns scores [pages] into shares of a softmax and raises worth [pages] to them.
void raise_to_shares(std::vector<float>& scores, std::vector<float>& worth) {
  const float highest = *std::max_element(scores.begin(), scores.end());
  float total = 0;
  for (float& score : scores) total += score = std::exp(score - highest);
  for (size_t i = 0; i < scores.size(); ++i) worth[i] = std::max(worth[i], scores[i] / total);
}

}  // namespace

void store_landmarks(const LayerCache& cache, int64_t b, int64_t begin, int64_t end, int64_t length) {
  if (cache.params->sparse_tokens == 0) return;
  const int64_t first = begin / kPageTokens, full = end / kPageTokens;
  if (first >= full) return;
  // Readers take the length that a sequence has when they are called: here, after the append.
  std::vector<int32_t> lengths(cache.lengths, cache.lengths + 2 * cache.batch);
  lengths[2 * b] = static_cast<int32_t>(length);
  LayerCache after = cache;
  after.lengths = lengths.data();
  const std::vector<Sink> sinks = find_sinks(after, b, length);
  parallel_for(full - first, [&](int64_t i) { store_page(after, sinks, b, (first + i) * kPageTokens); });
}

std::vector<int64_t> select_pages(const LayerCache& cache, int64_t b, int first_head, int heads, const float* roped_q,
                                  float scale, int64_t quantized) {
  const LayerParams& params = *cache.params;
  const int64_t all = (quantized + kPageTokens - 1) / kPageTokens;
  const int64_t candidates = std::max<int64_t>(0, quantized - kRecentCoded) / kPageTokens;
  const int64_t wanted = (params.sparse_tokens + int64_t{kPageTokens} - 1) / kPageTokens;
  std::vector<int64_t> pages(static_cast<size_t>(all));
  std::iota(pages.begin(), pages.end(), int64_t{0});
  if (params.sparse_tokens == 0 || wanted >= candidates) return pages;

  std::vector<float> scores(static_cast<size_t>(candidates)), worth(scores.size(), 0.0f);
  for (int g = 0; g < heads * params.queries_per_kv_head(); ++g) {
    const int head = first_head + g / params.queries_per_kv_head();
    for (int64_t p = 0; p < candidates; ++p) {
      const auto* landmarks =
          reinterpret_cast<const uint16_t*>(cache.page(b, p * kPageTokens) + cache.page_layout.landmarks);
      scores[p] = scale * dot(roped_q + g * params.head_dim, landmarks + head * params.head_dim, params.head_dim);
    }
    raise_to_shares(scores, worth);
  }
  const auto better = [&](int64_t i, int64_t j) { return worth[i] > worth[j] || (worth[i] == worth[j] && i < j); };
  std::nth_element(pages.begin(), pages.begin() + wanted, pages.begin() + candidates, better);
  pages.erase(pages.begin() + wanted, pages.begin() + candidates);
  std::sort(pages.begin(), pages.begin() + wanted);
  return pages;
}

}  // namespace kvquant
