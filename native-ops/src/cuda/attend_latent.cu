/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Decode attention over keys in static codes of a basis over their head, before RoPE, and values in codes of 2 to 4
// bits with norms (latent2, latent3, latent4), head_dim 128, on tensor cores; the plain kernel takes a token at a time.
//
// A block takes a part of a sequence for a kv head, a page at a time; its warps do different things, each on another
// page, and meet once per page. In turn i a warp copies the codes of page i + 3 (values: of page i), two unpack the
// keys of page i + 1 to shared memory as operands, four rebuild and score those of page i (latent_keys.cuh), and two
// add the values of page i - 2, after which the queries for page i + 1 are turned. Weights of page i - 1 are found
// while keys of page i are rebuilt. All warps refer weights to the same scores, which they raise together, rarely. The
// basis of the head lies in shared memory. The last part is what is kept exactly; a single part goes on to it itself
// and writes the output.
//
// All query heads of a kv head share the rebuilt keys: 128 x 112 multiplications a token where 12 of 16 runs have
// codes. On Hopper (sm_90a) a warpgroup multiplies, both operands in shared memory, all steps of a page in one go, and
// takes registers from the other warps for RoPE's angles; elsewhere warps multiply, by mma. The basis comes as halves
// from the copy of parameters (latent_basis.h). Two blocks a multiprocessor: while one waits for its product, the other
// turns keys. Blocks begin before the kernel ahead has ended.
//
// Measured on an H100, us a launch: 690 at batch 32, 32 query and 8 kv heads, 32768 tokens (cuDNN over fp16: 1384); 194
// at 16, 32, 32, 4096 (352). Before, with 8 warps that all unpacked, multiplied and added, a product at a time: 926 and
// 260. Steps from there: warps by what they do, 16 of them and 128 tokens at a time: 737 and 223, with angles in
// registers 749 and 227; pages and two blocks on a multiprocessor, bulk copies, fewer instructions and the early
// beginning: 690 and 194. Tried: halves of channels, the one turned while the other is rebuilt (products of 64 columns
// read codes twice): 754 and 212, with copies of 16 bytes a lane 935 and 254; by mma on the same GPU, before, 1114 and
// 310. Accumulators in halves would miss the accuracy that tests ask for.
#include <algorithm>
#include <cmath>

#include "latent_block.cuh"
#include "launch.cuh"

namespace kvquant::cuda {
namespace {

/// What the warps of a block know of a part: pages [begin, end) of a sequence.
struct LatentPart {
  const CacheView& cache;
  const Attention& p;
  const LatentLayer& layer;
  const BlockHeads& heads;
  LatentStream stream;
  LatentShared& shared;
  int tokens, begin, end, lane;
  uint32_t sinks;
};

/// The angle of a pair of channels at a page's first token.
__device__ __forceinline__ float2 load_angle(const LatentPart& part, int page, int pair) {
  const int row = kPageTokens + max(0, min(page, part.end - 1));
  const float* base = part.cache.rope + static_cast<int64_t>(row) * kDim + pair;
  return make_float2(__ldg(base), __ldg(base + kDim / 2));
}

/// Warps that rebuild keys and score them, 16 tokens of a page each. In turn `page`: weights of the page before,
/// while keys of this one are rebuilt.
template <int value_bits>
__device__ __forceinline__ void score_pages(const LatentPart& part, const LaneTurns& turns, float constant0,
                                            float constant1, int f) {
  LatentShared& shared = part.shared;
  const int lane = part.lane, g = lane / 4, c = lane % 4, steps = part.layer.keys.order.steps();
  const int row = g % kPageTiles * kTileTokens + g / kPageTiles * 4 + f;
  const unsigned char* basis = part.stream.shared + part.layer.basis_at;
  const float unit = reinterpret_cast<const float*>(
      part.cache.keys.latent + static_cast<int64_t>(part.cache.kv_heads) * part.layer.basis_bytes)[part.heads.kv_head];
  LatentSoftmax softmax;
  float scores[4] = {}, norm0 = 0.0f, norm1 = 0.0f;
  const auto weigh = [&](int buffer) {
    if (must_raise(shared.raise[buffer])) {
      LatentSoftmax::put_maxima(shared, scores, fmaxf(norm0, norm1), f, lane);
      meet<kLatentThreads>();
      softmax.raise(shared, c);
    }
    shared.weights[buffer][f][lane] = softmax.weigh<value_bits>(scores, norm0, norm1, f);
  };
#pragma unroll 1
  for (int page = part.begin; page < part.end; ++page) {
    const int buffer = (page - part.begin) & 1;
    RebuiltKeys keys;
    start_keys(keys, part.stream.codes(page), basis, steps, f, lane);
    if (page > part.begin) weigh(buffer ^ 1);
    wait_copied(shared, page - part.begin);
    const auto* norms = reinterpret_cast<const __half*>(part.stream.norms(page)) + row;
    const int token = page * kPageTokens + row;
    bool valid0 = true, valid1 = true;
    if (page == 0 || page == part.tokens / kPageTokens) {  // sinks, or tokens behind the last
      const auto is_valid = [&](int t) { return t < part.tokens && !(t < kSinkBits && (part.sinks >> t & 1u) != 0); };
      valid0 = is_valid(token);
      valid1 = is_valid(token + 8);
    }
    norm0 = valid0 ? __half2float(norms[0]) : 0.0f;
    norm1 = valid1 ? __half2float(norms[8]) : 0.0f;
    finish_scores(scores, keys, QueryWords(shared.queries[buffer], lane), turns);
    scores[0] = valid0 ? fmaf(scores[0], unit, constant0) : -INFINITY;
    scores[1] = valid0 ? fmaf(scores[1], unit, constant1) : -INFINITY;
    scores[2] = valid1 ? fmaf(scores[2], unit, constant0) : -INFINITY;
    scores[3] = valid1 ? fmaf(scores[3], unit, constant1) : -INFINITY;
    const bool exceeds = __any_sync(0xffffffffu, softmax.exceeds(scores, fmaxf(norm0, norm1))) != 0;
    if (lane == 0) shared.raise[buffer][f] = exceeds ? 1 : 0;
    meet<kLatentThreads>();
  }
  if (part.begin < part.end) weigh((part.end - 1 - part.begin) & 1);
  meet<kLatentThreads>();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int step = 4; step < kWarp; step *= 2) {
      softmax.weights[i] += __shfl_xor_sync(0xffffffffu, softmax.weights[i], step);
      softmax.ones[i] += __shfl_xor_sync(0xffffffffu, softmax.ones[i], step);
    }
    if (lane < 4) {
      shared.weight_sums[f][2 * c + i] = softmax.weights[i];
      shared.one_sums[f][2 * c + i] = softmax.ones[i];
      if (f == 0) shared.references[2 * c + i] = softmax.scale.reference[i];
    }
  }
  if (f == 0 && lane == 0) shared.norm_scale = softmax.scale.norm_scale;
}

/// Warps that unpack codes of the next page.
__device__ __forceinline__ void unpack_pages(const LatentPart& part, int place) {
  const RunUnpacker unpacker{part.layer.keys, place};
  const int g = part.lane / 4, c = part.lane % 4, tile = g % kPageTiles;
#pragma unroll 1
  for (int page = part.begin - 1; page <= part.end; ++page) {
    if (page + 1 < part.end) {
      wait_copied(part.shared, page + 1 - part.begin);
      const TileReader reader{part.stream.keys(page + 1) + tile * static_cast<int>(part.cache.keys.tile_bytes), 0};
      unsigned char* to = part.stream.codes(page + 1) + g * 16 + c * 4;
      unpacker.unpack_page(reader, c, g / kPageTiles, to);
      publish_operands();
    }
    if (page > part.begin && must_raise(part.shared.raise[(page - 1 - part.begin) & 1])) meet<kLatentThreads>();
    meet<kLatentThreads>();
  }
}

/// Warps that turn queries for the next page and add values of the one before the last; one copies pages that come.
template <int value_bits>
__device__ __forceinline__ void add_pages(const LatentPart& part, const PairQueries& queries, LatentCopies& copies,
                                          LatentSums& sums, int adder) {
  LatentShared& shared = part.shared;
  const int lane = part.lane;
  LatentScale scale;
  float2 next = load_angle(part, part.begin, queries.pair);
#pragma unroll 1
  for (int page = part.begin - 1; page <= part.end; ++page) {
    const int buffer = (page - part.begin) & 1;
    if (adder == 0) copies.start(page - part.begin + kLead);
    if (page + 1 < part.end) queries.store(next, shared.queries[buffer ^ 1], queries.count);
    next = load_angle(part, page + 2, queries.pair);
    if (page - 2 >= part.begin) {
      wait_copied(shared, page - 2 - part.begin + kLead);
      sums.add<value_bits>(part.stream.values(page - 2), shared.weights[buffer], adder, lane);
    }
    if (page > part.begin && must_raise(shared.raise[buffer ^ 1])) {
      meet<kLatentThreads>();
      const float4 keep = scale.raise(shared, lane % 4);
      sums.multiply(keep.z, keep.w);
    }
    if (adder == 0) copies.wait_before_newest();
    meet<kLatentThreads>();
  }
  if (part.begin < part.end) {
    wait_copied(shared, part.end - 1 - part.begin + kLead);
    sums.add<value_bits>(part.stream.values(part.end - 1), shared.weights[(part.end - 1 - part.begin) & 1], adder,
                         lane);
  }
}

/// What does not depend on kernels before this one: angles, the basis, and codes that are the same for all tokens, of
/// constants and of a run that there is not.
__device__ __forceinline__ void prepare(const CacheView& cache, const LatentLayer& layer, int kv_head,
                                        unsigned char* bytes, int warp, int lane) {
  if (warp < kScorers) {
    fill_turns(cache, reinterpret_cast<uint32_t*>(bytes), static_cast<int>(threadIdx.x), kScorers * kWarp);
  } else if (warp < kScorers + kUnpackers) {
    const int unpacker = warp - kScorers, thread = unpacker * kWarp + lane;
    const uint8_t* stored = cache.keys.latent + static_cast<int64_t>(kv_head) * layer.basis_bytes;
    unsigned char* basis = bytes + layer.basis_at;
    for (int i = thread * 16; i < layer.basis_bytes; i += kUnpackers * kWarp * 16) copy_async(basis + i, stored + i);
    commit_copies();
    for (int i = unpacker; i < 2 * layer.keys.order.steps(); i += kUnpackers) {
      if (layer.keys.order.width[i] != 0) continue;
      const uint32_t first = i == 0 ? 0x00010001u * kConstantCode : 0;
      for (int row = lane; row < 2 * kPageTokens; row += kWarp) {
        *reinterpret_cast<uint4*>(basis + layer.basis_bytes + row / kPageTokens * layer.code_bytes + i * kCodeBytes +
                                  row % kPageTokens * 16) = make_uint4(first, 0, 0, 0);
      }
    }
  }
}

/// A part's tokens in codes: leaves sums of values at the beginning of shared memory and returns the warp's head.
template <int value_bits>
__device__ __forceinline__ MergedHead<kDim / kWarp> attend_codes(const LatentPart& part, int warp) {
  const CacheView& cache = part.cache;
  const LatentLayer& layer = part.layer;
  LatentShared& shared = part.shared;
  unsigned char* bytes = part.stream.shared;
  auto* turns = reinterpret_cast<uint32_t*>(bytes);
  auto* out = reinterpret_cast<float*>(bytes);
  const int lane = part.lane, c = lane % 4;
  if (warp < kScorers) {
    take_registers<kScorerRegisters>();
    meet<kLatentThreads>();
    meet<kLatentThreads>();
    const auto constant = [&](int column) {
      return (shared.bias[0][column] + shared.bias[1][column]) * (0.5f / kLog2e);
    };
    const LaneTurns own(reinterpret_cast<const uint4*>(turns + warp * kTurnStride) + lane);
    score_pages<value_bits>(part, own, constant(2 * c), constant(2 * c + 1), warp);
    give_registers<kLatentRegisters>();
  } else if (warp < kScorers + kUnpackers) {
    give_registers<kOtherRegisters>();
    meet<kLatentThreads>();
    wait_copies<0>();
    publish_operands();
    unpack_pages(part, warp - kScorers);
    take_registers<kLatentRegisters>();
  } else {
    give_registers<kOtherRegisters>();
    const int adder = warp - kScorers - kUnpackers, pair = adder * kWarp + lane;
    LatentCopies copies(cache, part.stream, shared, part.heads, (part.tokens + kPageTokens - 1) / kPageTokens, part.end,
                        lane);
    if (adder == 0) {
      copies.set_up();
      copies.start(0);
      copies.start(1);
    }
    const float2 angle = load_angle(part, part.begin, pair);
    const PairQueries queries(cache, part.p, part.heads, pair);
    float bias[kHeads] = {};
    if (cache.keys.noise != nullptr) {
      const float* noise = cache.keys.noise + part.heads.kv_head * kDim + pair;
      const float noise0 = noise[0], noise1 = noise[kDim / 2];
#pragma unroll
      for (int i = 0; i < kHeads; ++i) {
        bias[i] = queries.x[i].x * queries.x[i].x * noise0 + queries.x[i].y * queries.x[i].y * noise1;
      }
    }
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
#pragma unroll
      for (int step = 1; step < kWarp; step *= 2) bias[i] += __shfl_xor_sync(0xffffffffu, bias[i], step);
      if (lane == 0) shared.bias[adder][i] = bias[i];
    }
    queries.store(angle, shared.queries[0], kHeads);  // zeros too, which stay
    queries.store(angle, shared.queries[1], kHeads);
    if (adder == 0) copies.wait_before_newest();
    meet<kLatentThreads>();
    LatentSums sums;
    add_pages<value_bits>(part, queries, copies, sums, adder);
#pragma unroll
    for (int i = 0; i < LatentSums::kBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        out[(2 * c + j % 2) * kMergeStride<kDim> + adder * 64 + i / 2 * 32 + lane / 4 * 4 + i % 2 * 2 + j / 2] =
            sums.sums[i][j];
      }
    }
    take_registers<kLatentRegisters>();
  }
  __syncthreads();
  MergedHead<kDim / kWarp> merged;
  merged.maximum = shared.references[warp];
  float ones = 0.0f;
#pragma unroll
  for (int w = 0; w < kScorers; ++w) {
    merged.weights += shared.weight_sums[w][warp];
    ones += shared.one_sums[w][warp];
  }
  // 2^18: fields are codes times 2^(p - 24), weights have a factor of 2^(6 - p).
  const float scale = shared.norm_scale, factor = scale > 0.0f ? layer.level_step * 262144.0f / scale : 0.0f;
#pragma unroll
  for (int i = 0; i < kDim / kWarp; ++i) {
    merged.sums[i] =
        fmaf(-ValueCodes<value_bits>::kCentre, ones, out[warp * kMergeStride<kDim> + lane * (kDim / kWarp) + i]) *
        factor;
  }
  walsh_hadamard(merged.sums, lane);
  return merged;
}

/// A block per part, kv head (and group of 8 query heads) and sequence.
template <int value_bits>
__global__ void __launch_bounds__(kLatentThreads, kLatentBlocks)
    attend_latent_kernel(const __grid_constant__ CacheView cache, const __grid_constant__ Attention p,
                         const __grid_constant__ LatentLayer layer) {
  KVQUANT_DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x % kWarp, warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarp, 0);
  const BlockHeads heads = block_heads(cache);
  release_next_kernel();
  const bool has_exact = cache.window > 0 || cache.sink_pages > 0;
  const int parts = has_exact && p.parts > 1 ? p.parts - 1 : p.parts, part = heads.part;
  const bool in_codes = part < parts;
  if (in_codes) prepare(cache, layer, heads.kv_head, shared, warp, lane);
  wait_for_previous_kernel();
  const uint32_t sinks = find_sinks(cache, heads.b, lane);
  MergedHead<kDim / kWarp> merged;
  if (in_codes) {
    const int tokens = cache.quantized(heads.b, cache.length(heads.b) + 1);
    const int pages = (tokens + kPageTokens - 1) / kPageTokens;
    const int begin = static_cast<int>(static_cast<int64_t>(pages) * part / parts);
    const int end = static_cast<int>(static_cast<int64_t>(pages) * (part + 1) / parts);
    if (begin == end && p.parts > 1) {
      wait_copies<0>();
      return write_empty(cache, p, heads);
    }
    auto& common = *reinterpret_cast<LatentShared*>(shared + kSharedAt);
    const LatentStream stream{layer, shared, begin};
    merged = attend_codes<value_bits>({cache, p, layer, heads, stream, common, tokens, begin, end, lane, sinks}, warp);
  }
  if (has_exact && (p.parts == 1 || !in_codes)) {
    unsigned char* tiles = shared + kExactAt + warp * kExactStride;
    ExactUnits<kDim> exact(cache, heads, {0, warp, kLatentWarps, kLatentWarpBits}, tiles,
                           tiles + Fp16Tile<kDim>::kBytes, lane);
    exact.start(warp, false);
    exact.start(warp, true);
    attend_exact<kDim, kLatentWarps, kScratchAt>(p, heads, exact, sinks, shared);
    if (warp < heads.count) {
      const auto& scratch = *reinterpret_cast<const MergeScratch<kLatentWarps>*>(shared + kScratchAt);
      merged.add(merge_head<kDim, kLatentWarps>(scratch, reinterpret_cast<const float*>(shared + kExactAt),
                                                kExactStride / 4, warp, false));
    }
  }
  if (warp < heads.count) write_head(cache, p, heads, warp, merged);
}

LatentLayer describe(const CacheView& cache) {
  LatentLayer layer = {};
  const SideView& keys = cache.keys;
  uint8_t widths[kWidthRuns];
  std::copy_n(keys.width, kWidthRuns, widths);
  layer.keys.order = latent_steps(widths);
  for (int i = 0; i < 2 * kMostSteps; ++i) {
    const int run = layer.keys.order.run[i];
    layer.keys.tile[i] = run < 0 ? 0 : keys.run_begin[run];
  }
  layer.basis_bytes = layer.keys.order.steps() * 2 * kRunBytes;
  layer.code_bytes = layer.keys.order.steps() * 2 * kCodeBytes;
  layer.key_bytes = kPageTiles * static_cast<int>(keys.tile_bytes);
  layer.value_bytes = kPageTiles * cache.values.tile_bytes;
  layer.basis_at = (kValuesAt + kRing * layer.value_bytes + 127) / 128 * 128;
  layer.level_step = cache.values.level_step;
  return layer;
}

int shared_bytes(const LatentLayer& layer) {
  return std::max(layer.basis_at + layer.basis_bytes + 2 * layer.code_bytes + kRing * layer.key_bytes,
                  kExactAt + kLatentWarps * kExactStride);
}

}  // namespace

bool attend_latent_supports(const CacheView& cache) {
  const SideView& values = cache.values;
  const bool coded = values.format == Format::kNorm && values.rotated && values.level_step > 0.0f && values.bits <= 4;
  const bool turns = cache.rope_rows > kPageTokens;  // the positions of a page, which keys are turned by
  return cache.sink_policy != SinkPolicy::kMassive && cache.keys_pre_rope != 0 &&
         cache.keys.format == Format::kStatic && cache.keys.basis_heads == 1 && coded && cache.head_dim == kDim &&
         cache.max_sinks <= kSinkBits && turns;
}

AttentionShape attend_latent_shape(const CacheView& cache) {
  // A block's warps work on the same tokens: as one warp that takes them one after another.
  return {1, shared_bytes(describe(cache)), kLatentBlocks, kPageTokens};
}

void attend_latent(const CacheView& cache, const Attention& p, bool early, cudaStream_t stream) {
  const LatentLayer layer = describe(cache);
  const LaunchShape shape{attention_blocks(cache, p), kLatentThreads, static_cast<size_t>(shared_bytes(layer)), stream,
                          early};
  const int bits = cache.values.bits;
  const auto kernel = bits == 2   ? attend_latent_kernel<2>
                      : bits == 3 ? attend_latent_kernel<3>
                                  : attend_latent_kernel<4>;
  launch("attend", kernel, shape, cache, p, layer);
}

}  // namespace kvquant::cuda
