// SPDX-License-Identifier: Apache-2.0
// Weights with a lane for every output, from weights of any strides: frameworks order their axes differently.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "spec.h"

namespace tconv {

// Where the elements of a kernel lie, w fastest.
template <class T>
std::vector<i64> elements(const View<T>& weight, const i64 (&kernel)[3]) {
  std::vector<i64> at;
  at.reserve(std::size_t(kernel[0] * kernel[1] * kernel[2]));
  for (i64 d = 0; d < kernel[0]; ++d)
    for (i64 h = 0; h < kernel[1]; ++h)
      for (i64 w = 0; w < kernel[2]; ++w) at.push_back(d * weight.stride[2] + h * weight.stride[3] + w * weight.stride[4]);
  return at;
}

inline bool adjacent(const std::vector<i64>& element) {
  i64 next = 0;
  return std::all_of(element.begin(), element.end(), [&](i64 at) { return at == next++; });
}

// to[c * channel + t * tap + m] = weight[c, m, t] for so many channels c, outputs m and all taps t, along whichever axis is adjacent.
template <class T>
void spread_weights(const Kernels<T>& k, const View<const T>& weight, const i64 (&kernel)[3], i64 channels, i64 outputs, T* to, i64 channel,
                    i64 tap) {
  const std::vector<i64> element = elements(weight, kernel);
  const i64 taps = i64(element.size()), *stride = weight.stride;
  if (adjacent(element)) {
    // Where channels are adjacent too, as those of a gradient by the input, all are one.
    if (stride[0] == taps && channel == taps * tap) return k.transpose(weight.data, stride[1], to, tap, outputs, channels * taps, nullptr);
    for (i64 c = 0; c < channels; ++c) k.transpose(weight.data + c * stride[0], stride[1], to + c * channel, tap, outputs, taps, nullptr);
    return;
  }
  for (const i64 at : element) {
    const T* from = weight.data + at;
    if (stride[1] == 1)
      k.copy(from, stride[0], to, channel, channels, 0, outputs, outputs);
    else if (stride[0] == 1)
      k.transpose(from, stride[1], to, channel, outputs, channels, nullptr);
    else
      for (i64 c = 0; c < channels; ++c)
        for (i64 m = 0; m < outputs; ++m) to[c * channel + m] = from[c * stride[0] + m * stride[1]];
    to += tap;
  }
}

// Sums of several spans, `step` elements apart, to those of the first one: in their order, so that threads change no bit.
template <class T>
void add_spans(T* sums, i64 spans, i64 step, i64 count) {
  for (i64 span = 1; span < spans; ++span)
    for (i64 i = 0; i < count; ++i) sums[i] += sums[span * step + i];
}

// The way back: sums[m * taps * pitch + t * pitch + c] to weight[c, m, t].
template <class T>
void collect_weights(const Kernels<T>& k, const T* sums, i64 pitch, const i64 (&kernel)[3], i64 channels, i64 outputs,
                     const View<T>& weight) {
  const std::vector<i64> element = elements(weight, kernel);
  const i64 taps = i64(element.size()), *stride = weight.stride, rows = outputs * taps;
  if (adjacent(element) && (stride[1] == taps || outputs == 1))
    return k.transpose(sums, pitch, weight.data, stride[0], rows, channels, nullptr);
  if (stride[0] == 1) {
    for (i64 t = 0; t < taps; ++t)
      k.copy(sums + t * pitch, taps * pitch, weight.data + element[std::size_t(t)], stride[1], outputs, 0, channels, channels);
    return;
  }
  for (i64 c = 0; c < channels; ++c)
    for (i64 r = 0; r < rows; ++r) weight.data[c * stride[0] + r / taps * stride[1] + element[std::size_t(r % taps)]] = sums[r * pitch + c];
}

}  // namespace tconv
