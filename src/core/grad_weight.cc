// SPDX-License-Identifier: Apache-2.0
// The weight's gradient: the same microkernel with positions as the summed index and channels as rows and lanes.
//
// x and dy are packed position by position, dy split into its stride phases; a tap is then one constant shift of dy:
//
//   rows   [tile of R channels][phase plane][position][R]      lanes  [phase plane][position][channels, padded to whole vectors]
//   sums   [tap][row channel][lane channel]
//
// Boxes of positions follow one another and every sum adds its terms in their order, so that any number of threads gives
// the same bits: threads share out the packing of a box, then its tiles.
#include <algorithm>

#include "parallel.h"
#include "plan.h"

namespace tconv {
namespace {

constexpr i64 kLaneChunk = 32;  // channels of the lane side that one task packs

// One factor of the products: x (one plane, no halo) or dy (a plane a stride phase).
template <class T>
struct Side {
  Plan plan;  // how its panels are packed; both sides have the same pitches, so that position f of one meets f of the other
  View<const T> from;
  i64 channels;
};

// Panels of x that line up with those of dy: same extents, but one phase and no halo.
Plan aligned(const Plan& dy, const Spec& spec) {
  Plan x = dy;
  for (int i = 0; i < 3; ++i) {
    StencilAxis& a = x.axis[i];
    a.in_size = spec.axis[i].size;
    a.in_stride = 1;
    a.in_lo = a.shift_min = a.shift_max = 0;
    a.in_phases = {0};
  }
  x.planes = 1;
  return x;
}

// Where output channel, input channel and taps go in the result.
struct Orientation {
  bool lanes_are_x;
  i64 row_stride, lane_stride;
};

template <class T>
void one_group(const Kernels<T>& k, const Side<T>& rows, const Side<T>& lanes, Orientation o, View<T> grad, int threads) {
  const Plan& plan = rows.plan;
  const RowGroup& taps = plan.units[0].groups[0];  // grad_input's plan has one phase: one unit, one list of taps
  const Boxes boxes(plan);
  const i64 count = i64(taps.offsets.size()), pitch = round_up(lanes.channels, k.lanes), vectors = pitch / k.lanes;
  const i64 height = tile_rows(k, rows.channels, plan.plane), tiles = ceil_div(rows.channels, height);
  const i64 row_panel = rows.plan.planes * plan.plane, lane_panel = lanes.plan.planes * plan.plane * pitch;
  T* row_data = scratch<T>(0, row_panel * rows.channels);
  T* lane_data = scratch<T>(1, lane_panel);
  const i64 sum_count = plan.taps * rows.channels * pitch;  // of every tap: those that join nothing stay zero
  T* sums = scratch<T>(2, sum_count);
  std::fill_n(lane_data, lane_panel, T(0));
  if (!boxes.count() || count < plan.taps) std::fill_n(sums, sum_count, T(0));

  const auto pack = [&](const Side<T>& side, const Box& box, i64 first, i64 channels, T* to, PanelPitch to_pitch) {
    View<const T> from = side.from;
    from.data += first * from.stride[1];
    pack_panel(side.plan, k, from, channels, box, to, to_pitch);
  };
  const auto multiply = [&](const Box& box, i64 tap, i64 tile, bool add) {
    const i64 first = tile * height, tall = std::min(height, rows.channels - first), none = 0, shift = taps.offsets[tap];
    const T* row = row_data + first * row_panel + (o.lanes_are_x ? shift * tall : 0);
    const T* lane = lane_data + (o.lanes_are_x ? 0 : shift * pitch);
    T* out = sums + (taps.taps[0][tap] * rows.channels + first) * pitch;
    const i64 most = tile_vecs(k, tall);
    i64 at[kMaxRows];
    for (i64 r = 0; r < tall; ++r) at[r] = r * pitch;
    for (i64 v = 0; v < vectors; v += most)
      k.tile[tall][std::min(most, vectors - v)](box.lanes(plan), pitch, 1, &none, row, lane + v * k.lanes, out + v * k.lanes, at, add);
  };
  for (i64 b = 0; b < boxes.count(); ++b) {
    const Box box = boxes(plan, b);
    parallel_for(tiles + ceil_div(lanes.channels, kLaneChunk), threads, [&](i64 task) {
      if (task < tiles) {
        const i64 first = task * height, tall = std::min(height, rows.channels - first);
        pack(rows, box, first, tall, row_data + first * row_panel, {1, tall});
      } else {
        const i64 first = (task - tiles) * kLaneChunk;
        pack(lanes, box, first, std::min(kLaneChunk, lanes.channels - first), lane_data + first, {1, pitch});
      }
    });
    parallel_for(count * tiles, threads, [&](i64 task) { multiply(box, task / tiles, task % tiles, b > 0); });
  }
  const i64 kh = plan.axis[1].kernel, kw = plan.axis[2].kernel;
  parallel_for(rows.channels, threads, [&](i64 r) {
    for (i64 l = 0; l < lanes.channels; ++l)
      for (i64 t = 0; t < plan.taps; ++t)
        grad.data[r * o.row_stride + l * o.lane_stride + t / kw / kh * grad.stride[2] + t / kw % kh * grad.stride[3] +
                  t % kw * grad.stride[4]] = sums[(t * rows.channels + r) * pitch + l];
  });
}

}  // namespace

template <class T>
void grad_weight(const Spec& spec, const Isa& isa, View<const T> x, View<const T> dy, View<T> grad, int threads) {
  // One thread's boxes, whatever the number of threads: where the sums are cut decides their rounding.
  const Kernels<T>& k = isa.kernels<T>();
  const Plan plan(spec, Direction::grad_input, isa, 1, sizeof(T), false);
  const Side<T> xs{aligned(plan, spec), x, plan.outputs}, dys{plan, dy, plan.channels};
  const auto padding = [&](i64 channels) { return double(round_up(channels, k.lanes)) / double(channels); };
  const Orientation o = padding(plan.outputs) < padding(plan.channels) ? Orientation{true, grad.stride[1], grad.stride[0]}
                                                                       : Orientation{false, grad.stride[0], grad.stride[1]};
  const bool spread = plan.groups >= 2 * threads;  // whole groups to threads, or one group after another by all threads
  parallel_for(plan.groups, spread ? threads : 1, [&](i64 g) {
    Side<T> gx = xs, gdy = dys;
    gx.from.data += g * plan.outputs * x.stride[1];
    gdy.from.data += g * plan.channels * dy.stride[1];
    View<T> to = grad;
    to.data += g * plan.outputs * grad.stride[0];
    one_group(k, o.lanes_are_x ? gdy : gx, o.lanes_are_x ? gx : gdy, o, to, spread ? 1 : threads);
  });
}

template void grad_weight<float>(const Spec&, const Isa&, View<const float>, View<const float>, View<float>, int);
template void grad_weight<double>(const Spec&, const Isa&, View<const double>, View<const double>, View<double>, int);

}  // namespace tconv
