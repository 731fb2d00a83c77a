// SPDX-License-Identifier: Apache-2.0
// What winograd.h's transforms of inputs, weights and outputs have in common: the same chain of lines along three axes.
#pragma once

#include <algorithm>

#include "winograd.h"

namespace tconv {

// Lanes along three axes, of tiles in a row.
template <class T>
struct Grid {
  T* data;
  i64 stride[3], tile;
};

template <class T>
Grid<T> dense(T* data, const i64* extent, i64 pitch) {
  return {data, {extent[1] * extent[2] * pitch, extent[2] * pitch, pitch}, extent[0] * extent[1] * extent[2] * pitch};
}

template <class T>
Grid<const T> readable(const Grid<T>& g) {
  return {g.data, {g.stride[0], g.stride[1], g.stride[2]}, g.tile};
}

inline i64 volume(const i64* extent) { return extent[0] * extent[1] * extent[2]; }

// Calls body(at) for every place of a grid, in order.
template <class F>
void each(const i64* extent, F body) {
  i64 at[3];
  for (at[0] = 0; at[0] < extent[0]; ++at[0])
    for (at[1] = 0; at[1] < extent[1]; ++at[1])
      for (at[2] = 0; at[2] < extent[2]; ++at[2]) body(at);
}

// The transforms of a family along each axis, those of one tap left out, and the extents before and after.
template <class T>
struct Chain {
  Lines<T> lines[3];
  int axes[3], count = 0;
  i64 before[3], after[3];

  template <class F>
  Chain(const Winograd::Family& f, const Winograd& w, const Kernels<T>& k, Lines<T> Transform<T>::* kind, bool outermost_first, F extents) {
    for (int i = 0; i < 3; ++i) {
      const int a = outermost_first ? i : 2 - i;
      const Winograd::Class& c = *f.along[a];
      lines[a] = k.transform[w.axis[a].tile][c.taps].*kind;
      if (c.taps > 1) axes[count++] = a;
      extents(c, w.axis[a], before[a], after[a]);
    }
    if (!count) axes[count++] = 2;  // a copy
  }

  // `tiles` of them in a row, as many at once as `room` holds between two transforms: in two halves of `room_size` elements.
  void operator()(Grid<const T> from, Grid<T> to, i64 tiles, i64 run, T* room, i64 room_size, bool add = false) const {
    const i64 between = std::max(volume(before), volume(after)) * run;
    const i64 most = count == 1 ? tiles : std::max<i64>(1, std::min(room_size, kRoomBytes / i64(sizeof(T))) / between);
    for (i64 t = 0; t < tiles; t += most, from.data += most * from.tile, to.data += most * to.tile)
      together(from, to, std::min(most, tiles - t), run, room, room_size, add);
  }

 private:
  void together(Grid<const T> from, const Grid<T>& to, i64 tiles, i64 run, T* room, i64 room_size, bool add) const {
    i64 extent[3] = {before[0], before[1], before[2]};
    for (int s = 0; s < count; ++s) {
      const int a = axes[s];
      i64 next[3] = {extent[0], extent[1], extent[2]};
      next[a] = after[a];
      const Grid<T> target = s + 1 == count ? to : dense(room + s % 2 * room_size, next, run);
      along(a, extent, from, target, tiles, run, add && s + 1 == count);
      from = readable(target);
      extent[a] = next[a];
    }
  }

  // Of the loops over tiles and the two other axes, the kernel takes the longest one.
  void along(int a, const i64* extent, const Grid<const T>& from, const Grid<T>& to, i64 tiles, i64 run, bool add) const {
    struct Loop {
      i64 count, from, to;
    };
    const int u = a == 0 ? 1 : 0, v = a == 2 ? 1 : 2;
    Loop loop[3] = {{extent[u], from.stride[u], to.stride[u]}, {extent[v], from.stride[v], to.stride[v]}, {tiles, from.tile, to.tile}};
    if (loop[1].from == run && loop[1].to == run) run *= loop[1].count, loop[1].count = 1;
    for (int i : {0, 1})
      if (loop[i].count > loop[2].count) std::swap(loop[i], loop[2]);
    for (i64 i = 0; i < loop[0].count; ++i)
      for (i64 j = 0; j < loop[1].count; ++j)
        lines[a](from.data + i * loop[0].from + j * loop[1].from, {from.stride[a], loop[2].from}, to.data + i * loop[0].to + j * loop[1].to,
                 {to.stride[a], loop[2].to}, loop[2].count, run, add);
  }
};

// Where packed weights of a family, block and output phase begin; there they lie as [point][input phase][channel][lane].
template <class T>
T* weights_of(const Winograd& w, T* group, const Winograd::Family& f, i64 b, i64 out) {
  return group + (f.before * w.blocks + (b * f.outs + out) * f.weights * f.ins) * w.channels * w.block;
}

// The phases of a combination of phases along the axes.
struct Phases {
  i64 of[3];
  Phases(const Winograd::Family& f, std::vector<i64> Winograd::Class::* side, i64 index) {
    for (int i = 2; i >= 0; --i) {
      const std::vector<i64>& list = f.along[i]->*side;
      of[i] = list[std::size_t(index % i64(list.size()))];
      index /= i64(list.size());
    }
  }
};

}  // namespace tconv
