// SPDX-License-Identifier: Apache-2.0
// Points (row_points.h): the panel of a box, from rows of inputs, and rows of outputs, from sums.
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

// From row to row: a channel at a time, whose rows near caches hold; some where channels are adjacent, and transposed.
template <class T>
void pack_rows_of_points(const Plan& p, const Kernels<T>& k, const View<const T>& in, const Box& box, i64 group,
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

// Along the row: the positions of a row's tiles, as lines `pitch` elements apart, as many as a channel has points and input phases. `row`
// is a copy of what they read, zeros around it: a tile's own positions are taken apart together, those behind are the first of the next
// tiles.
template <class T>
void take_apart(const Plan& p, const Kernels<T>& k, const T* row, T* lines, i64 pitch) {
  const i64 own = p.axis[2].in_stride, extent = p.axis[2].extent;
  k.unweave(row, own, extent + p.rows.behind(), lines, pitch);
  for (i64 i = own; i < p.rows.points() * p.rows.ins; ++i) std::copy_n(lines + i % own * pitch + i / own, extent, lines + i * pitch);
}

// A row at a time, of some channels where these are adjacent.
template <class T>
void pack_points_of_rows(const Plan& p, const Kernels<T>& k, const View<const T>& in, const Box& box, i64 group, T* panel) {
  const StencilAxis& w = p.axis[2];
  const RowPoints& rows = p.rows;
  const i64 points = rows.points(), lines = points * rows.ins, pitch = p.position_pitch(), channel = p.planes * p.plane;
  const i64 first = rows.first + w.in_stride * box.at[2], columns = w.in_stride * (w.extent + rows.behind());
  const Columns inside(first, 1, w.in_size, columns);
  const std::vector<Stretch> stretches =
      stretches_of(columns, columns, [&](auto body) { body(0, inside.end > inside.begin ? first : 0, inside, columns); });
  const auto to_points = k.transform[rows.tile][rows.filter].input;
  const i64 elements = elements_of(p, in.stride), end = p.lane(box.batches, 0, 0);
  T *copy = scratch<T>(2, rows.at_once * p.input_rows()), *room = copy + w.in_stride * pitch;
  for (i64 c = 0, some; c < p.channels; c += some, panel += some * channel) {
    const i64 before = (group * p.channels + c) * in.stride[1];
    some = std::min(p.channels - c, rows.at_once);
    const auto take = [&](const T* row, i64 rest) {
      if (in.stride[4] == 1 && some == 1) {
        k.copy_stretches(row, rest, in.stride[1], copy, stretches.data(), i64(stretches.size()));
        return take_apart(p, k, copy, room, pitch);
      }
      for (i64 i = 0; i < lines; ++i) {
        const Columns of(first + i, w.in_stride, w.in_size, w.extent);
        pack_row(k, row + of.first * in.stride[4], in.stride[1], in.stride[4] * w.in_stride, of, some, w.extent, room + i * pitch,
                 lines * pitch);
      }
    };
    T* plane = panel;
    for (const i64 pd : p.axis[0].in_phases)
      for (const i64 ph : p.axis[1].in_phases) {
        each_line(p, in.stride, box, pd, ph, [&](i64 lane, std::optional<i64> line) {
          if (line) take(in.data + before + *line, elements - before - *line);
          for (i64 i = 0; i < some; ++i)
            for (i64 phase = 0; phase < rows.ins; ++phase) {
              T* to = plane + i * channel + phase * p.plane + lane;
              if (line)
                to_points(room + (i * lines + phase) * pitch, {rows.ins * pitch, 0}, to, {rows.ins * p.plane, 0}, 1, w.extent, false);
              else
                k.copy(in.data, 0, to, rows.ins * p.plane, points, 0, 0, w.extent);
            }
        });
        plane += lines * p.plane;
      }
    for (i64 i = 0; i < some; ++i) k.copy(in.data, 0, panel + i * channel + end, p.plane, p.planes, 0, 0, p.plane - end);
  }
}

template <class T>
void pack_points(const Plan& p, const Kernels<T>& k, const View<const T>& in, const Box& box, i64 group,
                 const std::vector<Stretch>& stretches, T* panel) {
  p.rows.along(1) ? pack_rows_of_points(p, k, in, box, group, stretches, panel) : pack_points_of_rows(p, k, in, box, group, panel);
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
