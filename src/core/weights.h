// SPDX-License-Identifier: Apache-2.0
// Weights with a lane for every output, from weights of any strides: frameworks order their axes differently.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "parallel.h"
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

constexpr i64 kAheadChannels = 3;  // whose weights are fetched meanwhile
// So many taps fill squares well enough, or if they are a multiple of a vector; the outputs of the widest block, and elements of an output
// that are turned together.
constexpr i64 kFewTaps = 48, kBlockOutputs = kGatherVecs * 16, kSpread = 128;

// to[c * channel + t * tap + m] = weight[c, m, t] for so many channels c, outputs m and all taps t, along whichever axis is adjacent.
template <class T>
void spread_weights(const Kernels<T>& k, const View<const T>& weight, const i64 (&kernel)[3], i64 channels, i64 outputs, T* to, i64 channel,
                    i64 tap) {
  const std::vector<i64> element = elements(weight, kernel);
  const i64 taps = i64(element.size()), *stride = weight.stride;
  if (adjacent(element)) {
    // Where channels are adjacent too, as those of a gradient by the input, all are one; of taps that fill no squares by way of a few
    // channels in order.
    if (stride[0] == taps && channel == taps * tap) return k.transpose(weight.data, stride[1], to, tap, outputs, channels * taps, nullptr);
    if (stride[0] == taps && taps > 1 && taps < kFewTaps && taps % k.lanes && outputs <= kBlockOutputs) {
      alignas(kLine) T room[kSpread * kBlockOutputs];
      for (i64 c = 0, some; c < channels; c += some) {
        some = std::min(kSpread / taps, channels - c);
        k.transpose(weight.data + c * taps, stride[1], room, outputs, outputs, some * taps, nullptr);
        for (i64 t = 0; t < taps; ++t)
          k.copy(room + t * outputs, taps * outputs, to + c * channel + t * tap, channel, some, 0, outputs, outputs);
      }
      return;
    }
    // Those of a channel lie side by side, and the next channel's on another page, where the hardware does not look ahead.
    for (i64 c = 0; c < channels; ++c) {
      const T* from = weight.data + c * stride[0];
      if (stride[1] == taps)
        for (i64 i = 0; i < outputs * taps; i += kLine / i64(sizeof(T))) __builtin_prefetch(from + kAheadChannels * stride[0] + i);
      if (stride[1] == taps && taps > 1 && weaves(taps))
        k.unweave(from, taps, outputs, to + c * channel, tap);
      else
        k.transpose(from, stride[1], to + c * channel, tap, outputs, taps, nullptr);
    }
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

constexpr i64 kPackedChannels = 16;  // at once: an input gradient's lie side by side, and its outputs pages apart

// So many channels at most, from channel `begin` on, of block b of a plan whose lanes are output channels:
// to[tap][channel < depth][lane < width of the block], with zeros where lanes or channels are none.
template <class P, class T>
void pack_channels(const P& p, i64 depth, const Kernels<T>& k, View<const T> weight, i64 b, i64 begin, T* to) {
  const i64 kernel[3] = {p.axis[0].kernel, p.axis[1].kernel, p.axis[2].kernel}, width = p.width(b), pitch = depth * width;
  const i64 channels = std::min(p.channels - begin, kPackedChannels), padded = std::min(depth - begin, kPackedChannels);
  const i64 lanes = std::min(width, p.outputs - b * p.block);
  weight.data += begin * weight.stride[0] + b * p.block * weight.stride[1];
  to += begin * width;
  if (lanes < width || channels < padded)
    for (i64 t = 0; t < p.taps; ++t) std::fill_n(to + t * pitch, padded * width, T(0));
  spread_weights(k, weight, kernel, channels, lanes, to, width, pitch);
}

// All of them: packed[group][block][tap][channel][lane].
template <class P, class T>
void pack_blocks(const P& p, i64 depth, const Kernels<T>& k, View<const T> weight, i64 group_stride, T* packed) {
  const i64 chunks = ceil_div(p.channels, kPackedChannels), size = p.taps * depth * p.block;
  parallel_for(p.groups * chunks, p.threads, [&](i64 task) {
    const i64 group = task / chunks, begin = task % chunks * kPackedChannels;
    View<const T> from = weight;
    from.data += group * group_stride;
    for (i64 b = 0; b < p.blocks; ++b) pack_channels(p, depth, k, from, b, begin, packed + (group * p.blocks + b) * size);
  });
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
