/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Encoding of new tokens, to the bit as the portable version: whole runs of kLanes tokens with tokens in vector lanes,
// single ones (decoding, the ends of a prompt's chunk) with channels in lanes.
#include <limits>

#include "../core/aligned.h"
#include "../core/append.h"
#include "codebook_encode.h"
#include "encode.h"
#include "rope.h"
#include "static_keys.h"
#include "stored_side.h"

namespace kvquant {
namespace KVQUANT_ISA {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// One side of a layer while a task encodes it, with the task's scratch.
struct Side {
  Side(const LayerCache& cache, bool is_key)
      : is_key(is_key),
        cache_params(*cache.params),
        stored(is_key ? stored_keys(cache) : stored_values(cache)),
        order(channel_order(*cache.params, stored.params)),
        mean(side_mean(*cache.params, stored.params)),
        channels(cache.params->channels()),
        groups(stored.layout.groups()),
        rounded(rounded_like_exact(*cache.params, stored.params)),
        rope(is_key && cache.params->keys_pre_rope == 0),
        low(groups * kLanes),
        high(groups * kLanes),
        scales(2 * groups * kLanes),
        codebook(cache_params, stored.params, stored.layout) {}

  /// Where the exact copies of a head are in an exact page.
  int64_t exact(const ExactLayout& layout, int head) const {
    return is_key ? layout.keys(head, 0) : layout.values(head, 0);
  }

  const bool is_key;
  const LayerParams& cache_params;
  const StoredSide stored;
  const int16_t* const order;
  const float* const mean;
  const int channels, groups;
  const bool rounded, rope;
  AlignedFloats low, high, scales, x, places;
  CodebookRunEncoder codebook;
};

/// Encodes runs: x is [channels, kLanes], low and high [groups, kLanes], scales [groups, {scale, zero}, kLanes].
template <int head_dim>
class RunEncoder {
 public:
  RunEncoder(const LayerCache& cache, const TokenSource& source) : cache_(cache), source_(source) {}

  /// Stores tokens [token, token + kLanes), all new or all in the window.
  void encode(Side& side, int64_t token, uint8_t* page) {
    side.x.resize(static_cast<size_t>(side.channels) * kLanes);
    const int heads = std::max(1, side.stored.params.rotation_heads);
    if (side.rope) angles_.set(cache_.rope, token);
    for (int h = 0; h < cache_.params->num_kv_heads; h += heads) {
      float* x = side.x.data() + h * head_dim * kLanes;
      if (source_.is_new(token)) {
        load_rows(side, token, h * head_dim, heads * head_dim, x);
      } else {
        load_window(side, token, h, heads * head_dim, x);
      }
      if (side.mean != nullptr) subtract(side.mean + h * head_dim, heads * head_dim, x);
      if (side.rope) angles_.turn(x, heads);
      if (side.stored.params.rotation_heads > 0) rotate_run<head_dim>(x, heads);
    }
    if (side.stored.params.basis_heads > 0) multiply(side);
    const int slot = static_cast<int>(token % kPageTokens), tile = slot / kTileTokens, lane = slot % kTileTokens;
    if (side.stored.params.format == Format::kCodebook) {
      if (!side.codebook(side.x.data(), page, slot)) store_tokens(side, slot, page);
      return;
    }
    if (side.stored.params.format == Format::kAffine) {
      find_bounds(side);
      choose_scales(side, page, tile, lane);
    }
    for (int h = 0; h < cache_.params->num_kv_heads; ++h) {
      if (side.stored.params.format == Format::kStatic) {
        store_static(side, h, tile, lane, page);
        continue;
      }
      if (side.stored.params.format == Format::kNorm) {
        store_norm(side, h, tile, lane, page);
        continue;
      }
      uint8_t* field = page + side.stored.layout.codes(h, tile, 0) + lane * side.stored.params.bits / 8;
      store_head(side, side.x.data() + h * head_dim * kLanes, side.stored.groups + h * head_dim, field);
    }
  }

 private:
  /// Stores the tokens one by one, as the portable version does.
  static void store_tokens(Side& side, int slot, uint8_t* page) {
    SideEncoder encode(side.cache_params, side.stored.params, side.stored.layout, nullptr);
    side.places.resize(side.channels);
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int c = 0; c < side.channels; ++c) side.places[c] = side.x[c * kLanes + lane];
      encode(side.places.data(), page, slot + lane);
    }
  }

  void load_rows(const Side& side, int64_t token, int first, int count, float* x) const {
    const float* rows = source_.row(token) + (side.is_key ? 0 : side.channels) + first;
    for (int c = 0; c < count; c += kLanes) {
      Vec block[kLanes];
      for (int i = 0; i < kLanes; ++i) block[i] = load(rows + i * source_.stride() + c);
      transpose(block);
      for (int i = 0; i < kLanes; ++i) store(x + (c + i) * kLanes, side.rounded ? round_to_half(block[i]) : block[i]);
    }
  }

  void load_window(const Side& side, int64_t token, int head, int count, float* x) const {
    const uint8_t* fields = source_.window_page(token) + side.exact(cache_.exact_layout, head);
    fields += token % kExactTokens * 2;
    for (int c = 0; c < count; ++c) store(x + c * kLanes, load_halves(fields + c * kExactTokens * 2));
  }

  static void find_bounds(Side& side) {
    const uint16_t* groups = side.stored.groups;
    std::fill(side.low.begin(), side.low.end(), kInfinity);
    std::fill(side.high.begin(), side.high.end(), -kInfinity);
    for (int c = 0; c < side.channels;) {
      const int group = groups[c];
      Vec low = load(side.low.data() + group * kLanes), high = load(side.high.data() + group * kLanes);
      for (; c < side.channels && groups[c] == group; ++c) {
        const Vec x = load(side.x.data() + c * kLanes);
        low = min(x, low);
        high = max(x, high);
      }
      store(side.low.data() + group * kLanes, low);
      store(side.high.data() + group * kLanes, high);
    }
  }

  static void choose_scales(Side& side, uint8_t* page, int tile, int lane) {
    for (int g = 0; g < side.groups; ++g) {
      Vec scale, zero_point;
      affine_groups(load(side.low.data() + g * kLanes), load(side.high.data() + g * kLanes), side.stored.params, &scale,
                    &zero_point);
      store(side.scales.data() + 2 * g * kLanes, scale);
      store(side.scales.data() + (2 * g + 1) * kLanes, zero_point);
      store_halves(page + side.stored.layout.scales(tile, g) + 2 * lane, scale);
      store_halves(page + side.stored.layout.zeros(tile, g) + 2 * lane, zero_point);
    }
  }

  static void store_head(const Side& side, const float* x, const uint16_t* groups, uint8_t* field) {
    const SideParams& params = side.stored.params;
    if (params.format == Format::kFloat32) {
      for (int c = 0; c < head_dim; ++c) {
        store(reinterpret_cast<float*>(field + c * kTileTokens * 4), load(x + c * kLanes));
      }
    } else if (params.format == Format::kFloat16) {
      for (int c = 0; c < head_dim; ++c) store_halves(field + c * kTileTokens * 2, load(x + c * kLanes));
    } else if (params.bits == 2) {
      encode_head<2>(side, x, groups, field);
    } else if (params.bits == 3) {
      encode_head<3>(side, x, groups, field);
    } else if (params.bits == 4) {
      encode_head<4>(side, x, groups, field);
    } else {
      encode_head<8>(side, x, groups, field);
    }
  }

  static void subtract(const float* mean, int count, float* x) {
    for (int c = 0; c < count; ++c) store(x + c * kLanes, sub(load(x + c * kLanes), broadcast(mean[c])));
  }

  /// side.x = basis side.x, in the order of additions of kvquant::to_stored_basis.
  void multiply(Side& side) const {
    constexpr int block = 8;
    const int n = side.stored.params.basis_heads * head_dim;
    side.places.resize(side.x.size());
    const float* row = packed_array<float>(*cache_.params, side.stored.params.basis_offset);
    for (int first = 0; first < side.channels; first += n) {
      const float* x = side.x.data() + first * kLanes;
      for (int place = first; place < first + n; place += block, row += block * n) {
        Vec sum[block];
        for (int i = 0; i < block; ++i) sum[i] = zero();
        for (int c = 0; c < n; ++c) {
          const Vec value = load(x + c * kLanes);
          for (int i = 0; i < block; ++i) sum[i] = add(sum[i], mul(broadcast(row[i * n + c]), value));
        }
        for (int i = 0; i < block; ++i) store(side.places.data() + (place + i) * kLanes, sum[i]);
      }
    }
    side.x.swap(side.places);
  }

  /// kvquant::static_code of every place of a head.
  static void store_static(const Side& side, int head, int tile, int lane, uint8_t* page) {
    const float* steps = packed_array<float>(side.cache_params, side.stored.params.steps_offset) + 2 * head * head_dim;
    for_each_width<head_dim>(side.stored.params, [&](auto width, int begin, int end) {
      const Vec levels = broadcast(static_cast<float>((1 << width) - 1));
      uint8_t* field = page + side.stored.layout.place(head, tile, begin) + lane * width / 8;
      for (int place = begin; place < end; ++place, field += 2 * width) {
        const int c = side.order == nullptr ? head * head_dim + place : side.order[head * head_dim + place];
        const Vec centred = sub(load(side.x.data() + c * kLanes), broadcast(steps[2 * place]));
        const Vec code = round_even(div(centred, broadcast(steps[2 * place + 1])));
        store_codes<width>(field, min(levels, max(code, zero())));
      }
    });
  }

  static void store_norm(const Side& side, int head, int tile, int lane, uint8_t* page) {
    const int bits = side.stored.params.bits;
    if (bits == 2) store_norm<2>(side, head, tile, lane, page);
    if (bits == 3) store_norm<3>(side, head, tile, lane, page);
    if (bits == 4) store_norm<4>(side, head, tile, lane, page);
    if (bits == 8) store_norm<8>(side, head, tile, lane, page);
  }

  /// The codes and the norm of a head, as kvquant::SideEncoder chooses them.
  template <int bits>
  static void store_norm(const Side& side, int head, int tile, int lane, uint8_t* page) {
    const float* x = side.x.data() + head * head_dim * kLanes;
    const float* levels = packed_array<float>(side.cache_params, side.stored.params.levels_offset);
    Vec square = zero(), product = zero();
    for (int c = 0; c < head_dim; ++c) square = add(square, mul(load(x + c * kLanes), load(x + c * kLanes)));
    const Vec rms = square_root(div(square, broadcast(static_cast<float>(head_dim))));
    uint8_t* field = page + side.stored.layout.codes(head, tile, 0) + lane * bits / 8;
    for (int c = 0; c < head_dim; ++c, field += 2 * bits) {
      const Vec value = load(x + c * kLanes);
      const Vec relative = where_less(zero(), rms, div(value, rms), zero());
      Vec code = zero(), level = broadcast(levels[0]);
      for (int i = 1; i < 1 << bits; ++i) {
        const Vec middle = broadcast(0.5f * (levels[i - 1] + levels[i]));
        code = where_less(middle, relative, broadcast(static_cast<float>(i)), code);
        level = where_less(middle, relative, broadcast(levels[i]), level);
      }
      store_codes<bits>(field, code);
      product = add(product, mul(value, level));
    }
    const Vec norm = min(div(square, product), broadcast(kLargestHalf));
    store_halves(page + side.stored.layout.norms(tile, head) + 2 * lane, where_less(zero(), product, norm, zero()));
  }

  template <int bits>
  static void encode_head(const Side& side, const float* x, const uint16_t* groups, uint8_t* field) {
    const Quantizer quantize(side.stored.params);
    for (int c = 0; c < head_dim; ++c) {
      const float* pair = side.scales.data() + 2 * groups[c] * kLanes;
      store_codes<bits>(field + c * 2 * bits, quantize(load(x + c * kLanes), load(pair), load(pair + kLanes)));
    }
  }

  const LayerCache& cache_;
  const TokenSource& source_;
  RunAngles<head_dim> angles_;
};

/// Writes the element of one token, one lane of a tile, of every channel of a head; elements [head_dim] are bytes wide
/// and stride bytes apart.
template <int head_dim, int bytes>
inline void scatter(const void* elements, int stride, uint8_t* field) {
  const auto* from = static_cast<const uint8_t*>(elements);
  for (int c = 0; c < head_dim; ++c) std::memcpy(field + c * stride, from + c * bytes, bytes);
}

/// Encodes single tokens: x is [channels], low and high [groups], scales [scales of groups, zeros of groups].
template <int head_dim>
class TokenEncoder {
 public:
  TokenEncoder(const LayerCache& cache, const TokenSource& source) : cache_(cache), source_(source) {}

  void encode(Side& side, int64_t token, uint8_t* page) const {
    constexpr int block = kLanes * kLanes;
    side.x.resize(std::max(side.x.size(), static_cast<size_t>(side.channels + block - 1) / block * block));
    const int kv_heads = cache_.params->num_kv_heads, rotation_heads = side.stored.params.rotation_heads;
    if (source_.is_new(token)) {
      load_row(side, token);
    } else {
      load_window(side, token);
    }
    if (side.rope) turn(side, token);
    if (rotation_heads > 0) rotate_token<head_dim>(side.x.data(), kv_heads, rotation_heads);

    const int slot = static_cast<int>(token % kPageTokens), tile = slot / kTileTokens, lane = slot % kTileTokens;
    if (side.stored.params.format == Format::kAffine) {
      find_bounds(side);
      choose_scales(side, page, tile, lane);
    }
    for (int h = 0; h < kv_heads; ++h) store_head(side, h, page + side.stored.layout.codes(h, tile, 0), lane);
  }

 private:
  void load_row(Side& side, int64_t token) const {
    const float* row = source_.row(token) + (side.is_key ? 0 : side.channels);
    for (int c = 0; c < side.channels; c += kLanes) {
      const Vec x = load(row + c);
      store(side.x.data() + c, side.rounded ? round_to_half(x) : x);
    }
  }

  void load_window(Side& side, int64_t token) const {
    const uint8_t* page = source_.window_page(token) + token % kExactTokens * 2;
    uint16_t halves[head_dim];
    for (int h = 0; h < cache_.params->num_kv_heads; ++h) {
      const uint8_t* fields = page + side.exact(cache_.exact_layout, h);
      for (int c = 0; c < head_dim; ++c) std::memcpy(halves + c, fields + c * kExactTokens * 2, 2);
      for (int c = 0; c < head_dim; c += kLanes) store(side.x.data() + h * head_dim + c, load_halves(halves + c));
    }
  }

  void turn(Side& side, int64_t token) const {
    constexpr int half = head_dim / 2;
    float cos[half], sin[half];
    for (int i = 0; i < half; ++i) cache_.rope.angle(token, i, cos + i, sin + i);
    for (float* x = side.x.data(); x < side.x.data() + side.channels; x += head_dim) {
      for (int i = 0; i < half; i += kLanes) {
        const Vec a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
        store(x + i, sub(mul(a, c), mul(b, s)));
        store(x + half + i, add(mul(b, c), mul(a, s)));
      }
    }
  }

  static void find_bounds(Side& side) {
    const int group_size = side.stored.params.group_size;
    for (int g = 0; g < side.groups; ++g) {
      Vec low = broadcast(kInfinity), high = broadcast(-kInfinity);
      for (int place = g * group_size; place < (g + 1) * group_size; place += kLanes) {
        const Vec x = side.order == nullptr
                          ? load(side.x.data() + place)
                          : gather(side.x.data(), reinterpret_cast<const uint16_t*>(side.order + place));
        low = min(x, low);
        high = max(x, high);
      }
      side.low[g] = minimum(low);
      side.high[g] = maximum(high);
    }
  }

  static void choose_scales(Side& side, uint8_t* page, int tile, int lane) {
    for (int first = 0; first < side.groups; first += kLanes) {
      Vec scale, zero_point;
      affine_groups(load(side.low.data() + first), load(side.high.data() + first), side.stored.params, &scale,
                    &zero_point);
      store(side.scales.data() + first, scale);
      store(side.scales.data() + side.groups * kLanes + first, zero_point);
      uint16_t scale_halves[kLanes], zero_halves[kLanes];
      store_halves(scale_halves, scale);
      store_halves(zero_halves, zero_point);
      for (int i = 0; i < kLanes && first + i < side.groups; ++i) {
        std::memcpy(page + side.stored.layout.scales(tile, first + i) + 2 * lane, scale_halves + i, 2);
        std::memcpy(page + side.stored.layout.zeros(tile, first + i) + 2 * lane, zero_halves + i, 2);
      }
    }
  }

  static void store_head(const Side& side, int head, uint8_t* field, int lane) {
    const SideParams& params = side.stored.params;
    const float* x = side.x.data() + head * head_dim;
    if (params.format == Format::kFloat32) {
      scatter<head_dim, 4>(x, kTileTokens * 4, field + 4 * lane);
    } else if (params.format == Format::kFloat16) {
      uint16_t halves[head_dim];
      for (int c = 0; c < head_dim; c += kLanes) store_halves(halves + c, load(x + c));
      scatter<head_dim, 2>(halves, kTileTokens * 2, field + 2 * lane);
    } else {
      uint8_t codes[head_dim + kLanes];
      quantize_head(side, head, codes);
      if (params.bits == 2) put_codes<2>(codes, field, lane);
      if (params.bits == 3) put_codes<3>(codes, field, lane);
      if (params.bits == 4) put_codes<4>(codes, field, lane);
      if (params.bits == 8) scatter<head_dim, 1>(codes, kTileTokens, field + lane);
    }
  }

  static void quantize_head(const Side& side, int head, uint8_t* codes) {
    const Quantizer quantize(side.stored.params);
    const float *scales = side.scales.data(), *zeros = scales + side.groups * kLanes;
    for (int c = 0; c < head_dim; c += kLanes) {
      const uint16_t* groups = side.stored.groups + head * head_dim + c;
      const Vec x = load(side.x.data() + head * head_dim + c);
      const Vec code = side.order == nullptr ? quantize(x, broadcast(scales[groups[0]]), broadcast(zeros[groups[0]]))
                                             : quantize(x, gather(scales, groups), gather(zeros, groups));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + c), code_bytes(code));
    }
  }

  /// kvquant::put_code of a token for every channel of a head.
  template <int bits>
  static void put_codes(const uint8_t* codes, uint8_t* field, int lane) {
    const int shift = lane * bits % 8;
    const unsigned mask = ((1u << bits) - 1u) << shift;
    uint8_t* p = field + lane * bits / 8;
    for (int c = 0; c < head_dim; ++c, p += 2 * bits) {
      const unsigned value = static_cast<unsigned>(codes[c]) << shift;
      p[0] = static_cast<uint8_t>((p[0] & ~mask) | value);
      if (8 % bits != 0 && shift + bits > 8) p[1] = static_cast<uint8_t>((p[1] & ~(mask >> 8)) | value >> 8);
    }
  }

  const LayerCache& cache_;
  const TokenSource& source_;
};

template <int head_dim>
void encode_page(const LayerCache& cache, const TokenSource& source, int64_t b, int64_t begin, int64_t end) {
  Side sides[] = {Side(cache, true), Side(cache, false)};
  RunEncoder<head_dim> runs(cache, source);
  const TokenEncoder<head_dim> tokens(cache, source);
  const Format keys = cache.params->keys.format, values = cache.params->values.format;
  const bool has_static_parts =
      keys == Format::kStatic || values == Format::kNorm || keys == Format::kCodebook || values == Format::kCodebook;
  uint8_t* page = cache.page(b, begin);
  for (int64_t token = begin; token < end;) {
    const int64_t last = token + kLanes - 1;
    const bool run = token % kLanes == 0 && last < end && source.is_new(token) == source.is_new(last);
    if (!run && has_static_parts) {
      encode_page_portable(cache, source, b, token, token + 1);
      ++token;
      continue;
    }
    for (Side& side : sides) {
      if (run) {
        runs.encode(side, token, page);
      } else {
        tokens.encode(side, token, page);
      }
    }
    token += run ? kLanes : 1;
  }
}

template <int head_dim>
void store_exact_token(const LayerCache& cache, uint8_t* page, int slot, const float* k, const float* v) {
  uint16_t halves[head_dim];
  for (int h = 0; h < cache.params->num_kv_heads; ++h, k += head_dim, v += head_dim) {
    for (int c = 0; c < head_dim; c += kLanes) store_halves(halves + c, load(k + c));
    scatter<head_dim, 2>(halves, kExactTokens * 2, page + cache.exact_layout.keys(h, 0) + 2 * slot);
    for (int c = 0; c < head_dim; c += kLanes) store_halves(halves + c, load(v + c));
    scatter<head_dim, 2>(halves, kExactTokens * 2, page + cache.exact_layout.values(h, 0) + 2 * slot);
  }
}

}  // namespace
}  // namespace KVQUANT_ISA

void KVQUANT_FN(encode_page)(const LayerCache& cache, const TokenSource& source, int64_t b, int64_t begin,
                             int64_t end) {
  if (cache.params->head_dim == 64) {
    KVQUANT_ISA::encode_page<64>(cache, source, b, begin, end);
  } else {
    KVQUANT_ISA::encode_page<128>(cache, source, b, begin, end);
  }
}

void KVQUANT_FN(store_exact)(const LayerCache& cache, uint8_t* page, int slot, const float* k, const float* v) {
  if (cache.params->head_dim == 64) {
    KVQUANT_ISA::store_exact_token<64>(cache, page, slot, k, v);
  } else {
    KVQUANT_ISA::store_exact_token<128>(cache, page, slot, k, v);
  }
}

}  // namespace kvquant
