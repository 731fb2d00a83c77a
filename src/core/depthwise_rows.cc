// SPDX-License-Identifier: Apache-2.0
#include "depthwise_rows.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>

#include "parallel.h"
#include "pixels.h"

namespace tconv {
namespace {

constexpr i64 kPanelBytes = 32 << 10, kLineBytes = 8 << 10;  // of a panel and of a row of it, about: a first-level cache
constexpr double kMostListed = 4e6, kMostPanel = 512 << 10;  // reads of all rows of output; elements
constexpr i64 kTaskBytes = 32 << 10;                         // of output a task, about
// Of the estimate: a chunk of a channel; a row, what it takes longer if its last vector overlaps, or if it is shorter than one; a tap of a
// vector, and of a block of vectors where taps are not few; a row of the panel and a vector of it; a vector that does not stay in the
// caches.
constexpr double kChunkCycles = 53, kRowCycles = 15, kOverlapCycles = 18, kShortCycles = 24, kTapCycles = 1.3, kBlockTapCycles = 1,
                 kFillCycles = 6, kFillVectorCycles = 2.7, kLargeCycles = 3;
constexpr i64 kFewTaps = 16, kBlockVectors = 8;

// The positions that some phase of a row reads, from its own one on, in order.
std::set<i64> reads_of(const StencilAxis& a) {
  std::set<i64> found;
  for (const Tap& t : a.taps) found.insert(-t.shift);
  return found;
}

// A row's axis: its first output is shifted so that phases read the same positions, as far as they do.
StencilAxis row_axis(const Axis& a, Direction direction) { return StencilAxis(a, direction, true); }

// How vectors find their inputs; or nothing, where no way is open to them.
std::optional<RowInputs> inputs_of(const StencilAxis& a, i64 lanes, i64 element_bytes) {
  const std::set<i64> reads = reads_of(a);
  const bool gaps = a.taps.size() < reads.size() * std::size_t(a.out_stride);
  const bool held = a.out_stride <= lanes && (lanes - 1) / a.out_stride + 1 + a.halo() < lanes;  // in one vector, wherever it begins
  if (a.out_stride > 1 && held && chooses(lanes * element_bytes)) return gaps ? RowInputs::once_with_gaps : RowInputs::once;
  return gaps || (a.out_stride & (a.out_stride - 1)) ? std::nullopt : std::optional(RowInputs::in_place);
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

std::string DepthwiseRows::refusal(const Spec& spec, Direction direction, i64 lanes, i64 element_bytes) {
  const i64 stride = spec.axis[2].stride;
  if (direction == Direction::grad_input && stride != 1) return "an input gradient's stride along a row is not 1";
  if (stride > kPhaseMost) return "the stride along a row is more than 64";
  const StencilAxis w = row_axis(spec.axis[2], direction);
  if (w.out_begin != 0 || w.out_end != w.out_stride || w.taps.empty()) return "a row has no output of some stride phase";
  if (!inputs_of(w, lanes, element_bytes))
    return "vectors do not hold what a row's outputs read, and its stride is not a power of two of phases that read the same positions";
  const StencilAxis d(spec.axis[0], direction), h(spec.axis[1], direction);
  double listed = double(w.taps.size());
  for (const StencilAxis* a : {&d, &h}) listed *= double(a->out_size) * double(ceil_div(a->kernel, a->out_stride));
  if (listed > kMostListed) return "every row of output and tap is listed, and these are too many for that";
  const double panel = rows_read(d, 1) * rows_read(h, fewest(h)) * double(w.halo()) * double(w.out_stride);
  return panel < kMostPanel ? "" : "its taps lie too far apart for a panel of all they read";
}

DepthwiseRows::DepthwiseRows(const Spec& spec, Direction direction, int threads_, i64 lanes_, i64 element_bytes)
    : axis{StencilAxis(spec.axis[0], direction), StencilAxis(spec.axis[1], direction), row_axis(spec.axis[2], direction)},
      lanes(lanes_),
      batch(spec.batch),
      channels(spec.groups),
      large(output_bytes(axis, batch * channels, element_bytes) >= double(kStreamBytes)),
      threads(threads_) {
  const StencilAxis& w = axis[2];
  period = w.out_stride, pitch = period == 1 ? 1 : round_up(lanes + period - 1, lanes);
  inputs = *inputs_of(w, lanes, element_bytes);
  repeats = inputs == RowInputs::in_place ? period : 1;
  outputs = period <= lanes ? lanes / period * period : lanes;
  positions = even(w.count, std::max<i64>(lanes, kLineBytes / element_bytes / repeats));
  pieces = ceil_div(w.count, positions);
  line = round_up((positions + w.halo()) * repeats, 16) | 16;  // an odd number of lines
  for (const i64 back : reads_of(w)) {
    std::vector<i64> of(std::size_t(period), -1);
    for (const Tap& t : w.taps)
      if (t.shift == -back) of[std::size_t(t.out_phase)] = t.tap;
    shifts.push_back((w.shift_max + back) * repeats), order.push_back(std::move(of));
  }
  taps = i64(shifts.size());
  number_words(element_bytes);
  make_chunks(element_bytes);
}

void DepthwiseRows::number_words(i64 element_bytes) {
  const i64 each = element_bytes / i64(sizeof(std::int32_t)), count = lanes + period - 1;
  along = inputs != RowInputs::in_place || period > 1 || shifts.back() <= lanes ? taps : 0;
  words_pitch = count * each;
  for (std::size_t t = 0; t < shifts.size(); ++t)
    for (i64 i = 0; i < count; ++i)
      for (i64 word = 0; word < each; ++word) {
        const bool lacks = order[t][std::size_t(i % period)] < 0;
        words.push_back(lacks ? -1 : std::int32_t((i / period + shifts[t]) * each + word));
      }
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
      // Those of as many taps follow one another, and are summed by one call.
      std::stable_sort(chunk.rows.begin(), chunk.rows.end(), [](const RowTaps& a, const RowTaps& b) { return a.taps > b.taps; });
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

double cycles(const DepthwiseRows& p) {
  const i64 columns = ceil_div(p.axis[2].out_size, p.pieces), rest = std::max<i64>(0, columns - p.lanes);
  const double vectors = double(1 + ceil_div(rest, p.outputs)), blocks = std::ceil(vectors / kBlockVectors);
  const double row = kRowCycles +
                     (columns < p.lanes  ? kShortCycles
                      : rest % p.outputs ? kOverlapCycles
                                         : 0.0) +
                     (p.large ? kLargeCycles * vectors : 0.0);
  const double filled = kFillCycles + kFillVectorCycles * double(p.line) / double(p.lanes);
  double each = 0;  // of a piece of a channel of an image
  for (const DepthwiseRows::Chunk& c : p.chunks) {
    each += kChunkCycles + filled * double((c.end[0] - c.begin[0]) * (c.end[1] - c.begin[1]));
    for (const RowTaps& r : c.rows)
      each += row + double(r.taps) * (kTapCycles * vectors + (r.taps > kFewTaps ? kBlockTapCycles * blocks : 0.0));
  }
  return double(p.batch * p.channels * p.pieces) * each;
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
          for (i64 phase = 0; phase < p.period; ++phase) {
            const i64 tap = taps[std::size_t(phase)];
            to[phase] = tap < 0 ? T(0) : from[tap * weight.stride[4]];
          }
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

// Rows of input to as many of the panel: zeros beyond the ends, and columns repeated. `room` holds a row.
template <class T>
void fill_rows(const DepthwiseRows& p, const Kernels<T>& k, const T* x, i64 row, i64 column, i64 rows, const Piece& piece, T* room, T* to) {
  const StencilAxis& w = p.axis[2];
  const i64 start = piece.begin - w.shift_max - w.in_lo, extent = piece.end - piece.begin + w.halo();
  const i64 begin = std::clamp<i64>(-start, 0, extent), end = std::clamp<i64>(w.in_size - start, begin, extent);
  x += (start + begin) * column;
  if (p.repeats == 1 && column == 1) return k.copy(x, row, to, p.line, rows, begin, end, extent);
  for (; rows > 0; --rows, x += row, to += p.line) {
    const T* from = x;
    if (column != 1) {
      for (i64 i = 0; i < end - begin; ++i) room[i] = x[i * column];
      from = room;
    }
    const T* repeated[kPhaseMost];
    std::fill_n(repeated, p.repeats, from);
    std::fill_n(to, begin * p.repeats, T(0));
    k.weave(to + begin * p.repeats, repeated, p.repeats, end - begin, T(0), false);
    std::fill_n(to + end * p.repeats, (extent - end) * p.repeats, T(0));
  }
}

template <class T>
void fill_panel(const DepthwiseRows& p, const Kernels<T>& k, const DepthwiseRows::Chunk& chunk, const View<const T>& in, const T* map,
                const Piece& piece, T* room, T* panel) {
  const i64 rows = chunk.end[1] - chunk.begin[1];
  for (i64 d = chunk.begin[0]; d < chunk.end[0]; ++d, panel += rows * p.line)
    fill_rows(p, k, map + d * in.stride[2] + chunk.begin[1] * in.stride[3], in.stride[3], in.stride[4], rows, piece, room, panel);
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

// What the rows of a chunk have in common, whatever the channel.
template <class T>
RowSums<T> sums_of(const DepthwiseRows& p, const DepthwiseRows::Chunk& chunk, const Piece& piece, const T* panel) {
  const bool in_place = p.inputs == RowInputs::in_place;
  const i64 start = piece.first + p.axis[2].out_lo - piece.begin * p.period, last = piece.last - piece.first - p.lanes;
  RowSums<T> s{};
  s.x = in_place ? panel + start : panel;
  s.x_at = chunk.reads.data(), s.w_at = chunk.weights.data();
  s.inputs = p.inputs, s.along = p.along;
  s.period = p.period, s.start = start;
  s.outputs = p.outputs, s.positions = in_place ? p.outputs : p.outputs / p.period;
  s.last = RowPlace{last, in_place ? last : (start + last) / p.period, floor_mod(start + last, p.period)};
  s.words = p.words.data(), s.words_pitch = p.words_pitch;
  s.columns = piece.last - piece.first;
  return s;
}

// The rows of a chunk, of one channel of an image. `room` holds a row.
template <class T, class S>
void sum_chunk(const DepthwiseRows& p, const Kernels<T>& k, const DepthwiseRows::Chunk& chunk, RowSums<T>& sums,
               const Epilogue<T>& epilogue, T* room, const View<S>& out, S* y) {
  if constexpr (std::is_same_v<T, S>)
    if (out.stride[4] == 1 && epilogue.activation == Activation::none) {
      sums.y = y, sums.y_depth = out.stride[2], sums.y_row = out.stride[3];
      sums.stream = p.large && whole_lines(y, sums.y_depth | sums.y_row | sums.columns | p.outputs);
      return k.sum_rows(chunk.rows.data(), i64(chunk.rows.size()), sums);
    }
  sums.y = room;
  sum_apart(k, chunk.rows, sums, epilogue, out, y);
}

}  // namespace

template <class T, class S>
void run(const DepthwiseRows& p, const Kernels<T>& k, View<const T> in, const Weights<T>& weights, const Epilogue<T>& epilogue,
         View<S> out) {
  const i64 chunks = i64(p.chunks.size()), parts = chunks * p.pieces, elements = p.positions * p.period * i64(p.chunks[0].rows.size());
  const i64 some =
      std::clamp<i64>(kTaskBytes / i64(sizeof(T)) / elements, 1, std::max<i64>(1, p.batch * p.channels * parts / (8 * p.threads)));
  const i64 at_once = std::min(some, p.channels), blocks = ceil_div(p.channels, at_once);
  parallel_for(p.batch * blocks * parts, p.threads, [&](i64 task) {
    const i64 image = task / parts / blocks, block = task / parts % blocks;
    const DepthwiseRows::Chunk& chunk = p.chunks[std::size_t(task / p.pieces % chunks)];
    const Piece piece(p, task % p.pieces);
    T *panel = scratch<T>(0, p.panel + p.kBeyond), *room = scratch<T>(1, p.room());
    RowSums<T> sums = sums_of(p, chunk, piece, panel);
    for (i64 c = block * at_once; c < std::min(p.channels, (block + 1) * at_once); ++c) {
      fill_panel(p, k, chunk, in, in.data + image * in.stride[0] + c * in.stride[1], piece, room, panel);
      sums.w = weights.packed + c * p.kernel_rows() * p.taps * p.pitch, sums.bias = epilogue.bias ? epilogue.bias[c] : T(0);
      sum_chunk(p, k, chunk, sums, epilogue, room, out, out.data + image * out.stride[0] + c * out.stride[1] + piece.first * out.stride[4]);
    }
    fence(p.large);
  });
}

template void pack_weights<float>(const DepthwiseRows&, const Kernels<float>&, View<const float>, i64, float*);
template void pack_weights<double>(const DepthwiseRows&, const Kernels<double>&, View<const double>, i64, double*);
TCONV_RUNS(DepthwiseRows)

}  // namespace tconv
