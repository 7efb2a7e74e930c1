/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kvquant {
namespace {

/// Long enough to bridge the gap between two operators of a layer, too short for a neighbour to notice.
constexpr int kSpins = 2000;
/// After so many a waiting caller lets others run: the worker it waits for may need its core.
constexpr int kSpinsBeforeYield = 200;

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Condition>
void wait_until(Condition condition) {
  for (int spins = 0; !condition(); ++spins) {
    if (spins < kSpinsBeforeYield) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
}

/// Marks a thread that is inside a job, whose nested calls run by themselves.
class InsideJob {
 public:
  InsideJob() { inside = true; }
  ~InsideJob() { inside = false; }
  static thread_local bool inside;
};

thread_local bool InsideJob::inside = false;

/// Runs one job at a time. A worker enters a job only while it is open, and the caller leaves it only when nobody is
/// inside.
class Pool {
 public:
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
    for (int i = 1; i < threads; ++i) {
      workers_.emplace_back([this, seen = generation_.load()] { work(seen); });
    }
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
      error_ = nullptr;
      open_ = true;
      generation_.fetch_add(1);
    }
    if (sleeping_.load() > 0) wake_.notify_all();
    take_chunks(body, count);
    wait_until([&] { return finished_.load(std::memory_order_acquire) >= count; });
    {
      std::lock_guard<std::mutex> lock(mutex_);
      open_ = false;
    }
    wait_until([&] { return inside_.load() == 0; });
    if (error_ != nullptr) std::rethrow_exception(error_);
    return true;
  }

 private:
  /// Chunks count as finished even when they fail; the first error is kept for the caller.
  void take_chunks(const std::function<void(int64_t)>& body, int64_t count) {
    for (int64_t i; (i = next_.fetch_add(1)) < count;) {
      try {
        body(i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (error_ == nullptr) error_ = std::current_exception();
      }
      finished_.fetch_add(1, std::memory_order_release);
    }
  }

  /// seen: the generation when the worker was made, so that it misses neither its first job nor its end.
  void work(uint64_t seen) {
    const InsideJob inside_job;
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
  std::exception_ptr error_;
  int64_t count_ = 0;
  bool open_ = false, stopping_ = false;
};

/// Never destroyed: operators may still be running while the process exits.
Pool& pool() {
  static Pool* instance = new Pool;
  return *instance;
}

}  // namespace

void set_num_threads(int threads) {
  if (std::max(1, threads) != num_threads()) pool().resize(std::max(1, threads));
}

int num_threads() { return pool().threads(); }

void parallel_for(int64_t count, const std::function<void(int64_t)>& body) {
  if (count > 1 && num_threads() > 1 && !InsideJob::inside) {
    const InsideJob inside_job;
    if (pool().try_run(count, body)) return;
  }
  for (int64_t i = 0; i < count; ++i) body(i);
}

}  // namespace kvquant
