/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Decode attention over rotatekv2, head_dim 128, on tensor cores: 2-bit codes with a scale and zero per token and head,
// keys rotated over groups of heads before RoPE, values head by head. Keys are never rebuilt.
//
// A block takes a part of a sequence for 4 kv heads, a round of 256 tokens at a time. Each warp finds the scores of 32
// tokens for all heads and adds the values of the round before for half the channels of one head; all meet once a
// round. A warp's 32 tokens are two operands of 16 rows, whose codes lie in the same bytes: they share loads, byte
// moves and cosines, and one fills the gaps of the other. Two warps share a scheduler; one adds values before it finds
// scores, the other after, so that they need different units. Copies are dealt out over a round. The last part is what
// is kept exactly, by plain code.
//
//   k_h = sum over heads g of mixing(h, g) s_g (H c_g - 128 z_g e_0) / sqrt(128), turned to its position. H, 128 x 128,
//   is a product of transforms of the bits of the channel:
//   - bits 0 to 3: a product of codes (subnormal halves, see static_keys.cuh) with H_16, exact in halves;
//   - bits 4 and 5: additions of halves, exact;
//   - bit 6, which is what RoPE pairs: y_i + j y_(i + 64) = (1 + j) (x0 - j x1), with x0, x1 the transforms of both
//     halves; 1 - j goes into the query;
//   - zeros: a constant only meets element 0 of x0 and x1;
//   - heads: every stored head meets all queries of the block; scales and mixing are factors of the sums.
//   In an order of channels within the block's heads, an element has one of 4 scales and zeros of its token: a byte
//   move takes a pair of each from two registers, and codes become elements before they are transformed. (An order
//   across the layer: attend_reordered.cu.)
//   RoPE turns keys by their place in 128 tokens, constants that a warp keeps; the query is turned back by the first
//   token's position, and by one more for the operand of odd tokens.
//
// On an H100, times as fast as the best fp16 attention of torch at (32, 32, 8, 128, 32768) and (16, 32, 32, 128, 4096):
//   one operand a warp, a barrier for 128 tokens                    2.3, 2.3; in an order (one-hot products) 1.25, 0.80
//   two operands, a barrier twice for 256                           2.8, 2.8; in an order within heads 2.3, 2.3
//   one barrier for 256, copies dealt out                           3.0, 2.9; 2.4, 2.4
//   values before scores in half of the warps, after them in others 3.1, 3.0; 2.5, 2.4
// The loop over heads must not be unrolled: larger code is 12 % slower.
#include "block_merge.cuh"
#include "exact_heads.cuh"
#include "launch.cuh"
#include "rotated_keys.cuh"

namespace kvquant::cuda {
namespace {

/// Sums of weighted codes: 64 channels of a head, 8 columns.
struct ValueWarp {
  float sums[4][4] = {}, reference[2] = {kLowest, kLowest}, own_reference = kLowest;  // columns 2 c, 2 c + 1; g

  /// 128 tokens. codes: those of a head; operands, references: of the head's columns, product n.
  template <int products>
  __device__ __forceinline__ void add(const unsigned char* codes, const uint2 (&operands)[kProducts][products][kWarp],
                                      const float (&references)[4][8 * products], int n, int half, int lane) {
    const int g = lane / 4, c = lane % 4;
    const unsigned char* first = codes + c * 2 * kValueStride + g * 16 + half * 256;
    uint32_t words[2][8];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const uint4 x = *reinterpret_cast<const uint4*>(first + 128 * m);
      const uint4 y = *reinterpret_cast<const uint4*>(first + 128 * m + kValueStride);
      const uint32_t all[8] = {x.x, x.y, x.z, x.w, y.x, y.y, y.z, y.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) words[m][i] = all[i];
    }
    // References that the four warps have left, of two products each.
    float theirs[4], most = own_reference;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      theirs[i] = references[i][8 * n + g];
      most = fmaxf(most, theirs[i]);
    }
    if (__any_sync(0xffffffffu, most > own_reference)) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float raised = reference[i];
#pragma unroll
        for (int j = 0; j < 4; ++j) raised = fmaxf(raised, references[j][8 * n + 2 * c + i]);
        const float keep = exp2_fast(reference[i] - raised);
        reference[i] = raised;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sums[j][i] *= keep;
          sums[j][2 + i] *= keep;
        }
      }
      own_reference = most;
    }
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      const __half2 factor = __float2half2_rn(exp2_fast(theirs[pair] - own_reference));
#pragma unroll
      for (int f = 2 * pair; f < 2 * pair + 2; ++f) {
        const uint2 b = operands[f][n][lane];
        const uint32_t b0 = as_bits(__hmul2(as_half2(b.x), factor)), b1 = as_bits(__hmul2(as_half2(b.y), factor));
        const uint32_t mask = 0x00030003u << field_position(f);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          uint32_t a[8];
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            if (f == 4) words[m][i] >>= 8;
            a[i] = flip_and_mask(words[m][i], 0xffff0000u, mask);
          }
          mma(sums[2 * m], a[0], a[1], a[4], a[5], b0, b1);
          mma(sums[2 * m + 1], a[2], a[3], a[6], a[7], b0, b1);
        }
      }
    }
  }
};

template <int products, bool kOrdered>
__global__ void __launch_bounds__(kThreads, 1)
    attend_rotated_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Attention p) {
  KVQUANT_DYNAMIC_SHARED(shared);
  auto& state = *reinterpret_cast<SharedState<products>*>(shared);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int first_head = blockIdx.x * kRotatedHeads, b = blockIdx.y, part = blockIdx.z;
  const int per_head = cache.heads / cache.kv_heads;
  release_next_kernel();
  const int parts = p.parts - (cache.window > 0 || cache.sink_pages > 0 ? 1 : 0);
  if (part == parts) return attend_exact_heads(cache, p, b, first_head, part);
  const int length = cache.length(b) + 1, all_tokens = cache.quantized(b, length);
  const int rounds = (all_tokens + kRoundTokens - 1) / kRoundTokens;
  const int begin = static_cast<int>(static_cast<int64_t>(rounds) * part / parts);
  const int end = static_cast<int>(static_cast<int64_t>(rounds) * (part + 1) / parts);
  if (begin == end) {
    return write_empty(cache, p, {b, part, first_head, first_head * per_head, kRotatedHeads * per_head});
  }

  const int tokens = min(all_tokens, end * kRoundTokens), last_group = (tokens - 1) / kGroupTokens;
  Copier copier(cache, b, first_head, (tokens - 1) / kPageTokens);
  copier.find(begin);
  const Queries<products> queries;
  queries.load(cache, p, b, first_head, kOrdered, state);
  copier.copy_scales(state.stages[begin % 2]);
#pragma unroll
  for (int i = kRoundGroups; i < Copier::kParts; ++i) {
    copier.copy_codes(state.stages[begin % 2], state.stages[begin % 2], i);
  }
  commit_copies();
  copier.find(begin + 1);
  int sink = -1;  // a lane a slot
  if (lane < cache.sink_pages * kExactTokens) {
    const auto* header = reinterpret_cast<const ExactHeader*>(cache.sink_page(b, lane / kExactTokens));
    sink = header->tokens[lane % kExactTokens];
    if (sink >= length) sink = -1;
  }
  const int own_group = warp / 4, field = warp % 4 * 2;
  auto& place_angles = *reinterpret_cast<uint32_t(*)[4][32][kWarp]>(&state.stages[(begin + 1) % 2]);
  fill_angles(cache, place_angles);
  ValueWarp values;
#pragma unroll
  for (int i = 0; i < kRoundGroups; ++i) {
    queries.store(queries.angles(cache, min(begin * kRoundGroups + i, last_group)), state, state.queries[begin % 2][i]);
  }
  fill_mixing(cache, state);
  if constexpr (kOrdered) fill_selectors(cache, first_head, state);

  __syncthreads();
  KeyWarp<products, kOrdered> keys(place_angles, field, lane);
  wait_copies<0>();
  __syncthreads();

  const int head = warp / 2, column = Columns<products>::of(head, 0);
  const auto add_values = [&](int round, int from, int to) {
#pragma unroll 1
    for (int i = from; i < to; ++i) {
      values.add<products>(state.stages[round % 2][i] + Stage::kValues + head * 8 * kValueStride,
                           state.weights[round % 2][i], state.references[round % 2][i], column / 8, warp % 2, lane);
    }
  };
  // Two warps share a scheduler, one of each group: they should not do the same at the same time.
  const int early_values = own_group == 0 ? kRoundGroups : 0;
#pragma unroll 1
  for (int round = begin; round < end; ++round) {
    // The round's keys and queries are there, and the weights and values of the round before it. Its values and the
    // keys of the one behind it come, a few copies at a time: many would wait for each other.
#pragma unroll
    for (int i = 0; i < kRoundGroups; ++i) {
      queries.prefetch_angles(cache, min((round + 1) * kRoundGroups + i, last_group));
    }
    auto &own_stages = state.stages[round % 2], &next_stages = state.stages[(round + 1) % 2];
    const bool more = round + 1 < end;
    if (more) copier.copy_scales(next_stages);
    copier.copy_codes(next_stages, own_stages, 0);
    if (round > begin) add_values(round - 1, 0, early_values);
    const unsigned char* stage = own_stages[own_group];
    const int group = round * kRoundGroups + own_group;
    const bool has_sink = __any_sync(0xffffffffu, sink >= 0 && sink / kGroupTokens == group);
    const bool all_valid = !has_sink && (group + 1) * kGroupTokens <= tokens;
    uint32_t valid[kSides] = {};
    if (!all_valid) {
      const uint2 rows = valid_rows(group, field, tokens, sink);
      valid[0] = rows.x;
      valid[1] = rows.y;
    }
    float scores[kSides][products][4] = {};
    copier.copy_codes(next_stages, own_stages, 1);
    keys.score(scores, stage, state.queries[round % 2][own_group], state, field, lane);
    if (more) {
      copier.copy_codes(next_stages, own_stages, 2);
      copier.copy_codes(next_stages, own_stages, 3);
    }
    commit_copies();
    copier.find(round + 2);
    float4 angles[kRoundGroups];
#pragma unroll
    for (int i = 0; i < kRoundGroups; ++i) {
      angles[i] = queries.angles(cache, min((round + 1) * kRoundGroups + i, last_group));
    }
    keys.weigh(scores, all_valid, valid, stage + Stage::kValueScales, state.weights[round % 2][own_group],
               state.references[round % 2][own_group], field, lane);
#pragma unroll
    for (int i = 0; i < kRoundGroups; ++i) queries.store(angles[i], state, state.queries[(round + 1) % 2][i]);
    if (round > begin) add_values(round - 1, early_values, kRoundGroups);
    wait_copies<0>();
    __syncthreads();
  }
  add_values(end - 1, 0, kRoundGroups);
  __syncthreads();

  // The warps' sums: references are those that keys' warps had last.
  keys.publish_sums(state, warp, lane);
  auto* out = reinterpret_cast<float*>(state.stages);
  const int g = lane / 4, c = lane % 4;
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int channel = (warp % 2 * 2 + m / 2) * 32 + 4 * g + m % 2 * 2 + j / 2;
      out[(head * 8 + 2 * c + j % 2) * kMergeStride<kDim> + channel] = values.sums[m][j] * kSumFactor;
    }
  }
  if (lane < 4 && warp % 2 == 0) {
    state.value_references[head][2 * lane] = values.reference[0];
    state.value_references[head][2 * lane + 1] = values.reference[1];
  }
  __syncthreads();
#pragma unroll 1
  for (int i = warp; i < kRotatedHeads * per_head; i += kWarps) {
    const int own = i / per_head, at = Columns<products>::of(own, i % per_head);
    const float reference = state.value_references[own][at % 8];
    float weights = 0.0f, zeros = 0.0f, x[kDim / kWarp];
    for (int w = 0; w < kWarps; ++w) {
      const float factor = exp2_fast(state.last_references[w][at] - reference);
      weights = fmaf(state.sums[w][at], factor, weights);
      zeros = fmaf(state.zeros[w][at], factor, zeros);
    }
#pragma unroll
    for (int j = 0; j < kDim / kWarp; ++j) {
      x[j] = out[(own * 8 + at % 8) * kMergeStride<kDim> + lane * (kDim / kWarp) + j] - zeros;
    }
    if (cache.values.rotated) walsh_hadamard(x, lane);
    const int64_t to = (static_cast<int64_t>(b) * cache.heads + first_head * per_head + i) * p.parts + part;
#pragma unroll
    for (int j = 0; j < kDim / kWarp; ++j) p.sums[to * kDim + lane * (kDim / kWarp) + j] = x[j];
    if (lane == 0) p.ranges[to] = make_float2(reference, weights);
  }
}

template <int products>
void launch_rotated(const CacheView& cache, const Attention& p, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(cache.kv_heads / kRotatedHeads), static_cast<unsigned>(cache.batch),
                    static_cast<unsigned>(p.parts));
  const LaunchShape shape{blocks, kThreads, sizeof(SharedState<products>), stream};
  if (cache.keys.order != nullptr) {
    launch("attend", attend_rotated_kernel<products, true>, shape, cache, p);
  } else {
    launch("attend", attend_rotated_kernel<products, false>, shape, cache, p);
  }
}

}  // namespace

bool attend_rotated_supports(const CacheView& cache) {
  const auto side = [](const SideView& x) {
    return x.format == Format::kAffine && x.bits == 2 && x.group_size == kDim;
  };
  const int heads = cache.keys.rotation_heads;
  return cache.head_dim == kDim && side(cache.keys) && side(cache.values) && cache.keys_pre_rope != 0 &&
         cache.kv_heads % kRotatedHeads == 0 && (heads == 1 || heads == 2 || heads == 4) &&
         cache.heads / cache.kv_heads <= 4 && cache.sink_pages * kExactTokens <= kWarp &&
         cache.rope_rows >= kPageTokens + 2 &&  // 128 positions, which keys are turned by
         (cache.keys.order == nullptr || cache.keys.local_order || attend_reordered_supports(cache));
}

AttentionShape attend_rotated_shape(const CacheView& cache) {
  if (cache.keys.order != nullptr && !cache.keys.local_order) return attend_reordered_shape(cache);
  const size_t bytes = cache.heads / cache.kv_heads > 2 ? sizeof(SharedState<2>) : sizeof(SharedState<1>);
  // A block's warps work on the same tokens: as one warp that takes them one after another.
  return {1, static_cast<int>(bytes), 1, kRoundTokens};
}

void attend_rotated(const CacheView& cache, const Attention& p, cudaStream_t stream) {
  if (cache.keys.order != nullptr && !cache.keys.local_order) {
    attend_reordered(cache, p, stream);
  } else if (cache.heads / cache.kv_heads > 2) {
    launch_rotated<2>(cache, p, stream);
  } else {
    launch_rotated<1>(cache, p, stream);
  }
}

}  // namespace kvquant::cuda
