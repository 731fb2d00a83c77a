// SPDX-License-Identifier: Apache-2.0
// Runs winograd_grad.h: transform both sides of a box, multiply point by point, transform the sums.
#include "winograd_grad.h"

#include <algorithm>

#include "parallel.h"
#include "weights.h"
#include "winograd_tiles.h"

namespace tconv {
namespace {

// What V and D of a box may take of a core's second-level cache, M of the third, and all spans together; the fewest tiles whose products
// are worth loading and storing M for, and the most that are added up in one go.
constexpr i64 kPanelBytes = 1200 << 10, kProductBytes = 4 << 20, kSpannedBytes = 8 << 20;
constexpr i64 kFewestTiles = 16, kMostTiles = kTerms, kMostInputs = 256, kMostOutputs = 64, kBoxesOfSpan = 4, kMostSpans = 8;

// The layer as one task sees it.
Spec of_task(Spec s, i64 inputs, i64 outputs) {
  s.groups = 1, s.in_channels = inputs, s.out_channels = outputs;
  return s;
}

// The channels of a task, and its part of all boxes.
struct Chunk {
  i64 group, input, inputs, output, outputs;

  Chunk(const WinogradGrad& p, i64 index) {
    const auto cut = [&](i64 step, i64 all, i64& first, i64& count) {
      const i64 pieces = ceil_div(all, step);
      first = index % pieces * step, count = std::min(step, all - first);
      index /= pieces;
    };
    cut(p.outputs_at_once, p.outputs, output, outputs);
    cut(p.inputs_at_once, p.inputs, input, inputs);
    group = index;
  }
};

template <class T>
struct Buffers {
  T *x_points, *dy_points, *products, *sums, *x_turned, *dy_turned, *between, *patch;

  explicit Buffers(const WinogradGrad& p) {
    scratch<T>(0, p.parts(), {&x_points, &dy_points, &products, &sums, &x_turned, &dy_turned, &between, &patch});
  }
};

template <class T>
struct Task {
  const WinogradGrad& p;
  const Kernels<T>& k;
  Chunk chunk;
  Buffers<T> at;

  Task(const WinogradGrad& plan, const Kernels<T>& kernels, i64 index) : p(plan), k(kernels), chunk(plan, index), at(plan) {}

  void add_box(i64 index, View<const T> x, View<const T> dy, bool first) const;
  void transform_products(T* sums) const;

 private:
  void to_points(const TileBox& box, Side side, const Winograd::Family& f, const Chain<T>& chain, i64 out, const Pixels<const T>& from,
                 i64 channels, T* points) const;
  void multiply(const Winograd::Family& f, i64 tiles, T* products, bool first) const;
};

template <class T>
void Task<T>::to_points(const TileBox& box, Side side, const Winograd::Family& f, const Chain<T>& chain, i64 out,
                        const Pixels<const T>& from, i64 channels, T* points) const {
  const i64 rows[3] = {box.images, box.size[0], box.size[1]}, pitch = p.pitch(channels), plane = box.tiles() * pitch;
  const Phases phase(f, side == Side::in ? &Winograd::Class::in : &Winograd::Class::out, out);
  each(rows, [&](const i64* row) {
    Pixels<const T> image = from;
    image.data += row[0] * from.image;
    const TileRow r(p.tiles, box, side, f, phase, row + 1, chain.before);
    row_to_points(chain, k, r, image, box.size[2], channels, points, pitch, plane, {at.between, at.patch, p.room()});
    points += box.size[2] * pitch;
  });
}

// Every point of a phase: copied points of an axis with one tap add up.
template <class T>
void Task<T>::multiply(const Winograd::Family& f, i64 tiles, T* products, bool first) const {
  const i64 rows_pitch = p.pitch(chunk.outputs), lanes_pitch = p.pitch(chunk.inputs),
            height = tile_rows(k, chunk.outputs, kTerms, kGatherVecs);
  const T *rows = at.dy_points, *lanes = at.x_points;
  i64 points[3];
  for (int i = 0; i < 3; ++i) points[i] = f.along[i]->points;
  each(points, [&](const i64* point) {
    i64 weights = 0;
    bool add = !first;
    for (int i = 0; i < 3; ++i) {
      const Winograd::Class& c = *f.along[i];
      weights = weights * c.weights + (c.weights > 1 ? point[i] : 0);
      add = add || (c.weights == 1 && point[i] > 0);
    }
    T* to = products + weights * p.outputs_at_once * p.lanes;
    for (i64 l = 0; l < chunk.inputs;) {
      const i64 vecs = chunk.inputs - l > k.lanes ? kGatherVecs : 1;
      for (i64 r = 0; r < chunk.outputs; r += height)
        k.outer[vecs][std::min(height, chunk.outputs - r)](tiles, rows + r, rows_pitch, lanes + l, lanes_pitch, to + r * p.lanes + l,
                                                           p.lanes, add);
      l += vecs * k.lanes;
    }
    rows += tiles * rows_pitch, lanes += tiles * lanes_pitch;
  });
}

template <class T>
void Task<T>::add_box(i64 index, View<const T> x, View<const T> dy, bool first) const {
  const Winograd& w = p.tiles;
  const TileBox box(w, index);
  x.data += box.image * x.stride[0] + (chunk.group * p.inputs + chunk.input) * x.stride[1];
  dy.data += box.image * dy.stride[0] + (chunk.group * p.outputs + chunk.output) * dy.stride[1];
  const Pixels<const T> xs = pixels_of(k, x, box.in_begin, box.in_size, chunk.inputs, box.images, at.x_turned, p.pitch(chunk.inputs));
  const Pixels<const T> dys =
      pixels_of(k, dy, box.out_begin, box.out_size, chunk.outputs, box.images, at.dy_turned, p.pitch(chunk.outputs));
  for (const Winograd::Family& f : w.families) {
    const Chain<T> inputs(f, w, k, &Transform<T>::input, false,
                          [](const Winograd::Class& c, const Winograd::Along&, i64& before, i64& after) { before = after = c.points; });
    const Chain<T> grads(
        f, w, k, &Transform<T>::from_grad, false,
        [](const Winograd::Class& c, const Winograd::Along& a, i64& before, i64& after) { before = a.tile, after = c.points; });
    for (i64 in = 0; in < f.ins; ++in) {
      to_points(box, Side::in, f, inputs, in, xs, chunk.inputs, at.x_points);
      for (i64 out = 0; out < f.outs; ++out) {
        if (f.outs > 1 || in == 0) to_points(box, Side::out, f, grads, out, dys, chunk.outputs, at.dy_points);
        multiply(f, box.tiles(), at.products + p.products(f, in, out), first);
      }
    }
  }
}

// M to sums: [output channel][tap][input channel].
template <class T>
void Task<T>::transform_products(T* sums) const {
  const Winograd& w = p.tiles;
  for (const Winograd::Family& f : w.families) {
    const Chain<T> chain(
        f, w, k, &Transform<T>::to_taps, true,
        [](const Winograd::Class& c, const Winograd::Along&, i64& before, i64& after) { before = c.weights, after = c.taps; });
    for (i64 in = 0; in < f.ins; ++in)
      for (i64 out = 0; out < f.outs; ++out) {
        const Phases pi(f, &Winograd::Class::in, in), po(f, &Winograd::Class::out, out);
        Grid<const T> from = readable(dense(at.products + p.products(f, in, out), chain.before, p.outputs_at_once * p.lanes));
        from.tile = p.lanes;
        Grid<T> to{sums, {}, p.taps * p.lanes};
        i64 step = p.lanes;
        for (int a = 2; a >= 0; step *= w.axis[a--].kernel) {
          const auto element = [&](i64 j) { return w.axis[a].element(*f.along[a], pi.of[a], po.of[a], j); };
          to.data += element(0) * step;
          to.stride[a] = (element(1) - element(0)) * step;
        }
        chain(from, to, chunk.outputs, p.lanes, at.between, p.room());
      }
  }
}

}  // namespace

WinogradGrad::WinogradGrad(const Spec& spec, const Isa& isa, int tile, int threads_, i64 bytes)
    : tiles(of_task(spec, std::min(kMostInputs, spec.in_channels / spec.groups), kMostOutputs), Direction::forward, isa, tile, 1, bytes,
            Serves::gradients),
      groups(spec.groups),
      inputs(spec.in_channels / groups),
      outputs(spec.out_channels / groups),
      taps(spec.axis[0].kernel * spec.axis[1].kernel * spec.axis[2].kernel),
      threads(threads_) {
  inputs_at_once = std::min(inputs, round_up(even(inputs, kMostInputs), kGatherVecs * tiles.lanes));
  lanes = round_up(inputs_at_once, tiles.lanes);
  outputs_at_once = std::clamp<i64>(kProductBytes / bytes / (tiles.weights * lanes), 1, std::min(outputs, kMostOutputs));
  outputs_at_once = even(outputs, outputs_at_once);
  tiles.grow_box(std::clamp(kPanelBytes / bytes / (tiles.points * (pitch(inputs_at_once) + pitch(outputs_at_once))), kFewestTiles,
                            std::min(kMostTiles, tiles.terms)));
  const i64 weights = groups * outputs * taps * round_up(inputs, tiles.lanes) * bytes;
  spans = std::clamp<i64>(std::min(tiles.boxes() / kBoxesOfSpan, kSpannedBytes / weights), 1, kMostSpans);
  if (spans > 1) spans -= spans % 2;  // threads are an even number, mostly
  while (chunks() * spans < 2 * threads && threads > 1 && outputs_at_once > kMaxRows) outputs_at_once = ceil_div(outputs_at_once, 2);
}

// Two vectors of multiply-adds a cycle; 5 cycles a vector and point of both sides and thrice that for a point of a tile, 4 a vector that is
// turned; M, loaded and stored once a box, and transformed at the end.
double cycles(const WinogradGrad& p, bool channels_last) {
  const Winograd& w = p.tiles;
  const double x = double(ceil_div(p.inputs, w.lanes)), dy = double(ceil_div(p.outputs, w.lanes));
  const double x_again = double(ceil_div(p.outputs, p.outputs_at_once)), dy_again = double(ceil_div(p.inputs, p.inputs_at_once));
  double tiles = double(w.batch), transforms = 0, products = 0, turned_x = x * x_again, turned_dy = dy * dy_again;
  for (const Winograd::Along& a : w.axis) tiles *= double(a.tiles), turned_x *= double(a.in_size), turned_dy *= double(a.out_size);
  // A last vector that overlaps the one before it has the next transform wait for both stores.
  const auto moved = [&](i64 channels, double vectors) { return (vectors + 3) * (channels > w.lanes && channels % w.lanes ? 5 : 1); };
  const bool deep = std::all_of(w.axis, w.axis + 3, [](const Winograd::Along& a) { return a.classes.front().taps > 1; });
  for (const Winograd::Family& f : w.families) {
    const double turns = double(f.outs > 1 ? f.ins * f.outs : 1);
    products += double(f.points * f.ins * f.outs);
    transforms +=
        (deep ? 10 : 5) * double(f.points) * (double(f.ins) * moved(p.inputs, x) * x_again + turns * moved(p.outputs, dy) * dy_again);
  }
  const double few = std::max(1.0, 4 / double(p.outputs_at_once));  // rows too few to hide what an addition takes
  const double sums = double(w.weights) * x * double(p.outputs), turned = channels_last ? 0 : 4 * double(w.batch) * (turned_x + turned_dy);
  return double(p.groups) * (tiles * (products_take(0.5, 0.52, w.multiply) * few * products * x * double(p.outputs) + transforms) + turned +
                             sums * (1.5 * double(w.boxes()) + 5 * double(p.spans)));
}

std::array<i64, WinogradGrad::kParts> WinogradGrad::parts() const {
  return {tiles.points * tiles.tiles * pitch(inputs_at_once),
          tiles.points * tiles.tiles * pitch(outputs_at_once),
          products(),
          sums(),
          tiles.images * tiles.in_positions * pitch(inputs_at_once),
          tiles.images * tiles.out_positions * pitch(outputs_at_once),
          2 * room(),
          room()};
}

template <class T>
void run(const WinogradGrad& p, const Kernels<T>& k, View<const T> x, View<const T> dy, View<T> grad) {
  T* spans = p.spans > 1 ? scratch<T>(3, p.spans * p.chunks() * p.sums()) : nullptr;  // [span][chunk]
  const auto write = [&](const Chunk& c, const T* sums) {
    View<T> to = grad;
    to.data += (c.group * p.inputs + c.input) * grad.stride[0] + c.output * grad.stride[1];
    const Winograd::Along* a = p.tiles.axis;
    collect_weights(k, sums, p.lanes, {a[0].kernel, a[1].kernel, a[2].kernel}, c.inputs, c.outputs, to);
  };
  parallel_for(p.spans * p.chunks(), p.threads, [&](i64 task) {
    const Task<T> t(p, k, task % p.chunks());
    const i64 span = task / p.chunks(), boxes = p.tiles.boxes(), begin = piece_begin(span, p.spans, boxes),
              end = piece_begin(span + 1, p.spans, boxes);
    for (i64 b = begin; b < end; ++b) t.add_box(b, x, dy, b == begin);
    T* sums = spans ? spans + task * p.sums() : t.at.sums;
    t.transform_products(sums);
    if (!spans) write(t.chunk, sums);
  });
  if (spans)
    parallel_for(p.chunks(), p.threads, [&](i64 c) {
      const Chunk chunk(p, c);
      T* sums = spans + c * p.sums();
      add_spans(sums, p.spans, p.chunks() * p.sums(), chunk.outputs * p.taps * p.lanes);
      write(chunk, sums);
    });
}

template void run<float>(const WinogradGrad&, const Kernels<float>&, View<const float>, View<const float>, View<float>);
template void run<double>(const WinogradGrad&, const Kernels<double>&, View<const double>, View<const double>, View<double>);

}  // namespace tconv
