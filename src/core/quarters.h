// SPDX-License-Identifier: Apache-2.0
// Strassen's product of arrays cut into two by two quarters, 7 products for 8 (Numerische Mathematik 13, 354-356, 1969):
//
//   y[a][m] = sum over h of x[a][h] w[h][m]  =  sum over i < 7 of Out[a, m][i] (sum of In[i] x) (sum of Weight[i] w)
//
// Winograd's variant saves three additions and rounds a third more. See vec.h for what
// may be included here.
#pragma once

#include "kernels.h"
#include "transforms.h"

namespace tconv {
namespace {

// Rows: products; columns: x11, x12, x21, x22.
struct InQuarters {
  static constexpr Matrix<kStrassen, 4> matrix{
      {{1, 0, 0, 1}, {0, 0, 1, 1}, {1, 0, 0, 0}, {0, 0, 0, 1}, {1, 1, 0, 0}, {-1, 0, 1, 0}, {0, 1, 0, -1}}};
};
struct WeightQuarters {
  static constexpr Matrix<kStrassen, 4> matrix{
      {{1, 0, 0, 1}, {1, 0, 0, 0}, {0, 1, 0, -1}, {-1, 0, 1, 0}, {0, 0, 0, 1}, {1, 1, 0, 0}, {0, 0, 1, 1}}};
};
// Rows: y11, y12, y21, y22; columns: products.
struct OutQuarters {
  static constexpr Matrix<4, kStrassen> matrix{
      {{1, 0, 0, 1, -1, 0, 1}, {0, 0, 1, 0, 1, 0, 0}, {0, 1, 0, 1, 0, 0, 0}, {1, -1, 1, 0, 0, 1, 0}}};
};

template <class T, class Form, class V>
inline void join_lanes(const T* const* from, i64 half, const T* scale, i64 lane, T* to, i64 plane) {
  V in[4] = {load<V>(from[0] + lane), load<V>(from[0] + half + lane), load<V>(from[1] + lane), load<V>(from[1] + half + lane)};
  if (scale)
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) in[q] = in[q] * load<V>(scale + q % 2 * half + lane);
#pragma GCC unroll 8
  for (int i = 0; i < kStrassen; ++i) store(to + i * plane + lane, row_of<T, Form>(in, i));
}

template <class T, int N, class Form>
void join(const T* const* from, i64 half, const T* scale, i64 count, i64 run, T* to, i64 pitch, i64 plane) {
  for (; count > 0; --count, from += 2, to += pitch) {
    i64 lane = 0;
    for (; lane + N <= run; lane += N) join_lanes<T, Form, Vec<T, N>>(from, half, scale, lane, to, plane);
    for (; lane < run; ++lane) join_lanes<T, Form, T>(from, half, scale, lane, to, plane);
  }
}

template <class T, int N>
void part(const T* from, i64 plane, i64 pitch, i64 count, i64 run, const QuarterSums<T>& sums) {
  using vec = Vec<T, N>;
  T* const* to = sums.to;
  for (; count > 0; --count, from += pitch, to += 2)
    for (i64 lane = 0; lane < run; lane += N) {
      vec in[kStrassen];
#pragma GCC unroll 8
      for (int i = 0; i < kStrassen; ++i) in[i] = load<vec>(from + i * plane + lane);
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        if (!to[q / 2]) continue;
        T* at = to[q / 2] + sums.at + q % 2 * sums.half + lane;
        vec sum = row_of<T, OutQuarters>(in, q) * load<vec>(sums.scale + q % 2 * sums.whole_half + lane);
        if (sums.add) sum += load<vec>(at);
        if (sums.bias) sum += load<vec>(sums.bias + q % 2 * sums.whole_half + lane);
        if (sums.stream)
          stream(at, sum);
        else
          store(at, sum);
      }
    }
}

}  // namespace
}  // namespace tconv
