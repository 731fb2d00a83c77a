// SPDX-License-Identifier: Apache-2.0
// The kernel bodies, written once; every isa_<name>.cc instantiates them for its vector width. See vec.h for what may be included.
#pragma once

#include "kernels.h"
#include "transforms.h"
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

// Channels that weights are fetched ahead: they are read once a box, and the hardware stops looking ahead where a page ends.
constexpr i64 kAhead = 48;

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
      for (int v = 0; v < V; ++v) {
        lanes[v] = load<vec>(at + v * N);
        __builtin_prefetch(at + (kAhead * V + v) * N);
      }
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

// Phases of a row, P = 1, 2 or 4 of them, from vectors; scalars before the first whole vector of y and after the last.
template <class T, int N, int P, bool Stream>
void weave_vectors(T* y, const T* const* rows, i64 count, T bias) {
  using vec = Vec<T, N>;
  using all = typename CountTo<N>::type;
  const auto scalar = [&](i64 q) {
    for (int p = 0; p < P; ++p) y[q * P + p] = rows[p][q] + bias;
  };
  i64 q = 0;
  if constexpr (Stream)
    for (; q < count && reinterpret_cast<std::uintptr_t>(y + q * P) % sizeof(vec); ++q) scalar(q);
  for (; q + N <= count; q += N) {
    vec v[P];
    for (int p = 0; p < P; ++p) v[p] = load<vec>(rows[p] + q) + bias;
    if constexpr (P == 4) {  // 0 2 | 1 3, then the pairs: four zips of zips
      const vec a = zip<0>(v[0], v[2], all{}), b = zip<1>(v[0], v[2], all{}), c = zip<0>(v[1], v[3], all{}), d = zip<1>(v[1], v[3], all{});
      v[0] = zip<0>(a, c, all{}), v[1] = zip<1>(a, c, all{}), v[2] = zip<0>(b, d, all{}), v[3] = zip<1>(b, d, all{});
    } else if constexpr (P == 2) {
      const vec a = v[0], b = v[1];
      v[0] = zip<0>(a, b, all{}), v[1] = zip<1>(a, b, all{});
    }
    for (int p = 0; p < P; ++p) Stream ? stream(y + q * P + p * N, v[p]) : store(y + q * P + p * N, v[p]);
  }
  for (; q < count; ++q) scalar(q);
}

// M phases at a time, M x M elements transposed in registers.
template <class T, int M>
void weave_squares(T* y, const T* const* rows, i64 phases, i64 count, T bias) {
  using vec = Vec<T, M>;
  i64 p = 0;
  for (; p + M <= phases; p += M) {
    i64 q = 0;
    for (; q + M <= count; q += M) {
      vec v[M];
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) v[i] = load<vec>(rows[p + i] + q) + bias;
      transpose_square(v);
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) store(y + (q + i) * phases + p, v[i]);
    }
    for (; q < count; ++q)
      for (int i = 0; i < M; ++i) y[q * phases + p + i] = rows[p + i][q] + bias;
  }
  for (; p < phases; ++p)
    for (i64 q = 0; q < count; ++q) y[q * phases + p] = rows[p][q] + bias;
}

template <class T, int N>
void weave(T* y, const T* const* rows, i64 phases, i64 count, T bias, bool stream) {
  // Streaming needs a whole vector of y to begin between two positions, and lines enough for the two partial ones not to matter.
  stream = stream && N > 1 && count * phases * i64(sizeof(T)) >= 1024 &&
           reinterpret_cast<std::uintptr_t>(y) / sizeof(T) % (phases <= 4 ? phases : 1) == 0;
  if constexpr (N > 1) {
    if (phases == 1)
      return stream ? weave_vectors<T, N, 1, true>(y, rows, count, bias) : weave_vectors<T, N, 1, false>(y, rows, count, bias);
    if (phases == 2)
      return stream ? weave_vectors<T, N, 2, true>(y, rows, count, bias) : weave_vectors<T, N, 2, false>(y, rows, count, bias);
    if constexpr (N >= 4)
      if (phases == 4)
        return stream ? weave_vectors<T, N, 4, true>(y, rows, count, bias) : weave_vectors<T, N, 4, false>(y, rows, count, bias);
    if constexpr (N >= 16)
      if (phases >= 16) return weave_squares<T, 16>(y, rows, phases, count, bias);
    if constexpr (N >= 8)
      if (phases >= 8) return weave_squares<T, 8>(y, rows, phases, count, bias);
    if constexpr (N >= 4)
      if (phases >= 4) return weave_squares<T, 4>(y, rows, phases, count, bias);
  }
  for (i64 p = 0; p < phases; ++p)
    for (i64 q = 0; q < count; ++q) y[q * phases + p] = rows[p][q] + bias;
}

// Squares in registers, so that every line is read and written once however far apart lines are; the rest one by one.
template <class T, int N>
void transpose(const T* __restrict from, i64 from_pitch, T* __restrict to, i64 to_pitch, i64 as, i64 bs, const T* bias) {
  const auto scalar = [&](i64 a0, i64 a1, i64 b0, i64 b1) {
    for (i64 b = b0; b < b1; ++b)
      for (i64 a = a0; a < a1; ++a) to[a + b * to_pitch] = bias ? from[a * from_pitch + b] + bias[a] : from[a * from_pitch + b];
  };
  if constexpr (N > 1) {
    using vec = Vec<T, N>;
    const i64 a_end = as / N * N, b_end = bs / N * N;
    const auto square = [&](i64 a, i64 b) __attribute__((always_inline)) {
      vec v[N];
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) v[i] = load<vec>(from + (a + i) * from_pitch + b);
      if (bias)
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) v[i] += bias[a + i];
      transpose_square(v);
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) store(to + a + (b + i) * to_pitch, v[i]);
    };
    // Along the lines that lie farther apart, N at a time: few pages at once, and the hardware looks ahead.
    if (from_pitch > to_pitch)
      for (i64 a = 0; a < a_end; a += N)
        for (i64 b = 0; b < b_end; b += N) square(a, b);
    else
      for (i64 b = 0; b < b_end; b += N)
        for (i64 a = 0; a < a_end; a += N) square(a, b);
    scalar(a_end, as, 0, b_end);
    scalar(0, as, b_end, bs);
  } else {
    scalar(0, as, 0, bs);
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
  Kernels<T> k{N, {}, {}, weave<T, N>, transpose<T, N>, copy<T, N>, {}};
  fill<T, N, Registers, kMaxRows>(k);
  fill_transforms<T, N>(k);
  return k;
}

}  // namespace
}  // namespace tconv

// What an isa_<name>.cc holds: the two tables that the registry's line declares. Constants, so that loading them runs no code.
#define TCONV_INSTANTIATE(name, lanes, registers)                                                \
  namespace tconv {                                                                              \
  extern const Kernels<float> name##_f32;                                                        \
  extern const Kernels<double> name##_f64;                                                       \
  constexpr Kernels<float> name##_f32 = make<float, lanes, registers>();                         \
  constexpr Kernels<double> name##_f64 = make<double, (lanes > 1 ? lanes / 2 : 1), registers>(); \
  }
