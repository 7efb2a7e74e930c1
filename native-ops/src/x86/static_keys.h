/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Keys in static codes (Format::kStatic), tokens in vector lanes: read back into the natural basis, or scored without
// being read back.
#pragma once
#include <type_traits>
#include <vector>

#include "../core/aligned.h"
#include "../core/cache.h"
#include "../core/score_bias.h"
#include "simd.h"

namespace kvquant {
namespace KVQUANT_ISA {

/// Vectors of tokens whose keys are read at once.
constexpr int kReadVectors = 1;

/// Calls visit(width, begin, end) for the places of a head, run by run, where codes are 1 to 8 bits wide; width is a
/// std::integral_constant.
template <int head_dim, typename Visit>
inline void for_each_width(const SideParams& side, Visit&& visit) {
  constexpr int run = head_dim / kWidthRuns;
  for (int r = 0; r < kWidthRuns; ++r) {
    const int begin = r * run;
    while (r + 1 < kWidthRuns && side.widths[r + 1] == side.widths[r]) ++r;
    const int end = (r + 1) * run;
    switch (side.widths[r]) {
      case 1:
        visit(std::integral_constant<int, 1>{}, begin, end);
        break;
      case 2:
        visit(std::integral_constant<int, 2>{}, begin, end);
        break;
      case 3:
        visit(std::integral_constant<int, 3>{}, begin, end);
        break;
      case 4:
        visit(std::integral_constant<int, 4>{}, begin, end);
        break;
      case 8:
        visit(std::integral_constant<int, 8>{}, begin, end);
        break;
      default:
        break;
    }
  }
}

/// Reads keys of a group of heads into the natural basis; keys that are stored before RoPE get their mean back, others
/// are left relative to it.
template <int head_dim>
class StaticReader {
 public:
  StaticReader(const LayerCache& cache, int first_head, int heads)
      : params_(*cache.params),
        side_(params_.keys),
        layout_(cache.page_layout.keys),
        first_(first_head),
        heads_(heads),
        steps_(packed_array<float>(params_, side_.steps_offset) + 2 * first_head * head_dim),
        order_(channel_order(params_, side_)),
        offset_(heads * head_dim, 0.0f) {
    const float* mean = side_mean(params_, side_);
    if (params_.keys_pre_rope != 0 && mean != nullptr) {
      std::copy_n(mean + first_head * head_dim, offset_.size(), offset_.begin());
    }
    if (side_.basis_heads == 0) return;
    places_.resize(heads * head_dim * kLanes);
    for (int place = 0; place < heads * head_dim; ++place) {
      if (layout_.width(place % head_dim) != 0) used_.push_back(place);
    }
  }

  /// x [heads, head_dim, kLanes].
  void operator()(const uint8_t* page, int tile, int part, float* x) {
    if (side_.basis_heads == 0) {
      read_channels(page, tile, part, x);
    } else {
      read_places(page, tile, part);
      multiply(x);
    }
  }

 private:
  void read_channels(const uint8_t* page, int tile, int part, float* x) const {
    for (int c = 0; c < heads_ * head_dim; ++c) store(x + c * kLanes, broadcast(offset_[c]));
    for_each_code(page, tile, part, [&](int place, Vec code) {
      const int c = channel(place);
      store(x + c * kLanes, fma(code, broadcast(steps_[2 * place + 1]), broadcast(steps_[2 * place] + offset_[c])));
    });
  }

  void read_places(const uint8_t* page, int tile, int part) {
    for_each_code(page, tile, part, [&](int place, Vec code) {
      const Vec value = fma(code, broadcast(steps_[2 * place + 1]), broadcast(steps_[2 * place]));
      store(places_.data() + place * kLanes, value);
    });
  }

  template <typename Use>
  void for_each_code(const uint8_t* page, int tile, int part, Use&& use) const {
    for (int h = 0; h < heads_; ++h) {
      for_each_width<head_dim>(side_, [&](auto width, int begin, int end) {
        const uint8_t* field = page + layout_.place(first_ + h, tile, begin);
        for (int place = begin; place < end; ++place, field += 2 * width) {
          use(h * head_dim + place, load_codes<width>(field, part));
        }
      });
    }
  }

  int channel(int place) const {
    return order_ == nullptr ? place : order_[first_ * head_dim + place] - first_ * head_dim;
  }

  /// x = inverse places + mean.
  void multiply(float* x) const {
    constexpr int block = 8;
    const int n = heads_ * head_dim;
    const float* row = packed_array<float>(params_, side_.inverse_offset) + static_cast<int64_t>(first_) * head_dim * n;
    for (int c = 0; c < n; c += block, row += block * n) {
      Vec sum[block];
      for (int i = 0; i < block; ++i) sum[i] = broadcast(offset_[c + i]);
      for (const int place : used_) {
        const Vec y = load(places_.data() + place * kLanes);
        for (int i = 0; i < block; ++i) sum[i] = fma(broadcast(row[i * n + place]), y, sum[i]);
      }
      for (int i = 0; i < block; ++i) store(x + (c + i) * kLanes, sum[i]);
    }
  }

  const LayerParams& params_;
  const SideParams& side_;
  const SideLayout& layout_;
  const int first_, heads_;
  const float* const steps_;
  const int16_t* const order_;
  std::vector<float> offset_;
  std::vector<int> used_;
  AlignedFloats places_;
};

/// Scores of keys stored after RoPE in the natural basis. A score is the sum of codes, with steps folded into the
/// query, of a constant of the query, and of the query's product with the mean as it is turned at the token's position.
template <int head_dim>
class StaticScorer {
 public:
  /// roped_q: the queries of one kv head, [queries, head_dim], at their own position, with the score's factor.
  StaticScorer(const LayerCache& cache, int head, int queries, const float* roped_q)
      : cache_(cache),
        side_(cache.params->keys),
        head_(head),
        queries_(queries),
        q_(roped_q),
        folded_(queries * head_dim),
        constant_(queries),
        waves_(queries * 2 * half),
        table_(*cache.params, half),
        weights_(2 * (half - table_.fast) * WaveTable::kMaxTerms) {
    // Terms in lanes.
    for (int t = 0; t < table_.terms; ++t) {
      for (int i = 0; i < 2 * (half - table_.fast); ++i) {
        weights_[i * WaveTable::kMaxTerms + t] = table_.weights[t * 2 * (half - table_.fast) + i];
      }
    }
    const float* steps = packed_array<float>(*cache.params, side_.steps_offset) + 2 * head * head_dim;
    const int16_t* order = channel_order(*cache.params, side_);
    for (int g = 0; g < queries; ++g) {
      for (int place = 0; place < head_dim; ++place) {
        if (cache.page_layout.keys.width(place) == 0) continue;
        const int c = order == nullptr ? place : order[head * head_dim + place] - head * head_dim;
        folded_[g * head_dim + place] = roped_q[g * head_dim + c] * steps[2 * place + 1];
        constant_[g] += roped_q[g * head_dim + c] * steps[2 * place];
      }
      if (has_score_bias(*cache.params)) constant_[g] += score_bias(*cache.params, head, roped_q + g * head_dim, 1.0f);
    }
  }

  /// Scores of all tokens of a page: out [queries, kPageTokens].
  void operator()(const uint8_t* page, int64_t page_index, float* out) {
    add_mean(page_index, out);
    int g = 0;
    for (; g + 4 <= queries_; g += 4) add_codes<4>(page, g, out);
    if (queries_ - g == 3) add_codes<3>(page, g, out);
    if (queries_ - g == 2) add_codes<2>(page, g, out);
    if (queries_ - g == 1) add_codes<1>(page, g, out);
  }

 private:
  static constexpr int half = head_dim / 2;
  /// Vectors of tokens whose sums stay in registers.
  static constexpr int kBlock = kLanes == 16 ? 4 : 2;

  template <int queries>
  void add_codes(const uint8_t* page, int first, float* out) const {
    const SideLayout& layout = cache_.page_layout.keys;
    const int64_t tile_bytes = layout.tile(head_, 1) - layout.tile(head_, 0);
    const float* folded = folded_.data() + first * head_dim;
    for (int v0 = 0; v0 < kPageTokens / kLanes; v0 += kBlock) {
      float* scores = out + first * kPageTokens + v0 * kLanes;
      for_each_width<head_dim>(side_, [&](auto width, int begin, int end) {
        const uint8_t* field = page + layout.place(head_, v0 / kParts, begin);
        add_run<queries, width>(field, tile_bytes, folded + begin, end - begin, scores);
      });
    }
  }

  /// Adds the codes of a run of places; sums stay in registers, which is why runs are not visited one place at a time.
  template <int queries, int width>
  static void add_run(const uint8_t* field, int64_t tile_bytes, const float* folded, int places, float* scores) {
    Vec sum[queries][kBlock];
    for (int g = 0; g < queries; ++g) {
      for (int v = 0; v < kBlock; ++v) sum[g][v] = load(scores + g * kPageTokens + v * kLanes);
    }
    for (int place = 0; place < places; ++place, field += 2 * width) {
      for (int v = 0; v < kBlock; ++v) {
        const Vec code = load_codes<width>(field + v / kParts * tile_bytes, v % kParts);
        for (int g = 0; g < queries; ++g) {
          sum[g][v] = fma(broadcast(folded[g * head_dim + place]), code, sum[g][v]);
        }
      }
    }
    for (int g = 0; g < queries; ++g) {
      for (int v = 0; v < kBlock; ++v) store(scores + g * kPageTokens + v * kLanes, sum[g][v]);
    }
  }

  /// out = constant + q . R_t mean for the tokens t of a page. Seen from the page's first position it is a sum of
  /// waves, a cosine and a sine for each pair of channels; the slow ones are few polynomials of the position in the
  /// page.
  void add_mean(int64_t page_index, float* out) {
    for (int g = 0; g < queries_; ++g) {
      find_waves(page_index, g);
      const float *a = waves_.data() + g * 2 * half, *b = a + half;
      alignas(64) float slow[WaveTable::kMaxTerms];
      find_slow_terms(a, b, slow);
      for (int j = 0; j < kPageTokens; j += 4 * kLanes) {
        constexpr int vectors = kPageTokens / kLanes < 4 ? kPageTokens / kLanes : 4;
        Vec sum[vectors];
        for (int v = 0; v < vectors; ++v) sum[v] = broadcast(constant_[g]);
        for (int i = 0; i < table_.fast; ++i) {
          const float *cos = cache_.rope.step_cos(i) + j, *sin = cache_.rope.step_sin(i) + j;
          for (int v = 0; v < vectors; ++v) {
            sum[v] = fma(broadcast(a[i]), load(cos + v * kLanes), sum[v]);
            sum[v] = fma(broadcast(b[i]), load(sin + v * kLanes), sum[v]);
          }
        }
        for (int t = 0; t < table_.terms; ++t) {
          const float* term = table_.polynomials + t * kPageTokens + j;
          for (int v = 0; v < vectors; ++v) sum[v] = fma(broadcast(slow[t]), load(term + v * kLanes), sum[v]);
        }
        for (int v = 0; v < vectors; ++v) store(out + g * kPageTokens + j + v * kLanes, sum[v]);
      }
    }
  }

  /// slow [kMaxTerms] = the factors of the polynomials, for amplitudes a and b of all waves.
  void find_slow_terms(const float* a, const float* b, float* slow) const {
    constexpr int vectors = WaveTable::kMaxTerms / kLanes;
    const int pairs = half - table_.fast;
    Vec cosines[vectors], sines[vectors];
    for (int v = 0; v < vectors; ++v) cosines[v] = sines[v] = zero();
    for (int i = 0; i < pairs; ++i) {
      const float* weights = weights_.data() + i * WaveTable::kMaxTerms;
      for (int v = 0; v < vectors; ++v) {
        cosines[v] = fma(broadcast(a[table_.fast + i]), load(weights + v * kLanes), cosines[v]);
        sines[v] =
            fma(broadcast(b[table_.fast + i]), load(weights + pairs * WaveTable::kMaxTerms + v * kLanes), sines[v]);
      }
    }
    for (int v = 0; v < vectors; ++v) store(slow + v * kLanes, add(cosines[v], sines[v]));
  }

  /// waves_[g] = amplitudes [{cosine, sine}, half] of q . R_(64 page + j) mean as a function of j.
  void find_waves(int64_t page_index, int g) {
    const float* mean = side_mean(*cache_.params, side_) + head_ * head_dim;
    const float *cos = cache_.rope.base_cos(page_index), *sin = cache_.rope.base_sin(page_index);
    const float* q = q_ + g * head_dim;
    float *a = waves_.data() + g * 2 * half, *b = a + half;
    for (int i = 0; i < half; i += kLanes) {
      const Vec x = load(q + i), y = load(q + half + i), c = load(cos + i), s = load(sin + i);
      const Vec m = load(mean + i), n = load(mean + half + i);
      const Vec p = fma(x, c, mul(y, s)), r = fnma(x, s, mul(y, c));
      store(a + i, fma(p, m, mul(r, n)));
      store(b + i, fnma(p, n, mul(r, m)));
    }
  }

  const LayerCache& cache_;
  const SideParams& side_;
  const int head_, queries_;
  const float* const q_;
  AlignedFloats folded_, constant_, waves_;
  const WaveTable table_;
  AlignedFloats weights_;
};

}  // namespace KVQUANT_ISA
}  // namespace kvquant
