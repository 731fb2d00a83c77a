// SPDX-License-Identifier: Apache-2.0
// Rows by points (row_points.h): the panel of a box, from rows of inputs, and rows of outputs, from sums.
#pragma once

#include "parallel.h"
#include "stencil_panel.h"

namespace tconv {
namespace {

// Calls body(to, from) for every row of input under the tiles of a box, of one channel: its place among them, where its phases along the
// row come one after another, and the element of its coordinate 0, if it exists.
template <class F>
void each_input_row(const Plan& p, const i64* stride, const Box& box, F body) {
  const StencilAxis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  const i64 first = p.rows.first + p.rows.tile * p.rows.ins * box.at[1], rows = p.rows.rows(h.extent);
  i64 to = 0;
  for (const i64 pd : d.in_phases)
    for (i64 n = 0; n < box.batches; ++n)
      for (i64 zd = 0; zd < d.extent; ++zd)
        for (i64 row = first; row < first + rows; ++row, to += i64(w.in_phases.size()) * w.extent) {
          const i64 id = start(p, box, 0) + pd + zd * d.in_stride;
          const bool exists = id >= 0 && id < d.in_size && row >= 0 && row < h.in_size;
          body(to, exists ? std::optional((box.batch + n) * stride[0] + id * stride[2] + row * stride[3]) : std::nullopt);
        }
}

// The columns of each phase along the row.
std::vector<Columns> input_columns(const Plan& p, const Box& box) {
  const StencilAxis& w = p.axis[2];
  std::vector<Columns> found;
  for (const i64 phase : w.in_phases) found.emplace_back(start(p, box, 2) + phase, w.in_stride, w.in_size, w.extent);
  return found;
}

std::vector<Stretch> input_stretches(const Plan& p, const i64* stride, const Box& box) {
  const StencilAxis &d = p.axis[0], &w = p.axis[2];
  const Columns inside = input_columns(p, box)[0], none(0, 1, 0, w.extent);
  const i64 rows = i64(d.in_phases.size()) * box.batches * d.extent * p.rows.rows(p.axis[1].extent);
  return stretches_of(rows * w.extent, w.extent, [&](auto body) {
    each_input_row(p, stride, box, [&](i64 to, std::optional<i64> row) {
      const bool some = row && inside.begin < inside.end;
      body(to, some ? *row + inside.first * stride[4] : 0, some ? inside : none, w.extent);
    });
  });
}

// Rows of inputs of some channels, zeros around them, to a room: as stretches, or taken apart, or from wherever they lie.
template <class T>
void take_rows(const Plan& p, const Kernels<T>& k, const T* in, const i64* stride, const Box& box, i64 channels, T* room) {
  const StencilAxis& w = p.axis[2];
  const std::vector<Columns> columns = input_columns(p, box);
  const i64 pitch = p.input_rows();
  if (splits(p, stride)) {
    const RowSplit split(columns, w.in_stride, w.extent);
    for (i64 c = 0; c < channels; ++c, in += stride[1], room += pitch)
      each_input_row(p, stride, box, [&](i64 to, std::optional<i64> row) {
        if (row)
          split(k, in + *row, room + to, w.extent);
        else
          k.copy(in, 0, room + to, 0, 1, 0, 0, w.in_stride * w.extent);
      });
  } else {
    each_input_row(p, stride, box, [&](i64 to, std::optional<i64> row) {
      for (const Columns& inside : columns) {
        const bool some = row && inside.begin < inside.end;
        pack_row(k, some ? in + *row + inside.first * stride[4] : in, stride[1], stride[4] * w.in_stride,
                 some ? inside : Columns(0, 1, 0, w.extent), channels, w.extent, room + to, pitch);
        to += w.extent;
      }
    });
  }
}

// A channel at a time, whose rows near caches hold; some where channels are adjacent, and transposed.
template <class T>
void pack_points(const Plan& p, const Kernels<T>& k, const View<const T>& in, const Box& box, i64 group,
                 const std::vector<Stretch>& stretches, T* panel) {
  const StencilAxis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  const RowPoints& rows = p.rows;
  const i64 phases = i64(w.in_phases.size()), line = rows.ins * phases, pitch = p.input_rows(), end = p.lane(box.batches, 0, 0);
  const i64 before = group * p.channels * in.stride[1], elements = elements_of(p, in.stride) - before;
  const auto to_points = k.transform[rows.tile][rows.filter].input;
  T* room = scratch<T>(2, rows.at_once * pitch);
  for (i64 c = 0, some; c < p.channels; c += some) {
    const T* from = in.data + before + c * in.stride[1];
    some = stretches.empty() ? std::min(p.channels - c, rows.at_once) : 1;
    if (stretches.empty())
      take_rows(p, k, from, in.stride, box, some, room);
    else
      k.copy_stretches(from, elements - c * in.stride[1], in.stride[1], room, stretches.data(), i64(stretches.size()));
    for (i64 i = 0; i < some; ++i, panel += p.planes * p.plane) {
      const T* row = room + i * pitch;
      for (i64 pd = 0; pd < i64(d.in_phases.size()); ++pd)
        for (i64 n = 0; n < box.batches * d.extent; ++n, row += rows.rows(h.extent) * phases * w.extent)
          for (i64 phase = 0; phase < line; ++phase)
            to_points(row + phase * w.extent, {line * w.extent, rows.tile * line * w.extent},
                      panel + (pd * rows.points() * line + phase) * p.plane + n * h.extent * w.extent, {line * p.plane, w.extent}, h.extent,
                      w.extent, false);
      k.copy(room, 0, panel + end, p.plane, p.planes, 0, 0, p.plane - end);
    }
  }
}

// Sums of a unit's points to rows of so many outputs, of a strip's lanes.
template <class T>
void points_to_rows(const Plan& p, const Kernels<T>& k, const Unit& unit, i64 outputs, i64 lanes, const T* sums, T* rows) {
  const i64 phases = i64(unit.slot.size()) / p.rows.points(), line = phases * p.block * p.pitch;
  const bool all = outputs == p.block;  // then the rows of all phases follow one another without gaps
  for (i64 phase = 0; phase < (all ? 1 : phases); ++phase, sums += p.block * p.pitch, rows += p.block * p.pitch)
    k.transform[p.rows.tile][p.rows.filter].output(sums, {line, p.pitch}, rows, {line, p.pitch}, all ? phases * outputs : outputs, lanes,
                                                   false);
}

}  // namespace
}  // namespace tconv
