// SPDX-License-Identifier: Apache-2.0
// The weights of winograd.h: transformed once, in the order in which products read them.
#include <algorithm>

#include "parallel.h"
#include "weights.h"
#include "winograd_chain.h"

namespace tconv {
namespace {

// The taps of channels, [channel][kernel element][lane], transformed for every family.
template <class T>
struct WeightPacker {
  const Winograd& w;
  const Kernels<T>& k;
  std::vector<Chain<T>> chains;

  WeightPacker(const Winograd& plan, const Kernels<T>& kernels) : w(plan), k(kernels) {
    for (const Winograd::Family& f : w.families)
      chains.emplace_back(
          f, w, k, &Transform<T>::weight, false,
          [](const Winograd::Class& c, const Winograd::Along&, i64& before, i64& after) { before = c.taps, after = c.weights; });
  }

  i64 room() const { return std::max(w.points * w.block, kRoomBytes / i64(sizeof(T))); }  // of two

  void operator()(const T* taps, i64 size, T* group, i64 b, i64 channel, i64 channels, T* between) const {
    const i64 width = w.width(b);
    for (std::size_t i = 0; i < chains.size(); ++i) {
      const Winograd::Family& f = w.families[i];
      for (i64 out = 0; out < f.outs; ++out)
        for (i64 in = 0; in < f.ins; ++in) {
          const Phases po(f, &Winograd::Class::out, out), pi(f, &Winograd::Class::in, in);
          Grid<const T> from{taps, {}, size};
          for (int a = 0; a < 3; ++a) {
            i64 step = width;
            for (int later = a + 1; later < 3; ++later) step *= w.axis[later].kernel;
            const auto element = [&](i64 j) { return w.axis[a].element(*f.along[a], pi.of[a], po.of[a], j); };
            from.data += element(0) * step;
            from.stride[a] = (element(1) - element(0)) * step;
          }
          T* to = weights_of(w, group, f, b, out) + (in * w.channels + channel) * width;
          Grid<T> points = dense(to, chains[i].after, f.ins * w.channels * width);
          points.tile = width;
          chains[i](from, points, channels, width, between, room());
        }
    }
  }
};

}  // namespace

template <class T>
void pack_weights(const Winograd& w, const Kernels<T>& k, View<const T> weight, i64 group_stride, T* packed) {
  constexpr i64 kChannels = 16;
  const i64 kernel[3] = {w.axis[0].kernel, w.axis[1].kernel, w.axis[2].kernel}, chunks = ceil_div(w.channels, kChannels);
  const i64 taps = kernel[0] * kernel[1] * kernel[2];
  const WeightPacker<T> pack(w, k);
  parallel_for(w.groups * w.blocks * chunks, w.threads, [&](i64 task) {
    const i64 group = task / (chunks * w.blocks), b = task / chunks % w.blocks, begin = task % chunks * kChannels;
    const i64 first = b * w.block, width = w.width(b), lanes = std::min(width, w.outputs - first),
              channels = std::min(kChannels, w.channels - begin);
    const i64 size = taps * width;  // of one channel
    T* elements = scratch<T>(0, kChannels * size + 2 * pack.room());
    View<const T> from = weight;
    from.data += group * group_stride + begin * weight.stride[0] + first * weight.stride[1];
    if (lanes < width) std::fill_n(elements, channels * size, T(0));
    spread_weights(k, from, kernel, channels, lanes, elements, size, width);
    pack(elements, size, packed + group * w.blocks * w.block * w.channels * w.weights, b, begin, channels, elements + kChannels * size);
  });
}

#define TCONV_WINOGRAD(T) template void pack_weights<T>(const Winograd&, const Kernels<T>&, View<const T>, i64, T*);
TCONV_WINOGRAD(float)
TCONV_WINOGRAD(double)

}  // namespace tconv
