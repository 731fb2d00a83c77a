// SPDX-License-Identifier: Apache-2.0
#include "depthwise_grad.h"

#include <algorithm>

#include "parallel.h"
#include "pixels.h"
#include "weights.h"

namespace tconv {
namespace {

constexpr i64 kBoxBytes = 256 << 10;                // of the rows of a box that are transposed, about
constexpr i64 kSpans = 16, kSpanBytes = 256 << 10;  // at most, and of their sums
constexpr i64 kSpanPositions = 1 << 10;             // at least
constexpr i64 kMostColumns = 1 << 12;               // of a box, and rows
constexpr i64 kBlockVectors = 2;                    // of channels
// Of the estimate: a vector's product, a tap of a row, a row of x for a block of channels, and an element that is transposed.
constexpr double kProductCycles = 1.2, kTapCycles = 14, kRowCycles = 350, kTurnedCycles = 0.32;
constexpr double kCyclesPerThread = 1e5;

double volume(const Reaches (&axis)[3], i64 Reaches::* size) {
  return double(axis[0].*size) * double(axis[1].*size) * double(axis[2].*size);
}

// A box of x, rows and columns of one image and depth, and what it reads of dy.
struct Rows {
  i64 image, in_begin[3], in_size[3], out_begin[3], out_size[3];

  Rows(const DepthwiseGrad& p, i64 index) {
    const i64 w = index % p.boxes_wide() * p.columns, h = index / p.boxes_wide() % p.boxes_high() * p.rows;
    index /= p.boxes_wide() * p.boxes_high();
    image = index / p.axis[0].size;
    const i64 at[3] = {index % p.axis[0].size, h, w}, most[3] = {1, p.rows, p.columns};
    for (int i = 0; i < 3; ++i) {
      const Reaches& a = p.axis[i];
      in_begin[i] = at[i], in_size[i] = std::min(most[i], a.size - at[i]);
      const i64 last = (at[i] + in_size[i] - 1) * a.stride + a.high + 1;
      out_begin[i] = std::clamp<i64>(at[i] * a.stride + a.low, 0, a.output);
      out_size[i] = std::clamp<i64>(last, out_begin[i], a.output) - out_begin[i];
    }
  }
};

// Some channels of a part of an array, from `channel` on: as they lie, or transposed into memory of the thread.
template <class T>
Pixels<const T> pixels_of(const Kernels<T>& k, View<const T> from, i64 image, i64 channel, i64 channels, const i64* begin, const i64* size,
                          int slot, i64 pitch) {
  from.data += image * from.stride[0] + channel * from.stride[1];
  if (from.stride[1] == 1 || channels == 1) return {from.data, from.stride[0], {from.stride[2], from.stride[3], from.stride[4]}};
  for (int i = 0; i < 3; ++i) from.data += begin[i] * from.stride[2 + i];
  T* to = scratch<T>(slot, size[0] * size[1] * size[2] * pitch);
  gather_pixels(k, from, size, channels, 1, to, pitch);
  return packed_pixels<const T>(to, size, pitch, begin);
}

template <class T>
void add_box(const DepthwiseGrad& p, const Kernels<T>& k, const View<const T>& x, const View<const T>& dy, i64 channel, i64 channels,
             const Rows& box, T* sums) {
  const Reaches &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  const Pixels<const T> in = pixels_of(k, x, box.image, channel, channels, box.in_begin, box.in_size, 0, p.block);
  const Pixels<const T> out = pixels_of(k, dy, box.image, channel, channels, box.out_begin, box.out_size, 1, p.block);
  // Of transposed channels whole vectors are summed: those that are none go nowhere.
  if (x.stride[1] != 1 && dy.stride[1] != 1 && channels > 1) channels = round_up(channels, k.lanes);
  std::vector<GradTap> taps;
  const i64 first = box.in_begin[2], last = first + box.in_size[2];
  for (const Reach& t : w.taps)
    taps.push_back({t.tap * p.block, t.reach * out.stride[2], std::clamp(t.begin, first, last), std::clamp(t.end, first, last)});
  const i64 id = box.in_begin[0];
  for (i64 ih = box.in_begin[1]; ih < box.in_begin[1] + box.in_size[1]; ++ih)
    for (const Reach& td : d.taps)
      for (const Reach& th : h.taps)
        if (td.begin <= id && id < td.end && th.begin <= ih && ih < th.end)
          k.depthwise_grad(sums + (td.tap * h.kernel + th.tap) * w.kernel * p.block, in.data + id * in.stride[0] + ih * in.stride[1],
                           in.stride[2], out.data + (id * d.stride + td.reach) * out.stride[0] + (ih * h.stride + th.reach) * out.stride[1],
                           w.stride * out.stride[2], taps.data(), i64(taps.size()), channels);
}

}  // namespace

DepthwiseGrad::DepthwiseGrad(const Spec& spec, const Isa& isa, int threads_, i64 element_bytes, bool adjacent)
    : batch(spec.batch), channels(spec.groups), taps(1) {
  double products = double(batch), rows_met = double(batch);
  for (int i = 0; i < 3; ++i) {
    axis[i] = Reaches(spec.axis[i]), taps *= axis[i].kernel;
    double joined = 0;
    for (const Reach& t : axis[i].taps) joined += double(t.end - t.begin);
    products *= joined, rows_met *= i < 2 ? joined : 1;
  }
  const i64 lanes = element_bytes == 8 ? isa.f64->lanes : isa.f32->lanes;
  block = std::min(round_up(channels, lanes), kBlockVectors * lanes);
  const Reaches &d = axis[0], &h = axis[1], &w = axis[2];
  // Elements that a column, and then a row, bring into a box.
  // (In floating point: strides may be any 62-bit number.)
  const double deep = std::min(double(d.stride) + double(d.high - d.low), double(d.output));
  const double column = 1 + deep * double(h.stride) * double(w.stride), room = double(kBoxBytes / element_bytes / block);
  columns = even(std::max<i64>(1, w.size), i64(std::clamp(room / column, 16.0, double(kMostColumns))));
  const double row = double(columns) * column;
  rows = even(std::max<i64>(1, h.size), i64(std::clamp(room / row, 1.0, double(kMostColumns))));
  boxes = batch * d.size * boxes_high() * boxes_wide();
  for (const Reaches& a : axis) boxes = a.taps.empty() ? 0 : boxes;
  const i64 positions = rows * columns, weights = sums() * blocks() * element_bytes;
  spans = std::clamp<i64>(boxes / ceil_div(kSpanPositions, positions), 1, std::clamp<i64>(kSpanBytes / weights, 1, kSpans));
  double vectors = double(ceil_div(channels, lanes));
  for (i64 narrow = lanes / 2; adjacent && narrow > 0; narrow /= 2) vectors += channels & narrow ? 1 : 0;
  if (adjacent && channels % lanes) --vectors;
  const double halo = (double(h.stride) * double(rows - 1) + double(h.high - h.low + 1)) / (double(h.stride) * double(rows)) *
                      std::min(double(d.high - d.low + 1), double(d.output)) / std::max(1.0, double(std::min(d.stride, d.output)));
  const double turned =
      double(batch * round_up(channels, lanes)) * (volume(axis, &Reaches::size) + volume(axis, &Reaches::output) * std::max(1.0, halo));
  cycles = vectors * (kProductCycles * products + kTapCycles * rows_met * double(w.taps.size())) +
           kRowCycles * double(batch * d.size * h.size * boxes_wide() * blocks()) + (adjacent ? 0 : kTurnedCycles * turned);
  threads = int(std::min(double(threads_), 1 + cycles / kCyclesPerThread));
}

template <class T>
void run(const DepthwiseGrad& p, const Kernels<T>& k, const View<const T>& x, const View<const T>& dy, const View<T>& grad) {
  const i64 blocks = p.blocks();
  T* all = p.spans > 1 ? scratch<T>(3, p.spans * blocks * p.sums()) : nullptr;  // [span][block]
  const auto write = [&](i64 b, const T* sums) {
    View<T> to = grad;
    to.data += b * p.block * grad.stride[0];
    collect_weights(k, sums, p.block, {p.axis[0].kernel, p.axis[1].kernel, p.axis[2].kernel}, std::min(p.block, p.channels - b * p.block),
                    1, to);
  };
  parallel_for(p.spans * blocks, p.threads, [&](i64 task) {
    const i64 b = task % blocks, span = task / blocks, first = b * p.block;
    T* sums = all ? all + task * p.sums() : scratch<T>(2, p.sums());
    std::fill_n(sums, p.sums(), T(0));
    for (i64 i = piece_begin(span, p.spans, p.boxes); i < piece_begin(span + 1, p.spans, p.boxes); ++i)
      add_box(p, k, x, dy, first, std::min(p.block, p.channels - first), Rows(p, i), sums);
    if (!all) write(b, sums);
  });
  if (!all) return;
  for (i64 b = 0; b < blocks; ++b) {
    add_spans(all + b * p.sums(), p.spans, blocks * p.sums(), p.sums());
    write(b, all + b * p.sums());
  }
}

template void run<float>(const DepthwiseGrad&, const Kernels<float>&, const View<const float>&, const View<const float>&,
                         const View<float>&);
template void run<double>(const DepthwiseGrad&, const Kernels<double>&, const View<const double>&, const View<const double>&,
                          const View<double>&);

}  // namespace tconv
