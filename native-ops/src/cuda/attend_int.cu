/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Which caches attend_int.cuh serves, and what its kernels are told about a layer.
#include <algorithm>

#include "attend_int.cuh"

namespace kvquant::cuda {
namespace {

/// What the products of keys go through: pairs of runs of a width.
void describe_runs(const SideView& keys, IntLayer& layer) {
  int next = 0;
  for (int which = 0; which < 5; ++which) {
    int runs = 0;  // of this width
    for (int run = 0; run < kWidthRuns; ++run) {
      if (keys.width[run] != kStepWidths[which]) continue;
      KeyStep& step = layer.keys.steps[next + runs / 2];
      step.tile[runs % 2] = keys.run_begin[run];
      step.query[runs % 2] = run * kQueryWords * 4;
      ++runs;
    }
    layer.keys.pairs[which] = runs / 2;
    layer.keys.singles[which] = runs % 2;
    next += (runs + 1) / 2;
  }
}

/// The same of head_dim 64, whose runs are taken two at a time. In shared memory they lie by descending width, which
/// they mostly do already.
void describe_half_runs(const SideView& keys, IntLayer& layer) {
  constexpr int kChunk = 8;  // bytes for a bit of width
  int next = 0, all = 0;     // steps, runs by twos
  layer.scattered = keys.tile_bytes % 16 != 0;
  for (int which = 0; which < 5; ++which) {
    const int width = kStepWidths[which];
    int runs = 0, at = 0;
    for (int run = 0; run < kWidthRuns; ++run) at += keys.width[run] > width ? keys.width[run] * kChunk : 0;
    for (int run = 0; run < kWidthRuns; ++run) {
      if (keys.width[run] != width) continue;
      const int two = runs / 2;
      if (runs % 2 == 0) {
        KeyStep& step = layer.keys.steps[next + two / 2];
        step.tile[two % 2] = at;
        step.query[two % 2] = (all + two) * kQueryWords * 4;
      }
      layer.halves.query[run] = (all + two) * kQueryWords + runs % 2 * 2;
      layer.scattered = layer.scattered || keys.run_begin[run] != at;
      for (int i = 0; i < width; ++i) {
        layer.chunks[keys.run_begin[run] / kChunk + i] = static_cast<uint8_t>(at / kChunk + i);
      }
      at += width * kChunk;
      ++runs;
    }
    const int twos = (runs + 1) / 2;
    layer.keys.pairs[which] = twos / 2;
    layer.keys.singles[which] = twos % 2;
    next += (twos + 1) / 2;
    all += twos;
  }
  for (int run = 0; run < kWidthRuns; ++run) {
    if (keys.width[run] == 0) layer.halves.query[run] = -1;
  }
  layer.halves.pairs = all;
}

IntLayer describe(const CacheView& cache) {
  IntLayer layer = {};
  if (cache.head_dim == 64) {
    describe_half_runs(cache.keys, layer);
  } else {
    describe_runs(cache.keys, layer);
  }
  layer.key_stride = (cache.keys.tile_bytes + 127) / 128 * 128;
  layer.stage_bytes = kGroupTiles * std::max(layer.key_stride, cache.values.tile_bytes);
  layer.warp_bytes = kStages * layer.stage_bytes + kNormsBytes;
  const int heads = cache.heads / cache.kv_heads;
  layer.column_bits = heads <= 2 ? 1 : heads <= 4 ? 2 : 3;
  layer.queries = heads;
  layer.head_groups = head_groups(cache);
  layer.level_step = cache.values.level_step;
  return layer;
}

template <int D>
AttentionShape shape_of(const CacheView& cache, int shared_bytes) {
  const IntLayer layer = describe(cache);
  const int many = IntBlock<D, kManyWarps>::kWarpBuffers + kManyWarps * layer.warp_bytes;
  const bool small = cache.values.bits == 2 || (D == 64 && cache.values.bits == 4);
  const int warps = small && many <= shared_bytes ? kManyWarps : kFewWarps;
  const int few = IntBlock<D, kFewWarps>::kWarpBuffers + kFewWarps * layer.warp_bytes;
  return {warps, warps == kManyWarps ? many : few, 2, kGroupTokens, 1};
}

}  // namespace

bool attend_int_supports(const CacheView& cache) {
  const SideView& values = cache.values;
  const bool coded = values.format == Format::kNorm && values.rotated && values.level_step > 0.0f;
  const bool waves = cache.rope_rows >= kPageTokens + 2;  // 128 positions, which the mean term turns by
  const bool first = cache.sink_policy != SinkPolicy::kMassive && cache.keys_pre_rope == 0;
  const auto aligned = [](const float* table) { return reinterpret_cast<uintptr_t>(table) % sizeof(float4) == 0; };
  return first && aligned(cache.keys.steps) && aligned(cache.keys.mean) && aligned(cache.keys.noise) &&
         cache.keys.format == Format::kStatic && coded && (cache.head_dim == 128 || cache.head_dim == 64) &&
         cache.max_sinks <= kSinkBits && waves;
}

AttentionShape attend_int_shape(const CacheView& cache, int shared_bytes) {
  return cache.head_dim == 64 ? shape_of<64>(cache, shared_bytes) : shape_of<128>(cache, shared_bytes);
}

bool attend_int_takes(const CacheView& cache, const AttentionShape& shape, int together) {
  return together << describe(cache).column_bits <= kHeads && cache.kv_heads % together == 0 &&
         shape.warps >= 2 * together;
}

void attend_int(const CacheView& cache, const Attention& p, const AttentionShape& shape, bool early,
                cudaStream_t stream) {
  IntLayer layer = describe(cache);
  layer.together = shape.together;
  for (layer.team_bits = 0; shape.together << (layer.team_bits + 1) <= shape.warps;) ++layer.team_bits;
  if (cache.head_dim == 64) return attend_int_64(cache, p, layer, shape.warps, early, stream);
  launch_bits<128>(cache, p, layer, shape.warps, early, stream);
}

}  // namespace kvquant::cuda
