// SPDX-License-Identifier: Apache-2.0
// Rows of an array taken apart into the stride phases that a kernel's taps read.
#pragma once

#include <algorithm>
#include <utility>
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

// Takes rows apart into planes of all their phases, zeros where a row ends: phase i is at[i], and its column z goes to to[i * plane + z].
class RowSplit {
 public:
  RowSplit(std::vector<Columns> at, i64 stride, i64 columns)
      : at_(std::move(at)), stride_(stride), columns_(columns), begin_(0), end_(columns) {
    for (const Columns& c : at_) begin_ = std::max(begin_, c.begin), end_ = std::min(end_, c.end);
    end_ = std::max(begin_, end_);
  }

  template <class T>
  void operator()(const Kernels<T>& k, const T* row, T* to, i64 plane) const {
    if (begin_ < end_) k.unweave(row + at_[0].first + begin_ * stride_, stride_, end_ - begin_, to + begin_, plane);
    if (begin_ == 0 && end_ == columns_) return;
    for (const Columns& c : at_) {  // the columns of two phases differ by one at most at either end
      for (i64 z = 0; z < begin_; ++z) to[z] = z < c.begin || z >= c.end ? T(0) : row[c.first + z * stride_];
      for (i64 z = end_; z < columns_; ++z) to[z] = z < c.begin || z >= c.end ? T(0) : row[c.first + z * stride_];
      to += plane;
    }
  }

 private:
  std::vector<Columns> at_;
  i64 stride_, columns_, begin_, end_;
};

}  // namespace tconv
