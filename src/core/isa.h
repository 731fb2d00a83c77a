// SPDX-License-Identifier: Apache-2.0
// The kernel bodies, written once; every isa_<name>.cc instantiates them for its vector width. See vec.h for what may be included.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace tconv {
namespace {

// Walks the R x V vectors of a tile in memory, row by row.
template <int R, int V, class T, class F>
inline void visit(T* row, i64 pitch, i64 lanes, F f) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r, row += pitch)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) f(r, v, row + v * lanes);
}

// R rows broadcast, V vectors of lanes: R * V accumulators stay in registers; V loads and R broadcasts feed R * V multiply-adds.
template <class T, int N, int R, int V>
void tile(i64 channels, i64 pitch, i64 taps, const i64* offsets, const T* w, const T* x, T* out, i64 ldo, bool add) {
  using vec = Vec<T, N>;
  vec acc[R][V] = {};
  for (; channels > 0; --channels, x += pitch)
    for (i64 t = 0; t < taps; ++t, w += R) {
      const T* at = x + offsets[t];
      vec lanes[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) lanes[v] = load<vec>(at + v * N);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) acc[r][v] += w[r] * lanes[v];
    }
  if (add)
    visit<R, V>(out, ldo, N, [&](int r, int v, T* at) { store(at, load<vec>(at) + acc[r][v]); });
  else
    visit<R, V>(out, ldo, N, [&](int r, int v, T* at) { store(at, acc[r][v]); });
}

template <class T, int N, int R>
void gathered(i64 first, i64 last, i64 taps, const T* const* rows, const i64* offsets, const T* w, T* const* out, const T* bias, bool add) {
  constexpr int V = kGatherVecs;
  using vec = Vec<T, N>;
  vec acc[R][V] = {};
  for (i64 t = 0; t < taps; ++t, rows += R) {
    const T* row[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) row[r] = rows[r];
    const T* at = w + offsets[t] + first * V * N;
    for (i64 c = first; c < last; ++c, at += V * N) {
      vec lanes[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) lanes[v] = load<vec>(at + v * N);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) acc[r][v] += row[r][c] * lanes[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      if (add) acc[r][v] += load<vec>(out[r] + v * N);
      if (!add && bias) acc[r][v] += load<vec>(bias + v * N);
      store(out[r] + v * N, acc[r][v]);
    }
}

// P phases known at compile time: the compiler turns the interleaved stores into shuffles. P = 0: any number.
template <class T, int P>
void weave_loop(T* __restrict y, const T* const* rows, i64 phases, i64 count, T bias) {
  const T* row[P ? P : 1];
  for (int p = 0; p < P; ++p) row[p] = rows[p];
  if (P)
    for (i64 q = 0; q < count; ++q)
      for (int p = 0; p < P; ++p) y[q * P + p] = row[p][q] + bias;
  else
    for (i64 p = 0; p < phases; ++p)
      for (i64 q = 0; q < count; ++q) y[q * phases + p] = rows[p][q] + bias;
}

template <class T>
void weave(T* y, const T* const* rows, i64 phases, i64 count, T bias) {
  switch (phases) {
    case 1: return weave_loop<T, 1>(y, rows, phases, count, bias);
    case 2: return weave_loop<T, 2>(y, rows, phases, count, bias);
    case 3: return weave_loop<T, 3>(y, rows, phases, count, bias);
    case 4: return weave_loop<T, 4>(y, rows, phases, count, bias);
    default: return weave_loop<T, 0>(y, rows, phases, count, bias);
  }
}

// In blocks of 16 columns, so that the lines written stay in the first-level cache until they are full.
template <class T>
void transpose(const T* __restrict from, i64 from_pitch, T* __restrict to, i64 to_pitch, i64 as, i64 bs, const T* bias) {
  for (i64 b0 = 0; b0 < bs; b0 += 16) {
    const i64 b1 = b0 + 16 < bs ? b0 + 16 : bs;
    for (i64 a = 0; a < as; ++a) {
      const T more = bias ? bias[a] : T(0);
      for (i64 b = b0; b < b1; ++b) to[a + b * to_pitch] = from[a * from_pitch + b] + more;
    }
  }
}

// Short runs, where calling memset and memcpy would cost more than the work.
template <class T, int N>
inline void copy_run(const T* from, T* to, i64 count) {
  using vec = Vec<T, N>;
  i64 i = 0;
  for (; i + N <= count; i += N) store(to + i, load<vec>(from + i));
  if (i == count) return;
  if (count >= N)
    store(to + count - N, load<vec>(from + count - N));  // once more, up to the end
  else
    for (; i < count; ++i) to[i] = from[i];
}

template <class T, int N>
inline void zero_run(T* to, i64 count) {
  i64 i = 0;
  for (; i + N <= count; i += N) store(to + i, Vec<T, N>{});
  for (; i < count; ++i) to[i] = T(0);
}

template <class T, int N>
void copy(const T* from, i64 from_pitch, T* to, i64 to_pitch, i64 rows, i64 begin, i64 end, i64 columns) {
  for (; rows > 0; --rows, from += from_pitch, to += to_pitch) {
    // The next row usually lies on another page, where the hardware does not look ahead.
    if (rows > 1)
      for (i64 i = 0; i < end - begin; i += 64 / i64(sizeof(T))) __builtin_prefetch(from + from_pitch + i);
    zero_run<T, N>(to, begin);
    copy_run<T, N>(from, to + begin, end - begin);
    zero_run<T, N>(to + end, columns - end);
  }
}

// A tile takes R * V accumulators, V lanes and a broadcast.
template <class T, int N, int Registers, int R, int V>
constexpr Tile<T> pick() {
  if constexpr (R * V + V + 1 <= Registers) return tile<T, N, R, V>;
  return nullptr;
}

template <class T, int N, int Registers, int R, int V = kMaxVecs>
constexpr void fill(Kernels<T>& k) {
  if constexpr (V == kGatherVecs && R * V + V + 1 <= Registers) k.gathered[R] = gathered<T, N, R>;
  k.tile[R][V] = pick<T, N, Registers, R, V>();
  if constexpr (V > 1)
    fill<T, N, Registers, R, V - 1>(k);
  else if constexpr (R > 1)
    fill<T, N, Registers, R - 1>(k);
}

template <class T, int N, int Registers>
constexpr Kernels<T> make() {
  Kernels<T> k{N, {}, {}, weave<T>, transpose<T>, copy<T, N>};
  fill<T, N, Registers, kMaxRows>(k);
  return k;
}

}  // namespace
}  // namespace tconv

// What an isa_<name>.cc holds: the two tables that the registry's line declares.
#define TCONV_INSTANTIATE(name, lanes, registers)                                          \
  namespace tconv {                                                                        \
  extern const Kernels<float> name##_f32;                                                  \
  extern const Kernels<double> name##_f64;                                                 \
  const Kernels<float> name##_f32 = make<float, lanes, registers>();                       \
  const Kernels<double> name##_f64 = make<double, (lanes > 1 ? lanes / 2 : 1), registers>(); \
  }
