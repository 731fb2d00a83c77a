// SPDX-License-Identifier: Apache-2.0
// Runs a plan: pack a box of inputs, multiply, put the phases together in the output. See plan.h for the layout.
#include <algorithm>

#include "parallel.h"
#include "stencil_points.h"
#include "stencil_rows.h"

namespace tconv {
namespace {

// Sums of one unit for a strip; meanwhile another strip is written. With `woven` they go to the output, the last ones overlapping those
// before them, so that nothing is written beyond the row. `channel`: elements from one to the next.
template <class T, class S>
void multiply(const Plan& p, const Kernels<T>& k, const Unit& unit, const T* panel, i64 channel, const Strip& strip, i64 b,
              const T* weights, T* sums, Writer<T, S>& writer, Woven<T, S>* woven) {
  const i64 outputs = p.block_outputs(b), run = unit.end - unit.begin;
  const i64 lanes = woven ? woven->positions() : strip.vectors * k.lanes;
  panel += strip.lane;
  for (const RowGroup& g : unit.groups) {
    const RowGroup::Rows& of = p.rows_of(g, b);
    const i64 taps = i64(g.offsets.size()), rows = i64(of.sums.size());
    // Channels added up in one go, or a part of the taps of one channel.
    const i64 part = taps ? even(p.channels, p.rows.terms(taps * p.channels) / taps) : p.channels,
              taps_part = taps > kTerms ? even(taps, kTerms) : std::max<i64>(taps, 1);
    const WovenRow<T>* first = woven ? woven->of(g) : nullptr;
    TileSums<T> to{sums, nullptr, false, nullptr, run, 0, 0, woven && woven->stream(), Woven<T, S>::kRounded};
    const i64 rows_ahead = of.height / run;
    i64 tall = 0, wide = 0, times = 0;
    for (i64 r = 0; r < rows; r += of.height, first += first ? rows_ahead : 0) {
      if (tall != std::min<i64>(of.height, rows - r)) {
        tall = std::min<i64>(of.height, rows - r), wide = even(strip.vectors, tile_vecs(k, tall));
        times = unit.tiles * ceil_div(strip.vectors, wide);
      }
      const T* w = weights + (g.weights_before * outputs + r * taps) * p.channels;
      to.rows = of.sums.data() + r;
      for (i64 c = 0; c < p.channels; c += part)
        for (i64 t = 0; t < std::max<i64>(taps, 1); t += taps_part) {
          to.add = g.add || c > 0 || t > 0, to.woven = c + part >= p.channels && t + taps_part >= taps ? first : nullptr;
          for (i64 v = 0; v < strip.vectors; v += wide) {
            const i64 vectors = std::min(wide, strip.vectors - v), end = std::min(lanes, (v + vectors) * k.lanes),
                      lane = vectors > 1 ? v * k.lanes : end - k.lanes;
            to.sums = sums + v * k.lanes, to.column = lane * run, to.last = end - k.lanes - lane;
            if (to.woven && p.far && !to.stream) woven->fetch(to.woven, tall / run, to.column, (end - lane) * run);
            k.tile[tall][vectors](std::min(part, p.channels - c), channel, std::min(taps_part, taps - t), g.offsets.data() + t,
                                  w + (c * taps + t) * (p.raw ? 1 : tall), p.raw ? taps * p.channels : 0, panel + c * channel + lane, to);
            writer.some(times);
          }
        }
    }
  }
  if (woven) woven->activate();
}

}  // namespace

i64 Plan::unit_rows() const {
  i64 most = 0;
  for (const Unit& unit : units) most = std::max(most, i64(unit.slot.size()) * block);
  return most;
}

template <class T, class S>
void run(const Plan& p, const Kernels<T>& k, View<const T> in, const Weights<T>& weights, const Epilogue<T>& epilogue, View<S> out) {
  const T* packed = weights.packed;
  const Boxes boxes(p);
  const Plan::Tasks& tasks = p.tasks;
  const i64 unit_rows = p.unit_rows();
  parallel_for(tasks.count, p.threads, [&](i64 task) {
    const Box box = boxes(p, tasks.box(task));
    const i64 first_group = tasks.first_group(task), last_group = std::min(p.groups, first_group + tasks.groups_at_once);
    const i64 first_block = tasks.first_block(task), last_block = std::min(p.blocks, first_block + tasks.blocks_at_once);
    const Strips strips(p, box, k.lanes);
    const bool lines = adjacent(p, in.stride);
    const std::vector<Stretch> stretches = !lines        ? std::vector<Stretch>()
                                           : p.rows.tile ? input_stretches(p, in.stride, box)
                                                         : panel_stretches(p, in.stride, box);
    T* panel = scratch<T>(0, p.panel);
    T* sums = scratch<T>(1, p.strip_sums() * unit_rows * p.pitch);
    T* points = sums + 3 * unit_rows * p.pitch;
    const OutputRows written(p, box, strips, out.stride);
    Writer<T, S> writer(p, k, epilogue, out, sums + 2 * unit_rows * p.pitch);
    Woven<T, S> woven(p, k, epilogue, out);
    bool odd = false;
    for (i64 group = first_group; group < last_group; ++group) {
      View<const T> from = in;
      from.data += group * p.channels * in.stride[1];
      const bool lie = in_place(p, in, box, group, stretches, strips.strips.back().lane + strips.strips.back().vectors * k.lanes);
      if (!lie) {
        p.rows.tile ? pack_points(p, k, in, box, group, stretches, panel) : pack_panel(p, k, in, box, group, stretches, panel);
        std::fill_n(panel + p.panel - kSlack, kSlack, T(0));
      }
      const T* inputs = lie ? from.data + stretches[0].from : panel;
      const i64 channel = lie ? in.stride[1] : p.planes * p.plane;
      for (i64 b = first_block; b < last_block; ++b) {
        const i64 outputs = p.block_outputs(b), first = group * p.outputs + b * p.block;
        const OutputRow* row = written.rows.data();
        for (std::size_t u = 0, at = 0; u < p.units.size(); ++u)
          for (const Strip& strip : strips.strips) {
            const OutputRow* end = written.rows.data() + written.ends[at++];
            if (row < end) {
              const bool direct = woven.begin(row, end, first, outputs, p.units[u], strip);
              T* fresh = sums + (odd ? unit_rows * p.pitch : 0);
              multiply(p, k, p.units[u], inputs, channel, strip, b, packed + first * p.channels * p.weights, p.rows.tile ? points : fresh,
                       writer, direct ? &woven : nullptr);
              if (p.rows.tile) points_to_rows(p, k, p.units[u], outputs, strip.vectors * k.lanes, points, fresh);
              if (!direct) writer.begin(row, end, fresh, first, outputs, p.units[u], strip), odd = !odd;
            }
            row = end;
          }
      }
    }
    writer.rest();
    fence(p.large);
  });
}

TCONV_RUNS(Plan)

}  // namespace tconv
