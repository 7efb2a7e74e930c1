/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Decode attention over rotatekv2, head_dim 128, on tensor cores: 2-bit codes with a scale and zero per token and head,
// keys rotated over groups of heads before RoPE, values head by head. Keys are never rebuilt.
//
// A block takes a part of a sequence for 4 kv heads, a round of 256 tokens at a time. 8 warps find scores, each of 32
// tokens for all heads: two operands of 16 rows whose codes lie in the same bytes, so that they share loads, byte moves
// and cosines, and one fills the gaps of the other. 4 helpers do all else: copies, queries' turns, with an order scales
// and, a head each, the values of the round before. A scheduler has two of the former and one of the latter. Barriers
// in shared memory hand on rounds of keys and weights, so that no warp waits for all others; copies arrive there by
// themselves, so that keys are ready before helpers add values. Parts share what is kept exactly, see
// rotated_exact.cuh: 20 massive sinks cost 4 us at (16, 32, 32, 128, 4096) and 3 us at (32, 32, 8, 128, 32768), where
// a part of their own with plain code cost 60 and 110. An only part writes the output itself.
//
//   k_h = sum over heads g of mixing(h, g) s_g (H c_g - 128 z_g e_0) / sqrt(128), turned to its position. H, 128 x 128,
//   is a product of transforms of the bits of the channel:
//   - bits 4 and 5: additions of codes in fields of 4 bits, 8 to a word: of two channels both operands' rows g and
//     g + 8. Differences take 3 more, which what is added to the product below takes away;
//   - bits 0 to 3: a product of these (subnormal halves, see static_keys.cuh) with H_16, exact in halves;
//   - bit 6, which is what RoPE pairs: y_i + j y_(i + 64) = (1 + j) (x0 - j x1), with x0, x1 the transforms of both
//     halves; 1 - j goes into the query;
//   - zeros: a constant only meets element 0 of x0 and x1;
//   - heads: every stored head meets all queries of the block; scales and mixing are factors of the sums.
//   In an order of channels within the block's heads, an element has one of 4 scales and zeros of its token: a byte
//   move takes a pair of each from two registers, and codes become elements before they are transformed: bit 4 is sums
//   and differences of products, bit 5 additions of halves. The two score warps of a scheduler take turns to transform.
//   (An order across the layer: attend_reordered.cu.)
//   RoPE turns keys by their place in 128 tokens, constants that a warp keeps; the query is turned back by the first
//   token's position, and by two more for the operand of tokens two behind.
//
// On an H100, times as fast as the best fp16 attention of torch at (32, 32, 8, 128, 32768) and (16, 32, 32, 128, 4096):
//   one operand a warp, a barrier for 128 tokens                    2.3, 2.3; in an order (one-hot products) 1.25, 0.80
//   two operands, a barrier twice for 256                           2.8, 2.8; in an order within heads 2.3, 2.3
//   one barrier for 256, copies dealt out                           3.0, 2.9; 2.4, 2.4
//   values before scores in half of the warps, after them in others 3.1, 3.0; 2.5, 2.4
//   scores by 8 warps, all else by 4; numbers of the loop kept      3.4, 3.3; 2.6, 2.8
//   codes added before products, keys ready before values are added 3.7, 3.9; 2.7, 2.8
// Of the last row adding codes alone is 2 % (5 % of cycles: the GPU runs at its power limit and lowers its clock); the
// rest is helpers, which scores waited for a tenth of the time: angles are loaded a round early, copies arrive by
// themselves, values have the registers that scores no longer need (with 104 as before 4 % slower).
// Without gain: a loop over heads that is unrolled (larger code, 12 % slower); operands' sides a step apart, so that
// one is transformed while the other is turned (5 % slower); codes of the next head added while one is turned (2 %
// slower); the two score warps of a scheduler half a head apart (3 % slower) or taking turns to transform (4 % slower;
// with an order, where they do, it is none); bit 4 of an order as products alone (none, but with sides one after
// another 1 %); bits 1, 4 and 5 of an order added before products of depth 8 (5 % slower, 1.7 times the error); zeros
// and codes of an order in one product (9 % slower), offsets from the first group in a product of depth 8 (11 %
// slower); zeros of an order by a product of their own (3 % faster, twice the error); 208 or 184 registers for
// scores of an order (6 % slower); warpgroups' products, for H_16 (of an order, 15 to 30 % slower), for H_64 (15 to 20
// % slower, though it saves all additions), for H_16 and products with queries (5 to 10 % slower), for codes as FP8
// with H_32 (2 % faster with 4 queries a head, 2 % slower with one) or H_64 (1 to 4 % slower): their warps wait for
// each other; codes of the next head loaded early (none). Of 16 tokens of a head a scheduler issues some 370
// instructions, one in two clocks.
#include "block_merge.cuh"
#include "launch.cuh"
#include "rotated_exact.cuh"
#include "rotated_keys.cuh"
#include "rotated_queries.cuh"

namespace kvquant::cuda {
namespace {

/// Sums of weighted codes: a head, 8 columns.
struct ValueWarp {
  float sums[8][4] = {}, reference[2] = {kLowest, kLowest}, own_reference = kLowest;  // columns 2 c, 2 c + 1; g

  /// 128 tokens. codes: those of the head; operands, references: of the head's columns, product n.
  template <int products>
  __device__ __forceinline__ void add(const unsigned char* codes, const uint2 (&operands)[kProducts][products][kWarp],
                                      const float (&references)[4][8 * products], int n, int lane) {
    const int g = lane / 4, c = lane % 4;
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
        for (int j = 0; j < 8; ++j) {
          sums[j][i] *= keep;
          sums[j][2 + i] *= keep;
        }
      }
      own_reference = most;
    }
    uint32_t b[kProducts][2];
#pragma unroll
    for (int f = 0; f < kProducts; ++f) {
      const __half2 factor = __float2half2_rn(exp2_fast(theirs[quarter_of(f)] - own_reference));
      const uint2 x = operands[f][n][lane];
      b[f][0] = as_bits(__hmul2(as_half2(x.x), factor));
      b[f][1] = as_bits(__hmul2(as_half2(x.y), factor));
    }
    const unsigned char* first = codes + c * 2 * kValueStride + g * 16;
    constexpr int kTogether = 2;  // products of few sums would wait for each other
#pragma unroll
    for (int from = 0; from < 4; from += kTogether) {
      uint32_t words[kTogether][8];
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        const uint4 x = *reinterpret_cast<const uint4*>(first + 128 * (from + k));
        const uint4 y = *reinterpret_cast<const uint4*>(first + 128 * (from + k) + kValueStride);
        const uint32_t all[8] = {x.x, x.y, x.z, x.w, y.x, y.y, y.z, y.w};
#pragma unroll
        for (int i = 0; i < 8; ++i) words[k][i] = all[i];
      }
#pragma unroll
      for (int f = 0; f < kProducts; ++f) {
        const uint32_t mask = 0x00030003u << field_position(f);
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
          uint32_t a[8];
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            if (f == 4) words[k][i] >>= 8;
            a[i] = flip_and_mask(words[k][i], 0xffff0000u, mask);
          }
          mma(sums[2 * (from + k)], a[0], a[1], a[4], a[5], b[f][0], b[f][1]);
          mma(sums[2 * (from + k) + 1], a[2], a[3], a[6], a[7], b[f][0], b[f][1]);
        }
      }
    }
  }
};

template <int products, bool kOrdered>
__device__ __forceinline__ void find_scores(const CacheView& cache, const Attention& p, const Work& work,
                                            SharedState<products>& state, KeyWarp<products, kOrdered>& keys) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, own_group = warp / 4, field = first_token(warp % 4);
  const int rounds = work.end - work.begin;
  int sink = -1;  // a lane a slot
  if (lane < cache.sink_pages * kExactTokens) {
    const auto* header = reinterpret_cast<const ExactHeader*>(cache.sink_page(work.b, lane / kExactTokens));
    sink = header->tokens[lane % kExactTokens];
    if (sink >= work.length) sink = -1;
  }
  const RotatedExact<products> exact(cache, work, sink);
  exact.prefetch(warp);
  meet<kThreads>();
#pragma unroll 1
  for (int round = work.begin; round < work.end; ++round) {
    const int turn = (round - work.begin) % 2;
    const unsigned char* stage = state.stages[turn][own_group];
    const int group = round * kRoundGroups + own_group;
    const bool has_sink = __any_sync(0xffffffffu, sink >= 0 && sink / kGroupTokens == group);
    const bool all_valid = !has_sink && (group + 1) * kGroupTokens <= work.tokens;
    uint32_t valid[kSides] = {};
    if (!all_valid) {
      const uint2 rows = valid_rows(group, field, work.tokens, sink);
      valid[0] = rows.x;
      valid[1] = rows.y;
    }
    float scores[kSides][products][4] = {};
    wait_arrivals(&state.ready[turn], (round - work.begin) / 2 % 2);
    keys.score(scores, stage, state.queries[turn][own_group], state, state.units[turn][own_group],
               round == work.begin && warp < 4, round + 1 == work.end && warp >= 4, field, lane);
    if (round - work.begin > 1) wait_arrivals(&state.taken[turn], ((round - work.begin) / 2 + 1) % 2);
    keys.weigh(scores, all_valid, valid, stage + Stage::kValueScales, state.weights[turn][own_group],
               state.references[turn][own_group], field, lane);
    arrive(&state.done[turn]);
  }
  // The warps' sums: references are those that keys' warps had last.
  keys.publish(state.sums[warp], state.zeros[warp], state.last_references[warp], lane);
  if (exact.any()) exact.attend(state, kOrdered, rounds);
  meet<kThreads>();
  const auto* out = reinterpret_cast<const float*>(state.stages[rounds % 2]);
  const int per_head = cache.heads / cache.kv_heads;
#pragma unroll 1
  for (int i = warp; i < kRotatedHeads * per_head; i += kKeyWarps) {
    const int own = i / per_head, at = Columns<products>::of(own, i % per_head);
    MergedHead<kDim / kWarp> merged;
    if (rounds > 0) {
      float zeros = 0.0f;
      merged.maximum = state.value_references[own][at % 8];
      for (int w = 0; w < kKeyWarps; ++w) {
        const float factor = exp2_fast(state.last_references[w][at] - merged.maximum);
        merged.weights = fmaf(state.sums[w][at], factor, merged.weights);
        zeros = fmaf(state.zeros[w][at], factor, zeros);
      }
#pragma unroll
      for (int j = 0; j < kDim / kWarp; ++j) {
        merged.sums[j] = out[(own * 8 + at % 8) * kMergeStride<kDim> + lane * (kDim / kWarp) + j] - zeros;
      }
      if (cache.values.rotated) walsh_hadamard(merged.sums, lane);
    }
    if (exact.any()) exact.add(exact.sums(state, rounds), own, i % per_head, lane, merged);
    write_head(cache, p, {work.b, work.part, 0, work.first_head * per_head, 0}, i, merged);
  }
}

/// What else there is to do: copies, queries' turns and values, those of the round before.
template <int products, bool kOrdered>
__device__ __forceinline__ void help(const CacheView& cache, const Work& work, SharedState<products>& state,
                                     Copier& copier, Queries<products>& queries) {
  const int lane = threadIdx.x % kWarp, head = threadIdx.x / kWarp - kKeyWarps;
  const int column = Columns<products>::of(head, 0), last_group = (work.tokens - 1) / kGroupTokens;
  ValueWarp values;
  // Values of the i-th round, of a group or those behind it.
  const auto add_values = [&](int i, int group) {
    values.add<products>(state.stages[i % 2][group] + Stage::kValues + head * 8 * kValueStride,
                         state.weights[i % 2][group], state.references[i % 2][group], column / 8, lane);
  };
  // All helpers have copied what is ready; weights of the i-th round are there; all helpers have taken them.
  const auto wait_copied = [&](int i) { wait_arrivals(&state.ready[i % 2], i / 2 % 2); };
  const auto wait_weights = [&](int i) { wait_arrivals(&state.done[i % 2], i / 2 % 2); };
  const auto wait_taken = [&](int i) { wait_arrivals(&state.taken[i % 2], i / 2 % 2); };
  // Ready is what this thread has copied and stored for the i-th round; with an order, what all have.
  const auto prepare_rows = [&](int i) {
    wait_copies<0>();
    meet<kHelperThreads, 3>();
    scale_rows(state.stages[i % 2], state.units[i % 2], threadIdx.x - kKeyThreads);
  };
  if constexpr (kOrdered) {
    prepare_rows(0);
  } else {
    arrive_copied(&state.ready[0]);
  }
  arrive(&state.ready[0]);
  meet<kThreads>();
  const int rounds = work.end - work.begin;
#pragma unroll 1
  for (int i = 0; i < rounds; ++i) {
    // The round's keys and queries are there, and the weights and values of the round before it. Its values and the
    // keys of the one behind it come.
    auto &own_stages = state.stages[i % 2], &next_stages = state.stages[(i + 1) % 2];
    const bool more = i + 1 < rounds;
    wait_copied(i);
    if (i > 1) wait_taken(i - 2);
    if (i > 0) wait_weights(i - 1);
    if (more) copier.copy_scales(next_stages);
#pragma unroll
    for (int group = 0; group < kRoundGroups; ++group) {
      if (more) copier.copy_codes<true>(next_stages, group);
    }
#pragma unroll
    for (int group = 0; group < kRoundGroups; ++group) copier.copy_codes<false>(own_stages, group);
    if constexpr (kOrdered) {
      commit_copies();
    } else {
      arrive_copied(&state.ready[(i + 1) % 2]);
    }
    copier.find(work.begin + i + 2);
    queries.store(state, (i + 1) % 2);
    if constexpr (!kOrdered) arrive(&state.ready[(i + 1) % 2]);
    queries.load_angles(cache, work.begin + i + 2, last_group);
#pragma unroll 1
    for (int group = 0; group < kRoundGroups; ++group) {
      if (i > 0) add_values(i - 1, group);
    }
    if (i > 0) arrive(&state.taken[(i - 1) % 2]);
    if constexpr (kOrdered) {
      if (more) {
        prepare_rows(i + 1);
      } else {
        wait_copies<0>();
      }
      arrive(&state.ready[(i + 1) % 2]);
    }
  }
  wait_copied(rounds);
  if (rounds > 1) wait_taken(rounds - 2);
  wait_weights(rounds - 1);
#pragma unroll 1
  for (int group = 0; group < kRoundGroups; ++group) add_values(rounds - 1, group);
  auto* out = reinterpret_cast<float*>(state.stages[(work.end - work.begin) % 2]);
  const int g = lane / 4, c = lane % 4;
#pragma unroll
  for (int m = 0; m < 8; ++m) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int channel = m / 2 * 32 + 4 * g + m % 2 * 2 + j / 2;
      out[(head * 8 + 2 * c + j % 2) * kMergeStride<kDim> + channel] = values.sums[m][j] * kSumFactor;
    }
  }
  if (lane < 4) {
    state.value_references[head][2 * lane] = values.reference[0];
    state.value_references[head][2 * lane + 1] = values.reference[1];
  }
  meet<kThreads>();
}

template <int products, bool kOrdered>
__global__ void __launch_bounds__(kThreads, 1)
    attend_rotated_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Attention p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // older GPUs lack the shared memory
  KVQUANT_DYNAMIC_SHARED(shared);
  auto& state = *reinterpret_cast<SharedState<products>*>(shared);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Work work;
  work.first_head = blockIdx.x * kRotatedHeads;
  work.b = blockIdx.y;
  work.part = blockIdx.z;
  work.parts = p.parts;
  const int per_head = cache.heads / cache.kv_heads;
  release_next_kernel();
  auto& place_angles = *reinterpret_cast<uint32_t(*)[4][32][kWarp]>(&state.stages[1]);
  if (warp < kKeyWarps) {  // constants of the layer
    fill_angles(cache, place_angles);
    fill_mixing(cache, state);
    if constexpr (kOrdered) fill_selectors(cache, work.first_head, state);
  }
  if (threadIdx.x < 2) {
    set_arrivals(&state.ready[threadIdx.x], (kOrdered ? 1 : 2) * kHelperThreads);
    set_arrivals(&state.taken[threadIdx.x], kHelperThreads);
    set_arrivals(&state.done[threadIdx.x], kKeyThreads);
  }
  wait_for_previous_kernel();
  work.length = cache.length(work.b) + 1;
  work.coded = cache.quantized(work.b, work.length);
  const int rounds = (work.coded + kRoundTokens - 1) / kRoundTokens;
  work.begin = static_cast<int>(static_cast<int64_t>(rounds) * work.part / work.parts);
  work.end = static_cast<int>(static_cast<int64_t>(rounds) * (work.part + 1) / work.parts);
  if (work.begin == work.end && cache.window == 0 && work.part >= cache.sink_pages) {
    return write_empty(cache, p,
                       {work.b, work.part, work.first_head, work.first_head * per_head, kRotatedHeads * per_head});
  }
  work.tokens = min(work.coded, work.end * kRoundTokens);
  if (warp < kKeyWarps) {
    take_registers<kKeyRegisters<kOrdered>>();
    meet<kThreads>();
    KeyWarp<products, kOrdered> keys(place_angles, first_token(warp % 4), lane);
    find_scores(cache, p, work, state, keys);
  } else {
    give_registers<kHelperRegisters<kOrdered>>();
    const int thread = threadIdx.x - kKeyThreads;
    Queries<products> queries(thread);
    if (work.begin == work.end) {  // all that there may be is kept exactly
      queries.load(cache, p, work.b, work.first_head, kOrdered, state);
      for (int i = 0; i < 3; ++i) meet<kThreads>();
      return;
    }
    Copier copier(cache, work.b, work.first_head, (work.tokens - 1) / kPageTokens, thread);
    copier.find(work.begin);
    queries.load(cache, p, work.b, work.first_head, kOrdered, state);
    auto& stages = state.stages[0];
    copier.copy_scales(stages);
#pragma unroll
    for (int i = 0; i < kRoundGroups; ++i) copier.copy_codes<true>(stages, i);
    commit_copies();
    copier.find(work.begin + 1);
    const int last_group = (work.tokens - 1) / kGroupTokens;
    queries.load_angles(cache, work.begin, last_group);
    queries.store(state, 0);
    queries.load_angles(cache, work.begin + 1, last_group);
    meet<kThreads>();
    help<products, kOrdered>(cache, work, state, copier, queries);
  }
#endif
}

template <int products>
void launch_rotated(const CacheView& cache, const Attention& p, bool early, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(cache.kv_heads / kRotatedHeads), static_cast<unsigned>(cache.batch),
                    static_cast<unsigned>(p.parts));
  const LaunchShape shape{blocks, kThreads, sizeof(SharedState<products>), stream, early};
  if (cache.keys.order != nullptr) {
    launch("attend", attend_rotated_kernel<products, true>, shape, cache, p);
  } else {
    launch("attend", attend_rotated_kernel<products, false>, shape, cache, p);
  }
}

}  // namespace

bool attend_rotated_writes(const CacheView& cache) { return cache.keys.order == nullptr || cache.keys.local_order; }

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

void attend_rotated(const CacheView& cache, const Attention& p, bool early, cudaStream_t stream) {
  if (cache.keys.order != nullptr && !cache.keys.local_order) {
    attend_reordered(cache, p, stream);
  } else if (cache.heads / cache.kv_heads > 2) {
    launch_rotated<2>(cache, p, early, stream);
  } else {
    launch_rotated<1>(cache, p, early, stream);
  }
}

}  // namespace kvquant::cuda
