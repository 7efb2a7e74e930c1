/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Decode attention with tokens in vector lanes. A task is a run of pages (or the exact pages) of one group of kv heads
// of one sequence; its result is a partial softmax, and the partials are merged in a fixed order, so that the result
// does not depend on the number of threads.
#include <limits>
#include <optional>

#include "../core/aligned.h"
#include "../core/attend.h"
#include "../core/landmarks.h"
#include "../core/parallel.h"
#include "../core/rotation.h"
#include "codebook_values.h"
#include "key_scores.h"
#include "static_keys.h"
#include "stored_side.h"
#include "value_sums.h"

namespace kvquant {
namespace KVQUANT_ISA {
namespace {

/// Pages of a task: 1024 tokens.
constexpr int64_t kTaskPages = 16;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// Kv heads whose keys are read together, and the queries that look at them.
struct HeadGroup {
  HeadGroup(const LayerParams& params, int index)
      : heads(params.heads_at_once()),
        first(index * heads),
        per_head(params.queries_per_kv_head()),
        queries(heads * per_head) {}
  int heads, first, per_head, queries;
};

/// Online softmax of a task, per query: maximum, sum of weights, weighted sum of values [head_dim].
struct Partial {
  float *maximum, *sum, *output;
};

/// What tasks share that read keys in static codes; nullptr: not needed.
template <int head_dim>
struct StaticKeys {
  const StaticReader<head_dim>* reader;
  const StaticScorer<head_dim>* scorer;
};

/// One task in progress.
template <int head_dim>
class Worker {
 public:
  /// exact: the task is about exact pages.
  Worker(const LayerCache& cache, const HeadGroup& group, const float* roped_q, const StaticKeys<head_dim>& static_keys,
         bool exact)
      : cache_(cache),
        group_(group),
        roped_q_(roped_q),
        static_keys_(static_keys),
        sum_width_(!exact && sums_are_reduced(cache.params->values) ? 1 : kLanes) {
    // A thread has one worker at a time. Allocating each array for each task took a tenth of the time.
    static thread_local AlignedFloats memory;
    carve(memory, {{&affine_, 2 * std::max(1, cache.page_layout.keys.groups()) * kLanes},
                   {&keys_, kReadVectors * group.heads * head_dim * kLanes},
                   {&codes_, kReadVectors * group.heads * head_dim * kLanes},
                   {&q_, group.queries * head_dim},
                   {&weights_, group.queries * kPageTokens},
                   {&maximum_, group.queries},
                   {&weight_sums_, group.queries * kLanes},
                   {&sums_, group.queries * head_dim * sum_width_},
                   {&zero_sums_, group.queries * kMaxValueGroups * kLanes}});
    std::fill_n(maximum_, group.queries, kMinusInfinity);
  }

  /// next_page is asked for meanwhile.
  void add_page(int64_t b, int64_t page_index, int64_t next_page, uint64_t valid) {
    if (valid == 0) return;
    const LayerParams& params = *cache_.params;
    const uint8_t* page = cache_.page(b, page_index * kPageTokens);
    const int64_t ahead = cache_.page(b, next_page * kPageTokens) - page;
    if (params.keys.format == Format::kStatic) prefetch_keys(page + ahead);
    if (static_keys_.scorer != nullptr) {
      (*static_keys_.scorer)(page, page_index, weights_);
    } else {
      score_keys(page, page_index, ahead);
    }
    softmax(kPageTokens / kLanes, valid);
    const bool codebook = params.values.format == Format::kCodebook;
    const AddValues add_values = codebook ? codebook_value_adder(params.values) : value_adder(params.values);
    for (int h = 0; h < group_.heads; ++h) {
      const int first = h * group_.per_head;
      add_values(cache_, page, ahead, group_.first + h, weights_ + first * kPageTokens, group_.per_head, valid,
                 sums_ + first * head_dim * sum_width_, zero_sums_ + first * kMaxValueGroups * kLanes);
    }
  }

  /// Adds the tokens of an exact page; cos and sin [head_dim / 2, stride] turn them from page base base_page.
  void add_exact(const uint8_t* page, uint32_t valid, int64_t base_page, const float* cos, const float* sin,
                 int stride) {
    if (valid == 0) return;
    turn_queries(base_page, 1.0f);
    for (int v = 0; v < kParts; ++v) {
      for (int c = 0; c < group_.heads * head_dim; ++c) {
        const uint8_t* field = page + cache_.exact_layout.keys(group_.first, c) + v * kLanes * 2;
        store(keys_ + c * kLanes, load_halves(field));
      }
      score(keys_, cos + v * kLanes, sin + v * kLanes, stride, v);
    }
    softmax(kParts, valid);
    for (int h = 0; h < group_.heads; ++h) add_exact_values(page, h, valid);
  }

  void finish(const Partial& partial) const {
    std::copy_n(maximum_, group_.queries, partial.maximum);
    const int group_size = cache_.params->values.group_size;
    const bool affine = cache_.params->values.format == Format::kAffine;
    const bool has_zeros = affine || cache_.params->values.format == Format::kCodebook ||
                           (cache_.params->values.format == Format::kNorm && cache_.params->values.bits == 8);
    for (int g = 0; g < group_.queries; ++g) {
      partial.sum[g] = sum(load(weight_sums_ + g * kLanes));
      const int first = (group_.first + g / group_.per_head) * head_dim;
      for (int c = 0; c < head_dim; ++c) {
        const float* lanes = sums_ + (g * head_dim + c) * sum_width_;
        float value = sum_width_ == 1 ? *lanes : sum(load(lanes));
        if (has_zeros) {
          const int slot = affine ? (first + c) / group_size - first / group_size : 0;
          value -= sum(load(zero_sums_ + (g * kMaxValueGroups + slot) * kLanes));
        }
        partial.output[g * head_dim + c] = value;
      }
    }
  }

 private:
  void prefetch_keys(const uint8_t* page) const {
    const SideLayout& layout = cache_.page_layout.keys;
    const int64_t end = layout.tile(group_.first + group_.heads, 0);
    for (int64_t i = layout.tile(group_.first, 0); i < end; i += 64) prefetch(page + i);
  }

  /// Reads a page's keys back and scores them.
  void score_keys(const uint8_t* page, int64_t page_index, int64_t ahead) {
    const LayerParams& params = *cache_.params;
    const bool rope = params.keys_pre_rope != 0;
    turn_queries(rope ? page_index : 0, rotation_scale(head_dim, params.keys.rotation_heads));
    const StoredSide keys = stored_keys(cache_);
    const LoadSide load_keys = side_loader<head_dim>(params.keys);
    const int size = group_.heads * head_dim * kLanes;
    for (int v = 0; v < kPageTokens / kLanes; ++v) {
      float* x = keys_ + v % kReadVectors * size;
      if (static_keys_.reader != nullptr) {
        if (v % kReadVectors == 0) static_keys_.reader->template read<kReadVectors>(page, v, codes_, x);
      } else {
        load_keys(keys, page, ahead, v / kParts, v % kParts, group_.first, group_.heads, affine_, x);
        finish_rotation<head_dim>(params.keys, group_.heads, x);
      }
      score(x, rope ? cache_.rope.step_cos(0) + v * kLanes : nullptr,
            rope ? cache_.rope.step_sin(0) + v * kLanes : nullptr, kPageTokens, v);
    }
    if (has_score_bias(params)) add_bias();
  }

  void add_bias() {
    for (int g = 0; g < group_.queries; ++g) {
      const int head = group_.first + g / group_.per_head;
      const Vec bias = broadcast(score_bias(*cache_.params, head, roped_q_ + g * head_dim, 1.0f));
      float* scores = weights_ + g * kPageTokens;
      for (int j = 0; j < kPageTokens; j += kLanes) store(scores + j, add(load(scores + j), bias));
    }
  }

  /// q_ = the queries as seen from position 64 base_page, times scale: relative angles are all that scores depend on.
  void turn_queries(int64_t base_page, float scale) {
    constexpr int half = head_dim / 2;
    const float *cos = cache_.rope.base_cos(base_page), *sin = cache_.rope.base_sin(base_page);
    for (int g = 0; g < group_.queries; ++g) {
      const float* from = roped_q_ + g * head_dim;
      float* to = q_ + g * head_dim;
      for (int i = 0; i < half; ++i) {
        const float a = from[i], b = from[i + half];
        to[i] = (a * cos[i] + b * sin[i]) * scale;
        to[i + half] = (b * cos[i] - a * sin[i]) * scale;
      }
    }
  }

  void score(const float* x, const float* cos, const float* sin, int stride, int vector) {
    for (int h = 0; h < group_.heads; ++h) {
      const float* q = q_ + h * group_.per_head * head_dim;
      const float* keys = x + h * head_dim * kLanes;
      float* out = weights_ + h * group_.per_head * kPageTokens + vector * kLanes;
      if (cos != nullptr) {
        dot_all<head_dim, true>(q, group_.per_head, keys, cos, sin, stride, out, kPageTokens);
      } else {
        dot_all<head_dim, false>(q, group_.per_head, keys, nullptr, nullptr, 0, out, kPageTokens);
      }
    }
  }

  /// Turns scores into weights relative to the running maximum, which earlier sums are scaled to.
  void softmax(int vectors, uint64_t valid) {
    for (int g = 0; g < group_.queries; ++g) {
      float* weights = weights_ + g * kPageTokens;
      Vec highest = broadcast(kMinusInfinity);
      for (int v = 0; v < vectors; ++v) {
        highest = max(highest, select(bits_of(valid, v), load(weights + v * kLanes), broadcast(kMinusInfinity)));
      }
      raise_maximum(g, maximum(highest));
      const Vec reference = broadcast(maximum_[g]);
      Vec total = load(weight_sums_ + g * kLanes);
      for (int v = 0; v < vectors; ++v) {
        const Vec weight = exp_negative(sub(load(weights + v * kLanes), reference));
        const Vec counted = select(bits_of(valid, v), weight, zero());
        store(weights + v * kLanes, counted);
        total = add(total, counted);
      }
      store(weight_sums_ + g * kLanes, total);
    }
  }

  static uint32_t bits_of(uint64_t valid, int vector) { return static_cast<uint32_t>(valid >> (vector * kLanes)); }

  void raise_maximum(int g, float highest) {
    if (!(highest > maximum_[g])) return;
    if (maximum_[g] != kMinusInfinity) {
      const Vec factor = broadcast(std::exp(maximum_[g] - highest));
      rescale(weight_sums_ + g * kLanes, 1, factor);
      rescale(sums_ + g * head_dim * sum_width_, head_dim * sum_width_ / kLanes, factor);
      rescale(zero_sums_ + g * kMaxValueGroups * kLanes, kMaxValueGroups, factor);
    }
    maximum_[g] = highest;
  }

  static void rescale(float* x, int vectors, Vec factor) {
    for (int i = 0; i < vectors; ++i) store(x + i * kLanes, mul(load(x + i * kLanes), factor));
  }

  void add_exact_values(const uint8_t* page, int head, uint32_t valid) {
    for (int c = 0; c < head_dim; ++c) {
      const uint8_t* field = page + cache_.exact_layout.values(group_.first + head, c);
      for (int v = 0; v < kParts; ++v) {
        const Vec value = select(bits_of(valid, v), load_halves(field + v * kLanes * 2), zero());
        for (int g = head * group_.per_head; g < (head + 1) * group_.per_head; ++g) {
          float* total = sums_ + (g * head_dim + c) * kLanes;
          store(total, fma(load(weights_ + g * kPageTokens + v * kLanes), value, load(total)));
        }
      }
    }
  }

  const LayerCache& cache_;
  const HeadGroup group_;
  const float* roped_q_;
  const StaticKeys<head_dim> static_keys_;
  /// Lanes of a sum of values: kLanes, whose sum it is, or 1.
  const int sum_width_;
  float *affine_, *keys_, *codes_, *q_, *weights_, *maximum_, *weight_sums_, *sums_, *zero_sums_;
};

/// Attention of one sequence and one group of kv heads, cut into tasks.
template <int head_dim>
class GroupAttention {
 public:
  GroupAttention(const LayerCache& cache, int64_t b, int group, const float* qkv, const StaticReader<head_dim>* reader)
      : cache_(cache),
        b_(b),
        group_(*cache.params, group),
        length_(cache.length(b) + 1),
        quantized_(cache.quantized(b, length_)),
        q_(group_.queries * head_dim),
        reader_(reader) {
    if (cache.params->has_exact_pages()) sinks_ = find_sinks(cache, b, length_);
    for (int g = 0; g < group_.queries; ++g) {
      float* q = q_.data() + g * head_dim;
      cache.rope.apply(qkv + (group_.first * group_.per_head + g) * head_dim, length_ - 1, q);
      for (int i = 0; i < head_dim; ++i) q[i] *= cache.params->score_scale;
    }
    pages_ = select_pages(cache, b, group_.first, group_.heads, q_.data(), 1.0f, quantized_);
    const LayerParams& params = *cache.params;
    if (params.keys.format == Format::kStatic && params.keys_pre_rope == 0 && params.keys.basis_heads == 0) {
      scorer_.emplace(cache, group_.first, group_.queries, q_.data());
    }
    partials_.resize(tasks() * group_.queries * (head_dim + 2));
  }

  int64_t tasks() const { return page_tasks() + (cache_.params->has_exact_pages() ? 1 : 0); }

  void run(int64_t task) {
    Worker<head_dim> worker(cache_, group_, q_.data(), {reader_, scorer_ ? &*scorer_ : nullptr}, task >= page_tasks());
    if (task < page_tasks()) {
      const int64_t count = static_cast<int64_t>(pages_.size()), end = std::min(count, (task + 1) * kTaskPages);
      for (int64_t i = task * kTaskPages; i < end; ++i) {
        worker.add_page(b_, pages_[i], pages_[std::min(i + 1, count - 1)], valid_tokens(pages_[i]));
      }
    } else {
      add_window(worker);
      add_sinks(worker);
    }
    worker.finish(partial(task));
  }

  /// Merges the partials in order and writes out [queries, head_dim].
  void merge(float* out) {
    for (int g = 0; g < group_.queries; ++g) {
      float maximum = kMinusInfinity, total = 0;
      for (int64_t i = 0; i < tasks(); ++i) maximum = std::max(maximum, partial(i).maximum[g]);
      float* result = out + g * head_dim;
      std::fill_n(result, head_dim, 0.0f);
      for (int64_t i = 0; i < page_tasks(); ++i) total += add_partial(partial(i), g, maximum, result);
      // What comes from pages is in the stored basis, what is exact in the natural one.
      if (cache_.params->values.rotation_heads != 0) kvquant::walsh_hadamard(result, head_dim);
      for (int64_t i = page_tasks(); i < tasks(); ++i) total += add_partial(partial(i), g, maximum, result);
      for (int c = 0; c < head_dim; ++c) result[c] /= total;
    }
  }

 private:
  int64_t page_tasks() const { return (static_cast<int64_t>(pages_.size()) + kTaskPages - 1) / kTaskPages; }

  Partial partial(int64_t task) {
    float* first = partials_.data() + task * group_.queries * (head_dim + 2);
    return {first, first + group_.queries, first + 2 * group_.queries};
  }

  static float add_partial(const Partial& partial, int g, float maximum, float* result) {
    if (partial.maximum[g] == kMinusInfinity) return 0;
    const float factor = std::exp(partial.maximum[g] - maximum);
    for (int c = 0; c < head_dim; ++c) result[c] += factor * partial.output[g * head_dim + c];
    return factor * partial.sum[g];
  }

  /// A bit per token of a page that is to be read from it.
  uint64_t valid_tokens(int64_t page) const {
    const int64_t begin = page * kPageTokens, count = std::min<int64_t>(kPageTokens, quantized_ - begin);
    uint64_t valid = count == kPageTokens ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
    for (const Sink& sink : sinks_) {
      if (sink.token >= begin && sink.token < begin + count) valid &= ~(uint64_t{1} << (sink.token - begin));
    }
    return valid;
  }

  void add_window(Worker<head_dim>& worker) const {
    if (quantized_ == length_) return;
    for (int64_t run = quantized_ / kExactTokens; run * kExactTokens < length_; ++run) {
      const int64_t begin = run * kExactTokens;
      uint32_t valid = 0;
      for (int i = 0; i < kExactTokens; ++i) {
        if (begin + i >= quantized_ && begin + i < length_ && !is_sink(begin + i)) valid |= 1u << i;
      }
      const int step = static_cast<int>(begin % kPageTokens);
      worker.add_exact(cache_.window_page(b_, begin), valid, begin / kPageTokens, cache_.rope.step_cos(0) + step,
                       cache_.rope.step_sin(0) + step, kPageTokens);
    }
  }

  bool is_sink(int64_t token) const {
    return std::any_of(sinks_.begin(), sinks_.end(), [&](const Sink& sink) { return sink.token == token; });
  }

  /// Sinks may lie anywhere: each gets the angle of its own position.
  void add_sinks(Worker<head_dim>& worker) const {
    constexpr int half = head_dim / 2;
    AlignedFloats cos(half * kExactTokens), sin(half * kExactTokens);
    for (int page = 0; page < cache_.params->sink_pages(); ++page) {
      const uint8_t* data = cache_.sink_page(b_, page);
      uint32_t valid = 0;
      for (const Sink& sink : sinks_) {
        if (sink.page != data) continue;
        valid |= 1u << sink.slot;
        for (int i = 0; i < half; ++i) {
          cache_.rope.angle(sink.token, i, &cos[i * kExactTokens + sink.slot], &sin[i * kExactTokens + sink.slot]);
        }
      }
      worker.add_exact(data, valid, 0, cos.data(), sin.data(), kExactTokens);
    }
  }

  const LayerCache& cache_;
  const int64_t b_;
  const HeadGroup group_;
  const int64_t length_, quantized_;
  std::vector<int64_t> pages_;
  std::vector<float> q_;
  std::vector<Sink> sinks_;
  const StaticReader<head_dim>* const reader_;
  std::optional<StaticScorer<head_dim>> scorer_;
  std::vector<float> partials_;  // [tasks, {maximum, sum, output}]
};

template <int head_dim>
void attend_all(const LayerCache& cache, const float* qkv, float* out) {
  const LayerParams& params = *cache.params;
  const int groups = params.num_kv_heads / params.heads_at_once();
  const int64_t row = static_cast<int64_t>(params.num_heads + 2 * params.num_kv_heads) * head_dim;
  std::vector<GroupAttention<head_dim>> attentions;
  std::vector<std::pair<int64_t, int64_t>> tasks;
  attentions.reserve(cache.batch * groups);
  const std::vector<StaticReader<head_dim>> readers = static_readers<head_dim>(cache);
  for (int64_t b = 0; b < cache.batch; ++b) {
    for (int g = 0; g < groups; ++g) {
      attentions.emplace_back(cache, b, g, qkv + b * row, readers.empty() ? nullptr : &readers[g]);
      for (int64_t t = 0; t < attentions.back().tasks(); ++t) tasks.emplace_back(attentions.size() - 1, t);
    }
  }
  parallel_for(static_cast<int64_t>(tasks.size()), [&](int64_t i) { attentions[tasks[i].first].run(tasks[i].second); });
  const int64_t group_size = static_cast<int64_t>(params.num_heads) / groups * head_dim;
  for (size_t i = 0; i < attentions.size(); ++i) attentions[i].merge(out + static_cast<int64_t>(i) * group_size);
}

}  // namespace
}  // namespace KVQUANT_ISA

void KVQUANT_FN(attend)(const LayerCache& cache, const float* qkv, float* out) {
  if (cache.params->head_dim == 64) {
    KVQUANT_ISA::attend_all<64>(cache, qkv, out);
  } else {
    KVQUANT_ISA::attend_all<128>(cache, qkv, out);
  }
}

}  // namespace kvquant
