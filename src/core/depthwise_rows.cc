// SPDX-License-Identifier: Apache-2.0
#include "depthwise_rows.h"

#include <algorithm>
#include <set>

#include "parallel.h"
#include "pixels.h"

namespace tconv {
namespace {

constexpr i64 kPanelBytes = 32 << 10, kLineBytes = 8 << 10;  // of a panel and of a row of it, about: a first-level cache
constexpr double kMostListed = 4e6, kMostPanel = 512 << 10;  // reads of all rows of output; elements
constexpr i64 kTaskBytes = 32 << 10;                         // of output a task, about
// Of the estimate: a row, a vector of it and what a tap takes of one; a tap of a block of vectors where taps are not few; an element of the
// panel; a vector that does not stay in the caches.
constexpr double kRowCycles = 28, kVectorCycles = 1.5, kTapCycles = 1.2, kBlockTapCycles = 4, kSpreadCycles = 0.2, kLargeCycles = 3;
constexpr i64 kFewTaps = 4, kBlockVectors = 8;

// A row's axis: its first output is shifted so that phases read the same positions.
StencilAxis row_axis(const Axis& a, Direction direction) { return StencilAxis(a, direction, true); }

// The positions that some phase of a row reads, from its own one on, in order.
std::set<i64> reads_of(const StencilAxis& a) {
  std::set<i64> found;
  for (const Tap& t : a.taps) found.insert(-t.shift);
  return found;
}

// Rows of input that `outputs` of them read, about.
// (In floating point: strides may be any 62-bit number.)
double rows_read(const StencilAxis& a, i64 outputs) {
  return std::min(double(a.in_size), double(ceil_div(outputs, a.out_stride) + a.halo()) * double(a.in_stride));
}

// Outputs of an axis that are summed from one panel at least: a few of every phase.
i64 fewest(const StencilAxis& a) { return ceil_div(a.out_size, 4) > a.out_stride ? 4 * a.out_stride : a.out_size; }

// The inputs that outputs [begin, end) read.
void range_of(const AxisReads& reads, i64 begin, i64 end, i64& first, i64& last) {
  first = last = 0;
  for (const AxisReads::Read* r = reads.of(begin); r < reads.of(end); ++r) {
    if (first == last) first = r->input, last = r->input + 1;
    first = std::min(first, r->input), last = std::max(last, r->input + 1);
  }
}

}  // namespace

std::string DepthwiseRows::refusal(const Spec& spec, Direction direction) {
  const i64 stride = spec.axis[2].stride;
  if (direction == Direction::grad_input && stride != 1) return "an input gradient's stride along a row is not 1";
  if (stride > kPhaseMost || (stride & (stride - 1))) return "the stride along a row is not a power of two up to 64";
  const StencilAxis w = row_axis(spec.axis[2], direction);
  if (w.out_begin != 0 || w.out_end != w.out_stride || w.taps.empty() || w.taps.size() != reads_of(w).size() * std::size_t(w.out_stride))
    return "the stride phases of a row do not all read the same positions";
  const StencilAxis d(spec.axis[0], direction), h(spec.axis[1], direction);
  double listed = double(w.taps.size());
  for (const StencilAxis* a : {&d, &h}) listed *= double(a->out_size) * double(ceil_div(a->kernel, a->out_stride));
  if (listed > kMostListed) return "every row of output and tap is listed, and these are too many for that";
  const double panel = rows_read(d, 1) * rows_read(h, fewest(h)) * double(w.halo()) * double(w.out_stride);
  return panel < kMostPanel ? "" : "its taps lie too far apart for a panel of all they read";
}

DepthwiseRows::DepthwiseRows(const Spec& spec, Direction direction, int threads_, i64 lanes, i64 element_bytes)
    : axis{StencilAxis(spec.axis[0], direction), StencilAxis(spec.axis[1], direction), row_axis(spec.axis[2], direction)},
      batch(spec.batch),
      channels(spec.groups),
      large(past_caches(axis, batch * channels, element_bytes)),
      threads(threads_) {
  const StencilAxis& w = axis[2];
  period = w.out_stride, pitch = period == 1 ? 1 : lanes + period - 1;
  positions = even(w.count, std::max<i64>(lanes, kLineBytes / element_bytes / period));
  pieces = ceil_div(w.count, positions);
  line = round_up((positions + w.halo()) * period, 16) | 16;  // an odd number of lines
  for (const i64 back : reads_of(w)) {
    std::vector<i64> of(std::size_t(period), 0);
    for (const Tap& t : w.taps)
      if (t.shift == -back) of[std::size_t(t.out_phase)] = t.tap;
    shifts.push_back((w.shift_max + back) * period), order.push_back(std::move(of));
  }
  taps = i64(shifts.size());
  make_chunks(element_bytes);
}

void DepthwiseRows::make_chunks(i64 element_bytes) {
  const double room = double(kPanelBytes / (line * element_bytes));
  i64 tall = axis[1].out_size, deep = 1;
  while (tall > fewest(axis[1]) && rows_read(axis[1], tall) > room) tall = std::max(fewest(axis[1]), ceil_div(tall, 2));
  while (tall == axis[1].out_size && deep < axis[0].out_size && rows_read(axis[0], 2 * deep) * rows_read(axis[1], tall) <= room) deep *= 2;
  const AxisReads along[2] = {AxisReads(axis[0]), AxisReads(axis[1])};
  panel = 0;
  for (i64 d = 0; d < axis[0].out_size; d += deep)
    for (i64 h = 0; h < axis[1].out_size; h += tall) {
      Chunk chunk;
      const i64 d_end = std::min(d + deep, axis[0].out_size), h_end = std::min(h + tall, axis[1].out_size);
      range_of(along[0], d, d_end, chunk.begin[0], chunk.end[0]), range_of(along[1], h, h_end, chunk.begin[1], chunk.end[1]);
      for (i64 od = d; od < d_end; ++od)
        for (i64 oh = h; oh < h_end; ++oh) add_row(chunk, along, od, oh);
      panel = std::max(panel, (chunk.end[0] - chunk.begin[0]) * (chunk.end[1] - chunk.begin[1]) * line);
      chunks.push_back(std::move(chunk));
    }
}

void DepthwiseRows::add_row(Chunk& chunk, const AxisReads (&along)[2], i64 od, i64 oh) const {
  const i64 first = i64(chunk.reads.size());
  for (const AxisReads::Read* d = along[0].of(od); d < along[0].of(od + 1); ++d)
    for (const AxisReads::Read* h = along[1].of(oh); h < along[1].of(oh + 1); ++h)
      for (i64 t = 0; t < taps; ++t) {
        const i64 row = (d->input - chunk.begin[0]) * (chunk.end[1] - chunk.begin[1]) + h->input - chunk.begin[1];
        chunk.reads.push_back(row * line + shifts[std::size_t(t)]);
        chunk.weights.push_back(((d->tap * axis[1].kernel + h->tap) * taps + t) * pitch);
      }
  chunk.rows.push_back({od, oh, first, i64(chunk.reads.size()) - first});
}

double cycles(const DepthwiseRows& p, i64 lanes) {
  double each = 0;  // of a channel of an image
  const double vectors = double(ceil_div(p.axis[2].out_size, lanes)), vector = kVectorCycles + (p.large ? kLargeCycles : 0.0);
  for (const DepthwiseRows::Chunk& c : p.chunks) {
    for (const RowTaps& r : c.rows)
      each += kRowCycles + vectors * (vector + kTapCycles * double(r.taps)) +
              (r.taps > kFewTaps ? kBlockTapCycles * double(r.taps * ceil_div(i64(vectors), kBlockVectors)) : 0.0);
    each += kSpreadCycles * double((c.end[0] - c.begin[0]) * (c.end[1] - c.begin[1]) * p.line * p.pieces);
  }
  return double(p.batch * p.channels) * each;
}

template <class T>
void pack_weights(const DepthwiseRows& p, const Kernels<T>&, View<const T> weight, i64 group_stride, T* packed) {
  constexpr i64 kChannels = 16;  // of a task
  parallel_for(ceil_div(p.channels, kChannels), p.threads, [&](i64 task) {
    T* to = packed + task * kChannels * p.kernel_rows() * p.taps * p.pitch;
    for (i64 c = task * kChannels; c < std::min(p.channels, (task + 1) * kChannels); ++c)
      for (i64 row = 0; row < p.kernel_rows(); ++row) {
        const T* from =
            weight.data + c * group_stride + row / p.axis[1].kernel * weight.stride[2] + row % p.axis[1].kernel * weight.stride[3];
        for (const std::vector<i64>& taps : p.order) {
          for (i64 phase = 0; phase < p.period; ++phase) to[phase] = from[taps[std::size_t(phase)] * weight.stride[4]];
          for (i64 i = p.period; i < p.pitch; ++i) to[i] = to[i - p.period];
          to += p.pitch;
        }
      }
  });
}

namespace {

// A piece of a row: positions [begin, end) and the outputs that they have.
struct Piece {
  i64 begin, end, first, last;

  Piece(const DepthwiseRows& p, i64 index) : begin(index * p.positions), end(std::min(p.axis[2].count, begin + p.positions)) {
    const StencilAxis& w = p.axis[2];
    first = std::max<i64>(0, begin * w.out_stride - w.out_lo), last = std::min(w.out_size, end * w.out_stride - w.out_lo);
  }
};

// A row of input to one of the panel: columns repeated, and zeros beyond the ends. `room` holds a row.
template <class T>
void spread_row(const DepthwiseRows& p, const Kernels<T>& k, const T* x, i64 column, const Piece& piece, T* room, T* to) {
  const StencilAxis& w = p.axis[2];
  const i64 start = piece.begin - w.shift_max - w.in_lo, extent = piece.end - piece.begin + w.halo();
  const i64 begin = std::clamp<i64>(-start, 0, extent), end = std::clamp<i64>(w.in_size - start, begin, extent);
  x += (start + begin) * column;
  if (column != 1) {
    for (i64 i = 0; i < end - begin; ++i) room[i] = x[i * column];
    x = room;
  }
  const T* rows[kPhaseMost];
  std::fill_n(rows, p.period, x);
  std::fill_n(to, begin * p.period, T(0));
  k.weave(to + begin * p.period, rows, p.period, end - begin, T(0), false);
  std::fill_n(to + end * p.period, (extent - end) * p.period, T(0));
}

template <class T>
void fill_panel(const DepthwiseRows& p, const Kernels<T>& k, const DepthwiseRows::Chunk& chunk, const View<const T>& in, const T* map,
                const Piece& piece, T* room, T* panel) {
  for (i64 d = chunk.begin[0]; d < chunk.end[0]; ++d)
    for (i64 h = chunk.begin[1]; h < chunk.end[1]; ++h, panel += p.line)
      spread_row(p, k, map + d * in.stride[2] + h * in.stride[3], in.stride[4], piece, room, panel);
}

// One row after the other, where it is not written as it is summed.
template <class T, class S>
void sum_apart(const Kernels<T>& k, const std::vector<RowTaps>& rows, const RowSums<T>& sums, const Epilogue<T>& epilogue,
               const View<S>& out, S* y) {
  for (const RowTaps& row : rows) {
    k.sum_rows(&row, 1, sums);
    if (epilogue.activation != Activation::none) k.activate(sums.y, sums.columns, T(0), epilogue.activation, epilogue.slope);
    S* to = y + row.depth * out.stride[2] + row.row * out.stride[3];
    if constexpr (!std::is_same_v<T, S>) {
      if (out.stride[4] == 1) narrow(k, sums.y, sums.columns, to);
      for (i64 i = 0; out.stride[4] != 1 && i < sums.columns; ++i) narrow(k, sums.y + i, 1, to + i * out.stride[4]);
    } else {
      for (i64 i = 0; i < sums.columns; ++i) to[i * out.stride[4]] = sums.y[i];
    }
  }
}

// The rows of a chunk, of one channel of an image.
template <class T, class S>
void sum_chunk(const DepthwiseRows& p, const Kernels<T>& k, const DepthwiseRows::Chunk& chunk, const T* panel, const T* weights,
               const Epilogue<T>& epilogue, T bias, const Piece& piece, T* room, const View<S>& out, S* map) {
  const i64 shift = piece.first + p.axis[2].out_lo - piece.begin * p.period;
  S* y = map + piece.first * out.stride[4];
  RowSums<T> sums{panel + shift,
                  weights,
                  chunk.reads.data(),
                  chunk.weights.data(),
                  p.period,
                  shift & (p.period - 1),
                  room,
                  0,
                  0,
                  piece.last - piece.first,
                  bias,
                  false};
  if constexpr (std::is_same_v<T, S>)
    if (out.stride[4] == 1 && epilogue.activation == Activation::none) {
      sums.y = y, sums.y_depth = out.stride[2], sums.y_row = out.stride[3];
      sums.stream = p.large && whole_lines(y, sums.y_depth | sums.y_row | sums.columns);
      return k.sum_rows(chunk.rows.data(), i64(chunk.rows.size()), sums);
    }
  sum_apart(k, chunk.rows, sums, epilogue, out, y);
}

}  // namespace

template <class T, class S>
void run(const DepthwiseRows& p, const Kernels<T>& k, View<const T> in, const Weights<T>& weights, const Epilogue<T>& epilogue,
         View<S> out) {
  const i64 chunks = i64(p.chunks.size()), parts = chunks * p.pieces, outputs = p.positions * p.period * i64(p.chunks[0].rows.size());
  const i64 some =
      std::clamp<i64>(kTaskBytes / i64(sizeof(T)) / outputs, 1, std::max<i64>(1, p.batch * p.channels * parts / (8 * p.threads)));
  const i64 at_once = std::min(some, p.channels), blocks = ceil_div(p.channels, at_once);
  parallel_for(p.batch * blocks * parts, p.threads, [&](i64 task) {
    const i64 image = task / parts / blocks, block = task / parts % blocks;
    const DepthwiseRows::Chunk& chunk = p.chunks[std::size_t(task / p.pieces % chunks)];
    const Piece piece(p, task % p.pieces);
    T *panel = scratch<T>(0, p.panel), *room = scratch<T>(1, p.line);
    for (i64 c = block * at_once; c < std::min(p.channels, (block + 1) * at_once); ++c) {
      fill_panel(p, k, chunk, in, in.data + image * in.stride[0] + c * in.stride[1], piece, room, panel);
      sum_chunk(p, k, chunk, panel, weights.packed + c * p.kernel_rows() * p.taps * p.pitch, epilogue,
                epilogue.bias ? epilogue.bias[c] : T(0), piece, room, out, out.data + image * out.stride[0] + c * out.stride[1]);
    }
    fence(p.large);
  });
}

template void pack_weights<float>(const DepthwiseRows&, const Kernels<float>&, View<const float>, i64, float*);
template void pack_weights<double>(const DepthwiseRows&, const Kernels<double>&, View<const double>, i64, double*);
TCONV_RUNS(DepthwiseRows)

}  // namespace tconv
