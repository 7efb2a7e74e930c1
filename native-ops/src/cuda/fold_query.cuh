/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// A query, folded into what products with codes and the mean term want.
#pragma once
#include "mean_term.cuh"
#include "queries.cuh"

namespace kvquant::cuda {

constexpr float kWaveFactor = 1.0f / 4096;  // of amplitudes; waves have the other part of codes' 2^-24

__device__ __forceinline__ float warp_maximum(float x) {
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

__device__ __forceinline__ void load_floats(const float* from, float (&to)[4]) {
  const float4 x = *reinterpret_cast<const float4*>(from);
  to[0] = x.x;
  to[1] = x.y;
  to[2] = x.z;
  to[3] = x.w;
}

__device__ __forceinline__ void load_floats(const float* from, float (&to)[2]) {
  const float2 x = *reinterpret_cast<const float2*>(from);
  to[0] = x.x;
  to[1] = x.y;
}

__device__ __forceinline__ void store_floats(float* to, const float (&x)[4]) {
  *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
}

__device__ __forceinline__ void store_floats(float* to, const float (&x)[2]) {
  *reinterpret_cast<float2*>(to) = make_float2(x[0], x[1]);
}

/// All that a lane's part of a query is folded from, so that loads come before everything else, at once: what belongs
/// to the layer, then what belongs to the query.
template <int D>
struct FoldInputs {
  static constexpr int kLanes = D / kWarp;  // channels of a lane
  float q[kLanes];
  RawQuery<kLanes> raw;
  float2 steps[kLanes], angles[kLanes];
  float own_mean[kLanes] = {}, other_mean[kLanes] = {}, noise[kLanes] = {};
  int channel[kLanes];

  __device__ __forceinline__ FoldInputs(const CacheView& cache, int kv_head, int lane) {
    const SideView& keys = cache.keys;
    const int first = kv_head * D + lane * kLanes;
    const float4* from = reinterpret_cast<const float4*>(keys.steps + 2 * first);
#pragma unroll
    for (int i = 0; i < kLanes; i += 2) {
      const float4 two = from[i / 2];
      steps[i] = make_float2(two.x, two.y);
      steps[i + 1] = make_float2(two.z, two.w);
    }
    if (keys.mean != nullptr) {
      const int upper = kv_head * D + lane * kLanes % (D / 2) + D / 2;
      load_floats(keys.mean + first, own_mean);
      load_floats(keys.mean + upper, other_mean);
    }
    if (keys.noise != nullptr) load_floats(keys.noise + first, noise);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) channel[i] = channel_at<D>(keys, kv_head, lane * kLanes + i);
  }

  /// Of the query's position.
  __device__ __forceinline__ void load_angles(const CacheView& cache, int position, int lane) {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) angles[i] = rope_angle(cache, position, lane % (kWarp / 2) * kLanes + i);
  }

  /// Applies RoPE.
  __device__ __forceinline__ void turn_query(int lane) {
    const bool upper = lane >= kWarp / 2;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const float other = __shfl_xor_sync(0xffffffffu, q[i], kWarp / 2);
      const float2 y = upper ? turn(other, q[i], angles[i]) : turn(q[i], other, angles[i]);
      q[i] = upper ? y.y : y.x;
    }
  }
};

/// Leaves a query's words; rounded: a lane's channels.
__device__ __forceinline__ void put_words(const float (&rounded)[4], const HalfRuns&, int head, int lane,
                                          uint32_t* queries) {
  // Lane 4 g + c of run r wants places 8 r + 2 c and + 1 of head g.
  uint32_t* to = queries + lane / 2 * kQueryWords + head * 4 + lane % 2 * 2;
  to[0] = pack_halves(rounded[0], rounded[1]);
  to[1] = pack_halves(rounded[2], rounded[3]);
  if (head == 0 && lane % 2 == 0) queries[lane / 2 * kQueryWords + kWarp] = 0;
}

__device__ __forceinline__ void put_words(const float (&rounded)[2], const HalfRuns& runs, int head, int lane,
                                          uint32_t* queries) {
  // The second of a pair may be missing.
  if (lane < 2 * runs.pairs) queries[lane / 2 * kQueryWords + head * 4 + 2 + lane % 2] = 0;
  if (head == 0 && lane < runs.pairs) queries[lane * kQueryWords + kWarp] = 0;
  __syncwarp();
  const int first = runs.query[lane / 2];
  if (first >= 0) queries[first + head * 4 + lane % 2] = pack_halves(rounded[0], rounded[1]);
}

/// Folds a query into what products and the mean term want. A warp does one head. kept: where it goes as turned, times
/// the score's factor and log2(e), unless nullptr.
template <int D>
__device__ __forceinline__ void fold_query(const CacheView& cache, ElementType type, FoldInputs<D>& inputs,
                                           const HalfRuns& runs, int head, int lane, uint32_t* queries,
                                           float4* amplitudes, float* factors, float* kept) {
  constexpr int kLanes = D / kWarp;
  inputs.raw.convert(type, inputs.q);
  inputs.turn_query(lane);
  const float(&q)[kLanes] = inputs.q;
  const SideView& keys = cache.keys;
  const int column = head * 4;
  const float scale = cache.score_scale * kLog2e;
  if (kept != nullptr) {
    float scaled[kLanes];
#pragma unroll
    for (int i = 0; i < kLanes; ++i) scaled[i] = q[i] * scale;
    store_floats(kept + lane * kLanes, scaled);
  }
  float folded[kLanes], constant = 0.0f, largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    const int c = inputs.channel[i];
    float x = 0.0f;
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      const float value = __shfl_sync(0xffffffffu, q[j], c / kLanes);
      if (c % kLanes == j) x = value * scale;
    }
    if (keys.width[(lane * kLanes + i) / (D / kWidthRuns)] == 0) x = 0.0f;
    constant = fmaf(x, inputs.steps[i].x, constant);
    folded[i] = x * inputs.steps[i].y;
    largest = fmaxf(largest, fabsf(folded[i]));
    constant = fmaf(0.5f * cache.score_scale * scale * q[i] * q[i], inputs.noise[i], constant);
  }
  // q . R_t mean = cos (q_i m_i + q_j m_j) + sin (q_j m_i - q_i m_j), j the partner of i; lanes 0 to 15 hold the i.
  float2 waves[kLanes];
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    const float other = __shfl_xor_sync(0xffffffffu, q[i], kWarp / 2);
    const float mi = inputs.own_mean[i], mj = inputs.other_mean[i];
    waves[i] = make_float2(scale * fmaf(q[i], mi, other * mj), scale * fmaf(other, mi, -q[i] * mj));
    if (lane >= kWarp / 2) waves[i] = make_float2(0.0f, 0.0f);
    largest = fmaxf(largest, fmaxf(fabsf(waves[i].x), fabsf(waves[i].y)) * (2.0f * kWaveFactor));
  }
  largest = warp_maximum(largest);
  // sigma brings the largest to 2^8 .. 2^9: 64 times that is still an fp16, 2^-22 of it still a normal one. Waves to
  // half of it: differences of sums of 48 pairs then are an fp16.
  const int exponent = largest > 0.0f ? min(max(((__float_as_int(largest) >> 23) & 0xff) - 127, -80), 80) : 0;
  const float sigma = __int_as_float((127 + 8 - exponent) << 23), inverse = __int_as_float((127 - 8 + exponent) << 23);
  // The constant makes up for what rounding does to codes halfway: it then acts on code - halfway, not on code.
  const float halfway = 0.5f * static_cast<float>((1 << keys.width[lane * kLanes / (D / kWidthRuns)]) - 1);
  float rounded[kLanes];
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    rounded[i] = round_to_half(folded[i] * sigma);
    constant = fmaf(folded[i] - rounded[i] * inverse, halfway, constant);
  }
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) constant += __shfl_xor_sync(0xffffffffu, constant, step);
  if (lane == 0) {
    factors[head] = inverse;
    factors[kHeads + head] = constant;
  }
  put_words(rounded, runs, head, lane, queries);
  if (lane >= kWarp / 2) return;
  const float unit = sigma * kWaveFactor;
#pragma unroll
  for (int i = 0; i < kLanes; i += 2) {
    // Pairs kLanes lane + i and + 1: wave_pair.
    const int block = lane / (16 / kLanes) * 2 + (kLanes == 4 ? i / 2 : lane % 2);
    amplitudes[block * kWarp + column + lane % (16 / kLanes) / (4 / kLanes)] =
        make_float4(waves[i].x * unit, waves[i].y * unit, waves[i + 1].x * unit, waves[i + 1].y * unit);
  }
}

}  // namespace kvquant::cuda
