/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Where everything lies in memory: the packed parameters of a layer, a page of stored tokens, an exact page. The Java
// side writes LayerParams field by field in this order (LayerFormat.java) and learns the page sizes from
// kvquant::layout.
#pragma once
#include <algorithm>
#include <cstdint>

namespace kvquant {

/// Tokens of a tile. The codes of one channel for the 16 tokens of a tile are contiguous, token t at bit t * bits,
/// least significant first: a reader keeps tokens in vector lanes and needs no shuffle, whatever the width of a
/// channel.
constexpr int kTileTokens = 16;
/// Tokens of a page of stored keys and values.
constexpr int kPageTokens = 64;
constexpr int kPageTiles = kPageTokens / kTileTokens;
/// With key sparsity, pages with any of the last kRecentCoded tokens that are read from pages are always read.
constexpr int64_t kRecentCoded = kPageTokens;
/// Tokens of an exact page: sinks or a run of the recent window.
constexpr int kExactTokens = kTileTokens;
/// Entries of a layer's input that decide about massive-activation sinks (RotateKV, section 3.3).
constexpr int kMassiveEntries = 20;
constexpr int kMaxHeadDim = 256;
constexpr int kMaxRotationHeads = 4;

/// How one side (keys or values) of a token is stored.
enum class Format : int32_t {
  kFloat32 = 0,  ///< the element itself
  kFloat16 = 1,  ///< rounded to half precision
  kAffine = 2,  ///< code * scale - zero * scale, scale and zero (in code units) in fp16 per token and group of channels
  kStatic = 3,  ///< keys: start + step * code, or 0 where the width is 0; nothing is stored per token
  kNorm = 4,    ///< values: norm * level[code], an fp16 norm per token and head
  kCodebook = 5,  ///< start + step * level[code], with start and step of each channel (keys) or in fp16 of each token
                  ///< (values); a token's outliers, in fp16, stand in for what their codes say
};

enum class SinkPolicy : int32_t {
  kNone = 0,
  kFirst = 1,    ///< the first max_sinks tokens of a sequence
  kMassive = 2,  ///< the owners of the kMassiveEntries largest |entries| of the layer's input over the prompt
};

/// The channel of an outlier's slot that is empty (kCodebook).
constexpr uint16_t kNoChannel = 0xffff;

/// Runs of channels of a head that have codes of one width (kStatic); head_dim / 16 channels each.
constexpr int kWidthRuns = 16;

/// One side of a layer's packed parameters; 80 bytes. Offsets are in bytes from the beginning of the packed parameters;
/// 0: absent. The place of a channel says where its codes are stored: places are the rows of a basis, or the channels
/// in the order that order_offset gives.
struct SideParams {
  Format format;
  int32_t bits;            ///< of a stored element: 2, 3, 4, 8 (kAffine, kNorm; kCodebook: not 8), 16, 32; 0 (kStatic)
  int32_t rotation_heads;  ///< kv heads rotated together (1 to 4); 0: no rotation
  int32_t group_size;      ///< channels that share a scale and zero (kAffine)
  float clip;              ///< factor on a group's minimum and maximum before the scale is taken (kAffine)
  int32_t float_zero;      ///< 1: the zero is not rounded to an integer (kAffine)
  int32_t order_offset;    ///< INT16 [channels]: the channel at each place of the order. kAffine: runs of group_size
                           ///< places form the groups. kStatic: runs of head_dim / 16 places share a width; each
                           ///< channel is in the head of its place; without a basis only
  int32_t mean_offset;     ///< FP32 [channels]: subtracted from keys before anything else (kStatic)
  int32_t steps_offset;    ///< FP32 [channels, {start, step}], by place (kStatic, kCodebook of keys)
  int32_t levels_offset;   ///< FP32 [1 << bits], ascending; 256 are equally spaced around 0 (kNorm). FP32 [2, 1 <<
                           ///< bits], both ascending: those that choose codes, those that codes stand for (kCodebook)
  int32_t basis_heads;     ///< kv heads that a basis covers, 1 or all (kStatic); 0: the natural basis
  int32_t basis_offset;    ///< FP32 [num_kv_heads / basis_heads, n places, n channels], n = basis_heads * head_dim
  int32_t inverse_offset;  ///< FP32 [num_kv_heads / basis_heads, n channels, n places]
  int32_t wave_offset;     ///< WaveTable (kStatic, after RoPE); 0: none
  int32_t noise_offset;    ///< FP32 [channels]: variance of a key's error after RoPE (kStatic); 0: none
  int32_t outliers;        ///< of a token at most (kCodebook)
  uint8_t widths[kWidthRuns];  ///< bits of the codes of each run of places, the same for all heads: 0 to 4, 8
                               ///< (kStatic)
};

inline bool is_quantized(const SideParams& side) {
  return side.format != Format::kFloat32 && side.format != Format::kFloat16;
}

/// The packed parameters of a layer, a UINT8 tensor that begins with this header; 208 bytes.
struct LayerParams {
  int32_t magic;  ///< kMagic
  int32_t bytes;  ///< of the whole tensor
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t head_dim;
  int32_t window;  ///< recent tokens that are read exactly
  SinkPolicy sink_policy;
  int32_t max_sinks;      ///< sink tokens at most, per sequence and layer
  int32_t keys_pre_rope;  ///< 1: keys are stored before RoPE, which is applied when they are read
  float score_scale;      ///< factor of q . k, RoPE's attention factor included
  int32_t sparse_tokens;  ///< stored tokens that a decoding step chooses by landmarks, in whole pages; 0: it reads all
  int32_t reserved;
  SideParams keys;
  SideParams values;

  int channels() const { return num_kv_heads * head_dim; }
  int queries_per_kv_head() const { return num_heads / num_kv_heads; }
  /// Kv heads whose keys are read together, since their basis mixes them.
  int heads_at_once() const { return std::max({1, keys.rotation_heads, keys.basis_heads}); }
  bool has_exact_pages() const { return window > 0 || max_sinks > 0; }
  int sink_pages() const { return (max_sinks + kExactTokens - 1) / kExactTokens; }
};
constexpr int32_t kMagic = 0x3151564b;  // "KVQ1", little endian
static_assert(sizeof(SideParams) == 80 && sizeof(LayerParams) == 208, "LayerFormat.java writes these bytes");

/// How RoPE's cosines and sines over the 64 positions of a page are approximated where they are slow. Packed FP32:
/// fast, terms, polynomials [terms, 64], weights [terms, {cosine, sine}, pairs - fast]. cos(j theta_i), for pairs i >=
/// fast, is the sum over terms of weight and polynomial at j.
struct WaveTable {
  static constexpr int kMaxTerms = 16;

  WaveTable(const LayerParams& params, int pairs) : fast(pairs) {
    if (params.keys.wave_offset == 0) return;
    const auto* data =
        reinterpret_cast<const float*>(reinterpret_cast<const uint8_t*>(&params) + params.keys.wave_offset);
    fast = static_cast<int>(data[0]);
    terms = static_cast<int>(data[1]);
    polynomials = data + 2;
    weights = polynomials + terms * kPageTokens;
  }

  int fast, terms = 0;
  const float *polynomials = nullptr, *weights = nullptr;
};

/// Byte offsets of one side within a page:
/// codes [num_kv_heads, kPageTiles, head_dim places, 2 * width bytes], then fp16 [kPageTiles, groups, {scale, zero},
/// 16] (kAffine), [kPageTiles, num_kv_heads, 16] (kNorm) or [kPageTiles, {step, start}, 16] (kCodebook of values), then
/// [kPageTiles, outliers, {fp16 value, UINT16 channel}, 16] (kCodebook).
class SideLayout {
 public:
  SideLayout(const LayerParams& params, const SideParams& side, int64_t begin)
      : begin_(begin), bits_(side.bits), run_(params.head_dim / kWidthRuns) {
    if (side.format == Format::kStatic) {
      for (int r = 0; r < kWidthRuns; ++r) {
        run_begin_[r] = tile_bytes_;
        width_[r] = side.widths[r];
        tile_bytes_ += 2 * run_ * width_[r];
      }
    } else {
      tile_bytes_ = params.head_dim * code_bytes();
    }
    groups_ = side.format == Format::kAffine ? params.channels() / side.group_size : 0;
    scales_ = begin_ + static_cast<int64_t>(params.num_kv_heads) * kPageTiles * tile_bytes_;
    const bool codebook = side.format == Format::kCodebook;
    const bool token_range = codebook && side.steps_offset == 0;
    const int halves = side.format == Format::kNorm ? params.num_kv_heads : token_range ? 2 : 2 * groups_;
    scale_bytes_ = halves * kTileTokens * 2;
    slots_ = codebook ? side.outliers : 0;
    outliers_begin_ = scales_ + kPageTiles * scale_bytes_;
    end_ = outliers_begin_ + static_cast<int64_t>(kPageTiles) * slots_ * 2 * kTileTokens * 2;
  }

  /// Bytes of the 16 codes of one channel; not of kStatic, whose widths differ.
  int code_bytes() const { return 2 * bits_; }
  int groups() const { return groups_; }
  /// The codes of all channels of a head for a tile.
  int64_t tile(int kv_head, int tile) const {
    return begin_ + (static_cast<int64_t>(kv_head) * kPageTiles + tile) * tile_bytes_;
  }
  int64_t codes(int kv_head, int tile, int channel) const { return this->tile(kv_head, tile) + channel * code_bytes(); }
  /// kStatic: the codes of a place, and their width.
  int64_t place(int kv_head, int tile, int place) const {
    return this->tile(kv_head, tile) + run_begin_[place / run_] + place % run_ * 2 * width(place);
  }
  int width(int place) const { return width_[place / run_]; }
  int64_t scales(int tile, int group) const {
    return scales_ + tile * scale_bytes_ + static_cast<int64_t>(group) * 2 * kTileTokens * 2;
  }
  int64_t zeros(int tile, int group) const { return scales(tile, group) + kTileTokens * 2; }
  int64_t norms(int tile, int kv_head) const {
    return scales_ + tile * scale_bytes_ + static_cast<int64_t>(kv_head) * kTileTokens * 2;
  }
  /// kCodebook: slots of a token for outliers, the values of a slot and their channels.
  int outliers() const { return slots_; }
  int64_t outlier_values(int tile, int slot) const {
    return outliers_begin_ + (static_cast<int64_t>(tile) * slots_ + slot) * 2 * kTileTokens * 2;
  }
  int64_t outlier_channels(int tile, int slot) const { return outlier_values(tile, slot) + kTileTokens * 2; }
  int64_t end() const { return end_; }

 private:
  int64_t begin_, scales_ = 0, scale_bytes_ = 0, outliers_begin_ = 0, end_ = 0;
  int bits_, run_, groups_ = 0, slots_ = 0, tile_bytes_ = 0;
  int run_begin_[kWidthRuns] = {}, width_[kWidthRuns] = {};
};

/// A page: the keys, then the values, of kPageTokens tokens; padded so that a reader may load 8 bytes at any code. With
/// sparse_tokens the landmarks, bfloat16 [channels], lie behind the padding (landmarks.h).
struct PageLayout {
  explicit PageLayout(const LayerParams& params)
      : keys(params, params.keys, 0),
        values(params, params.values, keys.end()),
        landmarks((values.end() + 8 + 63) / 64 * 64),
        bytes(landmarks + (params.sparse_tokens > 0 ? (2 * params.channels() + 63) / 64 * 64 : 0)) {}
  SideLayout keys, values;
  int64_t landmarks;
  int64_t bytes;
};

/// Head of an exact page. Sinks: the token that each slot holds, and, in the first sink page of a sequence, the massive
/// entries found so far, sorted by descending value, then ascending token; an unused entry has token -1.
struct ExactHeader {
  int32_t tokens[kExactTokens];  ///< position of the token in each slot; -1: empty
  float massive_values[kMassiveEntries];
  int32_t massive_tokens[kMassiveEntries];
  int32_t reserved[8];
};
static_assert(sizeof(ExactHeader) == 256, "keeps what follows aligned");

/// An exact page: ExactHeader, keys then values as fp16 [num_kv_heads, head_dim, 16], natural basis, before RoPE.
struct ExactLayout {
  explicit ExactLayout(const LayerParams& params)
      : head_dim(params.head_dim),
        values_begin(sizeof(ExactHeader) + static_cast<int64_t>(params.channels()) * kExactTokens * 2),
        bytes(values_begin + static_cast<int64_t>(params.channels()) * kExactTokens * 2) {}
  int64_t keys(int kv_head, int channel) const {
    return sizeof(ExactHeader) + (static_cast<int64_t>(kv_head) * head_dim + channel) * kExactTokens * 2;
  }
  int64_t values(int kv_head, int channel) const {
    return values_begin + (static_cast<int64_t>(kv_head) * head_dim + channel) * kExactTokens * 2;
  }
  int head_dim;
  int64_t values_begin;
  int64_t bytes;
};

}  // namespace kvquant
