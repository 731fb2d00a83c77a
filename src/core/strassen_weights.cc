// SPDX-License-Identifier: Apache-2.0
// The weights of strassen.h: scaled, and joined in the order in which products read them.
#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"
#include "strassen.h"
#include "weights.h"

namespace tconv {
namespace {

constexpr int kMostPower = 100;  // of two, in a scale

// The weights of a group as lanes, and their scales.
template <class T>
struct Spread {
  const Strassen& s;
  const Kernels<T>& k;
  View<const T> weight;
  T *in, *out;  // scales of the group

  i64 row(i64 b) const { return s.taps() * s.width(b); }
  i64 quarter(i64 b) const { return kPackedChannels * row(b); }
  static i64 some(const Strassen& s, i64 channel) { return std::min(kPackedChannels, s.channels - channel); }

  // The four quarters of a block, of some channels: [half of the channels][half of the outputs][channel][tap][lane].
  T* operator()(i64 b, i64 channel) const {
    T* to = scratch<T>(0, 4 * quarter(b));
    for (i64 q = 0; q < 4; ++q) {
      View<const T> from = weight;
      from.data += (channel + q / 2 * s.channels) * weight.stride[0] + (b * s.block + q % 2 * s.outputs) * weight.stride[1];
      spread_weights(k, from, s.kernel, some(s, channel), s.width(b), to + q * quarter(b), row(b), s.width(b));
    }
    return to;
  }

  // Calls body(channel, output, elements) for every channel of a spread block and each half of the outputs: [tap][lane].
  template <class F>
  void each(i64 b, i64 channel, T* spread, F body) const {
    for (i64 q = 0; q < 4; ++q)
      for (i64 c = 0; c < some(s, channel); ++c)
        body(channel + c + q / 2 * s.channels, b * s.block + q % 2 * s.outputs, spread + q * quarter(b) + c * row(b));
  }
};

// The largest elements of channels to powers of two, as far as these and their inverses are numbers: by how far each is from the mean of
// their logarithms, so that channels that differ little have the same one. What is 0 becomes as small as can be.
template <class T>
void to_powers(T* scales, i64 count) {
  double sum = 0, some = 0;
  for (i64 i = 0; i < count; ++i)
    if (scales[i] > 0 && std::isfinite(scales[i])) sum += std::log2(double(scales[i])), ++some;
  const double mean = some > 0 ? sum / some : 0, most = kMostPower;
  for (i64 i = 0; i < count; ++i)
    scales[i] = std::ldexp(T(1), int(std::clamp(std::round(mean) + std::round(std::log2(double(scales[i])) - mean), -most, most)));
}

// Lane by lane the largest of some taps and of what is there.
template <class T>
void find_most(const T* w, i64 taps, i64 width, T* most) {
  for (; taps > 0; --taps, w += width)
    for (i64 lane = 0; lane < width; ++lane) most[lane] = std::fabs(w[lane]) > most[lane] ? std::fabs(w[lane]) : most[lane];
}

// The largest elements of the outputs of a block; and of some inputs, once the scales of the outputs divide them.
template <class T>
void find_outputs(const Strassen& s, i64 b, const Spread<T>& spread) {
  for (i64 half : {i64(0), s.outputs}) std::fill_n(spread.out + half + b * s.block, s.width(b), T(0));
  for (i64 c = 0; c < s.channels; c += kPackedChannels)
    spread.each(b, c, spread(b, c), [&](i64, i64 output, const T* w) { find_most(w, s.taps(), s.width(b), spread.out + output); });
}
template <class T>
void find_inputs(const Strassen& s, i64 channel, const Spread<T>& spread) {
  for (i64 half : {i64(0), s.channels}) std::fill_n(spread.in + half + channel, spread.some(s, channel), T(0));
  for (i64 b = 0; b < s.blocks; ++b)
    spread.each(b, channel, spread(b, channel), [&](i64 c, i64 output, const T* w) {
      T most[kBlockOutputs] = {};
      find_most(w, s.taps(), s.width(b), most);
      for (i64 lane = 0; lane < s.width(b); ++lane) spread.in[c] = std::max(spread.in[c], most[lane] / spread.out[output + lane]);
    });
}

// Some channels of a block: scaled, exactly, and joined.
template <class T>
void join_block(const Strassen& s, i64 b, i64 channel, const Spread<T>& spread, T* to) {
  const i64 width = s.width(b), some = spread.some(s, channel);
  T* lanes = spread(b, channel);
  spread.each(b, channel, lanes, [&](i64 c, i64 output, T* w) {
    T by_out[kBlockOutputs];
    for (i64 lane = 0; lane < width; ++lane) by_out[lane] = 1 / spread.out[output + lane];
    const T by_in = 1 / spread.in[c];
    for (i64 t = 0; t < s.taps(); ++t, w += width)
      for (i64 lane = 0; lane < width; ++lane) w[lane] = w[lane] * by_out[lane] * by_in;
  });
  std::vector<const T*> from(static_cast<std::size_t>(2 * some));
  each_chunk(s, [&](const Chunk& c) {
    if (channel < c.channel || channel >= c.channel + c.channels) return;
    for (i64 out = 0; out < s.outs; ++out)
      for (i64 in = 0; in < c.phases; ++in) {
        for (i64 i = 0; i < 2 * some; ++i)
          from[std::size_t(i)] = lanes + i % 2 * 2 * spread.quarter(b) + i / 2 * spread.row(b) + (out + c.phase + in) * width;
        T* joined = to + weights_at(s, b, out, c) + (in * c.channels + channel - c.channel) * width;
        spread.k.join_weights(from.data(), spread.quarter(b), nullptr, some, width, joined, width, c.terms() * width);
      }
  });
}

}  // namespace

template <class T>
void pack_weights(const Strassen& s, const Kernels<T>& k, View<const T> weight, i64 group_stride, T* packed) {
  const i64 chunks = ceil_div(s.channels, kPackedChannels);
  const auto spread = [&](i64 group) {
    View<const T> of_group = weight;
    of_group.data += group * group_stride;
    T* to = packed + group * s.group_elements();
    return Spread<T>{s, k, of_group, to + s.joined(), to + s.out_scales()};
  };
  parallel_for(s.groups * s.blocks, s.threads, [&](i64 task) { find_outputs(s, task % s.blocks, spread(task / s.blocks)); });
  for (i64 group = 0; group < s.groups; ++group) to_powers(spread(group).out, 2 * s.outputs);
  parallel_for(s.groups * chunks, s.threads, [&](i64 task) { find_inputs(s, task % chunks * kPackedChannels, spread(task / chunks)); });
  for (i64 group = 0; group < s.groups; ++group) to_powers(spread(group).in, 2 * s.channels);
  parallel_for(s.groups * s.blocks * chunks, s.threads, [&](i64 task) {
    const i64 group = task / chunks / s.blocks;
    join_block(s, task / chunks % s.blocks, task % chunks * kPackedChannels, spread(group), packed + group * s.group_elements());
  });
}

#define TCONV_STRASSEN(T) template void pack_weights<T>(const Strassen&, const Kernels<T>&, View<const T>, i64, T*);
TCONV_STRASSEN(float)
TCONV_STRASSEN(double)

}  // namespace tconv
