// SPDX-License-Identifier: Apache-2.0
#include "gather.h"

#include <algorithm>
#include <limits>

#include "parallel.h"

namespace tconv {
namespace {

constexpr i64 kVecs = 2;                // vectors of a block of weights, the width of every tile
constexpr i64 kRowBytes = 384 << 10;    // packed rows of a chunk: with sums and a block of weights they fit a second-level cache
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

using Taps = std::vector<const Tap*>;  // three pointers a tap: depth, row, column

Taps taps_of(const Gather::Chunk& chunk) {
  Taps found;
  for (const Tap& d : chunk.along[0]->taps)
    for (const Tap& h : chunk.along[1]->taps)
      for (const Tap& w : chunk.along[2]->taps) found.insert(found.end(), {&d, &h, &w});
  return found;
}

// Where each row of a tile reads through taps [t0, t1): an offset from channel 0, or kOutside.
void sources(const Gather& g, const Gather::Chunk& chunk, i64 first, i64 rows, const Taps& taps, i64 t0, i64 t1, const i64* stride,
             std::vector<i64>& found) {
  found.assign(std::size_t((t1 - t0) * rows), kOutside);
  for (i64 r = 0; r < rows; ++r) {
    const Row row(chunk, first + r);
    for (i64 t = t0; t < t1; ++t) {
      i64 at = row.image * stride[0];
      bool inside = true;
      for (int i = 0; i < 3; ++i) {
        const i64 input = g.input(i, row.at[i], *taps[std::size_t(3 * t + i)]);
        inside = inside && input >= 0 && input < g.axis[i].in_size;
        at += input * stride[2 + i];
      }
      if (inside) found[std::size_t((t - t0) * rows + r)] = at;
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
  block = kVecs * lanes;
  blocks = ceil_div(outputs, block);
  taps = 1;
  for (int i = 0; i < 3; ++i) {
    axis[i] = StencilAxis(spec.axis[i], direction);
    taps *= axis[i].kernel;
  }
  taps_at_once = std::max<i64>(1, 2 * kTerms / channels);
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
        const i64 most = kRowBytes / (element_bytes * channels * taps_at_once) / kMaxRows * kMaxRows;
        const i64 step = round_up(ceil_div(rows, ceil_div(rows, std::clamp<i64>(most, kMaxRows, kMostRows))), kMaxRows);
        for (; chunk.begin < rows; chunk.begin = chunk.end) {
          chunk.end = std::min(rows, chunk.begin + step);
          chunks.push_back(chunk);
        }
      }
  const i64 tasks = std::max<i64>(1, i64(chunks.size()) * groups);
  blocks_per_run = ceil_div(blocks, std::min(blocks, threads > 1 ? ceil_div(4 * threads, tasks) : 1));
  runs = ceil_div(blocks, blocks_per_run);
}

double cycles(const Gather& g) {
  double total = 0;
  for (const Gather::Chunk& c : g.chunks) {
    const double rows = double(c.end - c.begin), terms = double(c.taps() * g.channels), lanes = double(g.blocks * g.block);
    const double tiles = double(ceil_div(c.end - c.begin, kMaxRows));
    total += terms * double(g.blocks) * std::max(1.4 * rows, 4 * tiles)  // near two multiply-adds a cycle, or four cycles of latency
             + 1.8 * rows * terms + 0.5 * terms * lanes / double(g.batch) + 1.5 * rows * double(g.outputs);
  }
  return double(g.groups) * total;
}

template <class T>
void pack_weights(const Gather& g, View<const T> weight, i64 group_stride, T* packed) {
  parallel_for(g.groups * g.channels, g.threads, [&](i64 task) {
    const i64 group = task / g.channels, c = task % g.channels, kh = g.axis[1].kernel, kw = g.axis[2].kernel;
    const T* from = weight.data + group * group_stride + c * weight.stride[0];
    for (i64 b = 0; b < g.blocks; ++b)
      for (i64 t = 0; t < g.taps; ++t) {
        const T* tap = from + t / kw / kh * weight.stride[2] + t / kw % kh * weight.stride[3] + t % kw * weight.stride[4];
        T* to = packed + (((group * g.blocks + b) * g.taps + t) * g.channels + c) * g.block;
        for (i64 m = b * g.block; m < (b + 1) * g.block; ++m) *to++ = m < g.outputs ? tap[m * weight.stride[1]] : T(0);
      }
  });
}

// Adds the products of taps [t0, t1) to the sums of a chunk, one run of blocks wide.
template <class T>
void multiply(const Gather& g, const Kernels<T>& k, const Gather::Chunk& chunk, const Taps& taps, i64 t0, i64 t1, const T* in,
              const i64* stride, const T* weights, i64 blocks, i64 height, T* row_data, T* sums) {
  const i64 rows = chunk.end - chunk.begin, depth = g.channels * (t1 - t0);
  std::vector<i64> from, offsets;
  for (i64 r = 0; r < rows; r += height) {
    sources(g, chunk, chunk.begin + r, std::min(height, rows - r), taps, t0, t1, stride, from);
    pack_rows(from, in, stride[1], g.channels, row_data + r * depth);
  }
  for (i64 t = t0; t < t1; ++t) {
    const Tap* const* tap = &taps[std::size_t(3 * t)];
    offsets.push_back(((tap[0]->tap * g.axis[1].kernel + tap[1]->tap) * g.axis[2].kernel + tap[2]->tap) * g.channels * g.block);
  }
  const i64 part = even(g.channels, kTerms / (t1 - t0));  // channels added up in one go
  for (i64 b = 0; b < blocks; ++b)
    for (i64 r = 0; r < rows; r += height) {
      const i64 tall = std::min(height, rows - r);
      for (i64 c = 0; c < g.channels; c += part)
        k.tile[tall][kVecs](std::min(part, g.channels - c), g.block, t1 - t0, offsets.data(), row_data + r * depth + c * (t1 - t0) * tall,
                            weights + (b * g.taps * g.channels + c) * g.block, sums + (r * blocks + b) * g.block, blocks * g.block,
                            t0 > 0 || c > 0);
    }
}

template <class T>
void run(const Gather& g, const Kernels<T>& k, View<const T> in, const T* packed, const T* bias, View<T> out) {
  parallel_for(i64(g.chunks.size()) * g.groups * g.runs, g.threads, [&](i64 task) {
    const i64 turn = task % g.runs, group = task / g.runs % g.groups, first = turn * g.blocks_per_run;
    const i64 blocks = std::min(g.blocks_per_run, g.blocks - first);
    const Gather::Chunk& chunk = g.chunks[std::size_t(task / (g.runs * g.groups))];
    const i64 rows = chunk.end - chunk.begin, height = tile_rows(k, rows, kTerms, kVecs);
    T* row_data = scratch<T>(0, rows * g.channels * g.taps_at_once);
    T* sums = scratch<T>(1, rows * blocks * g.block);
    const Taps taps = taps_of(chunk);
    const T* weights = packed + (group * g.blocks + first) * g.taps * g.channels * g.block;
    if (!chunk.taps()) std::fill_n(sums, rows * blocks * g.block, T(0));
    for (i64 t = 0; t < chunk.taps(); t += g.taps_at_once)
      multiply(g, k, chunk, taps, t, std::min(chunk.taps(), t + g.taps_at_once), in.data + group * g.channels * in.stride[1], in.stride,
               weights, blocks, height, row_data, sums);
    const i64 output = group * g.outputs + first * g.block;
    View<T> to = out;
    to.data += output * out.stride[1];
    write_rows(g, chunk, sums, blocks * g.block, std::min(blocks * g.block, g.outputs - first * g.block), bias ? bias + output : nullptr, to);
  });
}

#define TCONV_GATHER(T)                                                \
  template void pack_weights<T>(const Gather&, View<const T>, i64, T*); \
  template void run<T>(const Gather&, const Kernels<T>&, View<const T>, const T*, const T*, View<T>);
TCONV_GATHER(float)
TCONV_GATHER(double)

}  // namespace tconv
