// SPDX-License-Identifier: Apache-2.0
// The inputs of a box, packed into its panel (plan.h).
#pragma once

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "phases.h"
#include "plan.h"

namespace tconv {
namespace {

// `columns` inputs in a row, of every channel: those inside the input are copied, the others are zero.
template <class T>
void pack_row(const Kernels<T>& k, const T* from, i64 channel_stride, i64 column_stride, Columns in, i64 channels, i64 columns, T* to,
              i64 pitch) {
  const i64 inside = in.end - in.begin;
  from += in.begin * column_stride;
  if (column_stride == 1 || !inside) return k.copy(from, channel_stride, to, pitch, channels, in.begin, in.end, columns);
  k.copy(from, 0, to, pitch, channels, in.begin, in.begin, in.begin);
  k.copy(from, 0, to + in.end, pitch, channels, 0, 0, columns - in.end);
  to += in.begin;
  if (channel_stride == 1) return k.transpose(from, column_stride, to, pitch, inside, channels, nullptr);
  for (i64 c = 0; c < channels; ++c)
    for (i64 z = 0; z < inside; ++z) to[c * pitch + z] = from[c * channel_stride + z * column_stride];
}

// The input coordinate of a panel's first element along an axis, for phase 0.
i64 start(const Plan& p, const Box& box, int i) { return p.axis[i].in_stride * (box.at[i] - p.axis[i].shift_max) - p.axis[i].in_lo; }

// Calls body(lane, from) for every row of one phase along depth and height: its place in a plane, and the element of its coordinate 0, or
// none where the row lies outside the input or nobody needs it.
template <class F>
void each_line(const Plan& p, const i64* stride, const Box& box, i64 pd, i64 ph, F body) {
  const StencilAxis &d = p.axis[0], &h = p.axis[1];
  const auto needed = [&](int i) { return box.size[i] + p.axis[i].halo(); };
  for (i64 n = 0; n < box.batches; ++n)
    for (i64 zd = 0; zd < d.extent; ++zd)
      for (i64 zh = 0; zh < h.extent; ++zh) {
        const i64 id = start(p, box, 0) + pd + zd * d.in_stride, ih = start(p, box, 1) + ph + zh * h.in_stride;
        const bool inside = id >= 0 && id < d.in_size && ih >= 0 && ih < h.in_size && zd < needed(0) && zh < needed(1);
        body(p.lane(n, zd, zh), inside ? std::optional((box.batch + n) * stride[0] + id * stride[2] + ih * stride[3]) : std::nullopt);
      }
}

// Calls body(to, from, inside, columns) for every row of a box's panel: its place in the panel, the element of the first column, which need
// not exist, and the columns that lie inside the input. Rows follow one another without gaps. What lies between positions and after
// them is computed too, though never used: it must be some number, hence written.
template <class F>
void each_panel_row(const Plan& p, const i64* stride, const Box& box, F body) {
  const StencilAxis& w = p.axis[2];
  i64 plane = 0;
  for (i64 pd : p.axis[0].in_phases)
    for (i64 ph : p.axis[1].in_phases)
      for (i64 pw : w.in_phases) {
        const i64 to = plane++ * p.plane, end = p.lane(box.batches, 0, 0);
        const Columns inside(start(p, box, 2) + pw, w.in_stride, w.in_size, w.extent), none(0, 1, 0, w.extent);
        each_line(p, stride, box, pd, ph, [&](i64 lane, std::optional<i64> line) {
          const bool some = line && inside.end > inside.begin;
          body(to + lane, some ? *line + inside.first * stride[4] : 0, some ? inside : none, w.extent);
        });
        body(to + end, 0, Columns(0, 1, 0, p.plane - end), p.plane - end);
      }
}

// Whether rows of the input, whose columns are adjacent, are taken apart into all of their phases.
bool splits(const Plan& p, const i64* stride) {
  return stride[4] == 1 && p.axis[2].in_stride > 1 && i64(p.axis[2].in_phases.size()) == p.axis[2].in_stride;
}

// Such a panel: channel after channel, and rows in the order in which they lie in memory, whatever phases of depth and height they are.
template <class T>
void pack_split(const Plan& p, const Kernels<T>& k, const View<const T>& in, const Box& box, T* panel) {
  const StencilAxis& w = p.axis[2];
  std::vector<Columns> columns;
  for (i64 pw : w.in_phases) columns.emplace_back(start(p, box, 2) + pw, w.in_stride, w.in_size, w.extent);
  const RowSplit split(std::move(columns), w.in_stride, w.extent);
  struct Line {
    i64 to;
    std::optional<i64> from;
  };
  std::vector<Line> lines;
  i64 planes = 0;
  for (i64 pd : p.axis[0].in_phases)
    for (i64 ph : p.axis[1].in_phases) {
      each_line(p, in.stride, box, pd, ph, [&](i64 lane, std::optional<i64> from) { lines.push_back({planes * p.plane + lane, from}); });
      planes += w.in_stride;
    }
  std::sort(lines.begin(), lines.end(), [](const Line& x, const Line& y) { return x.from < y.from; });
  const i64 end = p.lane(box.batches, 0, 0);
  for (i64 c = 0; c < p.channels; ++c, panel += p.planes * p.plane) {
    const T* from = in.data + c * in.stride[1];
    for (const Line& line : lines)
      if (line.from)
        split(k, from + *line.from, panel + line.to, p.plane);
      else
        k.copy(from, 0, panel + line.to, p.plane, w.in_stride, 0, 0, w.extent);
    k.copy(from, 0, panel + end, p.plane, p.planes, 0, 0, p.plane - end);
  }
}

// Whether a row of the panel is a row of the input.
bool adjacent(const Plan& p, const i64* stride) { return stride[4] * p.axis[2].in_stride == 1; }

// Rows as few stretches of one channel: those that are adjacent in both are one. each(body) calls body(to, from, inside, columns) for each
// of them, `elements` in all.
template <class F>
std::vector<Stretch> stretches_of(i64 elements, i64 columns_of_row, F each) {
  std::vector<Stretch> found;
  found.reserve(std::size_t(elements / columns_of_row + 1));
  i64 zeros = 0;
  each([&](i64 to, i64 from, Columns row, i64 columns) {
    const i64 count = row.end - row.begin;
    zeros += row.begin;
    if (count > 0) {
      if (!found.empty() && !zeros && found.back().from + found.back().count == from + row.begin)
        found.back().count += count;
      else
        found.push_back({to + row.begin - zeros, zeros, from + row.begin, count});
      zeros = 0;
    }
    zeros += columns - row.end;
  });
  if (zeros) found.push_back({elements - zeros, zeros, 0, 0});
  return found;
}

std::vector<Stretch> panel_stretches(const Plan& p, const i64* stride, const Box& box) {
  return stretches_of(p.planes * p.plane, p.axis[2].extent, [&](auto body) { each_panel_row(p, stride, box, body); });
}

// From the first element of the input to its last one; fewer where strides are negative.
i64 elements_of(const Plan& p, const i64* stride) {
  i64 elements = (p.batch - 1) * stride[0] + (p.groups * p.channels - 1) * stride[1] + 1;
  for (int i = 0; i < 3; ++i) elements += (p.axis[i].in_size - 1) * stride[2 + i];
  return elements;
}

// Inputs of so many bytes are in a cache: from memory, channels that lie far apart come faster one after the other, as do more channels
// than so many whose places share sets of the first-level cache.
constexpr i64 kInPlaceBytes = 16 << 20, kInPlaceChannels = 32;

// Whether the inputs of a box, up to lane `end`, are read where they lie, rather than packed to be read once: where those of a channel are
// one stretch, with no zeros before or between. The last vector reads on, within the array.
template <class T>
bool in_place(const Plan& p, const View<const T>& in, const Box& box, i64 group, const std::vector<Stretch>& stretches, i64 end) {
  if (!p.once || stretches.empty() || stretches[0].to || stretches[0].zeros || stretches[0].count < box.lanes(p)) return false;
  if (p.channels > kInPlaceChannels && in.stride[1] * i64(sizeof(T)) % kSetsBytes == 0) return false;
  const i64 elements = elements_of(p, in.stride);
  const i64 last = stretches[0].from + ((group + 1) * p.channels - 1) * in.stride[1] + end;
  return last <= elements && elements * i64(sizeof(T)) <= kInPlaceBytes;
}

// The inputs of a box and a group, wherever they lie.
template <class T>
void pack_panel(const Plan& p, const Kernels<T>& k, View<const T> in, const Box& box, i64 group, const std::vector<Stretch>& stretches,
                T* panel) {
  const i64 channel = p.planes * p.plane, before = group * p.channels * in.stride[1], elements = elements_of(p, in.stride) - before;
  in.data += before;
  if (splits(p, in.stride)) return pack_split(p, k, in, box, panel);
  if (adjacent(p, in.stride))
    for (i64 c = 0; c < p.channels; ++c)
      k.copy_stretches(in.data + c * in.stride[1], elements - c * in.stride[1], in.stride[1], panel + c * channel, stretches.data(),
                       i64(stretches.size()));
  else
    each_panel_row(p, in.stride, box, [&](i64 to, i64 from, Columns row, i64 columns) {
      pack_row(k, in.data + from, in.stride[1], in.stride[4] * p.axis[2].in_stride, row, p.channels, columns, panel + to, channel);
    });
}

}  // namespace
}  // namespace tconv
