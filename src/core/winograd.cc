// SPDX-License-Identifier: Apache-2.0
// Runs winograd.h: transform the inputs of a box, multiply point by point, transform the outputs.
#include "winograd.h"

#include <algorithm>

#include "parallel.h"
#include "pixels.h"

namespace tconv {
namespace {

// Vectors of lanes along three axes.
template <class T>
struct Grid {
  T* data;
  i64 stride[3];
};

template <class T>
Grid<T> dense(T* data, const i64* extent, i64 pitch) {
  return {data, {extent[1] * extent[2] * pitch, extent[2] * pitch, pitch}};
}

i64 volume(const i64* extent) { return extent[0] * extent[1] * extent[2]; }

// Calls body(at) for every place of a grid, in order.
template <class F>
void each(const i64* extent, F body) {
  i64 at[3];
  for (at[0] = 0; at[0] < extent[0]; ++at[0])
    for (at[1] = 0; at[1] < extent[1]; ++at[1])
      for (at[2] = 0; at[2] < extent[2]; ++at[2]) body(at);
}

// The transforms of a family along each axis, those of one tap left out, and the extents before and after.
template <class T>
struct Chain {
  Lines<T> lines[3];
  int axes[3], count = 0;
  i64 before[3], after[3];

  template <class F>
  Chain(const Winograd::Family& f, const Winograd& w, const Kernels<T>& k, Lines<T> Transform<T>::* kind, bool outermost_first, F extents) {
    for (int i = 0; i < 3; ++i) {
      const int a = outermost_first ? i : 2 - i;
      const Winograd::Class& c = *f.along[a];
      lines[a] = k.transform[w.axis[a].tile][c.taps].*kind;
      if (c.taps > 1) axes[count++] = a;
      extents(c, w.axis[a], before[a], after[a]);
    }
    if (!count) axes[count++] = 2;  // a copy
  }

  // `room` holds two grids between transforms.
  void operator()(Grid<const T> from, const Grid<T>& to, i64 run, T* room, i64 room_size, bool add = false) const {
    i64 extent[3] = {before[0], before[1], before[2]};
    for (int s = 0; s < count; ++s) {
      const int a = axes[s];
      i64 next[3] = {extent[0], extent[1], extent[2]};
      next[a] = after[a];
      const Grid<T> target = s + 1 == count ? to : dense(room + s % 2 * room_size, next, run);
      along(a, extent, from, target, run, add && s + 1 == count);
      from = {target.data, {target.stride[0], target.stride[1], target.stride[2]}};
      extent[a] = next[a];
    }
  }

 private:
  void along(int a, const i64* extent, const Grid<const T>& from, const Grid<T>& to, i64 run, bool add) const {
    const int u = a == 0 ? 1 : 0, v = a == 2 ? 1 : 2;
    const bool adjacent = from.stride[v] == run && to.stride[v] == run;
    for (i64 i = 0; i < extent[u]; ++i)
      lines[a](from.data + i * from.stride[u], {from.stride[a], from.stride[v]}, to.data + i * to.stride[u], {to.stride[a], to.stride[v]},
               adjacent ? 1 : extent[v], adjacent ? run * extent[v] : run, add);
  }
};

// Where packed weights of a family, block and output phase begin; there they lie as [point][input phase][channel][lane].
template <class T>
T* weights_of(const Winograd& w, T* group, const Winograd::Family& f, i64 b, i64 out) {
  return group + (f.before * w.blocks + (b * f.outs + out) * f.weights * f.ins) * w.channels * w.block;
}

// The phases of a combination of phases along the axes.
struct Phases {
  i64 of[3];
  Phases(const Winograd::Family& f, std::vector<i64> Winograd::Class::* side, i64 index) {
    for (int i = 2; i >= 0; --i) {
      const std::vector<i64>& list = f.along[i]->*side;
      of[i] = list[std::size_t(index % i64(list.size()))];
      index /= i64(list.size());
    }
  }
};

// The taps of one channel, [kernel element][lane], transformed for every family.
template <class T>
struct WeightPacker {
  const Winograd& w;
  const Kernels<T>& k;
  std::vector<Chain<T>> chains;

  WeightPacker(const Winograd& plan, const Kernels<T>& kernels) : w(plan), k(kernels) {
    for (const Winograd::Family& f : w.families)
      chains.emplace_back(f, w, k, &Transform<T>::weight, false,
                          [](const Winograd::Class& c, const Winograd::Along&, i64& before, i64& after) { before = c.taps, after = c.weights; });
  }

  void operator()(const T* taps, T* group, i64 b, i64 channel, T* room) const {
    for (std::size_t i = 0; i < chains.size(); ++i) {
      const Winograd::Family& f = w.families[i];
      for (i64 out = 0; out < f.outs; ++out)
        for (i64 in = 0; in < f.ins; ++in) {
          const Phases po(f, &Winograd::Class::out, out), pi(f, &Winograd::Class::in, in);
          Grid<const T> from{taps, {}};
          for (int a = 0, pitch = int(w.block); a < 3; ++a) {
            i64 step = pitch;
            for (int later = a + 1; later < 3; ++later) step *= w.axis[later].kernel;
            const i64 taps_here = f.along[a]->taps, phase = w.axis[a].forward ? po.of[a] : pi.of[a];
            const i64 first = w.axis[a].element(phase, 0, taps_here);
            from.data += first * step;
            from.stride[a] = (w.axis[a].element(phase, 1, taps_here) - first) * step;
          }
          T* to = weights_of(w, group, f, b, out) + (in * w.channels + channel) * w.block;
          chains[i](from, dense(to, chains[i].after, f.ins * w.channels * w.block), w.block, room, w.points * w.block);
        }
    }
  }
};

}  // namespace

template <class T>
void pack_weights(const Winograd& w, const Kernels<T>& k, View<const T> weight, i64 group_stride, T* packed) {
  constexpr i64 kChannels = 16;
  const i64 kh = w.axis[1].kernel, kw = w.axis[2].kernel, taps = w.axis[0].kernel * kh * kw, chunks = ceil_div(w.channels, kChannels);
  const bool adjacent = weight.stride[4] == 1 && weight.stride[3] == kw && weight.stride[2] == kh * kw;
  const WeightPacker<T> pack(w, k);
  parallel_for(w.groups * w.blocks * chunks, w.threads, [&](i64 task) {
    const i64 group = task / (chunks * w.blocks), b = task / chunks % w.blocks, begin = task % chunks * kChannels;
    const i64 first = b * w.block, lanes = std::min(w.block, w.outputs - first);
    T* elements = scratch<T>(0, (taps + 2 * w.points) * w.block);
    for (i64 c = begin; c < std::min(w.channels, begin + kChannels); ++c) {
      const T* from = weight.data + group * group_stride + c * weight.stride[0] + first * weight.stride[1];
      if (lanes < w.block) std::fill_n(elements, taps * w.block, T(0));
      if (adjacent)
        k.transpose(from, weight.stride[1], elements, w.block, lanes, taps, nullptr);
      else
        for (i64 t = 0; t < taps; ++t)
          for (i64 m = 0; m < lanes; ++m)
            elements[t * w.block + m] = from[m * weight.stride[1] + t / kw / kh * weight.stride[2] + t / kw % kh * weight.stride[3] +
                                             t % kw * weight.stride[4]];
      pack(elements, packed + group * w.blocks * w.block * w.channels * w.weights, b, c, elements + taps * w.block);
    }
  });
}

namespace {

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
  i64 pitch, product_pitch, room_size;  // elements from tile to tile of V and M
  T *inputs, *products, *sums, *pixels, *room, *patch, *bias;

  explicit Buffers(const Winograd& w)
      : pitch(round_up(w.depth, 16) | 16), product_pitch((w.points + 1) * w.block), room_size(w.points * std::max(w.channels, w.block)) {
    T** const part[] = {&inputs, &products, &sums, &pixels, &room, &patch, &bias};
    const i64 size[] = {w.points * w.tiles * pitch,
                        w.tiles * product_pitch,
                        w.images * w.out_positions * w.blocks_at_once * w.block,
                        w.images * w.in_positions * w.channels,
                        2 * room_size,
                        room_size,
                        w.blocks * w.block};
    i64 total = 0;
    for (i64 s : size) total += round_up(s, 64);
    T* at = scratch<T>(0, total);
    for (int i = 0; i < 7; ++i) *part[i] = at, at += round_up(size[i], 64);
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
  Grid<const T> patch(const i64* first, const i64* step, const i64* extent, const Pixels<const T>& in, i64 image) const;
  void place(const Grid<const T>& from, const i64* first, const i64* extent, const Pixels<T>& to, i64 image, bool add) const;
};

// Inputs of a tile that reaches over a border, with zeros beyond it.
template <class T>
Grid<const T> Task<T>::patch(const i64* first, const i64* step, const i64* extent, const Pixels<const T>& in, i64 image) const {
  T* to = at.patch;
  each(extent, [&](const i64* i) {
    const T* from = in.data + image * in.image;
    bool inside = true;
    for (int a = 0; a < 3; ++a) {
      const i64 x = first[a] + i[a] * step[a];
      inside = inside && x >= 0 && x < w.axis[a].in_size;
      from += inside ? x * in.stride[a] : 0;
    }
    k.copy(inside ? from : nullptr, 0, to, 0, 1, 0, inside ? w.channels : 0, w.channels);
    to += w.channels;
  });
  const Grid<T> grid = dense(at.patch, extent, w.channels);
  return {grid.data, {grid.stride[0], grid.stride[1], grid.stride[2]}};
}

template <class T>
void Task<T>::transform_inputs(const Winograd::Family& f, const Pixels<const T>& in) const {
  const Chain<T> chain(f, w, k, &Transform<T>::input, false,
                       [](const Winograd::Class& c, const Winograd::Along&, i64& before, i64& after) { before = after = c.points; });
  const i64 plane = tiles * at.pitch;
  i64 index = 0;
  for (i64 image = 0; image < box.images; ++image)
    each(box.size, [&](const i64* tile) {
      for (i64 phase = 0; phase < f.ins; ++phase) {
        const Phases pi(f, &Winograd::Class::in, phase);
        i64 first[3], step[3];
        Grid<const T> from{in.data + image * in.image, {}};
        bool inside = true;
        for (int i = 0; i < 3; ++i) {
          const Winograd::Along& a = w.axis[i];
          step[i] = a.in_stride;
          first[i] = step[i] * (box.position(a, i, tile[i]) + a.reach(*f.along[i])) + pi.of[i] - a.in_lo;
          inside = inside && first[i] >= 0 && first[i] + (chain.before[i] - 1) * step[i] < a.in_size;
          from.data += first[i] * in.stride[i], from.stride[i] = step[i] * in.stride[i];
        }
        if (!inside) from = patch(first, step, chain.before, in, image);
        chain(from, dense(at.inputs + index * at.pitch + phase * w.channels, chain.after, plane), w.channels, at.room, at.room_size);
      }
      ++index;
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
  for (PointRows<T>& r : found) r.height = tile_rows(k, i64(r.from.size()), kTerms, kGatherVecs);
  return found;
}

// Sums in parts of the channels, as everywhere.
template <class T>
void Task<T>::multiply(const std::vector<PointRows<T>>& points, i64 depth, const T* weights, const T* bias) const {
  const i64 part = even(depth, kTerms), none = 0;
  for (const PointRows<T>& p : points) {
    const i64 count = i64(p.from.size());
    for (i64 c = 0; c < depth; c += part)
      for (i64 r = 0; r < count; r += p.height)
        k.gathered[std::min(p.height, count - r)](c, std::min(depth, c + part), 1, p.from.data() + r, &none, weights, p.to.data() + r,
                                                  p.constant ? bias : nullptr, c > 0);
    weights += depth * w.block;
  }
}

// Those outputs of a tile at the border that exist.
template <class T>
void Task<T>::place(const Grid<const T>& from, const i64* first, const i64* extent, const Pixels<T>& to, i64 image, bool add) const {
  each(extent, [&](const i64* i) {
    const T* at = from.data;
    T* y = to.data + image * to.image;
    for (int a = 0; a < 3; ++a) {
      const i64 o = first[a] + i[a] * w.axis[a].out_stride;
      if (o < 0 || o >= w.axis[a].out_size) return;
      y += o * to.stride[a], at += i[a] * from.stride[a];
    }
    k.transform[1][1].output(at, {0, 0}, y, {0, 0}, 1, w.block, add);
  });
}

template <class T>
void Task<T>::transform_outputs(const Winograd::Family& f, i64 out, const Pixels<T>& to, bool add) const {
  const Chain<T> chain(f, w, k, &Transform<T>::output, true, [](const Winograd::Class& c, const Winograd::Along& a, i64& before, i64& after) {
    before = c.points, after = a.tile;
  });
  const Phases po(f, &Winograd::Class::out, out);
  i64 index = 0;
  for (i64 image = 0; image < box.images; ++image)
    each(box.size, [&](const i64* tile) {
      i64 first[3];
      Grid<T> y{to.data + image * to.image, {}};
      bool inside = true;
      for (int i = 0; i < 3; ++i) {
        const Winograd::Along& a = w.axis[i];
        first[i] = a.out_stride * box.position(a, i, tile[i]) + po.of[i] - a.out_lo;
        inside = inside && first[i] >= 0 && first[i] + (a.tile - 1) * a.out_stride < a.out_size;
        y.data += first[i] * to.stride[i], y.stride[i] = a.out_stride * to.stride[i];
      }
      const Grid<T> m = dense(at.products + index++ * at.product_pitch, chain.before, w.block);
      const Grid<const T> from{m.data, {m.stride[0], m.stride[1], m.stride[2]}};
      if (inside) return chain(from, y, w.block, at.room, at.room_size, add);
      const Grid<T> all = dense(at.patch, chain.after, w.block);
      chain(from, all, w.block, at.room, at.room_size);
      place({all.data, {all.stride[0], all.stride[1], all.stride[2]}}, first, chain.after, to, image, add);
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

}  // namespace

template <class T>
void run(const Winograd& w, const Kernels<T>& k, View<const T> in, const T* packed, const T* bias, View<T> out) {
  parallel_for(w.boxes() * w.groups * w.runs, w.threads, [&](i64 task) {
    const i64 turn = task % w.runs, group = task / w.runs % w.groups;
    const Task<T> t(w, k, task / (w.runs * w.groups));
    const TileBox& box = t.box;
    View<const T> from = in;
    from.data += box.image * in.stride[0] + group * w.channels * in.stride[1];
    Pixels<const T> pixels{from.data, in.stride[0], {in.stride[2], in.stride[3], in.stride[4]}};
    if (in.stride[1] != 1 && w.channels > 1) {
      for (int i = 0; i < 3; ++i) from.data += box.in_begin[i] * in.stride[2 + i];
      if (volume(box.in_size)) gather_pixels(k, from, box.in_size, w.channels, box.images, t.at.pixels);
      pixels = packed_pixels<const T>(t.at.pixels, box.in_size, w.channels, box.in_begin);
    }
    const T* group_weights = packed + group * w.blocks * w.block * w.channels * w.weights;
    const i64 last = std::min(w.blocks, (turn + 1) * w.blocks_per_run);
    for (i64 b = turn * w.blocks_per_run; b < last; b += w.blocks_at_once) {
      const i64 blocks = std::min(w.blocks_at_once, last - b), lanes = blocks * w.block, outputs = std::min(lanes, w.outputs - b * w.block);
      const i64 channel = group * w.outputs + b * w.block;
      View<T> to = out;
      to.data += box.image * out.stride[0] + channel * out.stride[1];
      const bool direct = out.stride[1] == 1 && outputs == lanes;
      const Pixels<T> sums = direct ? Pixels<T>{to.data, out.stride[0], {out.stride[2], out.stride[3], out.stride[4]}}
                                    : packed_pixels<T>(t.at.sums, box.out_size, lanes, box.out_begin);
      for (i64 m = 0; bias && m < lanes; ++m) t.at.bias[m] = m < outputs ? bias[channel + m] : T(0);
      for (const Winograd::Family& f : w.families) {
        if (w.families.size() > 1 || b == turn * w.blocks_per_run) t.transform_inputs(f, pixels);
        const auto rows = t.rows(f);
        for (i64 i = 0; i < blocks; ++i)
          for (i64 o = 0; o < f.outs; ++o) {
            if (!t.any_output(f, o)) continue;
            t.multiply(rows, f.ins * w.channels, weights_of(w, group_weights, f, b + i, o), bias ? t.at.bias + i * w.block : nullptr);
            Pixels<T> y = sums;
            y.data += i * w.block;
            t.transform_outputs(f, o, y, !w.axis[0].forward && &f != &w.families.front());
          }
      }
      if (direct) continue;
      for (int i = 0; i < 3; ++i) to.data += box.out_begin[i] * out.stride[2 + i];
      scatter_pixels(k, t.at.sums, box.out_size, lanes, box.images, outputs, to);
    }
  });
}

#define TCONV_WINOGRAD(T)                                                                    \
  template void pack_weights<T>(const Winograd&, const Kernels<T>&, View<const T>, i64, T*); \
  template void run<T>(const Winograd&, const Kernels<T>&, View<const T>, const T*, const T*, View<T>);
TCONV_WINOGRAD(float)
TCONV_WINOGRAD(double)

}  // namespace tconv
