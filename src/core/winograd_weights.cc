// SPDX-License-Identifier: Apache-2.0
// All weights of winograd.h, transformed in the order in which products read them.
#include "winograd_weights.h"

#include "parallel.h"

namespace tconv {

template <class T>
void pack_weights(const Winograd& w, const Kernels<T>& k, View<const T> weight, i64 group_stride, T* packed) {
  const i64 chunks = ceil_div(w.channels, kPackedChannels);
  const WeightTransform<T> transform(w, k);
  parallel_for(w.groups * w.blocks * chunks, w.threads, [&](i64 task) {
    const i64 group = task / (chunks * w.blocks), b = task / chunks % w.blocks, begin = task % chunks * kPackedChannels;
    const i64 channels = std::min(kPackedChannels, w.channels - begin), width = w.width(b),
              size = kPackedChannels * transform.taps() * width;
    T* taps = scratch<T>(0, size + 2 * transform.room());
    View<const T> from = weight;
    from.data += group * group_stride;
    transform.spread(from, b, begin, channels, taps);
    T* of_group = packed + group * w.blocks * w.block * w.channels * w.weights;
    for (const Winograd::Family& f : w.families)
      for (i64 out = 0; out < f.outs; ++out)
        for (i64 in = 0; in < f.ins; ++in)
          transform(f, b, out, in, taps, channels, weights_of(w, of_group, f, b, out) + (in * w.channels + begin) * width,
                    f.ins * w.channels * width, taps + size);
  });
}

#define TCONV_WINOGRAD(T) template void pack_weights<T>(const Winograd&, const Kernels<T>&, View<const T>, i64, T*);
TCONV_WINOGRAD(float)
TCONV_WINOGRAD(double)

}  // namespace tconv
