// SPDX-License-Identifier: Apache-2.0
// Kernels of depthwise layers: lanes over channels where those are adjacent. See vec.h for what may be included.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace tconv {
namespace {

// Adds a run of R taps to Q positions: tap t of position q reads what tap 0 of position q + t reads, so that every input is loaded once.
template <int R, class vec, class T, int Q, int V>
inline __attribute__((always_inline)) void add_run(vec (&acc)[Q][V], const T* x, i64 x_step, const T* w, i64 w_step) {
  constexpr int N = sizeof(vec) / sizeof(T);
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    vec taps[R];
#pragma GCC unroll 8
    for (int t = 0; t < R; ++t) taps[t] = load<vec>(w + t * w_step + v * N);
#pragma GCC unroll 16
    for (int i = 0; i < Q + R - 1; ++i) {
      const vec from = load<vec>(x + i * x_step + v * N);
#pragma GCC unroll 8
      for (int t = 0; t < R; ++t)
        if (i >= t && i - t < Q) acc[i - t][v] += taps[t] * from;
    }
  }
}

// V vectors of channels of Q positions. Long sums are made in parts of `part` rows.
template <int Q, int V, class vec, class T>
inline void depthwise_block(T* y, i64 y_step, const DepthwiseReads<T>& r, i64 at, i64 c, i64 part, const T* bias) {
  constexpr int N = sizeof(vec) / sizeof(T);
  vec acc[Q][V] = {};
  const auto write = [&](bool add) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        T* to = y + q * y_step + c + v * N;
        store(to, add ? acc[q][v] + load<vec>(to) : bias ? acc[q][v] + load<vec>(bias + c + v * N) : acc[q][v]);
      }
  };
  for (i64 row = 0; row < r.rows; ++row) {
    if (row > 0 && row % part == 0) {
      write(row > part);
#pragma GCC unroll 8
      for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) acc[q][v] = vec{};
    }
    for (const DepthwiseRun* run = r.runs; run < r.runs + r.count; ++run) {
      const T *x = r.x[row] + run->x + at + c, *w = r.w[row] + run->w + c;
      if (run->taps == 1)
        add_run<1>(acc, x, r.x_step, w, run->w_step);
      else if (run->taps == 2)
        add_run<2>(acc, x, r.x_step, w, run->w_step);
      else if (run->taps == 3)
        add_run<3>(acc, x, r.x_step, w, run->w_step);
      else
        add_run<4>(acc, x, r.x_step, w, run->w_step);
    }
  }
  write(r.rows > part);
}

// All channels of Q positions, V vectors at a time. The last vector computes some channels again.
template <int Q, int V, class T, int N>
inline void depthwise_positions(T* y, i64 y_step, const DepthwiseReads<T>& r, i64 q, i64 channels, i64 part, const T* bias) {
  using vec = Vec<T, N>;
  y += q * y_step;
  i64 c = 0;
  for (; c + V * N <= channels; c += V * N) depthwise_block<Q, V, vec>(y, y_step, r, q * r.x_step, c, part, bias);
  for (; c < channels; c += N) depthwise_block<Q, 1, vec>(y, y_step, r, q * r.x_step, c + N <= channels ? c : channels - N, part, bias);
}

// Four positions at a time, of which the last may be computed again. Fewer channels than lanes are left to narrower vectors.
template <class T, int N>
void depthwise(T* y, i64 y_step, const DepthwiseReads<T>& r, i64 begin, i64 end, i64 channels, const T* bias) {
  if constexpr (N > 1)
    if (channels < N) return depthwise<T, N / 2>(y, y_step, r, begin, end, channels, bias);
  i64 taps = 0;
  for (i64 i = 0; i < r.count; ++i) taps += r.runs[i].taps;
  const i64 terms = terms_at_once(r.rows * taps), part = terms > taps ? terms / (taps > 0 ? taps : 1) : 1;
  constexpr int Q = 4;
  if (end - begin < Q) {
    for (i64 q = begin; q < end; ++q) depthwise_positions<1, 4, T, N>(y, y_step, r, q, channels, part, bias);
    return;
  }
  for (i64 q = begin; q < end; q += Q) depthwise_positions<Q, 2, T, N>(y, y_step, r, q + Q <= end ? q : end - Q, channels, part, bias);
}

}  // namespace
}  // namespace tconv
