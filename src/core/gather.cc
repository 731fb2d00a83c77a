// SPDX-License-Identifier: Apache-2.0
#include "gather.h"

#include <algorithm>
#include <limits>

#include "parallel.h"

namespace tconv {
namespace {

constexpr i64 kRowBytes = 384 << 10;  // packed rows of a chunk: with a run of weights they fit a second-level cache
constexpr i64 kMostRows = 256;
constexpr i64 kOutside = std::numeric_limits<i64>::min();  // a tap that reads outside the input

// Classes of one axis. Neighbours join while a class has fewer than `fewest` outputs, which would make tiles too low.
std::vector<Gather::Class> make_classes(const Gather& g, int i, i64 fewest) {
  const StencilAxis& a = g.axis[i];
  std::vector<Gather::Class> found;
  for (const auto& range : a.out_phases)
    for (i64 phase = range.first; phase < range.second; ++phase) {
      const std::size_t first = found.size();  // classes of other phases read other taps and never join
      const i64 lead = (phase - a.out_lo) % a.out_stride;
      for (i64 o = lead < 0 ? lead + a.out_stride : lead; o < a.out_size; o += a.out_stride) {
        std::vector<Tap> taps;
        for (const Tap& t : a.taps)
          if (const i64 at = g.input(i, o, t); t.out_phase == phase && at >= 0 && at < a.in_size) taps.push_back(t);
        const auto same = [&](const Gather::Class& c) {
          return std::equal(c.taps.begin(), c.taps.end(), taps.begin(), taps.end(),
                            [](const Tap& x, const Tap& y) { return x.tap == y.tap; });
        };
        auto home = std::find_if(found.begin() + i64(first), found.end(), same);
        if (home == found.end() && found.size() > first && i64(found.back().outputs.size()) < fewest) {
          home = found.end() - 1;
          for (const Tap& t : taps)
            if (std::none_of(home->taps.begin(), home->taps.end(), [&](const Tap& x) { return x.tap == t.tap; })) home->taps.push_back(t);
        }
        if (home == found.end()) home = found.insert(found.end(), Gather::Class{{}, std::move(taps)});
        home->outputs.push_back(o);
      }
    }
  return found;
}

// One row of a chunk: its image and its output on every axis.
struct Row {
  i64 image, at[3];
  Row(const Gather::Chunk& c, i64 index) {
    for (int i = 2; i >= 0; --i) {
      const i64 size = i64(c.along[i]->outputs.size());
      at[i] = c.along[i]->outputs[std::size_t(index % size)];
      index /= size;
    }
    image = index;
  }
};

// Where each row of a tile reads through each tap: an offset from channel 0, or kOutside.
void sources(const Gather& g, const Gather::Chunk& chunk, i64 first, i64 rows, const i64* stride, std::vector<i64>& found) {
  found.assign(std::size_t(chunk.taps() * rows), kOutside);
  for (i64 r = 0; r < rows; ++r) {
    const Row row(chunk, first + r);
    i64 t = 0;
    for (const Tap& d : chunk.along[0]->taps)
      for (const Tap& h : chunk.along[1]->taps)
        for (const Tap& w : chunk.along[2]->taps) {
          const i64 at[3] = {g.input(0, row.at[0], d), g.input(1, row.at[1], h), g.input(2, row.at[2], w)};
          bool inside = true;
          for (int i = 0; i < 3; ++i) inside = inside && at[i] >= 0 && at[i] < g.axis[i].in_size;
          if (inside) found[std::size_t(t * rows + r)] = row.image * stride[0] + at[0] * stride[2] + at[1] * stride[3] + at[2] * stride[4];
          ++t;
        }
  }
}

// The broadcasts of one tile: to[(c * taps + t) * rows + r], zero where a tap reads outside the input.
template <class T>
void pack_rows(const std::vector<i64>& from, const T* in, i64 channel_stride, i64 channels, T* to) {
  const i64 size = i64(from.size());
  constexpr i64 kBlock = 16;  // channels: a line, where they are adjacent
  for (i64 c0 = 0; c0 < channels; c0 += kBlock) {
    const i64 c1 = std::min(channels, c0 + kBlock);
    if (channel_stride == 1) {
      for (i64 i = 0; i < size; ++i)
        for (i64 c = c0; c < c1; ++c) to[c * size + i] = from[i] == kOutside ? T(0) : in[from[i] + c];
    } else {
      for (i64 c = c0; c < c1; ++c)
        for (i64 i = 0; i < size; ++i) to[c * size + i] = from[i] == kOutside ? T(0) : in[from[i] + c * channel_stride];
    }
  }
}

template <class T>
void write_rows(const Gather& g, const Gather::Chunk& chunk, const T* sums, i64 sums_pitch, i64 outputs, const T* bias,
                const View<T>& out) {
  for (i64 r = chunk.begin; r < chunk.end;) {
    const Row row(chunk, r);
    T* y = out.data + row.image * out.stride[0] + row.at[0] * out.stride[2] + row.at[1] * out.stride[3] + row.at[2] * out.stride[4];
    // Rows along the last axis step by the stride, except where a class of border outputs was joined to another.
    i64 run = 1;
    while (r + run < chunk.end && out.stride[1] != 1) {
      const Row next(chunk, r + run);
      if (next.image != row.image || next.at[0] != row.at[0] || next.at[1] != row.at[1] || next.at[2] != row.at[2] + run * g.axis[2].out_stride) break;
      ++run;
    }
    const T* from = sums + (r - chunk.begin) * sums_pitch;
    if (out.stride[1] == 1)
      for (i64 m = 0; m < outputs; ++m) y[m] = from[m] + (bias ? bias[m] : T(0));
    else
      for (i64 m = 0; m < outputs; ++m)
        for (i64 i = 0; i < run; ++i)
          y[m * out.stride[1] + i * out.stride[4] * g.axis[2].out_stride] = from[i * sums_pitch + m] + (bias ? bias[m] : T(0));
    r += run;
  }
}

}  // namespace

i64 Gather::input(int i, i64 output, const Tap& tap) const {
  const StencilAxis& a = axis[i];
  return a.in_stride * ((output + a.out_lo - tap.out_phase) / a.out_stride - tap.shift) + tap.in_phase - a.in_lo;
}

Gather::Gather(const Spec& spec, Direction direction, int threads_, int lanes, i64 element_bytes)
    : batch(spec.batch), groups(spec.groups), threads(threads_) {
  const bool forward = direction == Direction::forward;
  channels = (forward ? spec.in_channels : spec.out_channels) / groups;
  outputs = (forward ? spec.out_channels : spec.in_channels) / groups;
  pitch = round_up(outputs, lanes);
  taps = 1;
  for (int i = 0; i < 3; ++i) {
    axis[i] = StencilAxis(spec.axis[i], direction);
    taps *= axis[i].kernel;
  }
  for (int i = 0; i < 3; ++i) {
    i64 others = batch;  // rows that one output of this axis stands for, about
    for (int j = 0; j < 3; ++j) others *= j == i ? 1 : ceil_div(axis[j].out_size, axis[j].out_stride);
    classes[i] = make_classes(*this, i, ceil_div(kMaxRows, std::max<i64>(others, 1)));
  }
  for (const Class& d : classes[0])
    for (const Class& h : classes[1])
      for (const Class& w : classes[2]) {
        Chunk chunk{{&d, &h, &w}, 0, 0};
        const i64 rows = batch * i64(d.outputs.size() * h.outputs.size() * w.outputs.size());
        if (!rows) continue;
        const i64 most = kRowBytes / (element_bytes * channels * std::max<i64>(chunk.taps(), 1)) / kMaxRows * kMaxRows;
        const i64 step = round_up(ceil_div(rows, ceil_div(rows, std::clamp<i64>(most, kMaxRows, kMostRows))), kMaxRows);
        for (; chunk.begin < rows; chunk.begin = chunk.end) {
          chunk.end = std::min(rows, chunk.begin + step);
          chunks.push_back(chunk);
        }
      }
  const i64 tasks = std::max<i64>(1, i64(chunks.size()) * groups);
  run_lanes = round_up(ceil_div(pitch, threads > 1 ? ceil_div(4 * threads, tasks) : 1), 2 * lanes);
  runs = ceil_div(pitch, run_lanes);
}

template <class T>
void pack_weights(const Gather& g, View<const T> weight, i64 group_stride, T* packed) {
  constexpr i64 kBlock = 32;  // output channels whose taps stay in the first-level cache
  parallel_for(g.groups * g.channels, g.threads, [&](i64 task) {
    const i64 group = task / g.channels, c = task % g.channels, kh = g.axis[1].kernel, kw = g.axis[2].kernel;
    const T* from = weight.data + group * group_stride + c * weight.stride[0];
    T* to = packed + (group * g.taps * g.channels + c) * g.pitch;
    for (i64 m0 = 0; m0 < g.pitch; m0 += kBlock)
      for (i64 t = 0; t < g.taps; ++t) {
        const T* tap = from + t / kw / kh * weight.stride[2] + t / kw % kh * weight.stride[3] + t % kw * weight.stride[4];
        T* row = to + t * g.channels * g.pitch;
        for (i64 m = m0; m < std::min(g.pitch, m0 + kBlock); ++m) row[m] = m < g.outputs ? tap[m * weight.stride[1]] : T(0);
      }
  });
}

template <class T>
void run(const Gather& g, const Kernels<T>& k, View<const T> in, const T* packed, const T* bias, View<T> out) {
  parallel_for(i64(g.chunks.size()) * g.groups * g.runs, g.threads, [&](i64 task) {
    const i64 turn = task % g.runs, group = task / g.runs % g.groups;
    const Gather::Chunk& chunk = g.chunks[std::size_t(task / (g.runs * g.groups))];
    const i64 rows = chunk.end - chunk.begin, taps = chunk.taps(), height = tile_rows(k, rows, g.channels * taps);
    const i64 lane0 = turn * g.run_lanes, lanes = std::min(g.run_lanes, g.pitch - lane0), sums_pitch = g.run_lanes;
    T* row_data = scratch<T>(0, rows * g.channels * taps);
    T* sums = scratch<T>(1, rows * sums_pitch);
    std::vector<i64> from, offsets;
    for (i64 r = 0; r < rows; r += height) {
      sources(g, chunk, chunk.begin + r, std::min(height, rows - r), in.stride, from);
      pack_rows(from, in.data + group * g.channels * in.stride[1], in.stride[1], g.channels, row_data + r * g.channels * taps);
    }
    for (const Tap& d : chunk.along[0]->taps)
      for (const Tap& h : chunk.along[1]->taps)
        for (const Tap& w : chunk.along[2]->taps)
          offsets.push_back(((d.tap * g.axis[1].kernel + h.tap) * g.axis[2].kernel + w.tap) * g.channels * g.pitch);
    const T* weights = packed + group * g.taps * g.channels * g.pitch + lane0;
    i64 most = kMaxVecs;
    while (!k.tile[std::min(height, rows)][most]) --most;
    for (i64 v = 0; v < lanes / k.lanes; v += most)
      for (i64 r = 0; r < rows; r += height)
        k.tile[std::min(height, rows - r)][std::min(most, lanes / k.lanes - v)](g.channels, g.pitch, taps, offsets.data(),
                                                                               row_data + r * g.channels * taps, weights + v * k.lanes,
                                                                               sums + r * sums_pitch + v * k.lanes, sums_pitch, false);
    const i64 first = group * g.outputs + lane0;
    View<T> to = out;
    to.data += first * out.stride[1];
    write_rows(g, chunk, sums, sums_pitch, std::min(lanes, g.outputs - lane0), bias ? bias + first : nullptr, to);
  });
}

#define TCONV_GATHER(T)                                                \
  template void pack_weights<T>(const Gather&, View<const T>, i64, T*); \
  template void run<T>(const Gather&, const Kernels<T>&, View<const T>, const T*, const T*, View<T>);
TCONV_GATHER(float)
TCONV_GATHER(double)

}  // namespace tconv
