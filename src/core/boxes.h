// SPDX-License-Identifier: Apache-2.0
// Tiles cut into boxes along the axes, by Winograd's transforms and by Strassen's quarters alike.
#pragma once

#include <algorithm>

#include "spec.h"

namespace tconv {

// An axis of tiles: boxes, and tiles of the larger ones, which come first.
struct Turns {
  i64 tiles, turns, box;

  void cut(i64 into) { turns = into, box = ceil_div(tiles, turns); }
  i64 begin(i64 turn) const { return piece_begin(turn, turns, tiles); }
};

// Boxes of an image.
template <class Along>
i64 around(const Along (&axis)[3]) {
  return axis[0].turns * axis[1].turns * axis[2].turns;
}

// Boxes of so many tiles at most grow from the row outwards, as those of plan.h, and the first axis that is cut is cut so many more times.
// Returns the images of a box.
template <class Along>
i64 grow_box(Along (&axis)[3], i64 batch, i64 most, i64 more = 0) {
  for (Along& a : axis) a.cut(a.tiles);
  const auto into = [](const Along& a, i64 wide) { return ceil_div(a.tiles, std::clamp<i64>(wide, 1, a.tiles)); };
  axis[2].cut(into(axis[2], most));
  if (axis[2].turns == 1) axis[1].cut(into(axis[1], most / axis[2].box));
  if (axis[1].turns == 1) axis[0].cut(into(axis[0], most / (axis[1].box * axis[2].box)));
  for (Along& a : axis)
    if (a.turns > 1 && more) a.cut(std::min(a.tiles, a.turns + more)), more = 0;
  const i64 image = axis[0].box * axis[1].box * axis[2].box, all = std::max<i64>(batch, 1);
  return around(axis) > 1 ? 1 : ceil_div(all, std::min(all, ceil_div(all, std::max<i64>(1, most / image)) + more));
}

// Those of begin .. stop - 1 that lie in 0 .. most - 1.
inline void clip(i64 begin, i64 stop, i64 most, i64& from, i64& count) {
  from = std::clamp<i64>(begin, 0, most), count = std::clamp<i64>(stop, from, most) - from;
}

}  // namespace tconv
