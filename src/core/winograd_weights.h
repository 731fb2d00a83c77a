// SPDX-License-Identifier: Apache-2.0
// The weights of winograd.h: how the taps of a block of outputs become points.
#pragma once

#include <algorithm>

#include "weights.h"
#include "winograd_chain.h"

namespace tconv {

template <class T>
struct WeightTransform {
  const Winograd& w;
  const Kernels<T>& k;
  std::vector<Chain<T>> chains;  // of each family

  WeightTransform(const Winograd& plan, const Kernels<T>& kernels) : w(plan), k(kernels) {
    for (const Winograd::Family& f : w.families)
      chains.emplace_back(
          f, w, k, &Transform<T>::weight, false,
          [](const Winograd::Class& c, const Winograd::Along&, i64& before, i64& after) { before = c.taps, after = c.weights; });
  }

  i64 taps() const { return w.axis[0].kernel * w.axis[1].kernel * w.axis[2].kernel; }
  i64 room() const { return std::max(w.points * w.block, kRoomBytes / i64(sizeof(T))); }  // of each of two halves

  // The taps of a block of a group, of so many channels: to[channel][kernel element][lane], with zeros where lanes are none.
  void spread(View<const T> group, i64 b, i64 channel, i64 channels, T* to) const {
    const i64 kernel[3] = {w.axis[0].kernel, w.axis[1].kernel, w.axis[2].kernel};
    const i64 first = b * w.block, width = w.width(b), lanes = std::min(width, w.outputs - first), size = taps() * width;
    group.data += channel * group.stride[0] + first * group.stride[1];
    if (lanes < width) std::fill_n(to, channels * size, T(0));
    spread_weights(k, group, kernel, channels, lanes, to, size, width);
  }

  // Those of a family's phases to points: to[point][channel][lane], with `plane` elements from point to point; `between` are two rooms.
  void operator()(const Winograd::Family& f, i64 b, i64 out, i64 in, const T* spread, i64 channels, T* to, i64 plane, T* between) const {
    const Chain<T>& chain = chains[std::size_t(&f - w.families.data())];
    const i64 width = w.width(b);
    const Phases po(f, &Winograd::Class::out, out), pi(f, &Winograd::Class::in, in);
    Grid<const T> from{spread, {}, taps() * width};
    for (int a = 0; a < 3; ++a) {
      i64 step = width;
      for (int later = a + 1; later < 3; ++later) step *= w.axis[later].kernel;
      const auto element = [&](i64 j) { return w.axis[a].element(*f.along[a], pi.of[a], po.of[a], j); };
      from.data += element(0) * step;
      from.stride[a] = (element(1) - element(0)) * step;
    }
    Grid<T> points = dense(to, chain.after, plane);
    points.tile = width;
    chain(from, points, channels, width, between, room());
  }
};

}  // namespace tconv
