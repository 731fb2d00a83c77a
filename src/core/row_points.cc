// SPDX-License-Identifier: Apache-2.0
// Which tiles of row_points.h a layer has, their axis, and their weights.
#include "row_points.h"

#include <algorithm>

#include "parallel.h"
#include "plan.h"

namespace tconv {
namespace {

constexpr i64 kMostTaps = 4;          // of a phase: more points round badly
constexpr double kMorePoints = 0.93;  // tiles that round more have to save so much

}  // namespace

std::string RowPoints::refusal(const Spec& spec) {
  const Axis& a = spec.axis[1];
  const i64 taps = ceil_div(a.kernel, a.stride);
  if (a.dilation != 1 && a.kernel > 1) return "its rows are dilated";
  if (taps < 2) return "no stride phase has two taps from row to row";
  if (taps > kMostTaps) return "a stride phase has " + std::to_string(taps) + " taps from row to row; transforms take 2 to 4";
  return {};
}

RowPoints::RowPoints(const Axis& a, bool forward_)
    : filter(ceil_div(a.kernel, a.stride)),
      forward(forward_),
      kernel(a.kernel),
      stride(a.stride),
      ins(forward ? 1 : stride),
      outs(forward ? stride : 1) {
  const i64 few = kFewPoints + 1 - filter, all = forward ? ceil_div(floor_mod(a.lo, stride) + a.output(), stride) : a.size;
  const auto products = [&](i64 m) { return double(ceil_div(all, m)) * double(m + filter - 1); };
  tile = few < 2 || products(few + 1) < kMorePoints * products(few) ? few + 1 : few;
  first = forward ? floor_div(a.lo, stride) - (filter - 1) : -a.lo;
}

// A tile is a position, a point of an input phase a phase of its inputs, and a point of a phase a tap.
StencilAxis::StencilAxis(const Axis& a, const RowPoints& rows)
    : in_size(rows.forward ? a.size : a.output()),
      out_size(rows.forward ? a.output() : a.size),
      in_stride(rows.tile * rows.ins),
      out_stride(rows.tile * rows.outs),
      in_lo(0),
      out_lo(rows.forward ? floor_mod(a.lo, rows.stride) : 0),
      kernel(rows.points() * rows.stride),
      out_begin(0),
      out_end(rows.points() * rows.outs),
      count(ceil_div(out_lo + out_size, out_stride)),
      shift_min(0),
      shift_max(0) {
  for (i64 point = 0; point < rows.points(); ++point)
    for (i64 phase = 0; phase < rows.stride; ++phase) {
      const i64 in = rows.forward ? 0 : phase, out = rows.forward ? phase : 0;
      taps.push_back({i64(taps.size()), point * rows.outs + out, point * rows.ins + in, 0});
    }
  for (i64 phase = 0; phase < rows.points() * rows.ins; ++phase) in_phases.push_back(phase);
}

// Lines of a kernel side by side, and zeros up to `all` elements.
template <class T>
void copy_lines(const T* from, i64 line, i64 step, i64 lines, i64 columns, T* to, i64 all) {
  if (step == 1 && line == columns) {
    to = std::copy_n(from, lines * columns, to);
  } else {
    for (i64 h = 0; h < lines; ++h, from += line)
      for (i64 w = 0; w < columns; ++w) *to++ = from[w * step];
  }
  std::fill_n(to, all - lines * columns, T(0));
}

// [channel][point][output][depth][phase][column], from a channel's taps as [tap of a phase][output][depth][phase][column].
template <class T>
PointWeights<T> point_weights(const Plan& p, const Kernels<T>& k, const View<const T>& weight, i64 group_stride) {
  const RowPoints& rows = p.rows;
  const i64 depth = p.axis[0].kernel, columns = p.axis[2].kernel, output = depth * rows.stride * columns, line = p.outputs * output;
  const i64 channel = rows.points() * line, group = p.channels * channel;
  PointWeights<T> found{std::make_unique<T[]>(std::size_t(p.groups * group)), group, channel, output, {}};
  for (i64 d = 0; d < depth; ++d)
    for (i64 v = 0; v < p.axis[1].kernel; ++v)
      for (i64 w = 0; w < columns; ++w)
        found.elements.push_back(v / rows.stride * line + (d * rows.stride + v % rows.stride) * columns + w);
  parallel_for(p.groups * p.channels, p.threads, [&](i64 task) {
    const T* from = weight.data + task / p.channels * group_stride + task % p.channels * weight.stride[0];
    T *taps = scratch<T>(2, rows.filter * line), *to = taps;
    for (i64 t = 0; t < rows.filter; ++t) {
      const i64 tap = rows.forward ? rows.filter - 1 - t : t;  // forward, the filter reads backwards what the kernel stamps
      const i64 first = tap * rows.stride, lines = std::min(rows.stride, rows.kernel - first);
      for (i64 m = 0; m < p.outputs; ++m)
        for (i64 d = 0; d < depth; ++d, to += rows.stride * columns)
          copy_lines(from + m * weight.stride[1] + d * weight.stride[2] + first * weight.stride[3], weight.stride[3], weight.stride[4],
                     lines, columns, to, rows.stride * columns);
    }
    k.transform[rows.tile][rows.filter].weight(taps, {line, 0}, found.data.get() + task * channel, {line, 0}, 1, line, false);
  });
  return found;
}

template PointWeights<float> point_weights(const Plan&, const Kernels<float>&, const View<const float>&, i64);
template PointWeights<double> point_weights(const Plan&, const Kernels<double>&, const View<const double>&, i64);

}  // namespace tconv
