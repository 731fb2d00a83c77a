// SPDX-License-Identifier: Apache-2.0
// Rows of an array taken apart into the stride phases that a kernel's taps read.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "spec.h"

namespace tconv {

// The columns [begin, end) of one phase's row that lie inside an axis of `size` elements; column z is the element first + z * stride.
struct Columns {
  i64 first, begin, end;

  Columns(i64 start, i64 stride, i64 size, i64 columns)
      : first(start),
        begin(std::clamp<i64>(ceil_div(-start, stride), 0, columns)),
        end(std::clamp<i64>(ceil_div(size - start, stride), begin, columns)) {}
};

// One row to planes of all its phases, zeros where it ends: phase i is at[i], and its column z goes to to[i * plane + z]. The columns of
// two phases differ by one at most at either end.
template <class T>
void split_row(const Kernels<T>& k, const std::vector<Columns>& at, i64 stride, i64 columns, const T* row, T* to, i64 plane) {
  i64 begin = 0, end = columns;
  for (const Columns& c : at) begin = std::max(begin, c.begin), end = std::min(end, c.end);
  end = std::max(begin, end);
  if (begin < end) k.unweave(row + at[0].first + begin * stride, stride, end - begin, to + begin, plane);
  for (const Columns& c : at) {
    for (i64 z = 0; z < begin; ++z) to[z] = z < c.begin || z >= c.end ? T(0) : row[c.first + z * stride];
    for (i64 z = end; z < columns; ++z) to[z] = z < c.begin || z >= c.end ? T(0) : row[c.first + z * stride];
    to += plane;
  }
}

}  // namespace tconv
