// SPDX-License-Identifier: Apache-2.0
// Kernels of depthwise layers: lanes over channels where those are adjacent. See vec.h for what may be included.
#pragma once

#include "kernels.h"
#include "moves.h"
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

// The weight's gradient: sums of R taps stay in registers, for V vectors of channels of positions begin .. end - 1, in parts.
template <int R, int V, class vec, class T>
inline void add_grad(T* sums, const T* x, i64 x_step, const T* dy, i64 dy_step, const GradTap* taps, i64 begin, i64 end) {
  constexpr int N = sizeof(vec) / sizeof(T);
  const i64 terms = terms_at_once(end - begin);
  for (i64 part = begin; part < end; part += terms) {
    const i64 stop = part + terms < end ? part + terms : end;
    vec acc[R][V] = {};
    const T *from = x + part * x_step, *with[R];
#pragma GCC unroll 4
    for (int t = 0; t < R; ++t) with[t] = dy + (taps[t].at + part * dy_step);
    for (i64 q = part, i = 0; q < stop; ++q, from += x_step, i += dy_step)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const vec in = load<vec>(from + v * N);
#pragma GCC unroll 4
        for (int t = 0; t < R; ++t) acc[t][v] += in * load<vec>(with[t] + i + v * N);
      }
#pragma GCC unroll 4
    for (int t = 0; t < R; ++t)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        T* to = sums + taps[t].sum + v * N;
        store(to, load<vec>(to) + acc[t][v]);
      }
  }
}

// R taps over the positions that all of them join to outputs, and then each over its own others.
template <int R, int V, class vec, class T>
inline void add_grads(T* sums, const T* x, i64 x_step, const T* dy, i64 dy_step, const GradTap* taps) {
  i64 begin = taps[0].begin, end = taps[0].end;
  for (int t = 1; t < R; ++t) begin = begin > taps[t].begin ? begin : taps[t].begin, end = end < taps[t].end ? end : taps[t].end;
  if (end < begin) end = begin;
  add_grad<R, V, vec>(sums, x, x_step, dy, dy_step, taps, begin, end);
  if constexpr (R > 1)
    for (int t = 0; t < R; ++t) {
      add_grad<1, V, vec>(sums, x, x_step, dy, dy_step, taps + t, taps[t].begin, begin < taps[t].end ? begin : taps[t].end);
      add_grad<1, V, vec>(sums, x, x_step, dy, dy_step, taps + t, end > taps[t].begin ? end : taps[t].begin, taps[t].end);
    }
}

template <int V, class vec, class T>
inline void grad_vectors(T* sums, const T* x, i64 x_step, const T* dy, i64 dy_step, const GradTap* taps, i64 count) {
  for (; count >= 4; count -= 4, taps += 4) add_grads<4, V, vec>(sums, x, x_step, dy, dy_step, taps);
  if (count == 3) add_grads<3, V, vec>(sums, x, x_step, dy, dy_step, taps);
  if (count == 2) add_grads<2, V, vec>(sums, x, x_step, dy, dy_step, taps);
  if (count == 1) add_grads<1, V, vec>(sums, x, x_step, dy, dy_step, taps);
}

// All channels; those that fill no vector are left to narrower ones, since sums are added to.
template <class T, int N>
void depthwise_grad(T* sums, const T* x, i64 x_step, const T* dy, i64 dy_step, const GradTap* taps, i64 count, i64 channels) {
  using vec = Vec<T, N>;
  i64 c = 0;
  for (; c + 2 * N <= channels; c += 2 * N) grad_vectors<2, vec>(sums + c, x + c, x_step, dy + c, dy_step, taps, count);
  for (; c + N <= channels; c += N) grad_vectors<1, vec>(sums + c, x + c, x_step, dy + c, dy_step, taps, count);
  if constexpr (N > 1)
    if (c < channels) depthwise_grad<T, N / 2>(sums + c, x + c, x_step, dy + c, dy_step, taps, count, channels - c);
}

// Lanes along a row of output. How far a vector advances: in place by itself, or else by whole periods.
template <RowInputs How, int N, class T>
inline i64 outputs_ahead(const RowSums<T>& of) {
  return How == RowInputs::in_place ? N : of.outputs;
}
template <RowInputs How, int N, class T>
inline i64 positions_ahead(const RowSums<T>& of) {
  return How == RowInputs::in_place ? N : of.positions;
}

// The weights of a tap for a vector of outputs; of one period, all the same.
template <class V, class T>
inline V row_weights(const RowSums<T>& of, i64 tap, i64 turn) {
  const T* w = of.w + of.w_at[tap];
  return of.period == 1 ? V{} + *w : load<V>(w + turn);
}

// The words of one vector, or of two adjacent ones, that `words` numbers. (AVX2, AVX-512; written so, they need no header.)
template <class V>
using Words = Vec<int, sizeof(V) / 4>;
template <class V>
inline V chosen(V from, Words<V> words) {
  V to;
  asm("vpermps %1, %2, %0" : "=v"(to) : "v"(from), "v"(words));
  return to;
}
template <class V>
inline V chosen(V low, V high, Words<V> words) {
  asm("vpermt2ps %2, %1, %0" : "+v"(low) : "v"(words), "v"(high));
  return low;
}
// With gaps, zeros where an output lacks the tap.
template <RowInputs How, class V>
inline V chosen_once(V from, Words<V> words) {
  const V to = chosen(from, words);
  return How == RowInputs::once_with_gaps ? V(Words<V>(to) & (words >= 0)) : to;
}
template <class V, class T>
inline Words<V> row_words(const RowSums<T>& of, i64 t, i64 turn) {
  return load<Words<V>>(of.words + t * of.words_pitch + turn * i64(sizeof(T) / 4));
}

// What R taps along a row of x read, one vector of outputs after the other. Where inputs are chosen in registers each is loaded once (and a
// load across two lines takes as long as two).
template <int R, RowInputs How, class V, class T>
struct RowReads {
  static constexpr bool once = How != RowInputs::in_place, two = !once && R > 1 && chooses_of_two(sizeof(V));
  const T* x[R];
  V low;

  inline __attribute__((always_inline)) void begin(const T* row, const i64* at) {
#pragma GCC unroll 4
    for (int t = 0; t < R; ++t) x[t] = row + at[t];
    if constexpr (two) low = load<V>(x[0]);
  }

  inline __attribute__((always_inline)) void next(i64 q, const Words<V> (&words)[R], V (&from)[R]) {
    if constexpr (once) {
      V all = load<V>(x[0] + q);
      asm("" : "+v"(all));  // into a register
#pragma GCC unroll 4
      for (int t = 0; t < R; ++t) from[t] = chosen_once<How>(all, words[t]);
    } else if constexpr (two) {
      const V high = load<V>(x[0] + q + sizeof(V) / sizeof(T));
      from[0] = low;
#pragma GCC unroll 4
      for (int t = 1; t < R; ++t) from[t] = chosen(low, high, words[t]);
      low = high;
    } else {
#pragma GCC unroll 4
      for (int t = 0; t < R; ++t) from[t] = load<V>(x[t] + q);
    }
  }
};

// Few taps, R along a row of each of D rows, whose weights stay in registers: a vector advances by whole periods. The last vector overlaps
// the one before it. -> the rows that were summed: those, from the first on, that have as many taps.
template <int D, int R, RowInputs How, class T, int N>
i64 sum_few(const RowTaps* rows, i64 count, const RowSums<T>& of) {
  using vec = Vec<T, N>;
  const vec bias = vec{} + of.bias;
  const i64 columns = of.columns, outputs = outputs_ahead<How, N>(of), positions = positions_ahead<How, N>(of);
  const bool past = of.stream;
  i64 done = 0;
  for (; done < count && rows[done].taps == D * R; ++done) {
    const i64 first = rows[done].first;
    T* y = of.y + rows[done].depth * of.y_depth + rows[done].row * of.y_row;
    for (RowPlace p{0, 0, of.start};; p = of.last) {
      RowReads<R, How, vec, T> reads[D];
      vec w[D][R];
      Words<vec> words[R];
#pragma GCC unroll 4
      for (int d = 0; d < D; ++d) {
        reads[d].begin(of.x + p.at, of.x_at + first + d * R);
#pragma GCC unroll 4
        for (int t = 0; t < R; ++t) w[d][t] = row_weights<vec>(of, first + d * R + t, p.turn);
      }
      if constexpr (RowReads<R, How, vec, T>::once || RowReads<R, How, vec, T>::two)
#pragma GCC unroll 4
        for (int t = 0; t < R; ++t) words[t] = row_words<vec>(of, t, p.turn);
      i64 o = p.o;
      for (i64 q = 0; o + N <= columns; o += outputs, q += positions) {
        vec all, from[R];
#pragma GCC unroll 4
        for (int d = 0; d < D; ++d) {
          reads[d].next(q, words, from);
#pragma GCC unroll 4
          for (int t = 0; t < R; ++t) all = d + t == 0 ? w[0][0] * from[0] : all + w[d][t] * from[t];
        }
        past ? stream(y + o, all + bias) : store(y + o, all + bias);
      }
      if (o - outputs + N == columns) break;
    }
  }
  return done;
}

// -> how many rows, from the first on, have so few taps that they were summed so.
template <RowInputs How, class T, int N>
inline i64 sum_if_few(const RowTaps* rows, i64 count, const RowSums<T>& of) {
  if (of.period > N || of.along == 0) return 0;
  const auto sum = [&](auto along, auto deep) -> i64 {
    constexpr int D = decltype(deep)::value, R = decltype(along)::value;
    if constexpr (D * R > (sizeof(Vec<T, N>) == kLine ? 16 : 9))  // registers
      return 0;
    else
      return sum_few<D, R, How, T, N>(rows, count, of);
  };
  const auto some = [&](auto along) -> i64 {
    const i64 deep = rows->taps / of.along;
    return deep == 1   ? sum(along, Flag<1>{})
           : deep == 2 ? sum(along, Flag<2>{})
           : deep == 3 ? sum(along, Flag<3>{})
           : deep == 4 ? sum(along, Flag<4>{})
                       : 0;
  };
  const i64 along = of.along;
  return along == 1 ? some(Flag<1>{}) : along == 2 ? some(Flag<2>{}) : along == 3 ? some(Flag<3>{}) : along == 4 ? some(Flag<4>{}) : 0;
}

// V vectors of outputs, of any taps, in parts, the first at `begin` and the last at `end`. Weights differ from one to the next where
// periods are longer than vectors.
template <int V, RowInputs How, class T, int N>
inline void sum_block(T* y, const RowPlace& begin, const RowPlace& end, const RowTaps& row, const RowSums<T>& of) {
  using vec = Vec<T, N>;
  constexpr bool once = How != RowInputs::in_place;
  const i64 part = terms_at_once(row.taps), outputs = outputs_ahead<How, N>(of), positions = positions_ahead<How, N>(of);
  i64 turns[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) turns[v] = v + 1 == V ? end.turn : of.period > N ? (begin.turn + v * N) & (of.period - 1) : begin.turn;
  vec all[V] = {};
  for (i64 from = 0, along = 0; from < row.taps; from += part) {
    vec acc[V] = {};
    for (i64 t = row.first + from; t < row.first + (from + part < row.taps ? from + part : row.taps); ++t) {
      const T *x = of.x + of.x_at[once ? t - along : t] + begin.at, *last = x + (end.at - begin.at);
      vec w = row_weights<vec>(of, t, begin.turn);
      Words<vec> words;
      if constexpr (once) words = row_words<vec>(of, along, begin.turn);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const bool ends = v > 0 && v + 1 == V;
        if (ends || (v > 0 && of.period > N)) w = row_weights<vec>(of, t, turns[v]);
        vec in = load<vec>(ends ? last : x + v * positions);
        if constexpr (once) {
          if (ends) words = row_words<vec>(of, along, end.turn);
          in = chosen_once<How>(in, words);
        }
        acc[v] += w * in;
      }
      if (once && ++along == of.along) along = 0;
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) all[v] += acc[v];
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) store(y + (v + 1 == V ? end.o : begin.o + v * outputs), all[v] + of.bias);
}

// A row of any number of taps. The last vector overlaps the one before it.
template <RowInputs How, class T, int N>
void sum_row(const RowTaps& row, const RowSums<T>& of) {
  T* y = of.y + row.depth * of.y_depth + row.row * of.y_row;
  const i64 outputs = outputs_ahead<How, N>(of), positions = positions_ahead<How, N>(of);
  const auto place = [&](i64 v) {
    return v * outputs < of.last.o ? RowPlace{v * outputs, v * positions, of.period > N ? (of.start + v * N) & (of.period - 1) : of.start}
                                   : of.last;
  };
  const i64 vectors = 1 + (of.last.o > 0 ? ceil_div(of.last.o, outputs) : 0);
  for (i64 v = 0; v < vectors;) {
    const auto block = [&](auto count) {
      constexpr int V = decltype(count)::value;
      sum_block<V, How, T, N>(y, place(v), place(v + V - 1), row, of);
      v += V;
    };
    const i64 left = vectors - v;
    left >= 8   ? block(Flag<8>{})
    : left >= 4 ? block(Flag<4>{})
    : left == 3 ? block(Flag<3>{})
    : left == 2 ? block(Flag<2>{})
                : block(Flag<1>{});
  }
}

// Rows by whole vectors.
template <RowInputs How, class T, int N>
void sum_vectors(const RowTaps* rows, i64 count, const RowSums<T>& of) {
  while (count > 0) {
    i64 done = sum_if_few<How, T, N>(rows, count, of);
    if (done == 0) done = 1, sum_row<How, T, N>(*rows, of);
    rows += done, count -= done;
  }
}
template <class T, int N>
void sum_vectors(const RowTaps* rows, i64 count, const RowSums<T>& of) {
  if constexpr (chooses(N * sizeof(T))) {
    if (of.inputs == RowInputs::once) return sum_vectors<RowInputs::once, T, N>(rows, count, of);
    if (of.inputs == RowInputs::once_with_gaps) return sum_vectors<RowInputs::once_with_gaps, T, N>(rows, count, of);
  }
  sum_vectors<RowInputs::in_place, T, N>(rows, count, of);
}

// Of fewer outputs than a vector has lanes, the others are left out.
template <class T, int N>
void sum_rows(const RowTaps* rows, i64 count, const RowSums<T>& of) {
  if (of.columns >= N) return sum_vectors<T, N>(rows, count, of);
  T all[N];
  RowSums<T> whole = of;
  whole.y = all, whole.y_depth = whole.y_row = 0, whole.stream = false;
  whole.columns = N, whole.last = {0, 0, of.start};
  for (; count > 0; --count, ++rows) {
    sum_vectors<T, N>(rows, 1, whole);
    copy_run<T, N>(all, of.y + rows->depth * of.y_depth + rows->row * of.y_row, of.columns);
  }
}

}  // namespace
}  // namespace tconv
