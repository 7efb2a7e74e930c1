/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Key sparsity while decoding: which pages a step reads (core/landmarks.h). First a block for each sequence and kv
// head: the scores of all landmarks, 8 lanes a page and 4 queries at a time, then their shares of a softmax and the
// largest share of each page. Then a block for each sequence and group of kv heads that read the same pages finds the
// pages of largest shares: a radix search for the last share that is taken, among equal ones the earlier pages.
#include "launch.cuh"
#include "queries.cuh"
#include "select_pages.cuh"

namespace kvquant::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 8;                     // of a page
constexpr int kTogether = kThreads / kLanes;  // pages of a block at a time
constexpr int kQueries = 4;                   // whose scores are found together
constexpr int kAhead = 5;                     // rounds of pages that are under way

/// Of a page's landmark, lane i of 8 has channels 8 i and on, and of 128 those 64 above.
template <int D>
struct Landmark {
  static constexpr int kPieces = D / (8 * kLanes), kOwn = 8 * kPieces;
  uint4 pieces[kPieces];

  static __device__ __forceinline__ int channel(int sub, int i) { return i / 8 * 8 * kLanes + 8 * sub + i % 8; }

  /// Starts copying what a lane has to shared memory.
  __device__ __forceinline__ void start(const CacheView& cache, int32_t page, int kv_head, int sub) {
    const uint8_t* from = cache.pages + page * cache.page_bytes + cache.landmarks + 2 * kv_head * D + 16 * sub;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) copy_async(&pieces[i], from + i * (16 * kLanes));
  }
  __device__ __forceinline__ void unpack(float (&x)[kOwn]) const {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const uint4 piece = pieces[i];
      const uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        x[8 * i + 2 * j] = __uint_as_float(words[j] << 16);
        x[8 * i + 2 * j + 1] = __uint_as_float(words[j] & 0xffff0000u);
      }
    }
  }
};

/// Adds up four sums over 8 lanes; lanes 2 i and 2 i + 1 get the i-th.
__device__ __forceinline__ float add_lanes(const float (&sums)[kQueries], int sub) {
  const bool upper = (sub & 4) != 0, odd = (sub & 2) != 0;
  float pair[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float other = __shfl_xor_sync(0xffffffffu, upper ? sums[i] : sums[2 + i], 4);
    pair[i] = (upper ? sums[2 + i] : sums[i]) + other;
  }
  const float other = __shfl_xor_sync(0xffffffffu, odd ? pair[0] : pair[1], 2);
  const float sum = (odd ? pair[1] : pair[0]) + other;
  return sum + __shfl_xor_sync(0xffffffffu, sum, 1);
}

template <int D>
__global__ void __launch_bounds__(kThreads, 2)
    score_landmarks(const __grid_constant__ CacheView cache, const __grid_constant__ Attention p) {
  constexpr int n = D / kWarp, kOwn = Landmark<D>::kOwn;
  __align__(16) __shared__ Landmark<D> ring[kAhead][kThreads];
  __shared__ float queries[kQueries][D], highest[kQueries], totals[kQueries];
  const int kv_head = blockIdx.x, b = blockIdx.y, count = cache.heads / cache.kv_heads;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, sub = lane % kLanes, own = threadIdx.x / kLanes;
  release_next_kernel();
  const Candidates candidates(cache, b);
  if (!candidates.some()) return;
  const int32_t* table = cache.page_table + static_cast<int64_t>(b) * cache.page_columns;
  const auto page_of = [&](int round) { return table[min(round * kTogether + own, candidates.pages - 1)]; };
  float* all_scores = p.choice.scores + (static_cast<int64_t>(b) * cache.heads + kv_head * count) * cache.page_columns;

  for (int first = 0; first < count; first += kQueries) {
    const int queries_now = min(kQueries, count - first);
    float* scores = all_scores + static_cast<int64_t>(first) * cache.page_columns;
    for (int i = 0; i < kAhead; ++i) {
      ring[i][threadIdx.x].start(cache, page_of(i), kv_head, sub);
      commit_copies();
    }
    int32_t next = page_of(kAhead);
    __syncthreads();
    if (warp < kQueries) {
      float q[n] = {};
      const int64_t row = static_cast<int64_t>(b) * (cache.heads + 2 * cache.kv_heads) + kv_head * count + first + warp;
#pragma unroll
      for (int j = 0; j < n; ++j) {
        q[j] = warp < queries_now ? load_element(p.type, p.qkv, row * D + lane * n + j) : 0.0f;
      }
      turn_head(cache, cache.length(b), lane, q);
#pragma unroll
      for (int j = 0; j < n; ++j) queries[warp][lane * n + j] = q[j];
    }
    __syncthreads();
    float q[kQueries][kOwn];
#pragma unroll
    for (int i = 0; i < kQueries; ++i) {
#pragma unroll
      for (int j = 0; j < kOwn; ++j) q[i][j] = queries[i][Landmark<D>::channel(sub, j)];
    }
    const int query = sub / 2;
    for (int round = 0, at = 0; round * kTogether < candidates.pages; ++round, at = at + 1 < kAhead ? at + 1 : 0) {
      float x[kOwn], sums[kQueries] = {};
      wait_copies<kAhead - 1>();  // a lane reads what it has copied itself
      ring[at][threadIdx.x].unpack(x);
      ring[at][threadIdx.x].start(cache, next, kv_head, sub);
      commit_copies();
      next = page_of(round + kAhead + 1);
#pragma unroll
      for (int i = 0; i < kQueries; ++i) {
#pragma unroll
        for (int j = 0; j < kOwn; ++j) sums[i] = fmaf(q[i][j], x[j], sums[i]);
      }
      const float score = cache.score_scale * add_lanes(sums, sub);
      const int page = round * kTogether + own;
      if (sub % 2 == 0 && query < queries_now && page < candidates.pages) {
        scores[static_cast<int64_t>(query) * cache.page_columns + page] = score;
      }
    }
    wait_copies<0>();
    __syncthreads();

    if (warp < queries_now) {
      const float* from = scores + static_cast<int64_t>(warp) * cache.page_columns;
      float maximum = -INFINITY, total = 0.0f;
#pragma unroll 8
      for (int i = lane; i < candidates.pages; i += kWarp) maximum = fmaxf(maximum, from[i]);
#pragma unroll
      for (int step = 1; step < kWarp; step *= 2) {
        maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, step));
      }
#pragma unroll 8
      for (int i = lane; i < candidates.pages; i += kWarp) total += expf(from[i] - maximum);
#pragma unroll
      for (int step = 1; step < kWarp; step *= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
      if (lane == 0) {
        highest[warp] = maximum;
        totals[warp] = total;
      }
    }
    __syncthreads();
    // What pages are worth takes the place of the first query's scores.
    for (int i = threadIdx.x; i < candidates.pages; i += kThreads) {
      float worth = first == 0 ? 0.0f : all_scores[i];
      for (int at = 0; at < queries_now; ++at) {
        const float score = scores[static_cast<int64_t>(at) * cache.page_columns + i];
        worth = fmaxf(worth, __fdiv_rn(expf(score - highest[at]), totals[at]));
      }
      all_scores[i] = worth;
    }
  }
}

constexpr int kSelectors = 512, kSelectorWarps = kSelectors / kWarp, kDigits = 256;
constexpr int kNear = 4096;  // pages whose worth lies in shared memory; of more it takes the place of scores

/// What a block of select_pages shares.
struct Selection {
  float worth[kNear];
  int digits[kDigits], sums[kSelectorWarps];
  uint32_t prefix;
  int left;
};

/// The sum of x over the threads before this one, in order; total: over all. The whole block asks.
__device__ int count_before(int x, Selection& shared, int* total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int sum = x;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const int other = __shfl_sync(0xffffffffu, sum, max(0, lane - step));
    sum += lane >= step ? other : 0;
  }
  __syncthreads();
  if (lane == kWarp - 1) shared.sums[warp] = sum;
  __syncthreads();
  int before = 0, all = 0;
  for (int w = 0; w < kSelectorWarps; ++w) {
    before += w < warp ? shared.sums[w] : 0;
    all += shared.sums[w];
  }
  *total = all;
  return before + sum - x;
}

/// The bits of the wanted-th largest worth, and in shared.left how many of those that are equal to it are taken. Of
/// numbers that are not negative, larger ones have larger bits.
__device__ uint32_t find_last(const float* worth, int candidates, int wanted, Selection& shared) {
  if (threadIdx.x == 0) {
    shared.prefix = 0;
    shared.left = wanted;
  }
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < kDigits; i += kSelectors) shared.digits[i] = 0;
    __syncthreads();
    const uint32_t prefix = shared.prefix;
    const uint32_t above = shift == 24 ? 0u : 0xffffffffu << (shift + 8);
    for (int i = threadIdx.x; i < candidates; i += kSelectors) {
      const uint32_t bits = __float_as_uint(worth[i]);
      if ((bits & above) == prefix) atomicAdd(&shared.digits[bits >> shift & (kDigits - 1)], 1);
    }
    __syncthreads();
    if (threadIdx.x < kWarp) {  // a lane 8 digits, from the largest down
      const int lane = threadIdx.x;
      int own = 0;
      for (int i = 0; i < kDigits / kWarp; ++i) own += shared.digits[kDigits - 1 - lane * (kDigits / kWarp) - i];
      int sum = own;
#pragma unroll
      for (int step = 1; step < kWarp; step *= 2) {
        const int other = __shfl_sync(0xffffffffu, sum, max(0, lane - step));
        sum += lane >= step ? other : 0;
      }
      int left = shared.left - (sum - own);
      __syncwarp();
      if (left > 0 && left <= own) {
        int digit = kDigits - 1 - lane * (kDigits / kWarp);
        for (; left > shared.digits[digit]; --digit) left -= shared.digits[digit];
        shared.prefix = prefix | static_cast<uint32_t>(digit) << shift;
        shared.left = left;
      }
    }
    __syncthreads();
  }
  return shared.prefix;
}

__global__ void __launch_bounds__(kSelectors)
    select_pages_kernel(const __grid_constant__ CacheView cache, PageChoice choice) {
  __shared__ Selection shared;
  const int group = blockIdx.x, b = blockIdx.y;
  release_next_kernel();
  const Candidates candidates(cache, b);
  int32_t* list = choice.lists + (static_cast<int64_t>(b) * gridDim.x + group) * choice.stride;
  wait_for_previous_kernel();
  if (!candidates.some()) {
    if (threadIdx.x == 0) list[0] = candidates.all;
    for (int i = threadIdx.x; i < candidates.all; i += kSelectors) list[1 + i] = i;
    return;
  }
  const int64_t row = static_cast<int64_t>(cache.heads / cache.kv_heads) * cache.page_columns;  // of a kv head
  float* scores = choice.scores + (static_cast<int64_t>(b) * cache.kv_heads + group * choice.heads) * row;
  float* worth = candidates.pages <= kNear ? shared.worth : scores;
  for (int i = threadIdx.x; i < candidates.pages; i += kSelectors) {
    float largest = scores[i];
#pragma unroll 8
    for (int head = 1; head < choice.heads; ++head) largest = fmaxf(largest, scores[head * row + i]);
    worth[i] = largest;
  }

  const uint32_t last = find_last(worth, candidates.pages, candidates.wanted, shared);
  const int equal = shared.left;
  int written = 0, equals = 0;
  for (int first = 0; first < candidates.pages; first += kSelectors) {
    const int i = first + threadIdx.x;
    const uint32_t bits = i < candidates.pages ? __float_as_uint(worth[i]) : 0u;
    const bool same = i < candidates.pages && bits == last;
    int all_equal, all;
    const int earlier = equals + count_before(same ? 1 : 0, shared, &all_equal);
    const bool taken = same ? earlier < equal : i < candidates.pages && bits > last;
    const int at = written + count_before(taken ? 1 : 0, shared, &all);
    if (taken) list[1 + at] = i;
    equals += all_equal;
    written += all;
  }
  const int recent = candidates.all - candidates.pages;
  for (int i = threadIdx.x; i < recent; i += kSelectors) list[1 + written + i] = candidates.pages + i;
  if (threadIdx.x == 0) list[0] = written + recent;
}

}  // namespace

void select_pages(const CacheView& cache, const Attention& p, bool early, cudaStream_t stream) {
  const auto batch = static_cast<unsigned>(cache.batch);
  const LaunchShape scored{dim3(static_cast<unsigned>(cache.kv_heads), batch), kThreads, 0, stream};
  if (cache.head_dim == 64) {
    launch("attend", score_landmarks<64>, scored, cache, p);
  } else {
    launch("attend", score_landmarks<128>, scored, cache, p);
  }
  const dim3 blocks(static_cast<unsigned>(cache.kv_heads / p.choice.heads), batch);
  launch("attend", select_pages_kernel, {blocks, kSelectors, 0, stream, early}, cache, p.choice);
}

}  // namespace kvquant::cuda
