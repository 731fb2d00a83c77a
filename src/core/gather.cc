// SPDX-License-Identifier: Apache-2.0
#include "gather.h"

#include <algorithm>

#include "parallel.h"
#include "pixels.h"
#include "weights.h"

namespace tconv {
namespace {

constexpr i64 kFewStepped = 160;  // terms of rows read in steps that are one go: between two, sums are stored and loaded

// Offsets that a triple's rows share, in elements from an image's first channel.
struct Rows {
  std::vector<i64> sources;  // [row][tap]; kOutside beyond the input
  std::vector<i64> targets;  // [row]
  std::vector<i64> weights;  // [tap]: where its weights begin in a block, in channels

  static constexpr i64 kOutside = i64(1) << 62;

  Rows(const Gather& g, const Gather::Triple& triple, const i64* in_stride, const i64* out_stride) {
    const auto& [d, h, w] = triple.along;
    std::vector<i64> reads[3];  // [output][tap] of an axis: input_of divides
    for (std::size_t i = 0; i < 3; ++i)
      for (i64 output : triple.along[i]->outputs)
        for (const Tap& tap : triple.along[i]->taps) {
          const i64 at = input_of(g.axis[i], output, tap);
          reads[i].push_back(at >= 0 && at < g.axis[i].in_size ? at * in_stride[i] : kOutside);
        }
    const auto each = [&](std::size_t i, auto body) {
      const i64 count = i64(triple.along[i]->taps.size()), *at = reads[i].data();
      for (i64 output : triple.along[i]->outputs) body(output * out_stride[i], at, at + count), at += count;
    };
    sources.reserve(std::size_t(triple.rows() * triple.taps())), targets.reserve(std::size_t(triple.rows()));
    each(0, [&](i64 od, const i64* first_d, const i64* last_d) {
      each(1, [&](i64 oh, const i64* first_h, const i64* last_h) {
        each(2, [&](i64 ow, const i64* first_w, const i64* last_w) {
          targets.push_back(od + oh + ow);
          for (const i64* id = first_d; id < last_d; ++id)
            for (const i64* ih = first_h; ih < last_h; ++ih)
              for (const i64* iw = first_w; iw < last_w; ++iw)
                sources.push_back(*id == kOutside || *ih == kOutside || *iw == kOutside ? kOutside : *id + *ih + *iw);
        });
      });
    });
    for (const Tap& td : d->taps)
      for (const Tap& th : h->taps)
        for (const Tap& tw : w->taps) weights.push_back(((td.tap * g.axis[1].kernel + th.tap) * g.axis[2].kernel + tw.tap) * g.channels);
  }
};

// What the products of a triple are given: the inputs and sums of `images` images, zeros for a pixel that is none, the weights of `blocks`
// blocks of `lanes` lanes together, and a bias for every lane.
template <class T>
struct Operands {
  const Pixels<const T>& in;
  const T *zeros, *weights;
  i64 blocks, lanes;
  const Epilogue<T>& lane;
  const Pixels<T>& out;
  i64 images;
  bool stream;  // past the caches

  const T* bias(const Gather& g, i64 b) const { return lane.bias ? lane.bias + b * g.block : nullptr; }
  i64 width(const Gather& g, i64 b) const { return std::min(g.block, lanes - b * g.block); }
};

// The rows of outputs of a triple, of one image: where the first one's sum goes, and for each tap that meets an input, `joined` taps being
// one, where that of the first one is and the tap's weights.
struct Lines {
  struct Line {
    i64 to, first, taps;  // of the lists of all lines
  };
  std::vector<Line> all;
  std::vector<i64> from, weights;

  template <class T>
  Lines(const Gather& g, const Gather::Triple& triple, const Operands<T>& of, i64 joined) {
    const auto& [d, h, w] = triple.along;
    all.reserve(d->outputs.size() * h->outputs.size());
    from.reserve(all.capacity() * std::size_t(triple.taps() / joined)), weights.reserve(from.capacity());
    for (i64 od : d->outputs)
      for (i64 oh : h->outputs) {
        all.push_back({od * of.out.stride[0] + oh * of.out.stride[1] + w->outputs[0] * of.out.stride[2], i64(from.size()), 0});
        for (const Tap& td : d->taps)
          for (const Tap& th : h->taps) add_taps(g, *w, of, input_of(g.axis[0], od, td), input_of(g.axis[1], oh, th), td, th, joined);
        all.back().taps = i64(from.size()) - all.back().first;
      }
  }

 private:
  template <class T>
  void add_taps(const Gather& g, const Gather::Class& w, const Operands<T>& of, i64 id, i64 ih, const Tap& td, const Tap& th, i64 joined) {
    if (id < 0 || id >= g.axis[0].in_size || ih < 0 || ih >= g.axis[1].in_size) return;
    for (std::size_t i = 0; i < w.taps.size(); i += std::size_t(joined)) {
      from.push_back(id * of.in.stride[0] + ih * of.in.stride[1] + input_of(g.axis[2], w.outputs[0], w.taps[i]) * of.in.stride[2]);
      weights.push_back(((td.tap * g.axis[1].kernel + th.tap) * g.axis[2].kernel + w.taps[i].tap) * g.channels);
    }
  }
};

// A sum is taken in goes: of long runs of channels of few taps, since every tap of a go has pointers to work out and a loop to leave.
// Weights that come from memory come faster from several places.
struct Goes {
  i64 all_channels, taps, channels;  // the last two of one go

  Goes(const Gather& g, i64 all_taps, i64 all_channels_, i64 few) : all_channels(all_channels_) {
    const i64 terms = terms_at_once(all_taps * all_channels, few);
    channels = even(all_channels, g.weight_elements() < kManyWeights ? terms : std::min(terms, kFewTerms)),
    taps = all_taps ? even(all_taps, terms / channels) : 1;
  }
  bool one(i64 all_taps) const { return all_taps <= taps && all_channels <= channels; }
  bool first(i64 t, i64 c) const { return t == 0 && c == 0; }
  bool last(i64 t, i64 c, i64 all_taps) const { return t + taps >= all_taps && c + channels >= all_channels; }

  // Calls body(t, c) for the first tap and channel of each; there is one where there are no taps.
  template <class F>
  void each(i64 all_taps, F body) const {
    for (i64 t = 0; t < std::max<i64>(1, all_taps); t += taps)
      for (i64 c = 0; c < all_channels; c += channels) body(t, c);
  }
};

// All products of one triple, a row of outputs after the other.
template <class T>
void multiply_stepped(const Gather& g, const Kernels<T>& k, const Gather::Triple& triple, const Operands<T>& of) {
  const Gather::Class& w = *triple.along[2];
  const i64 joined = joined_taps(g, w, of.in.stride[2]), channels = joined * g.channels, count = i64(w.outputs.size());
  const i64 row_step = g.axis[2].in_stride * of.in.stride[2], out_step = g.axis[2].out_stride * of.out.stride[2];
  const i64 taps = triple.taps() / joined;
  i64 height = kMaxRows;
  while (!k.stepped[g.block / g.lanes][height]) --height;
  height = even(count, height);
  const Lines lines(g, triple, of, joined);
  const Goes goes(g, taps, channels, kFewStepped);
  std::vector<const T*> from(static_cast<std::size_t>(goes.taps));
  alignas(64) T tile[kMaxRows * kGatherVecs * 16];
  // The goes of a sum come together where it belongs; or, if it goes past the caches, in a tile.
  const bool activated = of.lane.activation != Activation::none, apart = of.stream && !goes.one(taps);
  const i64 whole = count / height, at_once = activated || apart ? 1 : whole;  // tiles
  const auto add = [&](i64 b, i64 n, const Lines::Line& line, i64 t, i64 c, i64 r, i64 rows, i64 tiles) {
    const i64 some = std::min(goes.taps, line.taps - t);
    const bool first = goes.first(t, c), last = goes.last(t, c, line.taps);
    T *to = of.out.data + n * of.out.image + line.to + r * out_step + b * g.block, *room = apart ? tile : to;
    const i64 room_step = apart ? g.block : out_step;
    for (i64 i = 0; i < some; ++i)
      from[std::size_t(i)] = of.in.data + n * of.in.image + lines.from[std::size_t(line.first + t + i)] + r * row_step;
    k.stepped[of.width(g, b) / g.lanes][rows](
        c, std::min(channels, c + goes.channels), some, from.data(), row_step, lines.weights.data() + line.first + t,
        of.weights + b * g.taps * g.channels * g.block,
        {first ? of.bias(g, b) : room, first ? 0 : room_step, last ? to : room, last ? out_step : room_step, of.stream && last}, tiles);
    if (activated && last)  // complete, and just stored
      for (i64 i = 0; i < rows; ++i) k.activate(to + i * out_step, of.width(g, b), T(0), of.lane.activation, of.lane.slope);
  };
  const auto each_tile = [&](auto body) {
    for (i64 n = 0; n < of.images; ++n)
      for (const Lines::Line& line : lines.all)
        for (i64 r = 0, left = whole, rows, tiles; r < count; r += rows * tiles, left -= tiles) {
          rows = std::min(height, count - r), tiles = std::clamp<i64>(left, 1, at_once);
          body(n, line, r, rows, tiles);
        }
  };
  for (i64 b = 0; b < of.blocks; ++b)
    if (apart)
      each_tile([&](i64 n, const Lines::Line& line, i64 r, i64 rows, i64 tiles) {
        goes.each(line.taps, [&](i64 t, i64 c) { add(b, n, line, t, c, r, rows, tiles); });
      });
    else
      goes.each(taps, [&](i64 t, i64 c) {
        each_tile([&](i64 n, const Lines::Line& line, i64 r, i64 rows, i64 tiles) {
          if (t == 0 || t < line.taps) add(b, n, line, t, c, r, rows, tiles);
        });
      });
}

// All products of one triple, through one pointer a row and tap, added up in parts of the channels.
template <class T>
void multiply(const Gather& g, const Kernels<T>& k, const Gather::Triple& triple, const Operands<T>& of) {
  if (triple.stepped) return multiply_stepped(g, k, triple, of);
  const Rows rows(g, triple, of.in.stride, of.out.stride);
  const i64 taps = triple.taps(), per_image = triple.rows(), count = of.images * per_image;
  const i64 height = tile_rows(k, count, kTerms, int(g.block / g.lanes));
  std::vector<const T*> from(static_cast<std::size_t>(count * taps));  // [tile][tap][row of the tile]
  std::vector<T*> to(static_cast<std::size_t>(count));
  i64 row = 0;
  const T* data = of.in.data;
  T* sums = of.out.data;
  for (i64 first = 0; first < count; first += height) {
    const i64 tall = std::min(height, count - first);
    const T** tile = from.data() + first * taps;
    for (i64 i = 0; i < tall; ++i) {
      to[std::size_t(first + i)] = sums + rows.targets[std::size_t(row)];
      const i64* source = rows.sources.data() + row * taps;
      for (i64 t = 0; t < taps; ++t) tile[t * tall + i] = source[t] == Rows::kOutside ? of.zeros : data + source[t];
      if (++row == per_image) row = 0, data += of.in.image, sums += of.out.image;
    }
  }
  const Goes goes(g, taps, g.channels, kFewTerms);
  std::vector<T*> at(static_cast<std::size_t>(height));
  for (i64 b = 0; b < of.blocks; ++b)
    goes.each(taps, [&](i64 t, i64 c) {
      for (i64 r = 0; r < count; r += height) {
        const i64 tall = std::min(height, count - r), some = std::min(goes.taps, taps - t);
        const T** tile = from.data() + r * taps + t * tall;
        // Taps of which no row has an input are left out, unless a sum begins or ends with them.
        const bool first = goes.first(t, c), last = goes.last(t, c, taps);
        if (!first && !last && std::all_of(tile, tile + some * tall, [&](const T* x) { return x == of.zeros; })) continue;
        for (i64 i = 0; i < tall; ++i) at[std::size_t(i)] = to[std::size_t(r + i)] + b * g.block;
        k.gathered[of.width(g, b) / g.lanes][tall](c, std::min(g.channels, c + goes.channels), some, tile, rows.weights.data() + t,
                                                   of.weights + b * g.taps * g.channels * g.block, at.data(), of.bias(g, b), !first);
        if (of.lane.activation != Activation::none && last)  // complete, and just stored
          for (i64 i = 0; i < tall; ++i) k.activate(at[std::size_t(i)], of.width(g, b), T(0), of.lane.activation, of.lane.slope);
      }
    });
}

constexpr i64 kPackedBytes = 1 << 20;  // by a task at once, at least a block

// The weights of some blocks of a group from block `first` on, where they are packed or in memory of this thread.
template <class T>
const T* weights_of(const Gather& g, const Kernels<T>& k, const Weights<T>& weights, i64 group, i64 first, i64 blocks) {
  const i64 size = g.taps * g.channels * g.block;
  if (weights.packed) return weights.packed + (group * g.blocks + first) * size;
  T* to = scratch<T>(3, blocks * size);
  for (i64 c = 0; c < g.channels; c += kPackedChannels)
    for (i64 b = 0; b < blocks; ++b) pack_channels(g, g.channels, k, weights.of_group(group), first + b, c, to + b * size);
  return to;
}

}  // namespace

template <class T>
void pack_weights(const Gather& g, const Kernels<T>& k, View<const T> weight, i64 group_stride, T* packed) {
  pack_blocks(g, g.channels, k, weight, group_stride, packed);
}

// Whether sums of whole blocks may go past the caches as they are stored: where every block is whole lines.
template <class T, class S>
bool whole_blocks(const Gather& g, const Epilogue<T>& epilogue, const View<S>& out) {
  i64 steps = g.block | g.outputs;
  for (i64 i : {0, 2, 3, 4}) steps |= out.stride[i];
  return whole_lines(out.data, steps) && epilogue.activation == Activation::none;
}

template <class T, class S>
void run(const Gather& g, const Kernels<T>& k, View<const T> in, const Weights<T>& weights, const Epilogue<T>& epilogue, View<S> out) {
  // Places one after another, groups and runs last: threads at work together do not write to the same lines of adjacent channels.
  const i64 slabs = i64(g.slabs.size()), places = ceil_div(g.batch, g.images) * slabs;
  const bool stream = g.large, whole = whole_blocks(g, epilogue, out);
  const i64 block_bytes = g.taps * g.channels * g.block * i64(sizeof(T));
  const i64 at_once = weights.packed ? g.blocks_at_once : std::clamp<i64>(kPackedBytes / block_bytes, 1, g.blocks_at_once);
  const T* bias = epilogue.bias;
  parallel_for(places * g.groups * g.runs, g.threads, [&](i64 task) {
    const i64 place = task % places, turn = task / places % g.runs, group = task / places / g.runs;
    const Gather::Slab& slab = g.slabs[std::size_t(place % slabs)];
    const i64 first_image = place / slabs * g.images, images = std::min(g.images, g.batch - first_image);
    i64 in_size[3], out_size[3], in_begin[3] = {}, out_begin[3] = {};
    in_begin[g.cut] = slab.in_begin, out_begin[g.cut] = slab.out_begin;
    for (int i = 0; i < 3; ++i) {
      in_size[i] = i == g.cut ? slab.in_end - slab.in_begin : g.axis[i].in_size;
      out_size[i] = i == g.cut ? slab.out_end - slab.out_begin : g.axis[i].out_size;
    }
    T* zeros = scratch<T>(2, g.channels + g.blocks_at_once * g.block);
    T* lane_bias = bias ? zeros + g.channels : nullptr;
    std::fill_n(zeros, g.channels, T(0));
    View<const T> from = in;
    from.data += first_image * in.stride[0] + group * g.channels * in.stride[1];
    Pixels<const T> pixels{from.data, in.stride[0], {in.stride[2], in.stride[3], in.stride[4]}};
    if (in.stride[1] != 1 && g.channels > 1) {
      from.data += slab.in_begin * in.stride[2 + g.cut];
      T* to = scratch<T>(0, g.images * g.slab_inputs * g.pixel_pitch());
      gather_pixels(k, from, in_size, g.channels, images, to, g.pixel_pitch());
      pixels = packed_pixels<const T>(to, in_size, g.pixel_pitch(), in_begin);
    }
    const i64 last = std::min(g.blocks, (turn + 1) * g.blocks_per_run);
    for (i64 b = turn * g.blocks_per_run; b < last; b += at_once) {
      const i64 blocks = std::min(at_once, last - b), lanes = g.width(b, blocks), outputs = std::min(lanes, g.outputs - b * g.block);
      const i64 channel = group * g.outputs + b * g.block;
      View<S> to = out;
      to.data += first_image * out.stride[0] + channel * out.stride[1];
      // Whole blocks of a channels-last output are summed where they belong.
      const bool direct = std::is_same_v<T, S> && out.stride[1] == 1 && outputs == lanes;
      T* room = direct ? nullptr : scratch<T>(1, g.images * g.slab_outputs * lanes);
      const Pixels<T> sums = direct ? as_pixels<T>(to) : packed_pixels<T>(room, out_size, lanes, out_begin);
      for (i64 m = 0; bias && m < lanes; ++m) lane_bias[m] = m < outputs ? bias[channel + m] : T(0);
      const Epilogue<T> lane{lane_bias, epilogue.activation, epilogue.slope};
      const Operands<T> operands{
          pixels, zeros, weights_of(g, k, weights, group, b, blocks), blocks, lanes, lane, sums, images, direct && stream && whole};
      for (const Gather::Triple& triple : slab.triples) multiply<T>(g, k, triple, operands);
      if (direct) continue;
      to.data += slab.out_begin * out.stride[2 + g.cut];
      scatter_pixels(k, room, out_size, lanes, images, outputs, to, stream);
    }
    fence(stream);
  });
}

template void pack_weights<float>(const Gather&, const Kernels<float>&, View<const float>, i64, float*);
template void pack_weights<double>(const Gather&, const Kernels<double>&, View<const double>, i64, double*);
TCONV_RUNS(Gather)

}  // namespace tconv
