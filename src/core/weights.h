// SPDX-License-Identifier: Apache-2.0
// Weights with a lane for every output, from weights of any strides: frameworks order their axes differently.
#pragma once

#include "kernels.h"
#include "spec.h"

namespace tconv {

// Where an element of the kernel lies; elements are counted with w fastest.
template <class T>
i64 element(const View<T>& weight, const i64 (&kernel)[3], i64 tap) {
  const i64 d = tap / kernel[2] / kernel[1], h = tap / kernel[2] % kernel[1], w = tap % kernel[2];
  return d * weight.stride[2] + h * weight.stride[3] + w * weight.stride[4];
}

// to[c * channel + t * tap + m] = weight[c, m, t] for so many channels c, outputs m and all taps t, along whichever axis is adjacent.
template <class T>
void spread_weights(const Kernels<T>& k, const View<const T>& weight, const i64 (&kernel)[3], i64 channels, i64 outputs, T* to, i64 channel,
                    i64 tap) {
  const i64 taps = kernel[0] * kernel[1] * kernel[2], *stride = weight.stride;
  if (stride[4] == 1 && stride[3] == kernel[2] && stride[2] == kernel[1] * kernel[2]) {
    for (i64 c = 0; c < channels; ++c) k.transpose(weight.data + c * stride[0], stride[1], to + c * channel, tap, outputs, taps, nullptr);
    return;
  }
  for (i64 t = 0; t < taps; ++t, to += tap) {
    const T* from = weight.data + element(weight, kernel, t);
    if (stride[1] == 1)
      k.copy(from, stride[0], to, channel, channels, 0, outputs, outputs);
    else if (stride[0] == 1)
      k.transpose(from, stride[1], to, channel, outputs, channels, nullptr);
    else
      for (i64 c = 0; c < channels; ++c)
        for (i64 m = 0; m < outputs; ++m) to[c * channel + m] = from[c * stride[0] + m * stride[1]];
  }
}

}  // namespace tconv
