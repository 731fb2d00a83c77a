// SPDX-License-Identifier: Apache-2.0
// The weights of a plan, in the order in which tiles read them: [block of outputs][tile][channel][tap][row].
#include <algorithm>

#include "parallel.h"
#include "plan.h"
#include "weights.h"

namespace tconv {
namespace {

// Where the weights [tap][row] of a tile go, for a channel, and where they come from: rows `step` apart, and each tap of the first one; or
// where rows are of several slots, one row, whose taps all of them are.
struct Lie {
  i64 to, rows, step;
  std::vector<i64> taps;
  i64 first = 0, span = 0;               // all taps lie among `span` elements from `first` on
  bool adjacent = false, close = false;  // in their order; or a transpose of the span is the quicker way

  Lie(i64 to_, i64 rows_, i64 step_, std::vector<i64> taps_) : to(to_), rows(rows_), step(step_), taps(std::move(taps_)) {
    constexpr std::size_t kFewest = 4;  // taps that are worth it
    if (taps.size() < kFewest || rows == 1) return;
    const auto [least, most] = std::minmax_element(taps.begin(), taps.end());
    first = *least, span = *most - first + 1, close = span <= 2 * i64(taps.size());
    adjacent = span == i64(taps.size()) && std::is_sorted(taps.begin(), taps.end());
  }
  i64 size() const { return rows * i64(taps.size()); }
};

// The weights of one channel to a tile.
template <class T>
void pack_tile(const Kernels<T>& k, const Lie& lie, const T* from, T* to) {
  const i64 rows = lie.rows;
  if (lie.adjacent) return k.transpose(from + lie.first, lie.step, to, rows, rows, lie.span, nullptr);
  if (rows == 1) {
    for (const i64 tap : lie.taps) *to++ = from[tap];
    return;
  }
  i64 step = lie.step, turned = 1;
  if (lie.close) {
    T* room = scratch<T>(2, lie.span * rows);
    k.transpose(from + lie.first, step, room, rows, rows, lie.span, nullptr);
    from = room - lie.first * rows, step = 1, turned = rows;
  }
  for (const i64 tap : lie.taps)
    for (i64 i = 0; i < rows; ++i) *to++ = from[tap * turned + i * step];
}

// Those of several channels, which are adjacent; taps and rows are not.
template <class T>
void pack_tile_of_channels(const Kernels<T>& k, const Lie& lie, const T* from, i64 channels, T* to) {
  const i64 size = lie.size(), rows = lie.rows;
  if (!size) return;
  T* room = scratch<T>(2, size * kPackedChannels);
  for (std::size_t t = 0; t < lie.taps.size(); ++t)
    k.copy(from + lie.taps[t], lie.step, room + i64(t) * rows * kPackedChannels, kPackedChannels, rows, 0, channels, channels);
  k.transpose(room, kPackedChannels, to, size, size, channels, nullptr);
}

// The tiles of a group of rows, for a block of outputs. Rows of one slot differ in their outputs alone.
std::vector<Lie> lies(const Plan& p, const RowGroup& g, i64 b, i64 step, const std::vector<i64>& element) {
  const i64 outputs = p.block_outputs(b), taps = i64(g.offsets.size()), rows = i64(g.slots.size()) * outputs,
            height = p.rows_of(g, b).height;
  std::vector<Lie> found;
  found.reserve(std::size_t(ceil_div(rows, height)));
  for (i64 r = 0, tall; r < rows; r += tall) {
    tall = std::min(height, rows - r);
    const bool one = p.woven ? g.slots.size() == 1 : r / outputs == (r + tall - 1) / outputs;
    std::vector<i64> at;
    at.reserve(std::size_t(taps * (one ? 1 : tall)));
    for (i64 t = 0; t < taps; ++t)
      for (i64 i = r; i < (one ? r + 1 : r + tall); ++i) {
        const auto [slot, m] = g.row(i, outputs, p.woven);
        at.push_back(m * step + element[std::size_t(g.taps[std::size_t(slot)][std::size_t(t)])]);
      }
    found.emplace_back(p.channels * taps * r, one ? tall : 1, step, std::move(at));
  }
  return found;
}

// A copy in the order of (output, channel, tap).
template <class T>
void copy_in_order(const Plan& p, const View<const T>& weight, i64 group_stride, T* to) {
  const std::vector<i64> element = elements(weight, {p.axis[0].kernel, p.axis[1].kernel, p.axis[2].kernel});
  parallel_for(p.groups * p.outputs, p.threads, [&](i64 task) {
    const T* row = weight.data + task / p.outputs * group_stride + task % p.outputs * weight.stride[1];
    T* at = to + task * p.channels * p.taps;
    for (i64 c = 0; c < p.channels; ++c)
      for (const i64 tap : element) *at++ = row[c * weight.stride[0] + tap];
  });
}

template <class T>
void pack_tiles(const Plan& p, const Kernels<T>& k, const View<const T>& weight, i64 group_stride, const std::vector<i64>& element,
                T* packed) {
  // Channel by channel, as the weight usually lies in memory; the order of one channel's weights in the tiles is worked out once.
  constexpr i64 kFewest = 4;  // channels that are worth a transpose
  const i64 chunks = ceil_div(p.channels, kPackedChannels), runs = chunks < 2 * p.threads ? p.blocks : 1, blocks = p.blocks / runs;
  parallel_for(p.groups * chunks * runs, p.threads, [&](i64 task) {
    const i64 run = task % runs, chunk = task / runs % chunks, group = task / runs / chunks;
    const i64 begin = chunk * kPackedChannels, end = std::min(p.channels, begin + kPackedChannels);
    for (i64 b = run * blocks; b < (run + 1) * blocks; ++b) {
      const i64 first = b * p.block;
      const T* from = weight.data + group * group_stride + first * weight.stride[1];
      T* to = packed + (group * p.outputs + first) * p.channels * p.weights;
      for (const Unit& unit : p.units)
        for (const RowGroup& g : unit.groups) {
          const std::vector<Lie> tiles = lies(p, g, b, weight.stride[1], element);
          if (weight.stride[0] == 1 && end - begin >= kFewest)
            for (const Lie& lie : tiles) pack_tile_of_channels(k, lie, from + begin, end - begin, to + lie.to + begin * lie.size());
          else
            for (i64 c = begin; c < end; ++c)
              for (const Lie& lie : tiles) pack_tile(k, lie, from + c * weight.stride[0], to + lie.to + c * lie.size());
          to += p.channels * i64(g.offsets.size() * g.slots.size()) * p.block_outputs(b);
        }
    }
  });
}

}  // namespace

template <class T>
void pack_weights(const Plan& p, const Kernels<T>& k, View<const T> weight, i64 group_stride, T* packed) {
  if (p.raw) return copy_in_order(p, weight, group_stride, packed);
  if (!p.rows.tile)
    return pack_tiles(p, k, weight, group_stride, elements(weight, {p.axis[0].kernel, p.axis[1].kernel, p.axis[2].kernel}), packed);
  const PointWeights<T> points = point_weights(p, k, weight, group_stride);
  pack_tiles(p, k, {points.data.get(), {points.channel, points.output}}, points.group, points.elements, packed);
}

template void pack_weights<float>(const Plan&, const Kernels<float>&, View<const float>, i64, float*);
template void pack_weights<double>(const Plan&, const Kernels<double>&, View<const double>, i64, double*);

}  // namespace tconv
