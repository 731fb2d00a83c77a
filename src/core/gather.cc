// SPDX-License-Identifier: Apache-2.0
#include "gather.h"

#include <algorithm>

#include "parallel.h"

namespace tconv {
namespace {

constexpr i64 kSumsBytes = 384 << 10;   // sums of a task: with a part of the weights they fit a second-level cache
constexpr i64 kInputBytes = 384 << 10;  // transposed inputs of a task, if an image is not larger

// Input coordinate that an output reads through a tap.
i64 input_of(const StencilAxis& a, i64 output, const Tap& tap) {
  return a.in_stride * ((output + a.out_lo - tap.out_phase) / a.out_stride - tap.shift) + tap.in_phase - a.in_lo;
}

// Classes of one axis. Neighbours join while a class has fewer than `fewest` outputs, which would make tiles too low.
std::vector<Gather::Class> make_classes(const StencilAxis& a, i64 fewest) {
  std::vector<Gather::Class> found;
  for (const auto& range : a.out_phases)
    for (i64 phase = range.first; phase < range.second; ++phase) {
      const std::size_t first = found.size();  // classes of other phases read other taps and never join
      const i64 lead = (phase - a.out_lo) % a.out_stride;
      for (i64 o = lead < 0 ? lead + a.out_stride : lead; o < a.out_size; o += a.out_stride) {
        std::vector<Tap> taps;
        for (const Tap& t : a.taps)
          if (const i64 at = input_of(a, o, t); t.out_phase == phase && at >= 0 && at < a.in_size) taps.push_back(t);
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

// Where a triple's rows are read and written: offsets in elements from an image's first channel.
struct Rows {
  std::vector<i64> sources;  // [row][tap]; kOutside beyond the input
  std::vector<i64> targets;  // [row]: output position, by its strides
  std::vector<i64> weights;  // [tap]: where its weights begin in a block

  static constexpr i64 kOutside = i64(1) << 62;

  Rows(const Gather& g, const Gather::Triple& triple, const i64* in_stride, const i64* out_stride) {
    const auto& [d, h, w] = triple.along;
    for (i64 od : d->outputs)
      for (i64 oh : h->outputs)
        for (i64 ow : w->outputs) {
          targets.push_back(od * out_stride[0] + oh * out_stride[1] + ow * out_stride[2]);
          for (const Tap& td : d->taps)
            for (const Tap& th : h->taps)
              for (const Tap& tw : w->taps) {
                const i64 at[3] = {input_of(g.axis[0], od, td), input_of(g.axis[1], oh, th), input_of(g.axis[2], ow, tw)};
                bool inside = true;
                for (int i = 0; i < 3; ++i) inside = inside && at[i] >= 0 && at[i] < g.axis[i].in_size;
                sources.push_back(inside ? at[0] * in_stride[0] + at[1] * in_stride[1] + at[2] * in_stride[2] : kOutside);
              }
        }
    for (const Tap& td : d->taps)
      for (const Tap& th : h->taps)
        for (const Tap& tw : w->taps)
          weights.push_back(((td.tap * g.axis[1].kernel + th.tap) * g.axis[2].kernel + tw.tap) * g.channels * g.block);
  }
};

// A channels-last array of some images: where it begins, and its strides (image, d, h, w).
template <class T>
struct Pixels {
  T* data;
  i64 image, stride[3];
};

// All products of one triple for `images` images, added up in parts of the channels, `blocks` blocks of lanes wide.
template <class T>
void multiply(const Gather& g, const Kernels<T>& k, const Gather::Triple& triple, const Pixels<const T>& in, const T* zeros,
              const T* weights, i64 blocks, const T* bias, const Pixels<T>& out, i64 images) {
  const Rows rows(g, triple, in.stride, out.stride);
  const i64 taps = triple.taps(), per_image = triple.rows(), count = images * per_image;
  const i64 height = tile_rows(k, count, kTerms, kGatherVecs);
  std::vector<const T*> from(static_cast<std::size_t>(count * taps));  // [tile][tap][row of the tile]
  std::vector<T*> to(static_cast<std::size_t>(count));
  for (i64 r = 0; r < count; ++r) {
    const i64 image = r / per_image, row = r % per_image, first = r / height * height, tall = std::min(height, count - first);
    to[r] = out.data + image * out.image + rows.targets[row];
    for (i64 t = 0; t < taps; ++t) {
      const i64 source = rows.sources[row * taps + t];
      from[first * taps + t * tall + r - first] = source == Rows::kOutside ? zeros : in.data + image * in.image + source;
    }
  }
  const i64 part = even(g.channels, kTerms / std::max<i64>(taps, 1));  // channels added up in one go
  std::vector<T*> at(static_cast<std::size_t>(height));
  for (i64 b = 0; b < blocks; ++b)
    for (i64 c = 0; c < g.channels; c += part)
      for (i64 r = 0; r < count; r += height) {
        const i64 tall = std::min(height, count - r);
        for (i64 i = 0; i < tall; ++i) at[i] = to[r + i] + b * g.block;
        k.gathered[tall](c, std::min(g.channels, c + part), taps, from.data() + r * taps, rows.weights.data(),
                         weights + b * g.taps * g.channels * g.block, at.data(), bias ? bias + b * g.block : nullptr, c > 0);
      }
}

// Channels-first images as channels-last ones.
template <class T>
Pixels<const T> transposed(const Gather& g, const Kernels<T>& k, const View<const T>& in, i64 images, T* to) {
  const i64 height = g.axis[1].in_size, width = g.axis[2].in_size, c = g.channels;
  const Pixels<const T> result{to, g.in_positions() * c, {height * width * c, width * c, c}};
  // Rows that follow one another without a gap are one long row.
  const bool rows = in.stride[3] == width * in.stride[4], planes = rows && in.stride[2] == height * in.stride[3];
  const i64 length = planes ? g.in_positions() : rows ? height * width : width;
  for (i64 n = 0; n < images; ++n)
    for (i64 z = 0; z < g.in_positions(); z += length) {
      const i64 d = z / (height * width), h = z / width % height;
      const T* from = in.data + n * in.stride[0] + d * in.stride[2] + h * in.stride[3];
      T* pixel = to + n * result.image + z * c;
      if (in.stride[4] == 1)
        k.transpose(from, in.stride[1], pixel, c, c, length, nullptr);
      else
        for (i64 i = 0; i < length; ++i)
          for (i64 j = 0; j < c; ++j) pixel[i * c + j] = from[i * in.stride[4] + j * in.stride[1]];
    }
  return result;
}

// Sums [image][position][lane] to an output of any strides.
template <class T>
void write(const Gather& g, const Kernels<T>& k, const Pixels<T>& sums, i64 images, i64 outputs, const View<T>& out) {
  const StencilAxis &h = g.axis[1], &w = g.axis[2];
  const bool rows = out.stride[3] == w.out_size * out.stride[4], planes = rows && out.stride[2] == h.out_size * out.stride[3];
  const i64 length = planes ? g.out_positions() : rows ? h.out_size * w.out_size : w.out_size;
  for (i64 n = 0; n < images; ++n)
    for (i64 z = 0; z < g.out_positions(); z += length) {
      T* y = out.data + n * out.stride[0] + z / (h.out_size * w.out_size) * out.stride[2] + z / w.out_size % h.out_size * out.stride[3];
      const T* from = sums.data + n * sums.image + z * sums.stride[2];
      if (out.stride[4] == 1)
        k.transpose(from, sums.stride[2], y, out.stride[1], length, outputs, nullptr);
      else
        for (i64 i = 0; i < length; ++i)
          for (i64 m = 0; m < outputs; ++m) y[i * out.stride[4] + m * out.stride[1]] = from[i * sums.stride[2] + m];
    }
}

}  // namespace

Gather::Gather(const Spec& spec, Direction direction, int threads_, int lanes, i64 element_bytes)
    : batch(spec.batch), groups(spec.groups), threads(threads_) {
  const bool forward = direction == Direction::forward;
  channels = (forward ? spec.in_channels : spec.out_channels) / groups;
  outputs = (forward ? spec.out_channels : spec.in_channels) / groups;
  block = kGatherVecs * lanes;
  blocks = ceil_div(outputs, block);
  taps = 1;
  for (int i = 0; i < 3; ++i) {
    axis[i] = StencilAxis(spec.axis[i], direction);
    taps *= axis[i].kernel;
  }
  for (int i = 0; i < 3; ++i) {
    i64 others = batch;  // rows that one output of this axis stands for, about
    for (int j = 0; j < 3; ++j) others *= j == i ? 1 : ceil_div(axis[j].out_size, axis[j].out_stride);
    classes[i] = make_classes(axis[i], ceil_div(kMaxRows, std::max<i64>(others, 1)));
  }
  for (const Class& d : classes[0])
    for (const Class& h : classes[1])
      for (const Class& w : classes[2]) triples.push_back({&d, &h, &w});
  // Images enough for full tiles, but few enough for the caches and for all threads to have work.
  const i64 input = in_positions() * channels * element_bytes, sums = out_positions() * block * element_bytes;
  images = std::clamp<i64>(std::min(kInputBytes / input, kSumsBytes / sums), 1, std::max<i64>(1, ceil_div(batch * groups, 4 * threads)));
  const i64 tasks = std::max<i64>(1, ceil_div(batch, images) * groups);
  blocks_per_run = ceil_div(blocks, std::min(blocks, threads > 1 ? ceil_div(2 * threads, tasks) : 1));
  runs = ceil_div(blocks, blocks_per_run);
  blocks_at_once = std::clamp<i64>(kSumsBytes / (sums * images), 1, blocks_per_run);
}

double cycles(const Gather& g) {
  double terms = 0, weights = 0;
  for (const Gather::Triple& t : g.triples) {
    const i64 rows = t.rows() * g.images;
    // Two multiply-adds a cycle, or four cycles of latency a tile; a little for pointers and for storing sums.
    terms += double(ceil_div(g.batch, g.images)) * double(t.taps()) * std::max(1.1 * double(rows), 4.0 * double(ceil_div(rows, kMaxRows)));
    weights += double(t.taps() * g.channels * g.blocks * g.block) * double(ceil_div(g.batch, g.images));
  }
  const double moved = 2.0 * double(g.batch * g.in_positions() * g.channels * g.runs) + 2.0 * double(g.batch * g.out_positions() * g.outputs);
  return double(g.groups) * (terms * double(g.channels * g.blocks) + 0.3 * weights + moved);
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

template <class T>
void run(const Gather& g, const Kernels<T>& k, View<const T> in, const T* packed, const T* bias, View<T> out) {
  parallel_for(ceil_div(g.batch, g.images) * g.groups * g.runs, g.threads, [&](i64 task) {
    const i64 turn = task % g.runs, group = task / g.runs % g.groups, first_image = task / (g.runs * g.groups) * g.images;
    const i64 images = std::min(g.images, g.batch - first_image), last = std::min(g.blocks, (turn + 1) * g.blocks_per_run);
    View<const T> from = in;
    from.data += first_image * in.stride[0] + group * g.channels * in.stride[1];
    T* zeros = scratch<T>(2, g.channels + g.blocks_at_once * g.block);
    T* lane_bias = bias ? zeros + g.channels : nullptr;
    std::fill_n(zeros, g.channels, T(0));
    const Pixels<const T> pixels =
        in.stride[1] == 1 || g.channels == 1
            ? Pixels<const T>{from.data, in.stride[0], {in.stride[2], in.stride[3], in.stride[4]}}
            : transposed(g, k, from, images, scratch<T>(0, images * g.in_positions() * g.channels));
    for (i64 b = turn * g.blocks_per_run; b < last; b += g.blocks_at_once) {
      const i64 blocks = std::min(g.blocks_at_once, last - b), lanes = blocks * g.block, outputs = std::min(lanes, g.outputs - b * g.block);
      const i64 channel = group * g.outputs + b * g.block;
      const T* weights = packed + (group * g.blocks + b) * g.taps * g.channels * g.block;
      T* y = out.data + first_image * out.stride[0] + channel * out.stride[1];
      // Whole blocks of a channels-last output are summed where they belong.
      const bool direct = out.stride[1] == 1 && outputs == lanes;
      const i64 size[3] = {g.axis[0].out_size, g.axis[1].out_size, g.axis[2].out_size};
      const Pixels<T> sums = direct ? Pixels<T>{y, out.stride[0], {out.stride[2], out.stride[3], out.stride[4]}}
                                    : Pixels<T>{scratch<T>(1, images * g.out_positions() * lanes), g.out_positions() * lanes,
                                                {size[1] * size[2] * lanes, size[2] * lanes, lanes}};
      if (bias)
        for (i64 m = 0; m < lanes; ++m) lane_bias[m] = m < outputs ? bias[channel + m] : T(0);
      for (const Gather::Triple& triple : g.triples)
        multiply(g, k, triple, pixels, zeros, weights, blocks, lane_bias, sums, images);
      if (direct) continue;
      View<T> to = out;
      to.data = y;
      write(g, k, sums, images, outputs, to);
    }
  });
}

#define TCONV_GATHER(T)                                                \
  template void pack_weights<T>(const Gather&, View<const T>, i64, T*); \
  template void run<T>(const Gather&, const Kernels<T>&, View<const T>, const T*, const T*, View<T>);
TCONV_GATHER(float)
TCONV_GATHER(double)

}  // namespace tconv
