// SPDX-License-Identifier: Apache-2.0
// Runs winograd.h: transform the inputs of a box, multiply point by point, transform the outputs.
#include "parallel.h"
#include "winograd_tiles.h"
#include "winograd_weights.h"

namespace tconv {
namespace {

constexpr i64 kShortRow = 8;  // tiles

// Buffers of a task, side by side in one piece of scratch memory.
template <class T>
struct Buffers {
  i64 pitch, product_pitch, pixel_pitch, room_size;
  T *inputs, *products, *sums, *pixels, *room, *patch, *bias, *taps, *weights;

  explicit Buffers(const Winograd& w)
      : pitch(w.pitch()), product_pitch(w.product_pitch()), pixel_pitch(w.pixel_pitch()), room_size(w.room) {
    scratch<T>(0, w.parts(), {&inputs, &products, &sums, &pixels, &room, &patch, &bias, &taps, &weights});
  }
};

// Transformed inputs of some tiles: [point][tile][input phase, channel], a point `plane` elements after the other.
template <class T>
struct Points {
  T* at;
  i64 plane;
};

// The rows that meet one point's weights: tiles, times the copied points of axes with one tap.
template <class T>
struct PointRows {
  std::vector<const T*> from;
  std::vector<T*> to;
  T ones;  // what makes every output of a tile 1
  i64 height;
};

template <class T>
struct Task {
  const Winograd& w;
  const Kernels<T>& k;
  TileBox box;
  Buffers<T> at;
  i64 tiles;

  Task(const Winograd& plan, const Kernels<T>& kernels, const TileBox& of) : w(plan), k(kernels), box(of), at(plan), tiles(box.tiles()) {}

  Pixels<const T> pixels(const View<const T>& in) const;
  void transform_inputs(const Winograd::Family& f, const Pixels<const T>& in, const Points<T>& to) const;
  std::vector<PointRows<T>> rows(const Winograd::Family& f, const Points<T>& from) const;
  void multiply(const std::vector<PointRows<T>>& rows, i64 begin, i64 end, const T* weights, i64 step, i64 width, const T* bias) const;
  void transform_outputs(const Winograd::Family& f, i64 out, i64 width, const Pixels<T>& to, bool add) const;
  bool any_output(const Winograd::Family& f, i64 out) const;
  bool adds(const Winograd::Family& f, i64 out) const;

 private:
  void transform_border(const Chain<T>& chain, Grid<const T> from, i64 begin, i64 end, const TileRow& r, i64 width, const Pixels<T>& to,
                        bool add) const;
  void place(const TileRow& r, i64 tile, const Grid<T>& from, i64 width, const Pixels<T>& to, bool add) const;
};

// The inputs of the box with adjacent channels.
template <class T>
Pixels<const T> Task<T>::pixels(const View<const T>& in) const {
  View<const T> from = in;
  from.data += box.image * in.stride[0];
  return pixels_of(k, from, box.in_begin, box.in_size, w.channels, box.images, at.pixels, at.pixel_pitch);
}

template <class T>
void Task<T>::transform_inputs(const Winograd::Family& f, const Pixels<const T>& in, const Points<T>& to) const {
  const Chain<T> chain(f, w, k, &Transform<T>::input, false,
                       [](const Winograd::Class& c, const Winograd::Along&, i64& before, i64& after) { before = after = c.points; });
  const i64 rows[3] = {box.images, box.size[0], box.size[1]};
  T* v = to.at;
  each(rows, [&](const i64* row) {
    Pixels<const T> x = in;
    x.data += row[0] * in.image;
    for (i64 phase = 0; phase < f.ins; ++phase) {
      const TileRow r(w, box, Side::in, f, Phases(f, &Winograd::Class::in, phase), row + 1, chain.before);
      row_to_points(chain, k, r, x, box.size[2], w.channels, v + phase * w.channels, at.pitch, to.plane, {at.room, at.patch, at.room_size});
    }
    v += box.size[2] * at.pitch;
  });
}

template <class T>
std::vector<PointRows<T>> Task<T>::rows(const Winograd::Family& f, const Points<T>& from) const {
  std::vector<PointRows<T>> found(static_cast<std::size_t>(f.weights));
  i64 points[3];
  for (int i = 0; i < 3; ++i) points[i] = f.along[i]->points;
  i64 point = 0;
  each(points, [&](const i64* p) {
    i64 weights = 0;
    T ones = 1;
    for (int i = 0; i < 3; ++i) {
      const Winograd::Class& c = *f.along[i];
      weights = weights * c.weights + (c.weights > 1 ? p[i] : 0);
      ones *= k.transform[w.axis[i].tile][c.taps].ones[p[i]];
    }
    PointRows<T>& rows = found[std::size_t(weights)];
    rows.ones = ones;
    for (i64 t = 0; t < tiles; ++t) {
      rows.from.push_back(from.at + point * from.plane + t * at.pitch);
      rows.to.push_back(at.products + t * at.product_pitch + point * w.block);
    }
    ++point;
  });
  const i64 alike = i64(found.size() ? found[0].from.size() : 0), height = tile_rows(k, alike, kTerms, int(w.block / w.lanes));
  for (PointRows<T>& r : found) r.height = height;
  return found;
}

// Adds terms begin .. end - 1 in parts; their weights begin at `weights` for the first point, `step` elements from point to point. Where
// phases have many channels, parts are those of a whole phase, however many of its channels come at a time.
template <class T>
void Task<T>::multiply(const std::vector<PointRows<T>>& points, i64 begin, i64 end, const T* weights, i64 step, i64 width,
                       const T* bias) const {
  const i64 run = w.parts_in_phases() ? std::min(w.channels, end - begin) : end - begin;
  const i64 part = even(w.parts_in_phases() ? w.channels : run, w.terms), first_weight = -begin;
  alignas(64) T constant[kGatherVecs * 16];
  for (const PointRows<T>& p : points) {
    const bool constants = bias && p.ones != 0;
    for (i64 m = 0; constants && m < width; ++m) constant[m] = p.ones * bias[m];
    const i64 count = i64(p.from.size());
    for (i64 phase = begin; phase < end; phase += run)
      for (i64 c = phase; c < phase + run; c += part)
        for (i64 r = 0; r < count; r += p.height)
          k.gathered[width / w.lanes][std::min(p.height, count - r)](c, std::min(phase + run, c + part), 1, p.from.data() + r,
                                                                     &first_weight, weights, p.to.data() + r,
                                                                     constants ? constant : nullptr, c > 0);
    weights += step;
  }
}

// Those outputs of a tile at the border that exist.
template <class T>
void Task<T>::place(const TileRow& r, i64 tile, const Grid<T>& from, i64 width, const Pixels<T>& to, bool add) const {
  const TileColumns c = r.columns(tile);
  if (c.begin == c.end) return;
  for (i64 d = 0; d < r.extent[0]; ++d)
    for (i64 h = 0; h < r.extent[1]; ++h) {
      const i64 od = r.first[0] + d * r.step[0], oh = r.first[1] + h * r.step[1];
      if (od < 0 || od >= w.axis[0].out_size || oh < 0 || oh >= w.axis[1].out_size) continue;
      k.transform[1][1].output(from.data + d * from.stride[0] + h * from.stride[1] + c.begin * from.stride[2], {0, from.stride[2]},
                               to.data + od * to.stride[0] + oh * to.stride[1] + (c.at + c.begin * r.step[2]) * to.stride[2],
                               {0, r.step[2] * to.stride[2]}, c.end - c.begin, width, add);
    }
}

// Tiles begin .. end - 1 of a row, some of whose outputs do not exist, by way of a buffer.
template <class T>
void Task<T>::transform_border(const Chain<T>& chain, Grid<const T> from, i64 begin, i64 end, const TileRow& r, i64 width,
                               const Pixels<T>& to, bool add) const {
  const Grid<T> all = dense(at.patch, chain.after, w.block);
  const i64 most = at.room_size / all.tile;
  from.data += begin * from.tile;
  for (i64 t = begin; t < end; t += most, from.data += most * from.tile) {
    chain(from, all, std::min(most, end - t), width, at.room, at.room_size);
    Grid<T> one = all;
    for (i64 i = t; i < std::min(end, t + most); ++i, one.data += one.tile) place(r, i, one, width, to, add);
  }
}

template <class T>
void Task<T>::transform_outputs(const Winograd::Family& f, i64 out, i64 width, const Pixels<T>& to, bool add) const {
  const Chain<T> chain(
      f, w, k, &Transform<T>::output, true,
      [](const Winograd::Class& c, const Winograd::Along& a, i64& before, i64& after) { before = c.points, after = a.tile; });
  const i64 rows[3] = {box.images, box.size[0], box.size[1]}, count = box.size[2];
  const Phases po(f, &Winograd::Class::out, out);
  Grid<const T> m = readable(dense(at.products, chain.before, w.block));
  m.tile = at.product_pitch;
  each(rows, [&](const i64* row) {
    const TileRow r(w, box, Side::out, f, po, row + 1, chain.after);
    Pixels<T> y = to;
    y.data += row[0] * to.image;
    Grid<T> target{y.data + r.begin * r.advance * to.stride[2], {}, r.advance * to.stride[2]};
    for (int i = 0; i < 3; ++i) target.data += r.first[i] * to.stride[i], target.stride[i] = r.step[i] * to.stride[i];
    Grid<const T> inside = m;
    inside.data += r.begin * m.tile;
    if (r.end - r.begin < count && count <= kShortRow) {  // short rows go through the buffer whole: fewer calls
      transform_border(chain, m, 0, count, r, width, y, add);
    } else {
      chain(inside, target, r.end - r.begin, width, at.room, at.room_size, add);
      transform_border(chain, m, 0, r.begin, r, width, y, add);
      transform_border(chain, m, r.end, count, r, width, y, add);
    }
    m.data += count * m.tile;
  });
}

// Whether the box holds an output of a phase: outputs smaller than a stride lack some.
template <class T>
bool Task<T>::any_output(const Winograd::Family& f, i64 out) const {
  const Phases po(f, &Winograd::Class::out, out);
  for (int i = 0; i < 3; ++i) {
    const i64 begin = box.out_begin[i], stride = w.axis[i].out_stride;
    if (floor_mod(po.of[i] - w.axis[i].out_lo - begin, stride) >= box.out_size[i]) return false;
  }
  return true;
}

// Whether an earlier family writes an output phase too.
template <class T>
bool Task<T>::adds(const Winograd::Family& f, i64 out) const {
  const Phases po(f, &Winograd::Class::out, out);
  for (int i = 0; i < 3; ++i)
    if (w.axis[i].adds(*f.along[i], po.of[i])) return true;
  return false;
}

// The weights of a group: transformed before; or, by blocks, as they are read, some channels of a phase at a time, into a near cache.
template <class T>
struct GroupWeights {
  const Task<T>& t;
  const WeightTransform<T>& transform;
  const T* packed;  // or null

  // Gets a block ready that was not transformed before.
  void begin(const View<const T>& lie, i64 b) const {
    const Winograd& w = t.w;
    for (i64 c = 0; !packed && c < w.channels; c += kPackedChannels)
      transform.spread(lie, b, c, std::min(kPackedChannels, w.channels - c), t.at.taps + c * transform.taps() * w.width(b));
  }

  // Calls body(begin, end, weights, step) for runs of the terms of a block, in their order.
  template <class F>
  void each(const Winograd::Family& f, i64 b, i64 out, F body) const {
    const Winograd& w = t.w;
    const i64 width = w.width(b), tap_lanes = transform.taps() * width;
    if (packed) return body(0, f.ins * w.channels, weights_of(w, packed, f, b, out), f.ins * w.channels * width);
    for (i64 in = 0; in < f.ins; ++in)
      for (i64 c = 0, some; c < w.channels; c += some) {
        some = std::min(w.channels - c, w.channels_at_once(f, sizeof(T)));
        transform(f, b, out, in, t.at.taps + c * tap_lanes, some, t.at.weights, some * width, t.at.room);
        const i64 begin = in * w.channels + c;
        body(begin, begin + some, static_cast<const T*>(t.at.weights), some * width);
      }
  }
};

// A family of a block, whose inputs are transformed: its part of the sums, with the bias of these lanes or null.
template <class T>
void compute(const Task<T>& t, const Winograd::Family& f, const std::vector<PointRows<T>>& rows, const GroupWeights<T>& weights, i64 b,
             const T* bias, const Pixels<T>& sums) {
  for (i64 out = 0; out < f.outs; ++out) {
    if (!t.any_output(f, out)) continue;
    const bool add = t.adds(f, out);
    const i64 width = t.w.width(b);
    weights.each(f, b, out, [&](i64 begin, i64 end, const T* points, i64 step) {
      t.multiply(rows, begin, end, points, step, width, add ? nullptr : bias);
    });
    t.transform_outputs(f, out, width, sums, add);
  }
}

// Sums of some lanes to the outputs, from block b of a group on.
template <class T, class S>
struct Target {
  const Task<T>& t;
  const Epilogue<T>& epilogue;
  View<S> to;
  i64 lanes, outputs;
  bool direct;  // whole blocks of a channels-last output are summed where they belong
  const T* bias = nullptr;
  Pixels<T> sums;

  Target(const Task<T>& task, const Epilogue<T>& after, const View<S>& out, i64 group, i64 b, i64 blocks)
      : t(task), epilogue(after), to(out), lanes(t.w.width(b, blocks)), outputs(std::min(lanes, t.w.outputs - b * t.w.block)) {
    const i64 channel = group * t.w.outputs + b * t.w.block;
    to.data += t.box.image * out.stride[0] + channel * out.stride[1];
    direct = std::is_same_v<T, S> && out.stride[1] == 1 && outputs == lanes;
    sums = direct ? as_pixels<T>(to) : packed_pixels<T>(t.at.sums, t.box.out_size, lanes, t.box.out_begin);
    if (!epilogue.bias) return;
    for (i64 m = 0; m < lanes; ++m) t.at.bias[m] = m < outputs ? epilogue.bias[channel + m] : T(0);
    bias = t.at.bias;
  }

  void finish(bool stream) {
    const TileBox& box = t.box;
    activate_pixels(t.k, sums, box.out_begin, box.out_size, lanes, box.images, epilogue);
    if (direct) return;
    for (int i = 0; i < 3; ++i) to.data += box.out_begin[i] * to.stride[2 + i];
    scatter_pixels(t.k, t.at.sums, box.out_size, lanes, box.images, outputs, to, stream);
  }
};

// By blocks: the inputs of a group, of all tiles, are transformed by all threads, and then each block of outputs by one, or each piece of
// it.
template <class T, class S>
void run_by_blocks(const Winograd& w, const Kernels<T>& k, const WeightTransform<T>& transform, const View<const T>& in,
                   const Weights<T>& weights, const T* packed, i64 group, const Epilogue<T>& epilogue, const View<S>& out, bool stream) {
  const i64 pitch = w.pitch(), plane = w.all_tiles() * pitch;
  std::vector<Points<T>> inputs;
  T* at = scratch<T>(1, w.shared());
  for (const Winograd::Family& f : w.families) inputs.push_back({at, plane}), at += f.points * plane;
  parallel_for(w.boxes(), w.threads, [&](i64 task) {
    const Task<T> t(w, k, TileBox(w, task));
    const Pixels<const T> pixels = t.pixels(in);
    for (std::size_t i = 0; i < inputs.size(); ++i)
      t.transform_inputs(w.families[i], pixels, {inputs[i].at + t.box.before(w) * pitch, plane});
  });
  parallel_for(w.blocks * w.pieces, w.threads, [&](i64 task) {
    const i64 b = task / w.pieces;
    const Task<T> t(w, k, TileBox(w, task % w.pieces, w.pieces));
    const GroupWeights<T> points{t, transform, packed};
    points.begin(weights.of_group(group), b);
    Target<T, S> target(t, epilogue, out, group, b, 1);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const Winograd::Family& f = w.families[i];
      compute(t, f, t.rows(f, {inputs[i].at + t.box.before(w) * pitch, plane}), points, b, target.bias, target.sums);
    }
    target.finish(stream);
    fence(stream);
  });
}

// A run of blocks, from `first` on, of a box.
template <class T, class S>
void run_by_boxes(const Winograd& w, const Kernels<T>& k, const WeightTransform<T>& transform, const View<const T>& in, const T* packed,
                  i64 group, const Epilogue<T>& epilogue, const View<S>& out, bool stream, i64 box, i64 first) {
  const Task<T> t(w, k, TileBox(w, box));
  const Pixels<const T> pixels = t.pixels(in);
  const Points<T> inputs{t.at.inputs, t.tiles * t.at.pitch};
  const i64 last = std::min(w.blocks, first + w.blocks_per_run);
  std::vector<PointRows<T>> rows;
  for (i64 b = first; b < last; b += w.blocks_at_once) {
    const i64 blocks = std::min(w.blocks_at_once, last - b);
    Target<T, S> target(t, epilogue, out, group, b, blocks);
    for (const Winograd::Family& f : w.families) {
      if (w.families.size() > 1 || b == first) t.transform_inputs(f, pixels, inputs), rows = t.rows(f, inputs);
      for (i64 i = 0; i < blocks; ++i) {
        Pixels<T> sums = target.sums;
        sums.data += i * w.block;
        compute(t, f, rows, {t, transform, packed}, b + i, target.bias ? target.bias + i * w.block : nullptr, sums);
      }
    }
    target.finish(stream);
  }
  fence(stream);
}

}  // namespace

template <class T, class S>
void run(const Winograd& w, const Kernels<T>& k, View<const T> in, const Weights<T>& weights, const Epilogue<T>& epilogue, View<S> out) {
  const i64 size = w.batch * w.groups * w.outputs * w.axis[0].out_size * w.axis[1].out_size * w.axis[2].out_size;
  const bool stream = size * i64(sizeof(T)) >= kStreamBytes;
  const WeightTransform<T> transform(w, k);
  const auto inputs_of = [&](i64 group) {
    View<const T> from = in;
    from.data += group * w.channels * in.stride[1];
    return from;
  };
  const auto packed_of = [&](i64 group) -> const T* {
    return weights.packed ? weights.packed + group * w.blocks * w.block * w.channels * w.weights : nullptr;
  };
  if (w.by_blocks) {
    for (i64 group = 0; group < w.groups; ++group)
      run_by_blocks(w, k, transform, inputs_of(group), weights, packed_of(group), group, epilogue, out, stream);
    return;
  }
  parallel_for(w.tasks(), w.threads, [&](i64 task) {
    const i64 box = task % w.boxes(), first = task / w.boxes() % w.runs * w.blocks_per_run, group = task / w.boxes() / w.runs;
    run_by_boxes(w, k, transform, inputs_of(group), packed_of(group), group, epilogue, out, stream, box, first);
  });
}

TCONV_RUNS(Winograd)

}  // namespace tconv
