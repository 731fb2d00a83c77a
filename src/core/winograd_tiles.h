// SPDX-License-Identifier: Apache-2.0
// Boxes of winograd.h's tiles, where they lie in the inputs and outputs, and the way from there to points.
#pragma once

#include "pixels.h"
#include "winograd_chain.h"

namespace tconv {

enum class Side { in, out };

// A box of tiles of some images, and the inputs and outputs around it.
struct TileBox {
  i64 image, images, at[3], size[3];
  i64 in_begin[3], in_size[3], out_begin[3], out_size[3];

  TileBox(const Winograd& w, i64 index) {
    for (int i = 2; i >= 0; --i) {
      const Winograd::Along& a = w.axis[i];
      const i64 turn = index % a.turns;
      index /= a.turns;
      at[i] = a.begin(turn), size[i] = a.begin(turn + 1) - at[i];
    }
    image = index * w.images;
    images = std::min(w.images, w.batch - image);
    look_around(w);
  }
  // One of some pieces of all tiles, along the outermost axis that has several.
  TileBox(const Winograd& w, i64 index, i64 pieces)
      : image(0), images(w.batch), at{}, size{w.axis[0].tiles, w.axis[1].tiles, w.axis[2].tiles} {
    const int i = w.outermost();
    i64 &first = i < 0 ? image : at[i], &count = i < 0 ? images : size[i];
    const i64 all = count;
    first = piece_begin(index, pieces, all), count = piece_begin(index + 1, pieces, all) - first;
    look_around(w);
  }
  // Position q of a tile's first output along an axis.
  i64 position(const Winograd::Along& a, int i, i64 tile) const { return a.first + (at[i] + tile) * a.tile; }
  i64 tiles() const { return images * volume(size); }
  // Tiles before it: a box is a run of them, in the order of images, depth, rows and columns.
  i64 before(const Winograd& w) const { return ((image * w.axis[0].tiles + at[0]) * w.axis[1].tiles + at[1]) * w.axis[2].tiles + at[2]; }

 private:
  void look_around(const Winograd& w) {
    for (int i = 0; i < 3; ++i) {
      const Winograd::Along& a = w.axis[i];
      const i64 first = position(a, i, 0), end = first + size[i] * a.tile;
      clip(a.in_stride * (first + a.reach_begin()) - a.in_lo, a.in_stride * (end - 1 + a.reach_end()) - a.in_lo, a.in_size, in_begin[i],
           in_size[i]);
      clip(a.out_stride * first - a.out_lo, a.out_stride * end - a.out_lo, a.out_size, out_begin[i], out_size[i]);
    }
  }
};

// Along the row, a tile's first element, and which of its elements begin .. end - 1 exist.
struct TileColumns {
  i64 at, begin, end;
};

// Where the tiles of a row lie in an input or output: the first one begins at `first` and has `extent` elements, `step` apart;
// the next one begins `advance` further along the row; those of begin .. end - 1 lie wholly inside.
struct TileRow {
  i64 first[3], step[3], extent[3], size[3], advance, begin, end;

  TileRow(const Winograd& w, const TileBox& box, Side side, const Winograd::Family& f, const Phases& phase, const i64* row,
          const i64* extent_) {
    bool inside = true;
    for (int i = 0; i < 3; ++i) {
      const Winograd::Along& a = w.axis[i];
      const i64 position = box.position(a, i, i < 2 ? row[i] : 0);
      extent[i] = extent_[i];
      if (side == Side::in)
        size[i] = a.in_size, step[i] = a.in_stride, first[i] = a.in_stride * (position + f.along[i]->reach) + phase.of[i] - a.in_lo;
      else
        size[i] = a.out_size, step[i] = a.out_stride, first[i] = a.out_stride * position + phase.of[i] - a.out_lo;
      if (i < 2) inside = inside && first[i] >= 0 && first[i] + (extent[i] - 1) * step[i] < size[i];
    }
    const i64 tiles = box.size[2];
    advance = step[2] * w.axis[2].tile;
    begin = inside ? std::clamp<i64>(ceil_div(-first[2], advance), 0, tiles) : 0;
    end = inside ? std::clamp<i64>(floor_div(size[2] - 1 - first[2] - (extent[2] - 1) * step[2], advance) + 1, begin, tiles) : 0;
  }

  TileColumns columns(i64 tile) const {
    const i64 at = first[2] + tile * advance, from = std::clamp<i64>(ceil_div(-at, step[2]), 0, extent[2]);
    return {at, from, std::clamp<i64>(ceil_div(size[2] - at, step[2]), from, extent[2])};
  }
};

// What lies between the transforms along two axes, and one tile over a border.
template <class T>
struct Room {
  T *between, *patch;
  i64 size;
};

// The elements under a tile that reaches over a border, with zeros beyond it.
template <class T>
Grid<const T> patch(const Kernels<T>& k, const TileRow& r, i64 tile, const Pixels<const T>& in, i64 channels, T* to) {
  const i64 c = channels, step = r.step[2];
  const auto [column, begin, end] = r.columns(tile);
  const bool adjacent = step * in.stride[2] == c;
  const Grid<const T> whole = readable(dense(to, r.extent, c));
  for (i64 d = 0; d < r.extent[0]; ++d)
    for (i64 h = 0; h < r.extent[1]; ++h, to += r.extent[2] * c) {
      const i64 id = r.first[0] + d * r.step[0], ih = r.first[1] + h * r.step[1];
      const bool inside = id >= 0 && id < r.size[0] && ih >= 0 && ih < r.size[1] && begin < end;
      const T* from = in.data;
      if (inside) from += id * in.stride[0] + ih * in.stride[1] + (column + begin * step) * in.stride[2];
      if (adjacent || !inside) {
        k.copy(from, 0, to, 0, 1, inside ? begin * c : 0, inside ? end * c : 0, r.extent[2] * c);
      } else {
        k.copy(from, 0, to, 0, 1, 0, 0, begin * c);
        k.copy(from, step * in.stride[2], to + begin * c, c, end - begin, 0, c, c);
        k.copy(from, 0, to + end * c, 0, 1, 0, 0, (r.extent[2] - end) * c);
      }
    }
  return whole;
}

// The tiles of a row to their points, `channels` of them: to[point][tile][channel], a tile `pitch` further on, a point `plane`.
template <class T>
void row_to_points(const Chain<T>& chain, const Kernels<T>& k, const TileRow& r, const Pixels<const T>& in, i64 tiles, i64 channels,
                   T* points, i64 pitch, i64 plane, const Room<T>& room) {
  Grid<const T> from{in.data, {}, r.advance * in.stride[2]};
  for (int i = 0; i < 3; ++i) from.data += r.first[i] * in.stride[i], from.stride[i] = r.step[i] * in.stride[i];
  Grid<T> to = dense(points, chain.after, plane);
  to.tile = pitch;
  const auto move = [&](i64 tile, const Grid<const T>& source, i64 count) {
    Grid<T> target = to;
    target.data += tile * to.tile;
    chain(source, target, count, channels, room.between, room.size);
  };
  from.data += r.begin * from.tile;
  move(r.begin, from, r.end - r.begin);
  for (i64 t = 0; t < tiles; ++t)
    if (t < r.begin || t >= r.end) move(t, patch(k, r, t, in, channels, room.patch), 1);
}

}  // namespace tconv
