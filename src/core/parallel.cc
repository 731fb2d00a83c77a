// SPDX-License-Identifier: Apache-2.0
#include "parallel.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace tconv {
namespace {

// How long a thread that waits keeps asking before it sleeps: longer than the pause between two layers of a model,
// too short to be seen as load.
constexpr auto kSpin = std::chrono::microseconds(50);

inline void pause() {
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Done>
bool spin_until(Done done, bool may_spin) {
  if (done()) return true;
  if (!may_spin) return false;
  const auto stop = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < stop);
  return done();
}

struct Job {
  void (*body)(void*, i64);
  void* context;
  i64 tasks;
  std::atomic<i64> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error{};

  void work() noexcept {
    for (i64 task; !failed.load(std::memory_order_relaxed) && (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) try {
        body(context, task);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
  }
};

// Workers sleep between jobs. A job is open while `job_` points to it; a worker that wakes up in time joins it (counted in
// `inside_`), one that comes late finds it closed. So the caller waits for workers at work, never for workers to wake up.
class Pool {
 public:
  std::mutex busy;  // held by the caller whose loop is running

  void run(Job& job, int helpers) {
    grow(helpers);
    const bool may_spin = helpers < int(std::thread::hardware_concurrency());
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      wanted_ = helpers;
      spin_.store(may_spin, std::memory_order_relaxed);
      generation_.fetch_add(1, std::memory_order_release);
    }
    if (asleep_.load(std::memory_order_relaxed)) wake_.notify_all();
    job.work();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = nullptr;
    }
    const auto finished = [&] { return inside_.load(std::memory_order_acquire) == 0; };
    if (!spin_until(finished, may_spin)) {
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, finished);
    }
  }

 private:
  void grow(int helpers) {
    while (int(workers_.size()) < helpers) {
      const int number = int(workers_.size());
      workers_.emplace_back(&Pool::loop, this, number, generation_.load());
      workers_.back().detach();  // they sleep until the process ends; joining at exit could hang in a forked child
    }
  }

  void loop(int number, unsigned seen) {
    for (;;) {
      const auto fresh = [&] { return generation_.load(std::memory_order_acquire) != seen; };
      const bool awake = spin_until(fresh, spin_.load(std::memory_order_relaxed));
      Job* job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        if (!awake) {
          asleep_.fetch_add(1, std::memory_order_relaxed);
          wake_.wait(lock, fresh);
          asleep_.fetch_sub(1, std::memory_order_relaxed);
        }
        seen = generation_.load(std::memory_order_relaxed);
        job = number < wanted_ ? job_ : nullptr;
        if (job) inside_.fetch_add(1, std::memory_order_relaxed);
      }
      if (!job) continue;
      job->work();
      if (inside_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        std::lock_guard<std::mutex> lock(mutex_);
        done_.notify_one();
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  Job* job_ = nullptr;
  int wanted_ = 0;
  std::atomic<int> inside_{0}, asleep_{0};
  std::atomic<unsigned> generation_{0};
  std::atomic<bool> spin_{true};
};

// Never destroyed: a worker may still wait on it while the process exits.
Pool*& pool() {
  static Pool* instance = [] {
#if defined(__unix__) || defined(__APPLE__)
    // A forked child has none of the workers, and the locks may be held by threads it lacks: it starts a pool of its own.
    pthread_atfork(nullptr, nullptr, [] { pool() = new Pool; });
#endif
    return new Pool;
  }();
  return instance;
}

struct Buffer {
  static constexpr std::align_val_t kLine{64};
  void* data = nullptr;
  i64 bytes = 0;

  void reset(i64 size) {
    if (data) ::operator delete(data, kLine);
    data = nullptr, bytes = 0;
    if (size) data = ::operator new(std::size_t(size), kLine), bytes = size;
  }
  ~Buffer() { reset(0); }
};

}  // namespace

void parallel_for(i64 tasks, int threads, void (*body)(void*, i64), void* context) {
  Job job{body, context, tasks};
  const int helpers = int(tasks < threads ? tasks : threads) - 1;
  Pool& workers = *pool();
  if (helpers > 0 && workers.busy.try_lock()) {
    std::lock_guard<std::mutex> release(workers.busy, std::adopt_lock);
    workers.run(job, helpers);
  } else {
    job.work();
  }
  if (job.error) std::rethrow_exception(job.error);
}

void* scratch(int slot, i64 bytes) {
  static thread_local Buffer buffers[4];
  Buffer& buffer = buffers[slot];
  if (buffer.bytes < bytes) buffer.reset(round_up(bytes, 4096));
  return buffer.data;
}

}  // namespace tconv
