// SPDX-License-Identifier: Apache-2.0
// The kernel bodies, written once; every isa_<name>.cc instantiates them for its vector width. See vec.h for what may be included.
#pragma once

#include "activate.h"
#include "depthwise_kernels.h"
#include "halves.h"
#include "kernels.h"
#include "moves.h"
#include "quarters.h"
#include "transforms.h"
#include "vec.h"

namespace tconv {
namespace {

// Walks the R x V vectors of a tile in memory, row by row.
template <int R, int V, class T, class F>
inline void visit(T* out, const i64* rows, i64 lanes, F f) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) f(r, v, out + rows[r] + v * lanes);
}

// The lane at which vector v of V begins.
template <int V, int N>
inline i64 lane_of(int v, i64 last) {
  return V > 1 && v + 1 == V ? last : v * N;
}

// N positions of P phases to P vectors of a row of output; of bfloat16, whose pairs are words, to half as many.
template <int P, bool Stream, class V, class T>
inline void store_woven(T* y, V (&phases)[P]) {
  constexpr int N = sizeof(V) / sizeof(T);
  put_together<N>(phases);
  for (int p = 0; p < P; ++p) Stream ? stream(y + p * N, phases[p]) : store(y + p * N, phases[p]);
}
template <int P, bool Stream, class V>
inline void store_woven(BFloat16* y, V (&phases)[P]) {
  using Word = std::uint32_t;
  constexpr int N = sizeof(V) / sizeof(Word);
  Vec<Word, N> words[P];
  for (int p = 0; p < P; ++p) words[p] = round_to_bfloat16<N>(phases[p]);
  if constexpr (P % 2) {
    Vec<std::uint16_t, N> halves[P];
    for (int p = 0; p < P; ++p) halves[p] = narrowed<N>(words[p] >> 16);
    put_together<N>(halves);
    for (int p = 0; p < P; ++p) store(y + p * N, halves[p]);
  } else {
    Vec<Word, N> pairs[P / 2];
    for (int p = 0; p < P / 2; ++p) pairs[p] = words[2 * p] >> 16 | words[2 * p + 1];
    put_together<N>(pairs);
    for (int p = 0; p < P / 2; ++p) Stream ? stream(y + p * 2 * N, pairs[p]) : store(y + p * 2 * N, pairs[p]);
  }
}

// Complete sums of a tile, to rows of the output.
template <int P, bool Stream, class S, class T, class V, int R, int Vs>
inline void weave_rows(V (&acc)[R][Vs], const TileSums<T>& to) {
  constexpr int N = sizeof(V) / sizeof(T);
  const i64 column = to.column, last = to.last;
#pragma GCC unroll 16
  for (int r = 0; r < R; r += P) {
    const WovenRow<T> row = to.woven[r / P];
#pragma GCC unroll 16
    for (int v = 0; v < Vs; ++v) {
      V phases[P];
      for (int p = 0; p < P; ++p) phases[p] = acc[r + p][v] + row.bias;
      store_woven<P, Stream>(static_cast<S*>(row.to) + column + lane_of<Vs, N>(v, last) * P, phases);
    }
  }
}
template <int P, class T, class V, int R, int Vs>
inline void weave_tile(V (&acc)[R][Vs], const TileSums<T>& to) {
  if constexpr (sizeof(T) == sizeof(float))
    if (to.rounded) return to.stream ? weave_rows<P, true, BFloat16>(acc, to) : weave_rows<P, false, BFloat16>(acc, to);
  to.stream ? weave_rows<P, true, T>(acc, to) : weave_rows<P, false, T>(acc, to);
}

// R rows broadcast, V vectors of lanes: R * V accumulators stay in registers; V loads and R broadcasts feed R * V products.
template <class P, class T, int N, int R, int V>
void tile(i64 channels, i64 pitch, i64 taps, const i64* offsets, const T* w, i64 row_step, const T* x, const TileSums<T>& to) {
  using vec = Vec<T, N>;
  vec acc[R][V] = {};
  const i64 last = to.last;
  const auto add = [&](const T* at, auto weight) __attribute__((always_inline)) {
    vec lanes[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) lanes[v] = load<vec>(at + lane_of<V, N>(v, last));
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const auto row = P::spread(weight(r));
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) P::add(acc[r][v], row, lanes[v]);
    }
  };
  if (row_step) {
    const T* row[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) row[r] = w + r * row_step;
    for (i64 i = 0; channels > 0; --channels, x += pitch)
      for (i64 t = 0; t < taps; ++t, ++i) add(x + offsets[t], [&](int r) -> const T& { return row[r][i]; });
  } else {
    for (; channels > 0; --channels, x += pitch)
      for (i64 t = 0; t < taps; ++t, w += R) add(x + offsets[t], [&](int r) -> const T& { return w[r]; });
  }
  if (to.add) visit<R, V>(to.sums, to.rows, N, [&](int r, int v, T* at) { acc[r][v] += load<vec>(at); });
  if (!to.woven) return visit<R, V>(to.sums, to.rows, N, [&](int r, int v, T* at) { store(at, acc[r][v]); });
  in_registers(to.phases, [&](auto p) __attribute__((always_inline)) {
    if constexpr (R % decltype(p)::value == 0) weave_tile<decltype(p)::value>(acc, to);
  });
}

// Channels that weights are fetched ahead: they are read once a box, and the hardware stops looking ahead where a page ends.
constexpr i64 kAhead = 48;

// Adds row[r][c * step] * at[c] for first <= c < last to R rows of V vectors.
template <class P, class T, int N, int R, int V>
inline __attribute__((always_inline)) void add_products(Vec<T, N> (&acc)[R][V], const T* const (&row)[R], const T* at, i64 first, i64 last,
                                                        i64 step = 1) {
  at += first * V * N;
  for (i64 c = first * step, end = last * step; c < end; c += step, at += V * N) {
    Vec<T, N> lanes[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      lanes[v] = load<Vec<T, N>>(at + v * N);
      if (V > 1) __builtin_prefetch(at + (kAhead * V + v) * N);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const auto word = P::spread(row[r][c]);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) P::add(acc[r][v], word, lanes[v]);
    }
  }
}

// Calls f(r, v) for R rows of V vectors.
template <int R, int V, class F>
inline __attribute__((always_inline)) void each(F f) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) f(r, v);
}

template <class P, class T, int N, int R, int V>
void gathered(i64 first, i64 last, i64 taps, const T* const* rows, const i64* offsets, const T* w, T* const* out, const T* bias, bool add) {
  using vec = Vec<T, N>;
  vec acc[R][V] = {};
  for (i64 t = 0; t < taps; ++t, rows += R) {
    const T* row[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) row[r] = rows[r];
    add_products<P, T, N, R, V>(acc, row, w + offsets[t] * (V * N), first, last);
  }
  if (add) each<R, V>([&](int r, int v) { acc[r][v] += load<vec>(out[r] + v * N); });
  if (!add && bias) each<R, V>([&](int r, int v) { acc[r][v] += load<vec>(bias + v * N); });
  each<R, V>([&](int r, int v) { store(out[r] + v * N, acc[r][v]); });
}

template <class P, class T, int N, int R, int V>
void stepped(i64 first, i64 last, i64 taps, const T* const* rows, i64 row_step, const i64* offsets, const T* w, const Sums<T>& sums,
             i64 tiles) {
  using vec = Vec<T, N>;
  const T* base = sums.base;
  T* out = sums.out;
  for (i64 tile = 0; tile < tiles; ++tile, out += R * sums.out_step) {
    vec acc[R][V] = {};
    for (i64 t = 0; t < taps; ++t) {
      const T* row[R];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) row[r] = rows[t] + (tile * R + r) * row_step;
      add_products<P, T, N, R, V>(acc, row, w + offsets[t] * (V * N), first, last);
    }
    if (base) {
      each<R, V>([&](int r, int v) { acc[r][v] += load<vec>(base + r * sums.base_step + v * N); });
      base += R * sums.base_step;
    }
    if (sums.stream)
      each<R, V>([&](int r, int v) { stream(out + r * sums.out_step + v * N, acc[r][v]); });
    else
      each<R, V>([&](int r, int v) { store(out + r * sums.out_step + v * N, acc[r][v]); });
  }
}

template <class T, int N, int R, int V>
void correlated(i64 runs, i64 first, i64 last, const i64* rows_at, const i64* lanes_at, const T* rows, i64 step, const T* lanes, T* out,
                const i64* at) {
  Vec<T, N> acc[R][V] = {};
  for (i64 t = 0; t < runs; ++t, rows_at += R) {
    const T* row[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) row[r] = rows + rows_at[r];
    add_products<MultiplyAdd, T, N, R, V>(acc, row, lanes + lanes_at[t], first, last, step);
  }
  visit<R, V>(out, at, N, [&](int r, int v, T* to) { store(to, load<Vec<T, N>>(to) + acc[r][v]); });
}

template <class T, int N, int R, int V>
void outer(i64 count, const T* rows, i64 rows_pitch, const T* lanes, i64 lanes_pitch, T* out, i64 out_pitch, bool add) {
  using vec = Vec<T, N>;
  vec acc[R][V] = {};
  for (; count > 0; --count, rows += rows_pitch, lanes += lanes_pitch) {
    vec lane[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) lane[v] = load<vec>(lanes + v * N);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) MultiplyAdd::add(acc[r][v], rows[r], lane[v]);
  }
  if (add) each<R, V>([&](int r, int v) { acc[r][v] += load<vec>(out + r * out_pitch + v * N); });
  each<R, V>([&](int r, int v) { store(out + r * out_pitch + v * N, acc[r][v]); });
}

// The sum of a vector's elements, halves added to halves.
template <class T, int N>
inline T total(Vec<T, N> v) {
  T elements[N];
  store(elements, v);
  for (int half = N / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) elements[i] += elements[i + half];
  return elements[0];
}

// One lane, vectors along the sum: every load of it serves R rows.
template <class T, int N, int R>
void correlated_along(i64 runs, i64 first, i64 last, const i64* rows_at, const i64* lanes_at, const T* rows, i64, const T* lanes, T* out,
                      const i64* at) {
  Vec<T, N> acc[R] = {};
  for (i64 t = 0; t < runs; ++t, rows_at += R) {
    const T* row[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) row[r] = rows + rows_at[r];
    const T* lane = lanes + lanes_at[t];
    for (i64 c = first; c < last; c += N) {
      const Vec<T, N> x = load<Vec<T, N>>(lane + c);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) acc[r] += load<Vec<T, N>>(row[r] + c) * x;
    }
  }
  for (int r = 0; r < R; ++r) out[at[r]] += total<T, N>(acc[r]);
}

// The microkernels with products of one kind: a tile takes R * V accumulators, V lanes and a broadcast.
template <class P, class T, int N, int Registers, int R = kMaxRows, int V = kMaxVecs>
constexpr void fill_products(Kernels<T>& k) {
  if constexpr (R * V + V + 1 <= Registers) {
    k.tile[R][V] = tile<P, T, N, R, V>;
    if constexpr (V <= kGatherVecs) k.gathered[V][R] = gathered<P, T, N, R, V>, k.stepped[V][R] = stepped<P, T, N, R, V>;
  }
  if constexpr (V > 1)
    fill_products<P, T, N, Registers, R, V - 1>(k);
  else if constexpr (R > 1)
    fill_products<P, T, N, Registers, R - 1>(k);
}

template <class T, int N, int Registers, int R = kMaxRows, int V = kGatherVecs>
constexpr void fill_correlated(Kernels<T>& k) {
  if constexpr (R * V + V + 1 <= Registers) k.correlated[V][R] = correlated<T, N, R, V>, k.outer[V][R] = outer<T, N, R, V>;
  if constexpr (V == 1 && R + 2 <= Registers) k.correlated[0][R] = correlated_along<T, N, R>;
  if constexpr (V > 1)
    fill_correlated<T, N, Registers, R, V - 1>(k);
  else if constexpr (R > 1)
    fill_correlated<T, N, Registers, R - 1>(k);
}

template <class T, int N, int Registers>
constexpr Kernels<T> make(const Halves* half) {
  Kernels<T> k{N,
               {},
               {},
               {},
               {},
               {},
               weave<T, N>,
               unweave<T, N>,
               transpose<T, N>,
               transpose<T, N, true>,
               copy<T, N>,
               copy_stretches<T, N>,
               depthwise<T, N>,
               depthwise_grad<T, N>,
               sum_rows<T, N>,
               activate<T, N>,
               {},
               join<T, N, InQuarters>,
               join<T, N, WeightQuarters>,
               part<T, N>,
               half,
               {}};
  fill_products<MultiplyAdd, T, N, Registers>(k);
  fill_correlated<T, N, Registers>(k);
  fill_transforms<T, N>(k);
  return k;
}

}  // namespace
}  // namespace tconv

// What an isa_<name>.cc holds: the tables that the registry's line declares. Constants, so that loading them runs no code.
#define TCONV_INSTANTIATE(name, lanes, registers)                                                                       \
  namespace tconv {                                                                                                     \
  extern const Kernels<float> name##_f32;                                                                               \
  extern const Kernels<double> name##_f64;                                                                              \
  extern const Halves name##_half;                                                                                      \
  constexpr Halves name##_half{widen, narrow<Rounded, lanes>, pair, narrow_rows<Rounded, lanes>, turn<Rounded, lanes>}; \
  constexpr Kernels<float> name##_f32 = make<float, lanes, registers>(&name##_half);                                    \
  constexpr Kernels<double> name##_f64 = make<double, (lanes > 1 ? lanes / 2 : 1), registers>(&name##_half);            \
  }
