/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kvquant {
namespace {

/// About 30 microseconds: longer than the gap between two operators of a layer, shorter than what a neighbour would
/// notice.
constexpr int kSpins = 2000;

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

/// One parallel_for in flight. The counters are tagged with the job's number, so that a worker that wakes late can not
/// take chunks of a job that it did not see begin.
class Pool {
 public:
  ~Pool() { resize(1); }

  void resize(int threads) {
    std::lock_guard<std::mutex> one_at_a_time(run_mutex_);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    stopping_ = false;
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
    threads_.store(threads);
  }

  int threads() const { return threads_.load(); }

  bool try_run(int64_t count, const std::function<void(int64_t)>& body) {
    std::unique_lock<std::mutex> one_at_a_time(run_mutex_, std::try_to_lock);
    if (!one_at_a_time.owns_lock()) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      body_ = &body;
      count_ = count;
      next_.store(0);
      finished_.store(0);
      open_ = true;
      generation_.fetch_add(1);
    }
    if (sleeping_.load() > 0) wake_.notify_all();
    take_chunks(body, count);
    while (finished_.load(std::memory_order_acquire) < count) relax();
    close_job();
    return true;
  }

 private:
  void take_chunks(const std::function<void(int64_t)>& body, int64_t count) {
    for (int64_t i; (i = next_.fetch_add(1)) < count;) {
      body(i);
      finished_.fetch_add(1, std::memory_order_release);
    }
  }

  /// No worker may look at the job any more once this returns.
  void close_job() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      open_ = false;
    }
    while (inside_.load() > 0) relax();
  }

  void work() {
    inside_pool = true;
    uint64_t seen = generation_.load();
    while (true) {
      wait_for_change(seen);
      const std::function<void(int64_t)>* body = nullptr;
      int64_t count = 0;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        seen = generation_.load();
        if (stopping_) return;
        if (open_) {
          body = body_;
          count = count_;
          inside_.fetch_add(1);
        }
      }
      if (body == nullptr) continue;
      take_chunks(*body, count);
      inside_.fetch_sub(1);
    }
  }

  void wait_for_change(uint64_t seen) {
    for (int i = 0; i < kSpins; ++i) {
      if (generation_.load() != seen) return;
      relax();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    sleeping_.fetch_add(1);
    wake_.wait(lock, [&] { return generation_.load() != seen; });
    sleeping_.fetch_sub(1);
  }

  std::mutex run_mutex_, mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  std::atomic<int> threads_{1}, sleeping_{0}, inside_{0};
  std::atomic<uint64_t> generation_{0};
  std::atomic<int64_t> next_{0}, finished_{0};
  const std::function<void(int64_t)>* body_ = nullptr;
  int64_t count_ = 0;
  bool open_ = false, stopping_ = false;

 public:
  static thread_local bool inside_pool;
};

thread_local bool Pool::inside_pool = false;

/// Never destroyed: operators may still be running while the process exits.
Pool& pool() {
  static Pool* instance = new Pool;
  return *instance;
}

}  // namespace

void set_num_threads(int threads) { pool().resize(std::max(1, threads)); }

int num_threads() { return pool().threads(); }

void parallel_for(int64_t count, const std::function<void(int64_t)>& body) {
  if (count > 1 && num_threads() > 1 && !Pool::inside_pool) {
    Pool::inside_pool = true;
    const bool ran = pool().try_run(count, body);
    Pool::inside_pool = false;
    if (ran) return;
  }
  for (int64_t i = 0; i < count; ++i) body(i);
}

}  // namespace kvquant
