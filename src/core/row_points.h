// SPDX-License-Identifier: Apache-2.0
// Lanes over positions with fewer multiplications: Winograd's F(m, r) along one axis, inside each stride phase: from row to row, or along
// the row where there is nothing to gain from row to row (1-D).
//
// The tiles of winograd.h want vectors of channels on both sides. Layers of few channels have lanes over positions, and there a transform
// along columns of the map is a sum of whole rows, which costs next to nothing: those of inputs are made while the panel of plan.h is
// packed, those of outputs from sums in the first-level cache.
//
// From row to row:
//
//   panel[channel][point, input phases][image][depth][tile][column]    n = m + r - 1 rows of a tile, of each input phase, to n points
//   sums[point][output phases, channel m][lane]                         taps along depth and row as in plan.h, one tap along the columns
//   rows[row of a tile][output phases, channel m][lane]                 n points to m rows, of each output phase, written as in plan.h
//
// For plan.h a point is an input phase of an axis of tiles, and a kernel of points times phases has one tap in each. All phases have
// r = ceil(kernel / stride) taps, the last of which is zero in some, so that they share what they read. Phases are those of the output in
// the forward layer; in grad_input those of dy, whose products add up in the sums of points.
//
// Along the row, columns of the panel are tiles: a row is taken apart into the m positions of every tile, and the r - 1 behind those are
// the first ones of the next tiles; the m positions times phases of an output row are put together as stride phases are.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "spec.h"

namespace tconv {

struct RowPoints {
  static constexpr i64 kFewPoints = 4;  // with more than these a tile rounds more

  i64 tile = 0, filter = 1;  // m, or 0 for rows as they are; r
  int axis = 1;              // 1: from row to row, 2: along the row
  bool forward = true;
  i64 kernel = 1, stride = 1;  // of the layer
  i64 ins = 1, outs = 1;       // phases of the axis of the input and of the output
  i64 first = 0;               // where on it the first tile begins to read
  i64 at_once = 1;             // channels whose rows are taken at a time
  bool few = false;            // rows of products: directly, those that read one offset are a sum of their own then

  RowPoints() = default;
  RowPoints(const Spec& spec, bool forward);

  bool along(int i) const { return tile && axis == i; }
  i64 behind() const { return ceil_div(filter - 1, tile); }  // tiles whose inputs a tile reads too
  i64 points() const { return tile ? tile + filter - 1 : 1; }
  // Of a part of a sum of so many terms, at most: where a tile rounds more, two thirds of what a direct one has, half or a third.
  i64 terms(i64 all) const {
    const i64 some = terms_at_once(all), taps = few ? 1 : std::max<i64>(1, kernel / stride);
    if (points() <= kFewPoints) return some;
    const i64 direct = even(taps * all, terms_at_once(taps * all));
    return std::min({some, kTerms / 2, std::max<i64>(1, filter > 3 ? direct / 3 : few ? direct / 2 : 2 * direct / 3)});
  }
  i64 rows(i64 tiles) const { return ins * (tile * tiles + filter - 1); }  // that so many tiles read

  static std::string refusal(const Spec& spec);
};

// A weight whose taps along one axis are points: those of a channel and output begin at data[c * channel + m * output], and
// `elements` says where each tap lies from there, in the order of plan.h's kernel.
template <class T>
struct PointWeights {
  std::unique_ptr<T[]> data;
  i64 group, channel, output;
  std::vector<i64> elements;
};

}  // namespace tconv
