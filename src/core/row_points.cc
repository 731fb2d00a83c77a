// SPDX-License-Identifier: Apache-2.0
// Which tiles of row_points.h a layer has, their axis, and their weights.
#include "row_points.h"

#include <algorithm>

#include "parallel.h"
#include "plan.h"

namespace tconv {
namespace {

constexpr i64 kMostTaps = 4;                 // of a phase: more points round badly
constexpr double kMorePoints = 0.93;         // tiles that round more have to save so much
constexpr i64 kFewRows = 12;                 // of so few, many are near a border, where direct sums are short
constexpr i64 kMostStride = kPhaseMost / 4;  // along a row, whose tiles of up to 4 positions times phases are put together

// Why there are no tiles along an axis, or nothing.
std::string refusal_along(const Spec& spec, int i) {
  const Axis& a = spec.axis[i];
  const i64 taps = ceil_div(a.kernel, a.stride);
  const std::string where = i == 1 ? "from row to row" : "along a row";
  if (a.dilation != 1 && a.kernel > 1) return "it is dilated " + where;
  if (taps < 2) return "no stride phase has two taps " + where;
  if (taps > kMostTaps) return "a stride phase has " + std::to_string(taps) + " taps " + where + "; transforms take 2 to 4";
  if (i == 2 && a.stride > kMostStride) return "its stride along a row is over " + std::to_string(kMostStride);
  return {};
}

}  // namespace

std::string RowPoints::refusal(const Spec& spec) {
  if (refusal_along(spec, 1).empty()) return {};
  const std::string found = refusal_along(spec, 2);
  return found.empty() || spec.axis[1].kernel == 1 ? found : refusal_along(spec, 1);
}

RowPoints::RowPoints(const Spec& spec, bool forward_) : axis(refusal_along(spec, 1).empty() ? 1 : 2), forward(forward_) {
  const Axis& a = spec.axis[axis];
  kernel = a.kernel, stride = a.stride, filter = ceil_div(kernel, stride);
  ins = forward ? 1 : stride, outs = forward ? stride : 1;
  const i64 few = kFewPoints + 1 - filter, all = forward ? ceil_div(floor_mod(a.lo, stride) + a.output(), stride) : a.size;
  const auto products = [&](i64 m) { return double(ceil_div(all, m)) * double(m + filter - 1); };
  const bool powers = axis == 2 && few == 3;  // 4 positions of a row are taken apart, and put together, by fewer shuffles than 3
  const bool more = all >= kFewRows && products(few + 1) < kMorePoints * products(few);
  tile = few < 2 || powers || more ? few + 1 : few;
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

// `lines` times `columns` taps side by side, and zeros around them up to `all_lines` times `all_columns`.
template <class T>
void copy_taps(const T* from, i64 line, i64 step, i64 lines, i64 columns, T* to, i64 all_lines, i64 all_columns) {
  if (step == 1 && line == columns && columns == all_columns) {
    to = std::copy_n(from, lines * columns, to);
  } else {
    for (i64 h = 0; h < lines; ++h, from += line) {
      for (i64 w = 0; w < columns; ++w) *to++ = from[w * step];
      to = std::fill_n(to, all_columns - columns, T(0));
    }
  }
  std::fill_n(to, (all_lines - lines) * all_columns, T(0));
}

// [channel][point][output][depth][line][column], of which one axis has the phases alone, from a channel's taps as [tap of a phase]...
template <class T>
PointWeights<T> point_weights(const Plan& p, const Kernels<T>& k, const View<const T>& weight, i64 group_stride) {
  const RowPoints& rows = p.rows;
  i64 size[3];
  for (int i = 0; i < 3; ++i) size[i] = i == rows.axis ? rows.stride : p.axis[i].kernel;
  const i64 depth_size = size[1] * size[2], output = size[0] * depth_size, line = p.outputs * output;
  const i64 channel = rows.points() * line, group = p.channels * channel;
  PointWeights<T> found{std::make_unique<T[]>(std::size_t(p.groups * group)), group, channel, output, {}};
  i64 at[3];
  for (at[0] = 0; at[0] < p.axis[0].kernel; ++at[0])
    for (at[1] = 0; at[1] < p.axis[1].kernel; ++at[1])
      for (at[2] = 0; at[2] < p.axis[2].kernel; ++at[2]) {
        i64 of[3] = {at[0], at[1], at[2]};
        of[rows.axis] %= rows.stride;
        found.elements.push_back(at[rows.axis] / rows.stride * line + of[0] * depth_size + of[1] * size[2] + of[2]);
      }
  parallel_for(p.groups * p.channels, p.threads, [&](i64 task) {
    const T* from = weight.data + task / p.channels * group_stride + task % p.channels * weight.stride[0];
    T *taps = scratch<T>(2, rows.filter * line), *to = taps;
    for (i64 t = 0; t < rows.filter; ++t) {
      const i64 tap = rows.forward ? rows.filter - 1 - t : t;  // forward, the filter reads backwards what the kernel stamps
      const i64 first = tap * rows.stride;
      i64 some[3] = {size[0], size[1], size[2]};
      some[rows.axis] = std::min(rows.stride, rows.kernel - first);
      for (i64 m = 0; m < p.outputs; ++m)
        for (i64 d = 0; d < size[0]; ++d, to += depth_size)
          copy_taps(from + m * weight.stride[1] + d * weight.stride[2] + first * weight.stride[2 + rows.axis], weight.stride[3],
                    weight.stride[4], some[1], some[2], to, size[1], size[2]);
    }
    k.transform[rows.tile][rows.filter].weight(taps, {line, 0}, found.data.get() + task * channel, {line, 0}, 1, line, false);
  });
  return found;
}

template PointWeights<float> point_weights(const Plan&, const Kernels<float>&, const View<const float>&, i64);
template PointWeights<double> point_weights(const Plan&, const Kernels<double>&, const View<const double>&, i64);

}  // namespace tconv
