/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "dispatch.h"

#include <atomic>

#include "append.h"
#include "attend.h"
#include "dequantize.h"
#include "linear.h"

namespace kvquant {
namespace {

std::atomic<Variant>& selected() {
  static std::atomic<Variant> variant{best_variant()};
  return variant;
}

/// The variant for a layer: the vectorized versions know head_dim 64 and 128; any other size takes the portable one.
[[maybe_unused]] Variant variant_for(const LayerParams& params) {
  return params.head_dim == 64 || params.head_dim == 128 ? current_variant() : Variant::kPortable;
}

}  // namespace

Variant best_variant() {
#if defined(KVQUANT_HAVE_AVX2) && defined(KVQUANT_HAVE_AVX512)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return Variant::kAvx512;
  }
  if (avx2) return Variant::kAvx2;
#endif
  return Variant::kPortable;
}

Variant current_variant() { return selected().load(std::memory_order_relaxed); }

bool use_variant(Variant variant) {
  if (variant < Variant::kPortable || variant > best_variant()) return false;
  selected().store(variant);
  return true;
}

void attend(const LayerCache& cache, const float* qkv, float* out) {
#ifdef KVQUANT_HAVE_AVX2
  const Variant variant = variant_for(*cache.params);
  if (variant == Variant::kAvx512) return attend_avx512(cache, qkv, out);
  if (variant == Variant::kAvx2) return attend_avx2(cache, qkv, out);
#endif
  attend_portable(cache, qkv, out);
}

AppendKernels append_kernels([[maybe_unused]] const LayerParams& params) {
#ifdef KVQUANT_HAVE_AVX2
  const Variant variant = variant_for(params);
  if (variant == Variant::kAvx512) return {encode_page_avx512, store_exact_avx512};
  if (variant == Variant::kAvx2) return {encode_page_avx2, store_exact_avx2};
#endif
  return {encode_page_portable, store_exact};
}

void dequantize(const LayerCache& cache, int64_t b, int64_t begin, int64_t end, float* k, float* v) {
  if (begin >= end) return;
  const TokenRows rows{begin, end, k, v};
#ifdef KVQUANT_HAVE_AVX2
  const Variant variant = variant_for(*cache.params);
  if (variant == Variant::kAvx512) return dequantize_avx512(cache, b, rows);
  if (variant == Variant::kAvx2) return dequantize_avx2(cache, b, rows);
#endif
  dequantize_portable(cache, b, rows);
}

}  // namespace kvquant
