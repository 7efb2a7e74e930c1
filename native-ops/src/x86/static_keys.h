/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Keys in static codes (Format::kStatic), tokens in vector lanes: read back into the natural basis, or scored without
// being read back.
#pragma once
#include <optional>
#include <type_traits>
#include <vector>

#include "../core/aligned.h"
#include "../core/cache.h"
#include "../core/score_bias.h"
#include "code_tables.h"
#include "simd.h"

namespace kvquant {
namespace KVQUANT_ISA {

/// Vectors of tokens whose keys are read at once.
constexpr int kReadVectors = 2;

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
/// are left relative to it. Tasks share a reader: folding the steps into the basis costs as much as reading a page.
template <int head_dim>
class StaticReader {
 public:
  StaticReader(const LayerCache& cache, int first_head, int heads)
      : side_(cache.params->keys),
        layout_(cache.page_layout.keys),
        first_(first_head),
        heads_(heads),
        steps_(packed_array<float>(*cache.params, side_.steps_offset) + 2 * first_head * head_dim),
        order_(channel_order(*cache.params, side_)),
        offset_(heads * head_dim, 0.0f) {
    const float* mean = side_mean(*cache.params, side_);
    if (cache.params->keys_pre_rope != 0 && mean != nullptr) {
      std::copy_n(mean + first_head * head_dim, offset_.size(), offset_.begin());
    }
    if (side_.basis_heads != 0) fold_steps(packed_array<float>(*cache.params, side_.inverse_offset));
  }

  /// The keys of as many vectors of tokens of a page, at most kReadVectors: x [vectors, heads, head_dim, kLanes];
  /// scratch as large.
  template <int vectors>
  void read(const uint8_t* page, int vector, float* scratch, float* x) const {
    if (side_.basis_heads != 0) {
      for (int v = 0; v < vectors; ++v) read_places(page, vector + v, scratch + v * kLanes, vectors * kLanes);
      multiply<vectors>(scratch, x);
    } else {
      for (int v = 0; v < vectors; ++v) read_channels(page, vector + v, x + v * heads_ * head_dim * kLanes);
    }
  }

 private:
  /// Rows of the product that are computed at once: with kReadVectors vectors of tokens each the sums fill the
  /// registers.
  static constexpr int kRows = kLanes == 16 ? 8 : 4;

  void read_channels(const uint8_t* page, int vector, float* x) const {
    for (int c = 0; c < heads_ * head_dim; ++c) store(x + c * kLanes, broadcast(offset_[c]));
    for_each_run(page, vector, [&](auto width, int first, int places, const uint8_t* field) {
      for (int place = first; place < first + places; ++place, field += 2 * width) {
        const int c = channel(place);
        const Vec code = load_codes<width>(field, vector % kParts);
        store(x + c * kLanes, fma(code, broadcast(steps_[2 * place + 1]), broadcast(steps_[2 * place] + offset_[c])));
      }
    });
  }

  /// The codes of the places that have any.
  void read_places(const uint8_t* page, int vector, float* x, int stride) const {
    for_each_run(page, vector, [&](auto width, int, int places, const uint8_t* field) {
      float* to = x;
      for (int i = 0; i < places; ++i, to += stride) {
        store(to, load_codes<width>(field + i * 2 * width, vector % kParts));
      }
      x = to;
    });
  }

  /// Calls visit(width, first place, places, codes) for runs of places of one width.
  template <typename Visit>
  void for_each_run(const uint8_t* page, int vector, Visit&& visit) const {
    for (int h = 0; h < heads_; ++h) {
      for_each_width<head_dim>(side_, [&](auto width, int begin, int end) {
        visit(width, h * head_dim + begin, end - begin, page + layout_.place(first_ + h, vector / kParts, begin));
      });
    }
  }

  int channel(int place) const {
    return order_ == nullptr ? place : order_[first_ * head_dim + place] - first_ * head_dim;
  }

  /// matrix_ = inverse with each place's step, places without codes left out; offset_ takes the starts.
  void fold_steps(const float* inverses) {
    const int n = heads_ * head_dim;
    std::vector<int> used;
    for (int place = 0; place < n; ++place) {
      if (layout_.width(place % head_dim) != 0) used.push_back(place);
    }
    used_ = static_cast<int>(used.size());
    matrix_.resize(static_cast<size_t>(n) * used_);
    const float* row = inverses + static_cast<int64_t>(first_) * head_dim * n;
    for (int c = 0; c < n; ++c, row += n) {
      float* to = matrix_.data() + c / kRows * kRows * used_ + c % kRows;
      for (int i = 0; i < used_; ++i) {
        to[i * kRows] = row[used[i]] * steps_[2 * used[i] + 1];
        offset_[c] += row[used[i]] * steps_[2 * used[i]];
      }
    }
  }

  /// x = matrix codes + offset.
  template <int vectors>
  void multiply(const float* places, float* x) const {
    const int n = heads_ * head_dim;
    const float* factors = matrix_.data();
    for (int c = 0; c < n; c += kRows) {
      Vec sum[kRows][vectors];
      for (int i = 0; i < kRows; ++i) {
        for (int v = 0; v < vectors; ++v) sum[i][v] = broadcast(offset_[c + i]);
      }
      const float* codes = places;
      for (int place = 0; place < used_; ++place, factors += kRows, codes += vectors * kLanes) {
        Vec code[vectors];
        for (int v = 0; v < vectors; ++v) code[v] = load(codes + v * kLanes);
        for (int i = 0; i < kRows; ++i) {
          const Vec factor = broadcast(factors[i]);
          for (int v = 0; v < vectors; ++v) sum[i][v] = fma(factor, code[v], sum[i][v]);
        }
      }
      for (int v = 0; v < vectors; ++v) {
        for (int i = 0; i < kRows; ++i) store(x + (v * n + c + i) * kLanes, sum[i][v]);
      }
    }
  }

  const SideParams& side_;
  const SideLayout& layout_;
  const int first_, heads_;
  const float* const steps_;
  const int16_t* const order_;
  AlignedFloats offset_;
  int used_ = 0;
  AlignedFloats matrix_;  // [channels / kRows, used_, kRows]
};

/// A reader for each group of heads; none if keys are not in static codes.
template <int head_dim>
std::vector<StaticReader<head_dim>> static_readers(const LayerCache& cache) {
  std::vector<StaticReader<head_dim>> readers;
  if (cache.params->keys.format != Format::kStatic) return readers;
  const int heads = cache.params->heads_at_once();
  for (int h = 0; h < cache.params->num_kv_heads; h += heads) readers.emplace_back(cache, h, heads);
  return readers;
}

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
    tables_.emplace(cache.page_layout.keys, head, queries, folded_.data());
  }

  /// Scores of all tokens of a page: out [queries, kPageTokens].
  void operator()(const uint8_t* page, int64_t page_index, float* out) const {
    int g = 0;
    for (; g + 4 <= queries_; g += 4) score<4>(page, page_index, g, out + g * kPageTokens);
    if (queries_ - g == 3) score<3>(page, page_index, g, out + g * kPageTokens);
    if (queries_ - g == 2) score<2>(page, page_index, g, out + g * kPageTokens);
    if (queries_ - g == 1) score<1>(page, page_index, g, out + g * kPageTokens);
  }

 private:
  static constexpr int half = head_dim / 2;
  /// Vectors of tokens whose sums stay in registers.
  static constexpr int kBlock = kLanes == 16 ? 4 : 2;

  /// Amplitudes of the cosines and sines of queries, and of the polynomials that stand for the slow ones.
  template <int queries>
  struct Waves {
    alignas(64) float cosines[queries][half], sines[queries][half], slow[queries][WaveTable::kMaxTerms];
  };

  template <int queries>
  void score(const uint8_t* page, int64_t page_index, int first, float* out) const {
    Waves<queries> waves;
    find_waves(page_index, first, waves);
    find_slow_terms(waves);
    for (int j = 0; j < kPageTokens; j += kBlock * kLanes) add_mean(waves, j, constant_.data() + first, out + j);
    add_codes<queries>(page, first, out);
    (*tables_).template operator()<queries>(page, first, out);
  }

  /// The codes that are not looked up.
  template <int queries>
  void add_codes(const uint8_t* page, int first, float* out) const {
    const SideLayout& layout = cache_.page_layout.keys;
    const int64_t tile_bytes = layout.tile(head_, 1) - layout.tile(head_, 0);
    const float* folded = folded_.data() + first * head_dim;
    for (int v0 = 0; v0 < kPageTokens / kLanes; v0 += kBlock) {
      for_each_width<head_dim>(side_, [&](auto width, int begin, int end) {
        if constexpr (!has_code_tables(width)) {
          const uint8_t* field = page + layout.place(head_, v0 / kParts, begin);
          add_run<queries, width>(field, tile_bytes, folded + begin, end - begin, out + v0 * kLanes);
        }
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

  /// out = constant + q . R_t mean for kBlock vectors of tokens of a page, from its token j on. Seen from the page's
  /// first position it is a sum of waves, a cosine and a sine for each pair of channels; the slow ones are few
  /// polynomials of the position in the page.
  template <int queries>
  void add_mean(const Waves<queries>& waves, int j, const float* constant, float* out) const {
    Vec sum[queries][kBlock];
    const auto add_wave = [&sum](const float* shape, const float* amplitudes, int stride) {
      for (int v = 0; v < kBlock; ++v) {
        const Vec x = load(shape + v * kLanes);
        for (int g = 0; g < queries; ++g) sum[g][v] = fma(broadcast(amplitudes[g * stride]), x, sum[g][v]);
      }
    };
    for (int g = 0; g < queries; ++g) {
      for (int v = 0; v < kBlock; ++v) sum[g][v] = broadcast(constant[g]);
    }
    for (int i = 0; i < table_.fast; ++i) {
      add_wave(cache_.rope.step_cos(i) + j, waves.cosines[0] + i, half);
      add_wave(cache_.rope.step_sin(i) + j, waves.sines[0] + i, half);
    }
    for (int t = 0; t < table_.terms; ++t) {
      add_wave(table_.polynomials + t * kPageTokens + j, waves.slow[0] + t, WaveTable::kMaxTerms);
    }
    for (int g = 0; g < queries; ++g) {
      for (int v = 0; v < kBlock; ++v) store(out + g * kPageTokens + v * kLanes, sum[g][v]);
    }
  }

  template <int queries>
  void find_slow_terms(Waves<queries>& waves) const {
    const int pairs = half - table_.fast;
    for (int t = 0; t < WaveTable::kMaxTerms; t += kLanes) {
      Vec cosines[queries], sines[queries];
      for (int g = 0; g < queries; ++g) cosines[g] = sines[g] = zero();
      const float* weights = weights_.data() + t;
      for (int i = table_.fast; i < half; ++i, weights += WaveTable::kMaxTerms) {
        const Vec cosine = load(weights), sine = load(weights + pairs * WaveTable::kMaxTerms);
        for (int g = 0; g < queries; ++g) {
          cosines[g] = fma(broadcast(waves.cosines[g][i]), cosine, cosines[g]);
          sines[g] = fma(broadcast(waves.sines[g][i]), sine, sines[g]);
        }
      }
      for (int g = 0; g < queries; ++g) store(waves.slow[g] + t, add(cosines[g], sines[g]));
    }
  }

  /// The amplitudes of q . R_(64 page + j) mean as a function of j.
  template <int queries>
  void find_waves(int64_t page_index, int first, Waves<queries>& waves) const {
    const float* mean = side_mean(*cache_.params, side_) + head_ * head_dim;
    const float *cos = cache_.rope.base_cos(page_index), *sin = cache_.rope.base_sin(page_index);
    const float* q = q_ + first * head_dim;
    for (int i = 0; i < half; i += kLanes) {
      const Vec c = load(cos + i), s = load(sin + i), m = load(mean + i), n = load(mean + half + i);
      for (int g = 0; g < queries; ++g) {
        const Vec x = load(q + g * head_dim + i), y = load(q + g * head_dim + half + i);
        const Vec p = fma(x, c, mul(y, s)), r = fnma(x, s, mul(y, c));
        store(waves.cosines[g] + i, fma(p, m, mul(r, n)));
        store(waves.sines[g] + i, fnma(p, n, mul(r, m)));
      }
    }
  }

  const LayerCache& cache_;
  const SideParams& side_;
  const int head_, queries_;
  const float* const q_;
  AlignedFloats folded_, constant_;
  const WaveTable table_;
  AlignedFloats weights_;
  std::optional<CodeTables<head_dim>> tables_;
};

}  // namespace KVQUANT_ISA
}  // namespace kvquant
