/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Where everything lies in memory: the packed parameters of a layer, a page of stored tokens, an exact page. The Java
// side writes LayerParams field by field in this order (LayerFormat.java) and learns the page sizes from
// kvquant::layout.
#pragma once
#include <cstdint>

namespace kvquant {

/// Tokens of a tile. The codes of one channel for the 16 tokens of a tile are contiguous, token t at bit t * bits,
/// least significant first: a reader keeps tokens in vector lanes and needs no shuffle, whatever the width of a
/// channel.
constexpr int kTileTokens = 16;
/// Tokens of a page of stored keys and values.
constexpr int kPageTokens = 64;
constexpr int kPageTiles = kPageTokens / kTileTokens;
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
};

enum class SinkPolicy : int32_t {
  kNone = 0,
  kFirst = 1,    ///< the first max_sinks tokens of a sequence
  kMassive = 2,  ///< the owners of the kMassiveEntries largest |entries| of the layer's input over the prompt
};

/// One side of a layer's packed parameters; 32 bytes.
struct SideParams {
  Format format;
  int32_t bits;            ///< of a stored element: 2, 3, 4, 8 (kAffine), 16, 32
  int32_t rotation_heads;  ///< kv heads rotated together (1 to 4); 0: stored in the natural basis
  int32_t group_size;      ///< channels that share a scale and zero (kAffine)
  float clip;              ///< factor on a group's minimum and maximum before the scale is taken (kAffine)
  int32_t float_zero;      ///< 1: the zero is not rounded to an integer (kAffine)
  int32_t order_offset;    ///< byte offset, in the packed parameters, of INT16[channels]: the channel at each place of
                           ///< the order whose runs of group_size form the groups; 0: natural order
  int32_t reserved;
};

/// The packed parameters of a layer, a UINT8 tensor that begins with this header; 112 bytes.
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
  int32_t reserved[2];
  SideParams keys;
  SideParams values;

  int channels() const { return num_kv_heads * head_dim; }
  int queries_per_kv_head() const { return num_heads / num_kv_heads; }
  bool has_exact_pages() const { return window > 0 || max_sinks > 0; }
  int sink_pages() const { return (max_sinks + kExactTokens - 1) / kExactTokens; }
};
constexpr int32_t kMagic = 0x3151564b;  // "KVQ1", little endian
static_assert(sizeof(SideParams) == 32 && sizeof(LayerParams) == 112, "LayerFormat.java writes these bytes");

/// Byte offsets of one side within a page:
/// codes [num_kv_heads, kPageTiles, head_dim, 2 * bits bytes], then (kAffine) fp16 [kPageTiles, groups, {scale, zero},
/// 16].
class SideLayout {
 public:
  SideLayout(const LayerParams& params, const SideParams& side, int64_t begin)
      : begin_(begin),
        bits_(side.bits),
        head_dim_(params.head_dim),
        groups_(side.format == Format::kAffine ? params.channels() / side.group_size : 0) {
    scales_ = begin_ + static_cast<int64_t>(params.channels()) * kPageTiles * code_bytes();
    end_ = scales_ + static_cast<int64_t>(kPageTiles) * groups_ * 2 * kTileTokens * 2;
  }

  /// Bytes of the 16 codes of one channel.
  int code_bytes() const { return 2 * bits_; }
  int groups() const { return groups_; }
  int64_t codes(int kv_head, int tile, int channel) const {
    return begin_ + ((static_cast<int64_t>(kv_head) * kPageTiles + tile) * head_dim_ + channel) * code_bytes();
  }
  int64_t scales(int tile, int group) const {
    return scales_ + (static_cast<int64_t>(tile) * groups_ + group) * 2 * kTileTokens * 2;
  }
  int64_t zeros(int tile, int group) const { return scales(tile, group) + kTileTokens * 2; }
  int64_t end() const { return end_; }

 private:
  int64_t begin_, scales_, end_;
  int bits_, head_dim_, groups_;
};

/// A page: the keys, then the values, of kPageTokens tokens; padded so that a reader may load 8 bytes at any code.
struct PageLayout {
  explicit PageLayout(const LayerParams& params)
      : keys(params, params.keys, 0),
        values(params, params.values, keys.end()),
        bytes((values.end() + 8 + 63) / 64 * 64) {}
  SideLayout keys, values;
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
