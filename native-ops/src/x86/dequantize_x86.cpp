/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Tokens as attention sees them, many at a time: a vector of tokens is read, turned back and turned to its positions
// with tokens in lanes, then transposed to rows.
#include "../core/aligned.h"
#include "../core/dequantize.h"
#include "../core/parallel.h"
#include "rope.h"
#include "static_keys.h"
#include "stored_side.h"
#include "transpose.h"

namespace kvquant {
namespace KVQUANT_ISA {
namespace {

/// Reads the tokens of one page or of the window that follows it.
template <int head_dim>
class RowReader {
 public:
  RowReader(const LayerCache& cache, int64_t b, const TokenRows& rows,
            const std::vector<StaticReader<head_dim>>& static_readers)
      : cache_(cache),
        b_(b),
        rows_(rows),
        affine_(2 * std::max({1, cache.page_layout.keys.groups(), cache.page_layout.values.groups()}) * kLanes),
        x_(cache.params->heads_at_once() * head_dim * kLanes),
        codes_(x_.size()),
        static_readers_(static_readers) {}

  /// Tokens [begin, end) of one page.
  void read_stored(int64_t begin, int64_t end) {
    const uint8_t* page = cache_.page(b_, begin);
    for (Run run = first_run(begin, end); run.begin < run.end; run = next_run(run, end)) {
      const bool pre_rope = cache_.params->keys_pre_rope != 0;
      if (pre_rope || !static_readers_.empty()) angles_.set(cache_.rope, run.first);
      if (static_readers_.empty()) {
        read_side(stored_keys(cache_), page, run, pre_rope, rows_.k);
      } else {
        read_static_keys(page, run, pre_rope);
      }
      if (cache_.params->values.format == Format::kNorm) {
        read_norm_values(page, run);
      } else {
        read_side(stored_values(cache_), page, run, false, rows_.v);
      }
    }
  }

  /// Tokens [begin, end) of the window.
  void read_window(int64_t begin, int64_t end) {
    const ExactLayout& layout = cache_.exact_layout;
    for (Run run = first_run(begin, end); run.begin < run.end; run = next_run(run, end)) {
      const uint8_t* page = cache_.window_page(b_, run.first) + run.first % kExactTokens * 2;
      angles_.set(cache_.rope, run.first);
      for (int h = 0; h < cache_.params->num_kv_heads; ++h) {
        for (int c = 0; c < head_dim; ++c) store(x_.data() + c * kLanes, load_halves(page + layout.keys(h, c)));
        angles_.turn(x_.data(), 1);
        write(run, h, 1, 1.0f, rows_.k);
        for (int c = 0; c < head_dim; ++c) store(x_.data() + c * kLanes, load_halves(page + layout.values(h, c)));
        write(run, h, 1, 1.0f, rows_.v);
      }
    }
  }

 private:
  /// The tokens [begin, end) among the kLanes tokens from first on.
  struct Run {
    int64_t first, begin, end;
  };

  static Run first_run(int64_t begin, int64_t end) {
    const int64_t first = begin / kLanes * kLanes;
    return {first, begin, std::min(end, first + kLanes)};
  }

  static Run next_run(const Run& run, int64_t end) { return first_run(run.first + kLanes, end); }

  void read_side(const StoredSide& side, const uint8_t* page, const Run& run, bool rope, float* out) {
    const LoadSide load_side = side_loader<head_dim>(side.params);
    const int tile = tile_of(run), part = part_of(run);
    const int heads = std::max(1, side.params.rotation_heads);
    const float scale = rotation_scale(head_dim, side.params.rotation_heads);
    for (int h = 0; h < cache_.params->num_kv_heads; h += heads) {
      load_side(side, page, 0, tile, part, h, heads, affine_.data(), x_.data());
      finish_rotation<head_dim>(side.params, heads, x_.data());
      if (rope) angles_.turn(x_.data(), heads);
      write(run, h, heads, scale, out);
    }
  }

  void read_static_keys(const uint8_t* page, const Run& run, bool pre_rope) {
    const int heads = cache_.params->heads_at_once(), tile = tile_of(run), part = part_of(run);
    int first = 0;
    for (const StaticReader<head_dim>& reader : static_readers_) {
      reader.template read<1>(page, tile * kParts + part, codes_.data(), x_.data());
      if (pre_rope) {
        angles_.turn(x_.data(), heads);
      } else {
        angles_.add_turned(side_mean(*cache_.params, cache_.params->keys) + first * head_dim, heads, x_.data());
      }
      write(run, first, heads, 1.0f, rows_.k);
      first += heads;
    }
  }

  void read_norm_values(const uint8_t* page, const Run& run) {
    const SideParams& side = cache_.params->values;
    if (side.bits == 2) return read_norm_values<2>(page, run);
    if (side.bits == 3) return read_norm_values<3>(page, run);
    if (side.bits == 4) return read_norm_values<4>(page, run);
    return read_norm_values<8>(page, run);
  }

  template <int bits>
  void read_norm_values(const uint8_t* page, const Run& run) {
    const SideParams& side = cache_.params->values;
    const SideLayout& layout = cache_.page_layout.values;
    const float* levels = packed_array<float>(*cache_.params, side.levels_offset);
    const LevelReader<bits> level(levels);
    const int tile = tile_of(run), part = part_of(run);
    for (int h = 0; h < cache_.params->num_kv_heads; ++h) {
      const uint8_t* field = page + layout.codes(h, tile, 0);
      const Vec norm = load_halves(page + layout.norms(tile, h) + part * kLanes * 2);
      for (int c = 0; c < head_dim; ++c, field += 2 * bits)
        store(x_.data() + c * kLanes, mul(norm, level(field, part)));
      if (side.rotation_heads > 0) {
        for (int c = 0; c < head_dim; c += 8) butterflies<8>(x_.data() + c * kLanes, 1);
      }
      finish_rotation<head_dim>(side, 1, x_.data());
      write(run, h, 1, rotation_scale(head_dim, side.rotation_heads), rows_.v);
    }
  }

  static int tile_of(const Run& run) { return static_cast<int>(run.first % kPageTokens / kTileTokens); }
  static int part_of(const Run& run) { return static_cast<int>(run.first % kTileTokens / kLanes); }

  /// Writes scale * x_ [heads, head_dim, kLanes], the heads from first_head on, to the rows of the run's tokens.
  void write(const Run& run, int first_head, int heads, float scale, float* out) const {
    const int64_t tokens = rows_.end - rows_.begin;
    const bool whole = run.end - run.begin == kLanes;
    for (int h = 0; h < heads; ++h) {
      float* rows = out + ((first_head + h) * tokens + run.begin - rows_.begin) * head_dim;
      for (int c = 0; c < head_dim; c += kLanes) {
        Vec block[kLanes];
        const float* x = x_.data() + (h * head_dim + c) * kLanes;
        for (int i = 0; i < kLanes; ++i) block[i] = mul(load(x + i * kLanes), broadcast(scale));
        transpose(block);
        if (whole) {
          for (int i = 0; i < kLanes; ++i) store(rows + i * head_dim + c, block[i]);
        } else {
          alignas(64) float spilled[kLanes * kLanes];
          for (int i = 0; i < kLanes; ++i) store(spilled + i * kLanes, block[i]);
          for (int64_t t = run.begin; t < run.end; ++t) {
            std::copy_n(spilled + (t - run.first) * kLanes, kLanes, rows + (t - run.begin) * head_dim + c);
          }
        }
      }
    }
  }

  const LayerCache& cache_;
  const int64_t b_;
  const TokenRows& rows_;
  AlignedFloats affine_, x_, codes_;
  RunAngles<head_dim> angles_;
  const std::vector<StaticReader<head_dim>>& static_readers_;
};

/// Sinks lie anywhere and are few: they are read one by one.
void read_sinks(const LayerCache& cache, int64_t b, const TokenRows& rows) {
  const TokenReader reader(cache, b, cache.length(b));
  std::vector<float> k(cache.params->channels()), v(cache.params->channels());
  for (const Sink& sink : find_sinks(cache, b, cache.length(b))) {
    if (sink.token < rows.begin || sink.token >= rows.end) continue;
    read_into_rows(cache, reader, sink.token, rows, k.data(), v.data());
  }
}

template <int head_dim>
void dequantize_rows(const LayerCache& cache, int64_t b, const TokenRows& rows) {
  const int64_t quantized = cache.quantized(b, cache.length(b));
  const int64_t first = rows.begin / kPageTokens, last = (rows.end - 1) / kPageTokens;
  const std::vector<StaticReader<head_dim>> readers = static_readers<head_dim>(cache);
  parallel_for(last - first + 1, [&](int64_t i) {
    RowReader<head_dim> reader(cache, b, rows, readers);
    const int64_t begin = std::max(rows.begin, (first + i) * kPageTokens);
    const int64_t end = std::min(rows.end, (first + i + 1) * kPageTokens);
    const int64_t split = std::clamp(quantized, begin, end);
    if (begin < split) reader.read_stored(begin, split);
    if (split < end) reader.read_window(split, end);
  });
  if (cache.params->max_sinks > 0) read_sinks(cache, b, rows);
}

}  // namespace
}  // namespace KVQUANT_ISA

void KVQUANT_FN(dequantize)(const LayerCache& cache, int64_t b, const TokenRows& rows) {
  if (cache.params->head_dim == 64) {
    KVQUANT_ISA::dequantize_rows<64>(cache, b, rows);
  } else {
    KVQUANT_ISA::dequantize_rows<128>(cache, b, rows);
  }
}

}  // namespace kvquant
