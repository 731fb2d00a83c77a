// SPDX-License-Identifier: Apache-2.0
// Runs winograd.h: transform the inputs of a box, multiply point by point, transform the outputs.
#include "parallel.h"
#include "pixels.h"
#include "winograd_chain.h"

namespace tconv {
namespace {

constexpr i64 kShortRow = 8;  // tiles

// A box of tiles of some images, and the inputs and outputs around it.
struct TileBox {
  i64 image, images, at[3], size[3];
  i64 in_begin[3], in_size[3], out_begin[3], out_size[3];

  TileBox(const Winograd& w, i64 index) {
    for (int i = 2; i >= 0; --i) {
      const Winograd::Along& a = w.axis[i];
      const i64 turns = ceil_div(a.tiles, a.box), turn = index % turns;
      index /= turns;
      at[i] = turn * a.tiles / turns, size[i] = (turn + 1) * a.tiles / turns - at[i];
      const i64 first = position(a, i, 0), last = first + size[i] * a.tile - 1, more = a.classes.front().taps - 1;
      const auto clip = [](i64 begin, i64 end, i64 most, i64& from, i64& count) {
        from = std::clamp<i64>(begin, 0, most), count = std::clamp<i64>(end, from, most) - from;
      };
      clip(a.in_stride * (first - (a.forward ? more : 0)) - a.in_lo, a.in_stride * (last + 1 + (a.forward ? 0 : more)) - a.in_lo, a.in_size,
           in_begin[i], in_size[i]);
      clip(a.out_stride * first - a.out_lo, a.out_stride * (last + 1) - a.out_lo, a.out_size, out_begin[i], out_size[i]);
    }
    image = index * w.images;
    images = std::min(w.images, w.batch - image);
  }
  // Position q of a tile's first output along an axis.
  i64 position(const Winograd::Along& a, int i, i64 tile) const { return a.first + (at[i] + tile) * a.tile; }
  i64 tiles() const { return images * volume(size); }
};

// Buffers of a task, side by side in one piece of scratch memory.
template <class T>
struct Buffers {
  i64 pitch, product_pitch, pixel_pitch, room_size;
  T *inputs, *products, *sums, *pixels, *room, *patch, *bias;

  explicit Buffers(const Winograd& w)
      : pitch(w.pitch()), product_pitch(w.product_pitch()), pixel_pitch(w.pixel_pitch()), room_size(w.room) {
    T** const part[Winograd::kParts] = {&inputs, &products, &sums, &pixels, &room, &patch, &bias};
    T* at = scratch<T>(0, w.workspace());
    for (int i = 0; i < Winograd::kParts; ++i) *part[i] = at, at += round_up(w.parts()[std::size_t(i)], 64);
  }
};

// The rows that meet one point's weights: tiles, times the copied points of axes with one tap.
template <class T>
struct PointRows {
  std::vector<const T*> from;
  std::vector<T*> to;
  bool constant;  // what is added here reaches every output of a tile, once
  i64 height;
};

// Along the row, a tile's first element, and which of its elements begin .. end - 1 exist.
struct Columns {
  i64 at, begin, end;
};

// Where the tiles of a row lie in an input or output: the first one begins at `first` and has `extent` elements, `step` apart;
// the next one begins `advance` further along the row; those of begin .. end - 1 lie wholly inside.
struct Reach {
  i64 first[3], step[3], extent[3], advance, begin, end;

  Columns columns(i64 tile, i64 size) const {
    const i64 at = first[2] + tile * advance, from = std::clamp<i64>(ceil_div(-at, step[2]), 0, extent[2]);
    return {at, from, std::clamp<i64>(ceil_div(size - at, step[2]), from, extent[2])};
  }
  void find_inside(const i64* size, i64 tiles) {
    bool inside = true;
    for (int i = 0; i < 2; ++i) inside = inside && first[i] >= 0 && first[i] + (extent[i] - 1) * step[i] < size[i];
    begin = inside ? std::clamp<i64>(ceil_div(-first[2], advance), 0, tiles) : 0;
    end = inside ? std::clamp<i64>(floor_div(size[2] - 1 - first[2] - (extent[2] - 1) * step[2], advance) + 1, begin, tiles) : 0;
  }
};

template <class T>
struct Task {
  const Winograd& w;
  const Kernels<T>& k;
  TileBox box;
  Buffers<T> at;
  i64 tiles;

  Task(const Winograd& plan, const Kernels<T>& kernels, i64 index) : w(plan), k(kernels), box(plan, index), at(plan), tiles(box.tiles()) {}

  void transform_inputs(const Winograd::Family& f, const Pixels<const T>& in) const;
  std::vector<PointRows<T>> rows(const Winograd::Family& f) const;
  void multiply(const std::vector<PointRows<T>>& rows, i64 depth, const T* weights, const T* bias) const;
  void transform_outputs(const Winograd::Family& f, i64 out, const Pixels<T>& to, bool add) const;
  bool any_output(const Winograd::Family& f, i64 out) const;

 private:
  Reach reach(const Winograd::Family& f, const Phases& in, const i64* row, const i64* extent) const;
  Reach reach(const Phases& out, const i64* row, const i64* extent) const;
  Grid<const T> patch(const Reach& r, i64 tile, const Pixels<const T>& in) const;
  void transform_border(const Chain<T>& chain, Grid<const T> from, i64 begin, i64 end, const Reach& r, const Pixels<T>& to, bool add) const;
  void place(const Reach& r, i64 tile, const Grid<T>& from, const Pixels<T>& to, bool add) const;
};

template <class T>
Reach Task<T>::reach(const Winograd::Family& f, const Phases& in, const i64* row, const i64* extent) const {
  Reach r{};
  i64 size[3];
  for (int i = 0; i < 3; ++i) {
    const Winograd::Along& a = w.axis[i];
    r.step[i] = a.in_stride, r.extent[i] = extent[i], size[i] = a.in_size;
    r.first[i] = a.in_stride * (box.position(a, i, i < 2 ? row[i] : 0) + a.reach(*f.along[i])) + in.of[i] - a.in_lo;
  }
  r.advance = r.step[2] * w.axis[2].tile;
  r.find_inside(size, box.size[2]);
  return r;
}

template <class T>
Reach Task<T>::reach(const Phases& out, const i64* row, const i64* extent) const {
  Reach r{};
  i64 size[3];
  for (int i = 0; i < 3; ++i) {
    const Winograd::Along& a = w.axis[i];
    r.step[i] = a.out_stride, r.extent[i] = extent[i], size[i] = a.out_size;
    r.first[i] = a.out_stride * box.position(a, i, i < 2 ? row[i] : 0) + out.of[i] - a.out_lo;
  }
  r.advance = r.step[2] * w.axis[2].tile;
  r.find_inside(size, box.size[2]);
  return r;
}

// Inputs of a tile that reaches over a border, with zeros beyond it.
template <class T>
Grid<const T> Task<T>::patch(const Reach& r, i64 tile, const Pixels<const T>& in) const {
  const i64 c = w.channels, step = r.step[2];
  const auto [column, begin, end] = r.columns(tile, w.axis[2].in_size);
  const bool adjacent = step * in.stride[2] == c;
  T* to = at.patch;
  for (i64 d = 0; d < r.extent[0]; ++d)
    for (i64 h = 0; h < r.extent[1]; ++h, to += r.extent[2] * c) {
      const i64 id = r.first[0] + d * r.step[0], ih = r.first[1] + h * r.step[1];
      const bool inside = id >= 0 && id < w.axis[0].in_size && ih >= 0 && ih < w.axis[1].in_size && begin < end;
      const T* from = in.data;
      if (inside) from += id * in.stride[0] + ih * in.stride[1] + (column + begin * step) * in.stride[2];
      if (adjacent || !inside) {
        k.copy(from, 0, to, 0, 1, inside ? begin * c : 0, inside ? end * c : 0, r.extent[2] * c);
      } else {
        k.copy(from, 0, to, 0, 1, 0, 0, begin * c);
        k.copy(from, step * in.stride[2], to + begin * c, c, end - begin, 0, c, c);
        k.copy(from, 0, to + end * c, 0, 1, 0, 0, (r.extent[2] - end) * c);
      }
    }
  return readable(dense(at.patch, r.extent, c));
}

template <class T>
void Task<T>::transform_inputs(const Winograd::Family& f, const Pixels<const T>& in) const {
  const Chain<T> chain(f, w, k, &Transform<T>::input, false,
                       [](const Winograd::Class& c, const Winograd::Along&, i64& before, i64& after) { before = after = c.points; });
  const i64 rows[3] = {box.images, box.size[0], box.size[1]}, plane = tiles * at.pitch;
  T* v = at.inputs;
  each(rows, [&](const i64* row) {
    for (i64 phase = 0; phase < f.ins; ++phase) {
      const Reach r = reach(f, Phases(f, &Winograd::Class::in, phase), row + 1, chain.before);
      Pixels<const T> x = in;
      x.data += row[0] * in.image;
      Grid<const T> from{x.data, {}, r.advance * in.stride[2]};
      for (int i = 0; i < 3; ++i) from.data += r.first[i] * in.stride[i], from.stride[i] = r.step[i] * in.stride[i];
      Grid<T> to = dense(v + phase * w.channels, chain.after, plane);
      to.tile = at.pitch;
      const auto move = [&](i64 tile, const Grid<const T>& source, i64 count) {
        Grid<T> target = to;
        target.data += tile * to.tile;
        chain(source, target, count, w.channels, at.room, at.room_size);
      };
      from.data += r.begin * from.tile;
      move(r.begin, from, r.end - r.begin);
      for (i64 t = 0; t < box.size[2]; ++t)
        if (t < r.begin || t >= r.end) move(t, patch(r, t, x), 1);
    }
    v += box.size[2] * at.pitch;
  });
}

template <class T>
std::vector<PointRows<T>> Task<T>::rows(const Winograd::Family& f) const {
  std::vector<PointRows<T>> found(static_cast<std::size_t>(f.weights));
  i64 points[3];
  for (int i = 0; i < 3; ++i) points[i] = f.along[i]->points;
  i64 point = 0;
  each(points, [&](const i64* p) {
    i64 weights = 0;
    bool constant = true;
    for (int i = 0; i < 3; ++i) {
      const Winograd::Class& c = *f.along[i];
      weights = weights * c.weights + (c.weights > 1 ? p[i] : 0);
      constant = constant && (c.taps == 1 || p[i] == kOnePoint);
    }
    PointRows<T>& rows = found[std::size_t(weights)];
    rows.constant = constant;
    for (i64 t = 0; t < tiles; ++t) {
      rows.from.push_back(at.inputs + (point * tiles + t) * at.pitch);
      rows.to.push_back(at.products + t * at.product_pitch + point * w.block);
    }
    ++point;
  });
  const i64 alike = i64(found.size() ? found[0].from.size() : 0), height = tile_rows(k, alike, kTerms, kGatherVecs);
  for (PointRows<T>& r : found) r.height = height;
  return found;
}

// Sums in parts of the channels.
template <class T>
void Task<T>::multiply(const std::vector<PointRows<T>>& points, i64 depth, const T* weights, const T* bias) const {
  const i64 part = even(depth, w.terms), none = 0;
  for (const PointRows<T>& p : points) {
    const i64 count = i64(p.from.size());
    for (i64 c = 0; c < depth; c += part)
      for (i64 r = 0; r < count; r += p.height)
        k.gathered[kGatherVecs][std::min(p.height, count - r)](c, std::min(depth, c + part), 1, p.from.data() + r, &none, weights,
                                                               p.to.data() + r, p.constant ? bias : nullptr, c > 0);
    weights += depth * w.block;
  }
}

// Those outputs of a tile at the border that exist.
template <class T>
void Task<T>::place(const Reach& r, i64 tile, const Grid<T>& from, const Pixels<T>& to, bool add) const {
  const Columns c = r.columns(tile, w.axis[2].out_size);
  if (c.begin == c.end) return;
  for (i64 d = 0; d < r.extent[0]; ++d)
    for (i64 h = 0; h < r.extent[1]; ++h) {
      const i64 od = r.first[0] + d * r.step[0], oh = r.first[1] + h * r.step[1];
      if (od < 0 || od >= w.axis[0].out_size || oh < 0 || oh >= w.axis[1].out_size) continue;
      k.transform[1][1].output(from.data + d * from.stride[0] + h * from.stride[1] + c.begin * from.stride[2], {0, from.stride[2]},
                               to.data + od * to.stride[0] + oh * to.stride[1] + (c.at + c.begin * r.step[2]) * to.stride[2],
                               {0, r.step[2] * to.stride[2]}, c.end - c.begin, w.block, add);
    }
}

// Tiles begin .. end - 1 of a row, some of whose outputs do not exist, by way of a buffer.
template <class T>
void Task<T>::transform_border(const Chain<T>& chain, Grid<const T> from, i64 begin, i64 end, const Reach& r, const Pixels<T>& to,
                               bool add) const {
  const Grid<T> all = dense(at.patch, chain.after, w.block);
  const i64 most = at.room_size / all.tile;
  from.data += begin * from.tile;
  for (i64 t = begin; t < end; t += most, from.data += most * from.tile) {
    chain(from, all, std::min(most, end - t), w.block, at.room, at.room_size);
    Grid<T> one = all;
    for (i64 i = t; i < std::min(end, t + most); ++i, one.data += one.tile) place(r, i, one, to, add);
  }
}

template <class T>
void Task<T>::transform_outputs(const Winograd::Family& f, i64 out, const Pixels<T>& to, bool add) const {
  const Chain<T> chain(
      f, w, k, &Transform<T>::output, true,
      [](const Winograd::Class& c, const Winograd::Along& a, i64& before, i64& after) { before = c.points, after = a.tile; });
  const i64 rows[3] = {box.images, box.size[0], box.size[1]}, count = box.size[2];
  const Phases po(f, &Winograd::Class::out, out);
  Grid<const T> m = readable(dense(at.products, chain.before, w.block));
  m.tile = at.product_pitch;
  each(rows, [&](const i64* row) {
    const Reach r = reach(po, row + 1, chain.after);
    Pixels<T> y = to;
    y.data += row[0] * to.image;
    Grid<T> target{y.data + r.begin * r.advance * to.stride[2], {}, r.advance * to.stride[2]};
    for (int i = 0; i < 3; ++i) target.data += r.first[i] * to.stride[i], target.stride[i] = r.step[i] * to.stride[i];
    Grid<const T> inside = m;
    inside.data += r.begin * m.tile;
    if (r.end - r.begin < count && count <= kShortRow) {  // short rows go through the buffer whole: fewer calls
      transform_border(chain, m, 0, count, r, y, add);
    } else {
      chain(inside, target, r.end - r.begin, w.block, at.room, at.room_size, add);
      transform_border(chain, m, 0, r.begin, r, y, add);
      transform_border(chain, m, r.end, count, r, y, add);
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

// All families of some blocks of one group, from block `first` on: their sums, with the bias of these lanes or null.
template <class T>
void compute(const Task<T>& t, const Pixels<const T>& in, bool inputs_stay, std::vector<PointRows<T>>& rows, const T* weights, i64 first,
             i64 blocks, const T* bias, const Pixels<T>& sums) {
  const Winograd& w = t.w;
  for (const Winograd::Family& f : w.families) {
    if (!inputs_stay) t.transform_inputs(f, in), rows = t.rows(f);
    for (i64 b = 0; b < blocks; ++b)
      for (i64 out = 0; out < f.outs; ++out) {
        if (!t.any_output(f, out)) continue;
        t.multiply(rows, f.ins * w.channels, weights_of(w, weights, f, first + b, out), bias ? bias + b * w.block : nullptr);
        Pixels<T> y = sums;
        y.data += b * w.block;
        t.transform_outputs(f, out, y, !w.axis[0].forward && &f != &w.families.front());
      }
  }
}

// A box's inputs with adjacent channels: as they lie, or turned.
template <class T>
Pixels<const T> pixels_of(const Task<T>& t, View<const T> in) {
  if (in.stride[1] == 1 || t.w.channels == 1) return {in.data, in.stride[0], {in.stride[2], in.stride[3], in.stride[4]}};
  for (int i = 0; i < 3; ++i) in.data += t.box.in_begin[i] * in.stride[2 + i];
  if (volume(t.box.in_size)) gather_pixels(t.k, in, t.box.in_size, t.w.channels, t.box.images, t.at.pixels, t.at.pixel_pitch);
  return packed_pixels<const T>(t.at.pixels, t.box.in_size, t.at.pixel_pitch, t.box.in_begin);
}

}  // namespace

template <class T, class S>
void run(const Winograd& w, const Kernels<T>& k, View<const T> in, const T* packed, const Epilogue<T>& epilogue, View<S> out) {
  const T* bias = epilogue.bias;
  const i64 size = w.batch * w.groups * w.outputs * w.axis[0].out_size * w.axis[1].out_size * w.axis[2].out_size;
  const bool stream = size * i64(sizeof(T)) >= kStreamBytes;
  parallel_for(w.boxes() * w.groups * w.runs, w.threads, [&](i64 task) {
    const i64 turn = task % w.runs, group = task / w.runs % w.groups;
    const Task<T> t(w, k, task / (w.runs * w.groups));
    const TileBox& box = t.box;
    View<const T> from = in;
    from.data += box.image * in.stride[0] + group * w.channels * in.stride[1];
    const Pixels<const T> pixels = pixels_of(t, from);
    const T* weights = packed + group * w.blocks * w.block * w.channels * w.weights;
    const i64 first = turn * w.blocks_per_run, last = std::min(w.blocks, first + w.blocks_per_run);
    std::vector<PointRows<T>> rows;
    for (i64 b = first; b < last; b += w.blocks_at_once) {
      const i64 blocks = std::min(w.blocks_at_once, last - b), lanes = blocks * w.block, outputs = std::min(lanes, w.outputs - b * w.block);
      const i64 channel = group * w.outputs + b * w.block;
      View<S> to = out;
      to.data += box.image * out.stride[0] + channel * out.stride[1];
      // Whole blocks of a channels-last output are summed where they belong.
      const bool direct = std::is_same_v<T, S> && out.stride[1] == 1 && outputs == lanes;
      const Pixels<T> sums = direct ? as_pixels<T>(to) : packed_pixels<T>(t.at.sums, box.out_size, lanes, box.out_begin);
      for (i64 m = 0; bias && m < lanes; ++m) t.at.bias[m] = m < outputs ? bias[channel + m] : T(0);
      compute(t, pixels, w.families.size() == 1 && b > first, rows, weights, b, blocks, bias ? t.at.bias : nullptr, sums);
      activate_pixels(k, sums, box.out_begin, box.out_size, lanes, box.images, epilogue);
      if (direct) continue;
      for (int i = 0; i < 3; ++i) to.data += box.out_begin[i] * out.stride[2 + i];
      scatter_pixels(k, t.at.sums, box.out_size, lanes, box.images, outputs, to, stream);
    }
    fence(stream);
  });
}

TCONV_RUNS(Winograd)

}  // namespace tconv
