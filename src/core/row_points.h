// SPDX-License-Identifier: Apache-2.0
// Lanes over positions with fewer multiplications: Winograd's F(m, r) along one axis, from row to row, inside each stride phase.
//
// The tiles of winograd.h want vectors of channels on both sides. Layers of few channels have lanes over positions, and there a transform
// along columns of the map is a sum of whole rows, which costs next to nothing: those of inputs are made while the panel of plan.h is
// packed, those of outputs from sums in the first-level cache.
//
//   panel[channel][point, input phases][image][depth][tile][column]    n = m + r - 1 rows of a tile, of each input phase, to n points
//   sums[point][output phases, channel m][lane]                         taps along depth and row as in plan.h, one tap along the columns
//   rows[row of a tile][output phases, channel m][lane]                 n points to m rows, of each output phase, written as in plan.h
//
// For plan.h a point is an input phase of an axis of tiles, and a kernel of points times phases has one tap in each. All phases have
// r = ceil(kernel / stride) taps, the last of which is zero in some, so that they share what they read. Phases are those of the output in
// the forward layer; in grad_input those of dy, whose products add up in the sums of points.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "spec.h"

namespace tconv {

struct RowPoints {
  static constexpr i64 kFewPoints = 4;  // with more than these a tile rounds more

  i64 tile = 0, filter = 1;  // m, or 0 for rows as they are; r
  bool forward = true;
  i64 kernel = 1, stride = 1;  // of the layer
  i64 ins = 1, outs = 1;       // phases of rows of the input and of the output
  i64 first = 0;               // the row of input that the first tile begins to read at
  i64 at_once = 1;             // channels whose rows are taken at a time

  RowPoints() = default;
  RowPoints(const Axis& a, bool forward);

  i64 points() const { return tile ? tile + filter - 1 : 1; }
  i64 terms() const { return points() > kFewPoints ? kTerms / 2 : kTerms; }  // of a part of a sum at most
  i64 rows(i64 tiles) const { return ins * (tile * tiles + filter - 1); }    // that so many tiles read

  static std::string refusal(const Spec& spec);
};

// A weight whose taps along the columns of the map are points: those of a channel and output begin at data[c * channel + m * output], and
// `elements` says where each tap lies from there, in the order of plan.h's kernel.
template <class T>
struct PointWeights {
  std::unique_ptr<T[]> data;
  i64 group, channel, output;
  std::vector<i64> elements;
};

}  // namespace tconv
