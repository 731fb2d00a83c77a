// SPDX-License-Identifier: Apache-2.0
#include "strassen.h"

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "pixels.h"

namespace tconv {
namespace {

// A box of positions of some images, and the inputs and outputs around it.
struct PairBox {
  i64 image, images, at[3], size[3];
  i64 in_begin[3], in_size[3], out_begin[3], out_size[3];

  PairBox(const Strassen& s, i64 index) {
    for (int i = 2; i >= 0; --i) {
      const Strassen::Along& a = s.axis[i];
      const i64 turn = index % a.turns;
      index /= a.turns;
      at[i] = a.position(turn), size[i] = a.position(turn + 1) - at[i];
      const i64 first = a.first + at[i], end = first + size[i];
      clip(a.in_stride * first - a.in_lo, a.in_stride * end - a.in_lo, a.in_size, in_begin[i], in_size[i]);
      clip(a.out_stride * first - a.out_lo, a.out_stride * end - a.out_lo, a.out_size, out_begin[i], out_size[i]);
    }
    image = index * s.images;
    images = std::min(s.images, s.batch - image);
  }
};

// The memory of a task.
template <class T>
struct Room {
  T *joined, *products, *sums, *pixels, *zeros;

  explicit Room(const Strassen& s) {
    scratch<T>(0, s.parts(), {&joined, &products, &sums, &pixels, &zeros});
    std::fill_n(zeros, 2 * s.channels, T(0));
  }
};

enum class Side { in, out };

// Where the elements of each phase of a side lie under the positions of a box, two by two. `none` stands for those that do not exist, and
// for the second one where a row has an odd number.
template <class T>
std::vector<std::vector<T*>> pairs_of(const Strassen& s, const PairBox& box, Side side, const Pixels<T>& pixels, T* none) {
  const bool in = side == Side::in, several = (in ? s.ins : s.outs) > 1;
  const i64 phases[3] = {several ? s.kernel[0] : 1, several ? s.kernel[1] : 1, several ? s.kernel[2] : 1};
  const auto element = [&](int i, i64 position, i64 phase) {  // of the array, or -1
    const Strassen::Along& a = s.axis[i];
    const i64 first = a.first + box.at[i],
              at = in ? a.in_stride * (first + position) + phase - a.in_lo : a.out_stride * (first + position) + phase - a.out_lo;
    return position < box.size[i] && at >= 0 && at < (in ? a.in_size : a.out_size) ? at : -1;
  };
  std::vector<std::vector<T*>> found(static_cast<std::size_t>(phases[0] * phases[1] * phases[2]));
  for (i64 phase = 0; phase < i64(found.size()); ++phase) {
    std::vector<T*>& to = found[std::size_t(phase)];
    to.reserve(static_cast<std::size_t>(2 * s.pairs));
    for (i64 n = 0; n < box.images; ++n)
      for (i64 d = 0; d < box.size[0]; ++d)
        for (i64 h = 0; h < box.size[1]; ++h) {
          const i64 z = element(0, d, phase / phases[2] / phases[1]), y = element(1, h, phase / phases[2] % phases[1]);
          for (i64 w = 0; w < round_up(box.size[2], 2); ++w) {
            const i64 x = element(2, w, phase % phases[2]);
            if (x < 0 || y < 0 || z < 0)
              to.push_back(none);
            else
              to.push_back(pixels.data + n * pixels.image + z * pixels.stride[0] + y * pixels.stride[1] + x * pixels.stride[2]);
          }
        }
  }
  return found;
}

// A box of a group: its inputs, and the way from there to sums.
template <class T>
struct Task {
  const Strassen& s;
  const Kernels<T>& k;
  PairBox box;
  const T* weights;  // of the group, and scales
  Room<T> room;
  std::vector<std::vector<const T*>> sources;
  i64 pairs, plane;  // of the box; elements from one of the 7 to the next

  Task(const Strassen& plan, const Kernels<T>& kernels, const PairBox& of, View<const T> in, const T* group_weights)
      : s(plan), k(kernels), box(of), weights(group_weights), room(plan) {
    in.data += box.image * in.stride[0];
    const Pixels<const T> pixels = pixels_of(k, in, box.in_begin, box.in_size, 2 * s.channels, box.images, room.pixels, s.pixel_pitch());
    sources = pairs_of<const T>(s, box, Side::in, pixels, room.zeros);
    pairs = i64(sources[0].size()) / 2, plane = pairs * s.pitch();
  }

  void join(const Chunk& c) const {
    for (i64 p = 0; p < c.phases; ++p) {
      std::vector<const T*> from = sources[std::size_t(c.phase + p)];
      for (const T*& x : from) x += x == room.zeros ? 0 : c.channel;
      k.join_inputs(from.data(), s.channels, weights + s.joined() + c.channel, pairs, c.channels, room.joined + p * c.channels, s.pitch(),
                    plane);
    }
  }

  // One of the 7 products, of a block.
  void multiply(i64 terms, const T* joined, const T* w, i64 width, T* to) const {
    i64 height = kMaxRows;
    while (!k.stepped[s.block / s.lanes][height]) --height;
    height = even(pairs, height);
    const i64 part = even(terms, s.part), whole = pairs / height, at = 0;
    for (i64 c = 0; c < terms; c += part)
      for (i64 p = 0, rows, tiles; p < pairs; p += rows * tiles) {
        rows = std::min(height, pairs - p), tiles = p < whole * height ? whole : 1;
        const T* row = joined + p * s.pitch();
        T* sums = to + p * s.block;
        k.stepped[width / s.lanes][rows](c, std::min(terms, c + part), 1, &row, s.pitch(), &at, w,
                                         {c ? sums : nullptr, s.block, sums, s.block, false}, tiles);
      }
  }

  // Some blocks and all phases, what a chunk adds to them.
  void compute(const Chunk& c, i64 first, i64 blocks, const std::vector<std::vector<T*>>& targets, QuarterSums<T> sums) const {
    const i64 products = pairs * s.block;
    for (i64 b = 0; b < blocks; ++b, sums.at += s.block, sums.scale += s.block, sums.bias += sums.bias ? s.block : 0)
      for (i64 out = 0; out < s.outs; ++out) {
        const i64 width = s.width(first + b);
        const T* w = weights + weights_at(s, first + b, out, c);
        for (i64 i = 0; i < kStrassen; ++i)
          multiply(c.terms(), room.joined + i * plane, w + i * c.terms() * width, width, room.products + i * products);
        sums.to = targets[std::size_t(out)].data();
        k.part(room.products, products, s.block, pairs, width, sums);
      }
  }
};

// Sums of `wide` lanes of a half that are complete: activated, and brought to where they belong.
template <class T, class S>
void finish(const Task<T>& t, Pixels<T> sums, i64 half, i64 wide, const Epilogue<T>& epilogue, View<S> to, bool direct) {
  sums.data += half;
  activate_pixels(t.k, sums, t.box.out_begin, t.box.out_size, wide, t.box.images, epilogue);
  if (direct) return;
  for (int i = 0; i < 3; ++i) to.data += t.box.out_begin[i] * to.stride[2 + i];
  scatter_pixels(t.k, t.room.sums + half, t.box.out_size, 2 * wide, t.box.images, wide, to, t.s.large);
}

// Whether every block of a channels-last output begins at a whole line.
template <class S>
bool whole_steps(const Strassen& s, const View<S>& out) {
  i64 steps = s.block | s.outputs;
  for (i64 i : {0, 2, 3, 4}) steps |= out.stride[i];
  return whole_lines(out.data, steps);
}

}  // namespace

template <class T, class S>
void run(const Strassen& s, const Kernels<T>& k, View<const T> in, const Weights<T>& weights, const Epilogue<T>& epilogue, View<S> out) {
  const bool past = s.large && epilogue.activation == Activation::none && whole_steps(s, out);
  const i64 boxes = s.boxes();
  parallel_for(boxes * s.runs * s.groups, s.threads, [&](i64 index) {
    const i64 group = index / boxes / s.runs, begin = index / boxes % s.runs * s.blocks_per_run,
              end = std::min(s.blocks, begin + s.blocks_per_run);
    View<const T> from = in;
    from.data += group * 2 * s.channels * in.stride[1];
    const Task<T> task(s, k, PairBox(s, index % boxes), from, weights.packed + group * s.group_elements());
    for (i64 first = begin, blocks; first < end; first += blocks) {
      blocks = std::min(s.blocks_at_once, end - first);
      const i64 channel = group * 2 * s.outputs + first * s.block;
      View<S> to = out;
      to.data += task.box.image * out.stride[0] + channel * out.stride[1];
      // Sums of a channels-last output are made where they belong.
      const bool direct = std::is_same_v<T, S> && out.stride[1] == 1;
      const i64 wide = s.width(first, blocks), half = direct ? s.outputs : wide;
      const Pixels<T> sums = direct ? as_pixels<T>(to) : packed_pixels<T>(task.room.sums, task.box.out_size, 2 * wide, task.box.out_begin);
      const auto targets = pairs_of<T>(s, task.box, Side::out, sums, nullptr);
      const T *bias = epilogue.bias ? epilogue.bias + channel : nullptr, *scale = task.weights + s.out_scales() + first * s.block;
      each_chunk(s, [&](const Chunk& c) {
        if (!c.all(s) || first == begin) task.join(c);
        task.compute(c, first, blocks, targets,
                     {nullptr, 0, half, !c.begins(), scale, c.begins() ? bias : nullptr, s.outputs, direct && past && c.ends(s)});
      });
      for (i64 m = 0; m < 2; ++m, to.data += s.outputs * out.stride[1]) finish(task, sums, m * half, wide, epilogue, to, direct);
    }
    fence(s.large);
  });
}

TCONV_RUNS(Strassen)

}  // namespace tconv
