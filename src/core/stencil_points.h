// SPDX-License-Identifier: Apache-2.0
// Rows by points (row_points.h): the panel of a box, from rows of inputs, and rows of outputs, from sums.
#pragma once

#include "parallel.h"
#include "stencil_panel.h"

namespace tconv {
namespace {

// Calls body(to, from, inside, columns) for every row of input under the tiles of a box, of one channel: its place among them, the element
// of its first column, and the columns that exist.
template <class F>
void each_input_row(const Plan& p, const i64* stride, const Box& box, F body) {
  const StencilAxis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  const i64 first = p.rows.first + p.rows.tile * box.at[1], rows = p.rows.rows(h.extent);
  const Columns inside(start(p, box, 2), 1, w.in_size, w.extent), none(0, 1, 0, w.extent);
  i64 to = 0;
  for (i64 n = 0; n < box.batches; ++n)
    for (i64 zd = 0; zd < d.extent; ++zd)
      for (i64 row = first; row < first + rows; ++row, to += w.extent) {
        const i64 id = start(p, box, 0) + zd;
        const bool exists = id >= 0 && id < d.in_size && row >= 0 && row < h.in_size && inside.begin < inside.end;
        body(to, exists ? (box.batch + n) * stride[0] + id * stride[2] + row * stride[3] + inside.first * stride[4] : 0,
             exists ? inside : none, w.extent);
      }
}

std::vector<Stretch> input_stretches(const Plan& p, const i64* stride, const Box& box) {
  const i64 slab = p.rows.rows(p.axis[1].extent) * p.axis[2].extent;
  return stretches_of(box.batches * p.axis[0].extent * slab, p.axis[2].extent, [&](auto body) { each_input_row(p, stride, box, body); });
}

// A channel at a time, whose rows the first-level cache holds; some where channels are adjacent, and transposed.
template <class T>
void pack_points(const Plan& p, const Kernels<T>& k, View<const T> in, const Box& box, i64 group, const std::vector<Stretch>& stretches,
                 T* panel) {
  const StencilAxis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  const i64 slab = p.rows.rows(h.extent) * w.extent, pitch = p.input_rows(), channel = p.planes * p.plane, end = p.lane(box.batches, 0, 0);
  const i64 before = group * p.channels * in.stride[1], elements = elements_of(p, in.stride) - before;
  const auto to_points = k.transform[p.rows.tile][p.rows.filter].input;
  T* room = scratch<T>(2, p.rows.at_once * pitch);
  in.data += before;
  for (i64 c = 0, some; c < p.channels; c += some) {
    const T* from = in.data + c * in.stride[1];
    some = stretches.empty() ? std::min(p.channels - c, p.rows.at_once) : 1;
    if (stretches.empty())
      each_input_row(p, in.stride, box, [&](i64 to, i64 row, Columns inside, i64 columns) {
        pack_row(k, from + row, in.stride[1], in.stride[4], inside, some, columns, room + to, pitch);
      });
    else
      k.copy_stretches(from, elements - c * in.stride[1], in.stride[1], room, stretches.data(), i64(stretches.size()));
    for (i64 i = 0; i < some; ++i, panel += channel) {
      for (i64 n = 0; n < box.batches * d.extent; ++n)
        to_points(room + i * pitch + n * slab, {w.extent, p.rows.tile * w.extent}, panel + n * h.extent * w.extent, {p.plane, w.extent},
                  h.extent, w.extent, false);
      k.copy(room, 0, panel + end, p.plane, p.planes, 0, 0, p.plane - end);
    }
  }
}

// Sums of a unit's points to rows of outputs, of a strip's lanes.
template <class T>
void points_to_rows(const Plan& p, const Kernels<T>& k, const Unit& unit, i64 lanes, const T* sums, T* rows) {
  const i64 count = i64(unit.slot.size()) / p.rows.points() * p.block, line = count * p.pitch;
  k.transform[p.rows.tile][p.rows.filter].output(sums, {line, p.pitch}, rows, {line, p.pitch}, count, lanes, false);
}

}  // namespace
}  // namespace tconv
