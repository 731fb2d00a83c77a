// SPDX-License-Identifier: Apache-2.0
// The transforms of Winograd's F(m, r), m outputs of a filter with r taps from m + r - 1 products, computed from their points
// (Toom and Cook; Winograd 1980; Lavin and Gray, arXiv:1509.09308):
//
//   y[j] = sum over k < r of g[k] d[j + k]  =  A^T ((G g) * (B^T d))
//
// Multiplying polynomials at points p[i] and putting the product together again is such an algorithm for the full product, and its
// transpose is one for the filter: A and G evaluate at the points, B^T holds the polynomials through all points but one. The
// denominators go to G, which is applied once a weight. The last point of every transform is infinity. See vec.h for what may be
// included here.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace tconv {
namespace {

template <int Rows, int Columns>
struct Matrix {
  static constexpr int rows = Rows, columns = Columns;
  double at[Rows][Columns];
};

// The finite points. 2 and 3 of them cost additions alone; more round least with these, of the fractions that are exact in binary:
// F(4, 2) and F(3, 3) half as much an axis as with 0, 1, -1 and 1/2.
template <int N>
constexpr double kPoints[N] = {};
template <>
constexpr double kPoints<2>[2] = {1, -1};
template <>
constexpr double kPoints<3>[3] = {0, 1, -1};
template <>
constexpr double kPoints<4>[4] = {0.375, -0.375, 1.25, -1.25};
template <>
constexpr double kPoints<5>[5] = {0, 0.6875, -0.6875, 1.5, -1.5};

// y[j] takes p^j of every finite point, and of infinity the leading coefficient.
template <int M, int R>
constexpr Matrix<M, M + R - 1> output_transform() {
  constexpr int n = M + R - 1;
  Matrix<M, n> a{};
  for (int i = 0; i + 1 < n; ++i) {
    double power = 1;
    for (int j = 0; j < M; ++j, power *= kPoints<n - 1>[i]) a.at[j][i] = power;
  }
  a.at[M - 1][n - 1] = 1;
  return a;
}

// Row i: the coefficients of the product of x - p[j] over all other finite points j.
template <int M, int R>
constexpr Matrix<M + R - 1, M + R - 1> input_transform() {
  constexpr int n = M + R - 1;
  Matrix<n, n> b{};
  for (int i = 0; i < n; ++i) {
    b.at[i][0] = 1;
    for (int j = 0, degree = 0; j + 1 < n; ++j) {
      if (j == i) continue;
      ++degree;
      for (int c = degree; c >= 0; --c) b.at[i][c] = (c > 0 ? b.at[i][c - 1] : 0) - kPoints<n - 1>[j] * b.at[i][c];
    }
  }
  return b;
}

template <int M, int R>
constexpr Matrix<M + R - 1, R> weight_transform() {
  constexpr int n = M + R - 1;
  Matrix<n, R> g{};
  for (int i = 0; i + 1 < n; ++i) {
    double power = 1;
    for (int j = 0; j + 1 < n; ++j) power /= j == i ? 1 : kPoints<n - 1>[i] - kPoints<n - 1>[j];
    for (int k = 0; k < R; ++k, power *= kPoints<n - 1>[i]) g.at[i][k] = power;
  }
  g.at[n - 1][R - 1] = 1;
  return g;
}

template <int Rows, int Columns>
constexpr Matrix<Columns, Rows> transposed(const Matrix<Rows, Columns>& m) {
  Matrix<Columns, Rows> t{};
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < Columns; ++j) t.at[j][i] = m.at[i][j];
  return t;
}

template <int N>
constexpr Matrix<N, N> identity() {
  Matrix<N, N> unit{};
  for (int i = 0; i < N; ++i) unit.at[i][i] = 1;
  return unit;
}

// What is known at compile time of a transform: everything.
template <int M, int R>
struct OutputForm {
  static constexpr Matrix<M, M + R - 1> matrix = output_transform<M, R>();
};
template <int M, int R>
struct InputForm {
  static constexpr Matrix<M + R - 1, M + R - 1> matrix = input_transform<M, R>();
};
template <int M, int R>
struct WeightForm {
  static constexpr Matrix<M + R - 1, R> matrix = weight_transform<M, R>();
};
template <class Form>
struct TransposedForm {
  static constexpr auto matrix = transposed(Form::matrix);
};
template <int N>
struct CopyForm {
  static constexpr Matrix<N, N> matrix = identity<N>();
};

// One row of a matrix times the lines of a vector of lanes: factors of zero cost nothing, 1 and -1 an addition.
template <class T, class Form, class V>
inline V row_of(const V* in, int i) {
  V sum{};
  bool begun = false;
#pragma GCC unroll 8
  for (int pass = 0; pass < 2; ++pass)  // a positive factor first, where there is one: no sign to change
#pragma GCC unroll 8
    for (int j = 0; j < Form::matrix.columns; ++j) {
      const double factor = Form::matrix.at[i][j];
      if (factor == 0 || (factor > 0) != (pass == 0)) continue;
      if (factor == 1)
        sum = begun ? sum + in[j] : in[j];
      else if (factor == -1)
        sum = begun ? sum - in[j] : -in[j];
      else
        sum = begun ? sum + T(factor) * in[j] : T(factor) * in[j];
      begun = true;
    }
  return sum;
}

template <class T, class Form, class V>
inline void lanes_of(const T* from, i64 from_line, T* to, i64 to_line, bool add) {
  V in[Form::matrix.columns];
#pragma GCC unroll 8
  for (int j = 0; j < Form::matrix.columns; ++j) in[j] = load<V>(from + j * from_line);
#pragma GCC unroll 8
  for (int i = 0; i < Form::matrix.rows; ++i) {
    const V sum = row_of<T, Form>(in, i);
    store(to + i * to_line, add ? load<V>(to + i * to_line) + sum : sum);
  }
}

// Which products are joined with which sums is the compiler's choice, and another one in every copy of the same expression. How many lanes
// there are may depend on the number of threads, so that a lane's bits must not depend on where in a run it lies: all go through one
// copy, the last of a run in a vector that overlaps the one before or, where that would add twice or there is none, by way of memory.
#if defined(__clang__)
#define TCONV_ONE_COPY __attribute__((noinline))
#else
#define TCONV_ONE_COPY __attribute__((noinline, noclone))
#endif

template <class T, int N, class Form>
TCONV_ONE_COPY void lines(const T* from, LinePitch from_pitch, T* to, LinePitch to_pitch, i64 outer, i64 run, bool add);

template <class T, int N, class Form>
void few_lanes(const T* from, i64 from_line, T* to, i64 to_line, i64 count, bool add) {
  T in[Form::matrix.columns * N] = {}, out[Form::matrix.rows * N] = {};
  for (int j = 0; j < Form::matrix.columns; ++j)
    for (i64 i = 0; i < count; ++i) in[j * N + i] = from[j * from_line + i];
  for (int j = 0; add && j < Form::matrix.rows; ++j)
    for (i64 i = 0; i < count; ++i) out[j * N + i] = to[j * to_line + i];
  lines<T, N, Form>(in, {N, 0}, out, {N, 0}, 1, N, add);
  for (int j = 0; j < Form::matrix.rows; ++j)
    for (i64 i = 0; i < count; ++i) to[j * to_line + i] = out[j * N + i];
}

template <class T, int N, class Form>
void lines(const T* from, LinePitch from_pitch, T* to, LinePitch to_pitch, i64 outer, i64 run, bool add) {
  const i64 vectors = run < N ? 0 : add ? run - run % N : run, last = vectors - N;
  for (; outer > 0; --outer, from += from_pitch.outer, to += to_pitch.outer) {
    for (i64 done = 0; done < vectors; done += N) {
      const i64 i = done < last ? done : last;
      lanes_of<T, Form, Vec<T, N>>(from + i, from_pitch.line, to + i, to_pitch.line, add);
    }
    if (vectors < run) few_lanes<T, N, Form>(from + vectors, from_pitch.line, to + vectors, to_pitch.line, run - vectors, add);
  }
}

// The products that make every output 1 are the values at 1 of the polynomials that are 1 at one point and 0 at the others.
template <class T, int N, int M, int R>
constexpr void fill_transform(Kernels<T>& k) {
  constexpr int n = M + R - 1;
  k.transform[M][R] = {lines<T, N, InputForm<M, R>>,
                       lines<T, N, WeightForm<M, R>>,
                       lines<T, N, OutputForm<M, R>>,
                       lines<T, N, TransposedForm<OutputForm<M, R>>>,
                       lines<T, N, TransposedForm<WeightForm<M, R>>>,
                       {}};
  for (int i = 0; i + 1 < n; ++i) {
    double one = 1;
    for (int j = 0; j + 1 < n; ++j) one *= j == i ? 1 : (1 - kPoints<n - 1>[j]) / (kPoints<n - 1>[i] - kPoints<n - 1>[j]);
    k.transform[M][R].ones[i] = T(one);
  }
}

template <class T, int N, int M>
constexpr void fill_copies(Kernels<T>& k) {
  k.transform[M][1] = {lines<T, N, CopyForm<M>>, lines<T, N, CopyForm<1>>, lines<T, N, CopyForm<M>>,
                       lines<T, N, CopyForm<M>>, lines<T, N, CopyForm<1>>, {}};
  for (int i = 0; i < M; ++i) k.transform[M][1].ones[i] = 1;
  if constexpr (M > 1) fill_copies<T, N, M - 1>(k);
}

template <class T, int N>
constexpr void fill_transforms(Kernels<T>& k) {
  fill_copies<T, N, kMaxTile>(k);
  fill_transform<T, N, 2, 2>(k);
  fill_transform<T, N, 3, 2>(k);
  fill_transform<T, N, 4, 2>(k);
  fill_transform<T, N, 2, 3>(k);
  fill_transform<T, N, 3, 3>(k);
  fill_transform<T, N, 4, 3>(k);
  fill_transform<T, N, 2, 4>(k);
}

}  // namespace
}  // namespace tconv
