// SPDX-License-Identifier: Apache-2.0
// Kernels of depthwise layers: lanes over channels where those are adjacent. See vec.h for what may be included.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace tconv {
namespace {

// Few runs: H of R taps, whose weights stay in registers, for V vectors of channels of some positions.
template <int H, int R, int V, class vec, class T>
inline void depthwise_pass(T* y, i64 y_step, const DepthwiseReads<T>& r, i64 begin, i64 end, i64 c, const T* bias) {
  constexpr int N = sizeof(vec) / sizeof(T);
  const i64 x_step = r.x_step;
  const T* x[H];
  vec taps[H][R][V], start[V] = {};
  if (bias)
    for (int v = 0; v < V; ++v) start[v] = load<vec>(bias + c + v * N);
#pragma GCC unroll 2
  for (int h = 0; h < H; ++h) {
    const i64 row = r.rows > 1 ? h : 0;
    const DepthwiseRun& run = r.runs[h - row];
    x[h] = r.x[row] + run.x + begin * x_step + c;
#pragma GCC unroll 8
    for (int t = 0; t < R; ++t)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) taps[h][t][v] = load<vec>(r.w[row] + run.w + t * run.w_step + c + v * N);
  }
  y += begin * y_step + c;
  for (i64 q = begin; q < end; ++q, y += y_step) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      vec sum = start[v];
#pragma GCC unroll 2
      for (int h = 0; h < H; ++h)
#pragma GCC unroll 8
        for (int t = 0; t < R; ++t) sum += taps[h][t][v] * load<vec>(x[h] + t * x_step + v * N);
      store(y + v * N, sum);
    }
#pragma GCC unroll 2
    for (int h = 0; h < H; ++h) x[h] += x_step;
  }
}

// All channels so, the last vector again where it overlaps the one before it; -> whether there are as few and equal runs as that takes.
template <class T, int N>
bool depthwise_few(T* y, i64 y_step, const DepthwiseReads<T>& r, i64 begin, i64 end, i64 channels, const T* bias) {
  using vec = Vec<T, N>;
  const i64 runs = r.rows * r.count;
  if (runs < 1 || runs > 2 || r.runs[0].taps != r.runs[r.count - 1].taps) return false;
  const auto all = [&](auto taps, auto both) {
    constexpr int R = decltype(taps)::value, H = decltype(both)::value;
    if constexpr (H * R > (sizeof(vec) == 64 ? 8 : 4)) return false;  // registers
    i64 c = 0;
    for (; c + 2 * N <= channels; c += 2 * N) depthwise_pass<H, R, 2, vec>(y, y_step, r, begin, end, c, bias);
    for (; c < channels; c += N) depthwise_pass<H, R, 1, vec>(y, y_step, r, begin, end, c + N <= channels ? c : channels - N, bias);
    return true;
  };
  const auto some = [&](auto taps) { return runs == 1 ? all(taps, Flag<1>{}) : all(taps, Flag<2>{}); };
  const i64 taps = r.runs[0].taps;
  return taps == 1 ? some(Flag<1>{}) : taps == 2 ? some(Flag<2>{}) : taps == 3 ? some(Flag<3>{}) : some(Flag<4>{});
}

// Many runs: sums stay in registers. Adds a run of R taps to Q positions; tap t of position q reads what tap 0 of position q + t reads, so
// that every input is loaded once.
template <int R, class vec, class T, int Q, int V>
inline __attribute__((always_inline)) void add_run(vec (&acc)[Q][V], const T* x, i64 x_step, const T* w, i64 w_step) {
  constexpr int N = sizeof(vec) / sizeof(T);
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    vec taps[R];
    const T* at = x + v * N;
#pragma GCC unroll 8
    for (int t = 0; t < R; ++t) taps[t] = load<vec>(w + t * w_step + v * N);
#pragma GCC unroll 16
    for (int i = 0; i < Q + R - 1; ++i, at += x_step) {
      const vec from = load<vec>(at);
#pragma GCC unroll 8
      for (int t = 0; t < R; ++t)
        if (i >= t && i - t < Q) acc[i - t][v] += taps[t] * from;
    }
  }
}

// V vectors of channels of Q positions. Long sums are made in parts of `part` rows.
template <int Q, int V, class vec, class T>
inline __attribute__((always_inline)) void depthwise_block(T* y, i64 y_step, const DepthwiseReads<T>& r, i64 at, i64 c, i64 part,
                                                           const T* bias) {
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
  if (depthwise_few<T, N>(y, y_step, r, begin, end, channels, bias)) return;
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

// The weights that a vector of outputs from o on is multiplied by; of one period, all the same.
template <class vec, class T>
inline vec row_weights(const RowSums<T>& of, i64 tap, i64 o) {
  const T* w = of.w + of.w_at[tap];
  return of.period == 1 ? vec{} + *w : load<vec>(w + ((of.start + o) & (of.period - 1)));
}

// Few taps, whose weights stay in registers: a vector is a whole number of periods. The last one overlaps the one before it.
template <int K, class T, int N>
inline __attribute__((always_inline)) void sum_few(T* y, i64 first, const RowSums<T>& of) {
  using vec = Vec<T, N>;
  const T* x[K];
  vec w[K];
#pragma GCC unroll 8
  for (int t = 0; t < K; ++t) x[t] = of.x + of.x_at[first + t], w[t] = row_weights<vec>(of, first + t, 0);
  const vec bias = vec{} + of.bias;
  const auto sum = [&](i64 o) __attribute__((always_inline)) {
    vec all = w[0] * load<vec>(x[0] + o);
#pragma GCC unroll 8
    for (int t = 1; t < K; ++t) all += w[t] * load<vec>(x[t] + o);
    of.stream ? stream(y + o, all + bias) : store(y + o, all + bias);
  };
  const i64 count = of.columns;
  i64 o = 0;
  for (; o + N <= count; o += N) sum(o);
  if (o == count) return;
#pragma GCC unroll 8
  for (int t = 0; t < K; ++t) w[t] = row_weights<vec>(of, first + t, count - N);
  sum(count - N);
}

// V vectors of outputs from o on, of any taps, in parts. Of periods longer than a vector, weights differ from one to the next.
template <int V, class T, int N>
inline void sum_block(T* y, i64 o, const RowTaps& row, const RowSums<T>& of) {
  using vec = Vec<T, N>;
  const i64 part = terms_at_once(row.taps);
  vec all[V] = {};
  for (i64 begin = 0; begin < row.taps; begin += part) {
    vec acc[V] = {};
    for (i64 t = row.first + begin; t < row.first + (begin + part < row.taps ? begin + part : row.taps); ++t) {
      const T* x = of.x + of.x_at[t] + o;
      vec w = row_weights<vec>(of, t, o);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        if (v > 0 && of.period > N) w = row_weights<vec>(of, t, o + v * N);
        acc[v] += w * load<vec>(x + v * N);
      }
    }
    for (int v = 0; v < V; ++v) all[v] += acc[v];
  }
  for (int v = 0; v < V; ++v) store(y + o + v * N, all[v] + of.bias);
}

// Fewer outputs than lanes are left to narrower vectors.
template <class T, int N>
void sum_rows(const RowTaps* rows, i64 count, const RowSums<T>& of) {
  if constexpr (N > 1)
    if (of.columns < N) return sum_rows<T, N / 2>(rows, count, of);
  const bool whole = of.period <= N;
  for (; count > 0; --count, ++rows) {
    T* y = of.y + rows->depth * of.y_depth + rows->row * of.y_row;
    if (whole && rows->taps == 4) {
      sum_few<4, T, N>(y, rows->first, of);
    } else if (whole && rows->taps == 2) {
      sum_few<2, T, N>(y, rows->first, of);
    } else if (whole && rows->taps == 1) {
      sum_few<1, T, N>(y, rows->first, of);
    } else if (whole && rows->taps == 8) {
      sum_few<8, T, N>(y, rows->first, of);
    } else {
      i64 o = 0;
      for (; o + 8 * N <= of.columns; o += 8 * N) sum_block<8, T, N>(y, o, *rows, of);
      for (; o + 2 * N <= of.columns; o += 2 * N) sum_block<2, T, N>(y, o, *rows, of);
      for (; o < of.columns; o += N) sum_block<1, T, N>(y, o + N <= of.columns ? o : of.columns - N, *rows, of);
    }
  }
}

}  // namespace
}  // namespace tconv
