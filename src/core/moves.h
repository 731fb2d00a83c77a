// SPDX-License-Identifier: Apache-2.0
// Elements moved by vectors: stride phases put together and taken apart, transposes and copies. See vec.h for what may be included.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace tconv {
namespace {

// N elements of each of P vectors, put together in turn, or taken apart again.
template <int N, int P, class V, int... I>
inline __attribute__((always_inline)) void zip(V (&v)[P], Indices<I...>) {
  const V zipped[P] = {in_turn<I>(v, v[0], typename CountTo<N>::type{})...};
  for (int p = 0; p < P; ++p) v[p] = zipped[p];
}
template <int N, int P, class V, int... I>
inline __attribute__((always_inline)) void unzip(V (&v)[P], Indices<I...>) {
  const V apart[P] = {every<I>(v, v[0], typename CountTo<N>::type{})...};
  for (int p = 0; p < P; ++p) v[p] = apart[p];
}

// N positions of P phases, put together in as many vectors: of an even number, phases 0, 2 .. and 1, 3 .. first, and then these in turn.
template <int N, int P, class V>
inline __attribute__((always_inline)) void put_together(V (&v)[P]) {
  if constexpr (N == 1 || P == 1) {
    return;
  } else if constexpr (P % 2 || P == 2) {
    zip<N>(v, typename CountTo<P>::type{});
  } else {
    V even[P / 2], odd[P / 2];
    for (int p = 0; p < P / 2; ++p) even[p] = v[2 * p], odd[p] = v[2 * p + 1];
    put_together<N>(even), put_together<N>(odd);
    for (int p = 0; p < P / 2; ++p) {
      V pair[2] = {even[p], odd[p]};
      zip<N>(pair, Indices<0, 1>{});
      v[2 * p] = pair[0], v[2 * p + 1] = pair[1];
    }
  }
}

// The reverse.
template <int N, int P, class V>
inline __attribute__((always_inline)) void take_apart(V (&v)[P]) {
  if constexpr (N == 1 || P == 1) {
    return;
  } else if constexpr (P % 2 || P == 2) {
    unzip<N>(v, typename CountTo<P>::type{});
  } else {
    V even[P / 2], odd[P / 2];
    for (int p = 0; p < P / 2; ++p) {
      V pair[2] = {v[2 * p], v[2 * p + 1]};
      unzip<N>(pair, Indices<0, 1>{});
      even[p] = pair[0], odd[p] = pair[1];
    }
    take_apart<N>(even), take_apart<N>(odd);
    for (int p = 0; p < P / 2; ++p) v[2 * p] = even[p], v[2 * p + 1] = odd[p];
  }
}

// The numbers of phases that are put together in registers: those that a plan asks for.
using InRegisters = Indices<1, 2, 3, 4, 6, 8>;
template <int... P>
constexpr bool are_woven(Indices<P...>) {
  for (i64 phases = 0; phases <= kMaxRows; ++phases)
    if (weaves(phases) != ((phases == P) || ...)) return false;
  return true;
}
static_assert(are_woven(InRegisters{}));

// Calls f(Flag<P>) where so many phases are put together in registers; whether they are.
template <class F, int... P>
inline bool in_registers(i64 phases, F f, Indices<P...>) {
  return ((phases == P && (f(Flag<P>{}), true)) || ...);
}
template <class F>
inline bool in_registers(i64 phases, F f) {
  return in_registers(phases, f, InRegisters{});
}

// N positions of P phases, in P vectors of y.
template <int P, bool Stream, class T, class V>
inline __attribute__((always_inline)) void weave_block(T* y, const T* const* rows, V bias) {
  constexpr int N = sizeof(V) / sizeof(T);
  V v[P];
  for (int p = 0; p < P; ++p) v[p] = load<V>(rows[p]) + bias;
  put_together<N>(v);
  for (int p = 0; p < P; ++p) Stream ? stream(y + p * N, v[p]) : store(y + p * N, v[p]);
}

// Positions begin .. count - 1 of P phases. The last vector overlaps the one before it, and fewer positions than a vector holds
// are left to narrower vectors; a stream begins at a whole vector of y and ends with one.
template <class T, int N, int P, bool Stream>
void weave_vectors(T* y, const T* const* rows, i64 begin, i64 count, T bias) {
  const auto scalar = [&](i64 q) {
    for (int p = 0; p < P; ++p) y[q * P + p] = rows[p][q] + bias;
  };
  i64 q = begin;
  if constexpr (N > 1) {
    const auto block = [&](auto streamed) {
      const T* at[P];
      for (int p = 0; p < P; ++p) at[p] = rows[p] + q;
      weave_block<P, decltype(streamed)::value>(y + q * P, at, Vec<T, N>{} + bias);
    };
    if constexpr (Stream)
      for (; q < count && reinterpret_cast<std::uintptr_t>(y + q * P) % sizeof(Vec<T, N>); ++q) scalar(q);
    for (; q + N <= count; q += N) block(Flag<Stream>{});
    if (q == count) return;
    if constexpr (!Stream) {
      if (count - begin < N) return weave_vectors<T, N / 2, P, false>(y, rows, q, count, bias);
      q = count - N;
      return block(Flag<false>{});
    }
  }
  for (; q < count; ++q) scalar(q);
}

// Positions begin .. count - 1 of any number of phases, M x M elements transposed in registers at a time: the last positions and phases
// overlap those before them. Of fewer than M phases the first is repeated; what that writes past a position, the next one overwrites.
template <class T, int M>
void weave_squares(T* y, const T* const* rows, i64 phases, i64 begin, i64 count, T bias) {
  const i64 past = phases < M ? ceil_div(M - phases, phases) : 0, last = count - past;  // positions that nothing would overwrite
  i64 q = begin;
  if constexpr (M > 1) {
    using vec = Vec<T, M>;
    if (last - begin >= M)
      for (i64 p = 0; p < phases; p += M) {
        p = p + M <= phases || phases < M ? p : phases - M;
        const T* at[M];
        for (int i = 0; i < M; ++i) at[i] = rows[p + i < phases ? p + i : 0];
        for (q = begin; q < last; q += M) {
          q = q + M <= last ? q : last - M;
          vec v[M];
#pragma GCC unroll 16
          for (int i = 0; i < M; ++i) v[i] = load<vec>(at[i] + q) + bias;
          transpose_square(v);
#pragma GCC unroll 16
          for (int i = 0; i < M; ++i) store(y + (q + i) * phases + p, v[i]);
        }
      }
    else if (M > 2 && phases >= M)
      return weave_squares<T, M / 2>(y, rows, phases, begin, count, bias);
  }
  for (; q < count; ++q)
    for (i64 p = 0; p < phases; ++p) y[q * phases + p] = rows[p][q] + bias;
}

template <class T, int N>
void weave(T* y, const T* const* rows, i64 phases, i64 count, T bias, bool stream) {
  // Streaming needs a whole vector of y to begin between two positions, and lines enough for the two partial ones not to matter.
  const bool streamed = N > 1 && stream && count * phases * i64(sizeof(T)) >= 1024 &&
                        reinterpret_cast<std::uintptr_t>(y) / sizeof(T) % std::uintptr_t(phases & -phases) == 0;
  const auto vectors = [&](auto p) {
    constexpr int P = decltype(p)::value;
    streamed ? weave_vectors<T, N, P, N != 1>(y, rows, 0, count, bias) : weave_vectors<T, N, P, false>(y, rows, 0, count, bias);
  };
  if (in_registers(phases, vectors)) return;
  constexpr int most = N < 4 ? 1 : N, few = most < 8 ? most : 8;
  phases < 16 ? weave_squares<T, few>(y, rows, phases, 0, count, bias) : weave_squares<T, most>(y, rows, phases, 0, count, bias);
}

// N positions of P phases, out of P vectors.
template <int P, class T, class V>
inline __attribute__((always_inline)) void unweave_block(const T* from, T* to, i64 to_pitch, V) {
  constexpr int N = sizeof(V) / sizeof(T);
  V v[P];
  for (int p = 0; p < P; ++p) v[p] = load<V>(from + p * N);
  take_apart<N>(v);
  for (int p = 0; p < P; ++p) store(to + p * to_pitch, v[p]);
}

// The last vector overlaps the one before it; fewer positions than a vector holds are left to narrower vectors.
template <class T, int N, int P>
void unweave_vectors(const T* from, i64 count, T* to, i64 to_pitch) {
  if constexpr (N == 1) {
    for (i64 q = 0; q < count; ++q)
      for (int p = 0; p < P; ++p) to[p * to_pitch + q] = from[q * P + p];
  } else {
    if (count < N) return unweave_vectors<T, N / 2, P>(from, count, to, to_pitch);
    for (i64 q = 0; q < count; q += N) {
      q = q + N <= count ? q : count - N;
      unweave_block<P>(from + q * P, to + q, to_pitch, Vec<T, N>{});
    }
  }
}

// Any number of phases, M x M elements transposed in registers at a time. Nothing is read past the last position, and of fewer phases
// than M only those are stored.
template <class T, int M>
void unweave_squares(const T* from, i64 phases, i64 count, T* to, i64 to_pitch) {
  const i64 last = count - (phases < M ? ceil_div(M - phases, phases) : 0);  // positions whose M elements all exist
  i64 q = 0;
  if constexpr (M > 1) {
    using vec = Vec<T, M>;
    if (last >= M)
      for (i64 p = 0; p < phases; p += M) {
        p = p + M <= phases || phases < M ? p : phases - M;
        for (q = 0; q < last; q += M) {
          q = q + M <= last ? q : last - M;
          vec v[M];
#pragma GCC unroll 16
          for (int i = 0; i < M; ++i) v[i] = load<vec>(from + (q + i) * phases + p);
          transpose_square(v);
#pragma GCC unroll 16
          for (int i = 0; i < M; ++i)
            if (p + i < phases) store(to + (p + i) * to_pitch + q, v[i]);
        }
      }
    else if (M > 2)
      return unweave_squares<T, M / 2>(from, phases, count, to, to_pitch);
  }
  for (; q < count; ++q)
    for (i64 p = 0; p < phases; ++p) to[p * to_pitch + q] = from[q * phases + p];
}

template <class T, int N>
void unweave(const T* from, i64 phases, i64 count, T* to, i64 to_pitch) {
  if (count <= 0) return;
  const auto vectors = [&](auto p) { unweave_vectors<T, N, decltype(p)::value>(from, count, to, to_pitch); };
  if (in_registers(phases, vectors)) return;
  constexpr int most = N < 4 ? 1 : N, few = most < 8 ? most : 8;
  phases < 16 ? unweave_squares<T, few>(from, phases, count, to, to_pitch) : unweave_squares<T, most>(from, phases, count, to, to_pitch);
}

// Squares in registers, so that every line is read and written once however far apart lines are; what is left over in smaller ones.
template <class T, int N, bool Stream = false>
void transpose(const T* __restrict from, i64 from_pitch, T* __restrict to, i64 to_pitch, i64 as, i64 bs, const T* bias) {
  if constexpr (N > 1) {
    using vec = Vec<T, N>;
    const i64 a_end = as / N * N, b_end = bs / N * N;
    const auto square = [&](i64 a, i64 b, i64 most) __attribute__((always_inline)) {
      vec v[N];
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) v[i] = load<vec>(from + (a + i) * from_pitch + b);
      if (bias)
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) v[i] += bias[a + i];
      transpose_square(v);
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i)
        if (i >= most)
          break;
        else if constexpr (Stream && sizeof(vec) == kLine)
          stream(to + a + (b + i) * to_pitch, v[i]);
        else
          store(to + a + (b + i) * to_pitch, v[i]);
    };
    // Along the lines that lie farther apart, N at a time: few pages at once, and the hardware looks ahead.
    if (from_pitch > to_pitch)
      for (i64 a = 0; a < a_end; a += N)
        for (i64 b = 0; b < b_end; b += N) square(a, b, N);
    else
      for (i64 b = 0; b < b_end; b += N)
        for (i64 a = 0; a < a_end; a += N) square(a, b, N);
    if (a_end < as)
      transpose<T, N / 2>(from + a_end * from_pitch, from_pitch, to + a_end, to_pitch, as - a_end, b_end, bias ? bias + a_end : nullptr);
    // Of what is left over, more than half a square is a whole one, as long as its rows do not end before it does.
    i64 a = 0;
    if (const i64 rest = bs - b_end; rest > N / 2 && from_pitch > 0)
      for (const i64 inside = as - ceil_div(N - rest, from_pitch); a + N <= inside; a += N) square(a, b_end, rest);
    if (b_end < bs)
      transpose<T, N / 2>(from + a * from_pitch + b_end, from_pitch, to + a + b_end * to_pitch, to_pitch, as - a, bs - b_end,
                          bias ? bias + a : nullptr);
  } else {
    for (i64 b = 0; b < bs; ++b)
      for (i64 a = 0; a < as; ++a) to[a + b * to_pitch] = bias ? from[a * from_pitch + b] + bias[a] : from[a * from_pitch + b];
  }
}

// Short runs, where calling memset and memcpy would cost more than the work. The last vector overlaps the one before it.
template <class T, int N>
inline void copy_run(const T* from, T* to, i64 count) {
  using vec = Vec<T, N>;
  i64 i = 0;
  for (; i + N <= count; i += N) store(to + i, load<vec>(from + i));
  if (i == count) return;
  if (count >= N) return store(to + count - N, load<vec>(from + count - N));
  if constexpr (N > 1) copy_run<T, N / 2>(from, to, count);
}

template <class T, int N>
inline void zero_run(T* to, i64 count) {
  i64 i = 0;
  for (; i + N <= count; i += N) store(to + i, Vec<T, N>{});
  if (i == count) return;
  if (count >= N) return store(to + count - N, Vec<T, N>{});
  if constexpr (N > 1) zero_run<T, N / 2>(to, count);
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

// What a vector writes past a stretch, the next one overwrites.
template <class T, int N>
void copy_stretches(const T* from, i64 elements, i64 ahead, T* to, const Stretch* stretches, i64 count) {
  for (const Stretch* s = stretches; s < stretches + count; ++s) {
    const T* at = from + s->from;
    for (i64 i = 0; i < s->count; i += 64 / i64(sizeof(T))) __builtin_prefetch(at + ahead + i);
    for (i64 i = 0; i < s->zeros; i += N) store(to + s->to + i, Vec<T, N>{});
    T* copied = to + s->to + s->zeros;
    if (s->from + s->count + N > elements)
      copy_run<T, N>(at, copied, s->count);
    else
      for (i64 i = 0; i < s->count; i += N) store(copied + i, load<Vec<T, N>>(at + i));
  }
}

}  // namespace
}  // namespace tconv
