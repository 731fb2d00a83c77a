// SPDX-License-Identifier: Apache-2.0
// One parallel loop over a pool of threads of our own, or over the team of an OpenMP runtime that the process uses anyway.
// docs/design.md says why, with figures.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <new>
#include <utility>
#include <vector>

#include "spec.h"

namespace tconv {

// Calls body(context, task) for every task < tasks, on at most `threads` threads, the caller among them. Each thread has its share of
// them, adjacent ones, the same in every call: what it read and wrote in the last call, or in the layer before, is in its own caches. When
// it is through, it takes what others have left. If the pool is busy with another caller's loop, the caller runs all tasks itself. Safe
// after fork. A body may call it again with one thread only.
// The first exception that a body throws is thrown again here, after all threads have stopped.
void parallel_for(i64 tasks, int threads, void (*body)(void* context, i64 task), void* context);

template <class F>
void parallel_for(i64 tasks, int threads, F&& body) {
  parallel_for(tasks, threads, [](void* f, i64 task) { (*static_cast<F*>(f))(task); }, &body);
}

// Tasks of a thread: of no more, it is seen where threads end apart.
constexpr i64 kFewTasks = 8;

// When the last thread ends such a loop, if task i takes cost(i).
template <class F>
double last_end(i64 tasks, int threads, F&& cost) {
  const i64 shares = std::max<i64>(1, std::min<i64>(tasks, threads));
  std::vector<double> ends(static_cast<std::size_t>(shares), 0.0);
  std::vector<i64> next;
  for (i64 i = 0; i < shares; ++i) next.push_back(piece_begin(i, shares, tasks));
  for (i64 left = tasks; left > 0; --left) {
    const auto first = std::min_element(ends.begin(), ends.end());
    i64 share = first - ends.begin();
    while (next[std::size_t(share)] == piece_begin(share + 1, shares, tasks)) share = (share + 1) % shares;
    *first += cost(next[std::size_t(share)]++);
  }
  return *std::max_element(ends.begin(), ends.end());
}

// Blocks of a run, where `tasks` tasks of all blocks, of which the last may be a part of one, would not feed the threads and blocks are
// shared out in runs: of as many runs as end first, if each takes the time of `more` blocks beside its own.
inline i64 blocks_of_run(double blocks, i64 tasks, int threads, double more) {
  const i64 all = i64(std::ceil(blocks));
  i64 best = all;
  double lowest = 1e300;
  for (i64 r = 1, last = 0, most = std::min(all, threads > 1 ? ceil_div(4 * threads, tasks) : 1); r <= most; ++r) {
    const i64 wide = ceil_div(all, r);
    if (wide == std::exchange(last, wide)) continue;
    const double end = last_end(tasks * ceil_div(all, wide), threads,
                                [&](i64 task) { return more + std::min(double(wide), blocks - double(task / tasks * wide)); });
    if (end < 0.98 * lowest) lowest = end, best = wide;
  }
  return best;
}

// `GOMP_parallel` of GNU's OpenMP runtime, which LLVM's and Intel's have too: fn(data) on every thread of the caller's team, of which
// `omp_get_thread_num` is the number.
using Team = void (*)(void (*fn)(void* data), void* data, unsigned threads, unsigned flags);

// From now on loops run on the team of that runtime, whose threads wait for work by spinning, and would keep ours from a core meanwhile;
// null: on our own pool. A forked child, in which such runtimes hang, always has a pool of its own.
void use_team(Team team, int (*number)());

// Uninitialised memory of the calling thread, aligned to a cache line, kept for the thread's next call and grown when needed.
// A slot is one use: buffers of different slots live at the same time.
void* scratch(int slot, i64 bytes);

template <class T>
T* scratch(int slot, i64 elements) {
  if (elements > (i64(1) << 58)) throw std::bad_alloc();
  return static_cast<T*>(scratch(slot, elements * i64(sizeof(T))));
}

// Elements of buffers that lie side by side, each from a cache line on.
template <std::size_t N>
i64 side_by_side(const std::array<i64, N>& sizes) {
  i64 total = 0;
  for (i64 size : sizes) total += round_up(size, 64);
  return total;
}

// Buffers of one use in one piece of scratch memory.
template <class T, std::size_t N>
void scratch(int slot, const std::array<i64, N>& sizes, T** const (&parts)[N]) {
  T* at = scratch<T>(slot, side_by_side(sizes));
  for (std::size_t i = 0; i < N; ++i) *parts[i] = at, at += round_up(sizes[i], 64);
}

}  // namespace tconv
