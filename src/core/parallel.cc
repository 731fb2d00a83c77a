// SPDX-License-Identifier: Apache-2.0
#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
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
  struct alignas(64) Share {  // a line of its own, as others are counted meanwhile
    std::atomic<i64> next;
    i64 end;
  };
  static constexpr int kShares = 64;

  void (*body)(void*, i64);
  void* context;
  int shares;
  Share share[kShares];
  std::atomic<bool> failed{false};
  std::exception_ptr error{};

  Job(void (*body_)(void*, i64), void* context_, i64 tasks, int threads)
      : body(body_), context(context_), shares(std::min(threads, kShares)) {
    for (int i = 0; i < shares; ++i) {
      share[i].next.store(piece_begin(i, shares, tasks), std::memory_order_relaxed);
      share[i].end = piece_begin(i + 1, shares, tasks);
    }
  }

  void work(int thread) noexcept {
    for (int i = 0; i < shares; ++i) {
      Share& from = share[(thread + i) % shares];
      while (!failed.load(std::memory_order_relaxed)) {
        const i64 task = from.next.fetch_add(1, std::memory_order_relaxed);
        if (task >= from.end) break;
        try {
          body(context, task);
        } catch (...) {
          if (!failed.exchange(true)) error = std::current_exception();
        }
      }
    }
  }
};

// Workers sleep between jobs. A job is open while `job_` points to it; a worker that wakes up in time joins it (counted in
// `inside_`), one that comes late finds it closed. So the caller waits for workers at work, never for workers to wake up.
class Pool {
 public:
  std::mutex busy;  // held by the caller whose loop is running

  void run(Job& job, int helpers) {
    helpers = grow(helpers);
    const bool may_spin = helpers < int(std::thread::hardware_concurrency());
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      wanted_ = helpers;
      spin_.store(may_spin, std::memory_order_relaxed);
      generation_.fetch_add(1, std::memory_order_release);
      for (int i = 0; i < helpers; ++i)
        if (workers_[i]->asleep) workers_[i]->wake.notify_one();
    }
    job.work(0);
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
  struct Worker {
    std::condition_variable wake;
    bool asleep = false;  // under mutex_
  };

  // How many helpers there are: fewer than asked for where the system grants no more threads.
  int grow(int helpers) {
    while (int(workers_.size()) < helpers) try {
        {
          std::lock_guard<std::mutex> lock(mutex_);
          workers_.push_back(std::make_unique<Worker>());
        }
        // Detached: they sleep until the process ends; joining at exit could hang in a forked child.
        std::thread(&Pool::loop, this, int(workers_.size()) - 1, generation_.load()).detach();
      } catch (const std::system_error&) {
        std::lock_guard<std::mutex> lock(mutex_);
        workers_.pop_back();
        return int(workers_.size());
      }
    return helpers;
  }

  void loop(int number, unsigned seen) {
    Worker* me;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      me = workers_[number].get();
    }
    for (bool wanted = true;;) {
      const auto fresh = [&] { return generation_.load(std::memory_order_acquire) != seen; };
      const bool awake = spin_until(fresh, wanted && spin_.load(std::memory_order_relaxed));
      Job* job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        if (!awake) {
          me->asleep = true;
          me->wake.wait(lock, fresh);
          me->asleep = false;
        }
        seen = generation_.load(std::memory_order_relaxed);
        wanted = number < wanted_;
        job = wanted ? job_ : nullptr;
        if (job) inside_.fetch_add(1, std::memory_order_relaxed);
      }
      if (!job) continue;
      job->work(number + 1);
      if (inside_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        std::lock_guard<std::mutex> lock(mutex_);
        done_.notify_one();
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable done_;
  std::vector<std::unique_ptr<Worker>> workers_;  // changed by the caller that holds `busy`, under mutex_
  Job* job_ = nullptr;
  int wanted_ = 0;
  std::atomic<int> inside_{0};
  std::atomic<unsigned> generation_{0};
  std::atomic<bool> spin_{true};
};

// Never destroyed: a worker may still wait on it while the process exits.
std::atomic<Pool*> the_pool{nullptr};

Pool& pool() {
  Pool* found = the_pool.load(std::memory_order_acquire);
  if (found) return *found;
  Pool* fresh = new Pool;
  if (the_pool.compare_exchange_strong(found, fresh)) return *fresh;
  delete fresh;
  return *found;
}

std::atomic<Team> the_team{nullptr};
std::atomic<int (*)()> the_number{nullptr};

#if defined(__unix__) || defined(__APPLE__)
// A forked child has none of the workers, and the locks may be held by threads it lacks: it starts a pool of its own.
const int forked = pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr), the_team.store(nullptr); });
#endif

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
  const int workers = int(std::min<i64>(tasks, threads));
  Pool& with = pool();
  if (workers < 2 || !with.busy.try_lock()) {
    for (i64 task = 0; task < tasks; ++task) body(context, task);
    return;
  }
  std::lock_guard<std::mutex> release(with.busy, std::adopt_lock);
  Job job(body, context, tasks, workers);
  // A team of all threads, though there be fewer tasks: where its size changes, the runtime ends threads and starts others.
  if (const Team team = the_team.load(std::memory_order_acquire))
    team([](void* work) { static_cast<Job*>(work)->work(the_number.load(std::memory_order_relaxed)()); }, &job, unsigned(threads), 0);
  else
    with.run(job, workers - 1);
  if (job.error) std::rethrow_exception(job.error);
}

void use_team(Team team, int (*number)()) {
  if (team) the_number.store(number, std::memory_order_relaxed);
  the_team.store(team, std::memory_order_release);
}

void* scratch(int slot, i64 bytes) {
  static thread_local Buffer buffers[4];
  Buffer& buffer = buffers[slot];
  if (buffer.bytes < bytes) buffer.reset(round_up(bytes, 4096));
  return buffer.data;
}

}  // namespace tconv
