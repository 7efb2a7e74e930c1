/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// What the scores of coded keys lack on average. A code stands for the mean of the keys that share it: a key is what
// its code says plus an error that the code does not know, and softmax takes exponentials. With an error of variance s2
// in the score, E[exp(score)] = exp(score of the code + s2 / 2): without the bias, coded tokens get too little weight
// beside exact ones.
#pragma once
#include "basis.h"

namespace kvquant {

inline bool has_score_bias(const LayerParams& params) { return params.keys.noise_offset != 0; }

/// Half the variance of the score's error of a query after RoPE, [head_dim], against keys of a kv head; scale is the
/// factor that the query has still to be multiplied by.
inline float score_bias(const LayerParams& params, int kv_head, const float* roped_q, float scale) {
  const float* noise = packed_array<float>(params, params.keys.noise_offset) + kv_head * params.head_dim;
  float sum = 0;
  for (int c = 0; c < params.head_dim; ++c) sum += roped_q[c] * roped_q[c] * noise[c];
  return 0.5f * scale * scale * sum;
}

}  // namespace kvquant
