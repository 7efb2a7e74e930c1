/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Codes of values with a norm whose levels are a step apart, to the bit of core/codec.h without a comparison for each
// level: a quotient is a place between the first level and the last, which a large number that is added rounds; one
// that is too near to a border to be trusted, as a product with a reciprocal, is divided and compared.
#pragma once
#include "codes.cuh"

namespace kvquant::cuda {

/// Whether levels are so; their step is one that quotients by it are numbers of.
inline bool even_levels(const SideView& side) {
  return side.format == Format::kNorm && side.level_step > 1e-6f && side.level_step < 1e6f;
}

/// A token of a head: a place is x factor + 1 / 2; how far from a code one may be that is not in doubt.
struct alignas(16) TokenLevels {
  float factor, limit, rms;
};

template <int bits>
struct EvenLevels {
  static constexpr float kLast = static_cast<float>((1 << bits) - 1), kCentre = 0.5f * kLast;
  static constexpr float kRound = 12582912.0f;  // 1.5 2^23: its sum with a small number ends in that, rounded
  static constexpr uint32_t kRoundBits = 0x4b400000u;
  float step, inverse;

  __device__ __forceinline__ explicit EvenLevels(float step) : step(step), inverse(1.0f / (step * kLast)) {}

  __device__ __forceinline__ TokenLevels of(float rms) const {
    // A place is off by 8 2^-25 at most, with what the portable operator rounds away.
    const bool number = rms > 0x1p-90f && rms < 0x1p90f;
    return {1.0f / rms * inverse, number ? 0.5f - 0x1.1p-22f * kLast - 0x1p-24f : -1.0f, rms};
  }
  /// kRound plus the code; doubt: unless it might be another.
  __device__ __forceinline__ float rounded(float x, const TokenLevels& token, bool& doubt) const {
    const float place = __saturatef(fmaf(x, token.factor, 0.5f)), sum = fmaf(place, kLast, kRound);
    doubt |= fabsf(fmaf(place, kLast, -(sum - kRound))) > token.limit;
    return sum;
  }
  __device__ __forceinline__ float level(float code) const { return __fmul_rn(step, code - kCentre); }
};

/// kvquant::nearest_level of x / rms, from a code near to it.
template <int bits>
__device__ __forceinline__ float nearest_even(const EvenLevels<bits>& levels, float x, float rms, float code) {
  const auto border = [&](float lower) {
    return __fmul_rn(0.5f, __fadd_rn(levels.level(lower), levels.level(lower + 1.0f)));
  };
  const float quotient = rms > 0.0f ? __fdiv_rn(x, rms) : 0.0f;
  while (code > 0.0f && !(quotient > border(code - 1.0f))) code -= 1.0f;
  while (code < levels.kLast && quotient > border(code)) code += 1.0f;
  return code;
}

/// Of four values of each of four tokens, some in doubt, becomes kRound plus their codes.
template <int bits>
static __device__ __noinline__ void code_again(EvenLevels<bits> levels, const TokenLevels* tokens, float* x) {
#pragma unroll 1
  for (int i = 0; i < 16; ++i) {
    bool doubt = false;
    float sum = levels.rounded(x[i], tokens[i / 4], doubt);
    if (doubt) sum = levels.kRound + nearest_even(levels, x[i], tokens[i / 4].rms, sum - levels.kRound);
    x[i] = sum;
  }
}

}  // namespace kvquant::cuda
