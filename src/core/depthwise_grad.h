// SPDX-License-Identifier: Apache-2.0
// The weight's gradient of depthwise layers: grad[c, t] = sum over images and positions i of x[c, i] * dy[c, i * stride + t * dilation -
// lo]. Lanes run over channels, which are adjacent, or are transposed a box of rows at a time. A row of x meets a row of dy for every tap
// along depth and height; the sums of a few taps along it stay in registers meanwhile, and each tap goes over the positions alone that it
// joins to outputs.
//
// A task owns a block of channels and a span of boxes; spans are added in their order. Where sums are cut depends on the problem alone.
#pragma once

#include "depthwise.h"
#include "grad_weight.h"

namespace tconv {

struct DepthwiseGrad {
  // `adjacent`: the channels of both arrays are.
  DepthwiseGrad(const Spec& spec, const Isa& isa, int threads, i64 element_bytes, bool adjacent);

  Reaches axis[3];
  i64 batch, channels, taps, block;  // channels of a task
  i64 rows, columns;                 // of x, of a box
  i64 boxes, spans;                  // all of them, and how their sum is cut
  int threads;
  double cycles;  // estimated, on one thread

  i64 boxes_high() const { return ceil_div(axis[1].size, rows); }
  i64 boxes_wide() const { return ceil_div(axis[2].size, columns); }
  i64 blocks() const { return ceil_div(channels, block); }
  i64 sums() const { return taps * block; }
};

template <class T>
void run(const DepthwiseGrad& plan, const Kernels<T>& kernels, const View<const T>& x, const View<const T>& dy, const View<T>& grad);

}  // namespace tconv
