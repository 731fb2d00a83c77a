// SPDX-License-Identifier: Apache-2.0
// One parallel loop over a pool of threads of our own. docs/design.md says why it is not OpenMP, with figures.
#pragma once

#include <new>

#include "spec.h"

namespace tconv {

// Calls body(context, task) for every task < tasks, on at most `threads` threads, the caller among them. Tasks are handed
// out in order. If the pool is busy with another caller's loop, the caller runs all tasks itself. Safe after fork. A body may
// call it again with one thread only.
// The first exception that a body throws is thrown again here, after all threads have stopped.
void parallel_for(i64 tasks, int threads, void (*body)(void* context, i64 task), void* context);

template <class F>
void parallel_for(i64 tasks, int threads, F&& body) {
  parallel_for(tasks, threads, [](void* f, i64 task) { (*static_cast<F*>(f))(task); }, &body);
}

// Uninitialised memory of the calling thread, aligned to a cache line, kept for the thread's next call and grown when needed.
// A slot is one use: buffers of different slots live at the same time.
void* scratch(int slot, i64 bytes);

template <class T>
T* scratch(int slot, i64 elements) {
  if (elements > (i64(1) << 58)) throw std::bad_alloc();
  return static_cast<T*>(scratch(slot, elements * i64(sizeof(T))));
}

}  // namespace tconv
