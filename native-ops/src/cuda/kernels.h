/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// What operators.cu asks of the other files of this folder. Everything runs on the given stream and nothing waits for
// it; arguments have been checked.
#pragma once
#include <algorithm>

#include "cache_view.cuh"

namespace kvquant::cuda {

/// The type of projections and outputs.
enum class ElementType { kFloat32, kFloat16, kBFloat16 };

struct NewTokens {
  const void* qkv;  // [count, heads + 2 kv heads, head_dim]
  ElementType type;
  const int32_t* starts;  // [batch + 1]
  int count;
  const float* massive_values;  // [batch, kMassiveEntries]; nullptr while decoding
  const int32_t* massive_rows;  // within the sequence's new tokens
};

void append(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream);

/// The part of append that codes keys in a basis, before all else.
void append_basis(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream);

/// The part of append that stores landmarks of pages that have become full, after all else.
void store_landmarks(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream);

/// Append of about one token per sequence to int2, int3, int4 and int8: static codes of keys, values with norms.
bool append_one_supports(const CacheView& cache);
void append_one(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream);

/// The same to latent2 in a basis of each head, but for massive sinks.
bool append_latent_supports(const CacheView& cache);
void append_latent(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream);

/// The same to svdq in a basis over all heads, without a window.
bool append_layer_supports(const CacheView& cache, const NewTokens& tokens);
void append_layer(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream);

/// The part of append that codes keys of a prompt's chunk of svdq in a basis over all heads, without a window.
bool append_layer_tiles_supports(const CacheView& cache, const NewTokens& tokens);
void append_layer_tiles(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream);

/// The part behind it, and behind that for keys of latent2 and latent4, for values with a norm, and exact copies.
bool append_values_supports(const CacheView& cache, const NewTokens& tokens);
void append_values(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream);

/// Append of a prompt's chunk to int2, int3, int4 and int8.
bool append_int_supports(const CacheView& cache, const NewTokens& tokens);
void append_int(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream);

/// Append of a prompt's chunk to latent2 and latent4 in a basis of each head.
bool append_latent_tiles_supports(const CacheView& cache, const NewTokens& tokens);
void append_latent_tiles(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream);

/// The same for rotatekv2, 3 and 4.
bool append_rotated_supports(const CacheView& cache, const NewTokens& tokens);
void append_rotated(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream);

/// The part of append_rotated for keys in an order of channels.
bool append_ordered_supports(const CacheView& cache);
void append_ordered(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream);

/// The same for fp16 pages, of tokens in 16 bits.
bool append_halves_supports(const CacheView& cache, const NewTokens& tokens);
void append_halves(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream);

/// The part of append_tokens for about one token per sequence of rotatekv2.
bool append_affine_supports(const CacheView& cache);
void append_affine(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream);

/// Append of about one token per sequence to kvquant.
bool append_codebook_one_supports(const CacheView& cache, const NewTokens& tokens);
void append_codebook_one(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream);

/// The part of append_tokens for kvquant.
bool append_codebook_supports(const CacheView& cache, const NewTokens& tokens);
void append_codebook(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream);

/// The part of append that stores tokens in pages, token by token: of any format.
void append_tokens(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream);

/// The part of append that chooses and copies massive sinks.
void update_massive_sinks(const CacheView& cache, const NewTokens& tokens, cudaStream_t stream);

/// The largest |entries| of each sequence's rows of x [rows, hidden]: of parts of them first, one after the other, then
/// of all.
struct MassiveEntries {
  const void* x;
  ElementType type;
  int64_t hidden;
  const int32_t* starts;
  int batch, parts;
  float* part_values;  // [batch, parts, kMassiveEntries]
  int32_t* part_owners;
  float* values;  // [batch, kMassiveEntries]
  int32_t* owners;
};
void massive_entries(const MassiveEntries& entries, cudaStream_t stream);

/// Where a step with key sparsity keeps its choice. lists: [batch, kv_heads / heads, stride], how many pages and which.
struct PageChoice {
  int32_t* lists;  // nullptr: all pages are read
  int stride, heads;
  float* scores;  // [batch, heads, page_columns]: of landmarks; then of a kv head's first query what pages are worth
};

/// Kv heads that read the same pages: LayerParams::heads_at_once.
inline int heads_at_once(const CacheView& cache) {
  return std::max({1, cache.keys.rotation_heads, cache.keys.basis_heads});
}

/// Pages that attention reads of a sequence at most; one or two hold the tokens that are always read.
inline int pages_read(const CacheView& cache) {
  return cache.sparse_tokens > 0 ? std::min(cache.page_columns, cache.sparse_pages() + 2) : cache.page_columns;
}

/// Attention of one query per head and sequence, cut into parts of the history that blocks work on at once. A part
/// leaves the maximum of its scores (base 2), the sum of its weights relative to it, and the sum of its weighted
/// values.
struct Attention {
  const void* qkv;  // [batch, heads + 2 kv heads, head_dim]; only queries are read
  void* out;        // [batch, heads, head_dim]
  ElementType type;
  int parts;
  float* sums;     // [batch, heads, parts, head_dim], natural basis
  float2* ranges;  // [batch, heads, parts]: maximum, sum of weights
  bool direct;     // the only part writes out
  PageChoice choice;
};

/// How a kernel's blocks look: what decides how many parts are best.
struct AttentionShape {
  int warps, shared_bytes;
  int blocks;        // on a multiprocessor at most, for registers
  int unit_tokens;   // that a warp takes at a time
  int together = 1;  // kv heads of a block
};

/// Which kernel works on a layer, and in how many parts.
struct AttentionPlan {
  enum Kernel { kPlain, kTiles, kFp16, kInt, kLatent, kRotated, kCodebook, kRebuilt } kernel;
  AttentionShape shape;
  int parts;
  bool early;   // parts let the kernel behind them start early
  bool direct;  // the only part writes the output
};
AttentionPlan plan_attention(const CacheView& cache, int device);

/// Writes sums and ranges, then out.
void attend(const CacheView& cache, const AttentionPlan& plan, const Attention& attention, cudaStream_t stream);

/// Chooses the pages that attention reads, with key sparsity. early: the GPU can start kernels before those ahead of
/// them are done.
void select_pages(const CacheView& cache, const Attention& attention, bool early, cudaStream_t stream);

void attend_plain(const CacheView& cache, const Attention& attention, cudaStream_t stream);

/// Any format but FLOAT32 and keys in a basis over several heads.
bool attend_tiles_supports(const CacheView& cache);
AttentionShape attend_tiles_shape(const CacheView& cache);
void attend_tiles(const CacheView& cache, const Attention& attention, const AttentionShape& shape, cudaStream_t stream);

/// fp16 pages without exact tokens.
AttentionShape attend_fp16_shape(const CacheView& cache);
void attend_fp16(const CacheView& cache, const Attention& attention, const AttentionShape& shape, cudaStream_t stream);

/// int2: static codes of keys, 2-bit values with norms. shared_bytes: of a block at most.
bool attend_int_supports(const CacheView& cache);
AttentionShape attend_int_shape(const CacheView& cache, int shared_bytes);
/// Whether a block can take so many kv heads at once.
bool attend_int_takes(const CacheView& cache, const AttentionShape& shape, int together);
/// early: may start before the kernel ahead has ended.
void attend_int(const CacheView& cache, const Attention& attention, const AttentionShape& shape, bool early,
                cudaStream_t stream);

/// latent2 with a basis per head: static codes of keys before RoPE, 2-bit values with norms.
bool attend_latent_supports(const CacheView& cache);
AttentionShape attend_latent_shape(const CacheView& cache);
/// early: may start before the kernel ahead has ended.
void attend_latent(const CacheView& cache, const Attention& attention, bool early, cudaStream_t stream);

/// rotatekv2: 2-bit codes with scales and zeros, keys rotated over groups of heads before RoPE, in natural order or
/// another.
constexpr int kRotatedHeads = 4;  // kv heads of a block
bool attend_rotated_supports(const CacheView& cache);
AttentionShape attend_rotated_shape(const CacheView& cache);
/// Whether it can write the output of an only part.
bool attend_rotated_writes(const CacheView& cache);
void attend_rotated(const CacheView& cache, const Attention& attention, bool early, cudaStream_t stream);

/// The part of attend_rotated for an order of channels across the layer.
bool attend_reordered_supports(const CacheView& cache);
AttentionShape attend_reordered_shape(const CacheView& cache);
void attend_reordered(const CacheView& cache, const Attention& attention, cudaStream_t stream);

/// kvquant: codes of codebooks with outliers, keys before RoPE.
bool attend_codebook_supports(const CacheView& cache);
AttentionShape attend_codebook_shape(const CacheView& cache);
void attend_codebook(const CacheView& cache, const Attention& attention, cudaStream_t stream);

/// Static codes of keys, in a basis before RoPE or after RoPE: of chosen pages or, in a basis of several heads, of all.
/// multiprocessors: of the GPU.
bool attend_rebuilt_supports(const CacheView& cache);
AttentionShape attend_rebuilt_shape(const CacheView& cache);
int attend_rebuilt_parts(const CacheView& cache, int multiprocessors);
void attend_rebuilt(const CacheView& cache, const Attention& attention, const AttentionShape& shape, bool early,
                    cudaStream_t stream);

/// Tokens [begin, end) of a sequence as attention sees them: k and v [kv_heads, end - begin, head_dim], after RoPE.
struct Rows {
  int sequence, begin, end;
  ElementType type;
  void *k, *v;
};
void dequantize(const CacheView& cache, const Rows& rows, cudaStream_t stream);

/// The same for int2, int3, int4 and int8 whose values have equally spaced levels; rows as FLOAT16.
bool dequantize_int_supports(const CacheView& cache);
void dequantize_int(const CacheView& cache, const Rows& rows, cudaStream_t stream);

/// Its part for values, behind that for keys.
bool dequantize_values_supports(const CacheView& cache);
void dequantize_values(const CacheView& cache, const Rows& rows, cudaStream_t stream);

/// The same for latent2 in a basis of each head.
bool dequantize_latent_supports(const CacheView& cache);
void dequantize_latent(const CacheView& cache, const Rows& rows, cudaStream_t stream);

/// The same for svdq in a basis over all heads.
bool dequantize_layer_supports(const CacheView& cache);
void dequantize_layer(const CacheView& cache, const Rows& rows, cudaStream_t stream);

/// The same for rotatekv2, 3 and 4.
bool dequantize_rotated_supports(const CacheView& cache);
void dequantize_rotated(const CacheView& cache, const Rows& rows, cudaStream_t stream);

/// The same for kvquant.
bool dequantize_codebook_supports(const CacheView& cache);
void dequantize_codebook(const CacheView& cache, const Rows& rows, cudaStream_t stream);

/// The same for fp16 pages.
bool dequantize_halves_supports(const CacheView& cache);
void dequantize_halves(const CacheView& cache, const Rows& rows, cudaStream_t stream);

struct RopeHeads {
  NewTokens tokens;
  void *q, *k, *v;  // [heads or kv heads, tokens, head_dim]
};
void rope_heads(const CacheView& cache, const RopeHeads& heads, cudaStream_t stream);

/// What coded keys lack; q [heads, tokens, head_dim] after RoPE, out [heads, tokens] as FLOAT32.
struct ScoreBias {
  const void* q;
  ElementType type;
  int64_t tokens;
  float* out;
};
void score_bias(const CacheView& cache, const ScoreBias& bias, cudaStream_t stream);

/// out = RMS norm of x [rows, columns]; all have one type.
struct Norm {
  const void *x, *weight;
  ElementType type;
  int64_t rows, columns;
  float eps;
  void* out;
};
void norm(const Norm& norm, cudaStream_t stream);

/// out [rows, columns] = silu(x[:, :columns]) x[:, columns:].
struct Gate {
  const void* x;
  ElementType type;
  int64_t rows, columns;
  void* out;
};
void gate(const Gate& gate, cudaStream_t stream);

}  // namespace kvquant::cuda
