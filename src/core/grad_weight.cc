// SPDX-License-Identifier: Apache-2.0
// Packs boxes of both sides, multiplies, and writes the sums. See grad_weight.h for the layout.
#include "grad_weight.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "depthwise_grad.h"
#include "grad_weight_pieces.h"
#include "parallel.h"
#include "phases.h"
#include "weights.h"
#include "winograd_grad.h"

namespace tconv {
namespace {

// The channels of a task.
struct Chunk {
  i64 group, groups, block, blocks, output, outputs;

  Chunk(const GradWeight& p, i64 index) {
    const auto cut = [](i64 at, i64 step, i64 all, i64& first, i64& count) { first = at * step, count = std::min(step, all - first); };
    cut(index % p.output_chunks(), p.outputs_at_once, p.outputs, output, outputs);
    index /= p.output_chunks();
    cut(index % p.block_chunks(), p.blocks_at_once, p.blocks, block, blocks);
    cut(index / p.block_chunks(), p.groups_at_once, p.groups, group, groups);
  }
};

// Calls body(n, d, h) for every row of some images.
template <class F>
void each_row(i64 images, i64 depth, i64 height, F body) {
  for (i64 n = 0; n < images; ++n)
    for (i64 d = 0; d < depth; ++d)
      for (i64 h = 0; h < height; ++h) body(n, d, h);
}

// The positions of a box, `channels` of them, to one block of lanes.
template <class T>
void pack_block(const GradWeight& p, const Kernels<T>& k, const View<const T>& x, const Window& box, i64 channels, T* to) {
  const i64 lanes = p.lanes, wide = box.size[2], *stride = x.stride;
  if (stride[1] != 1 && channels < lanes) k.copy(to, 0, to + channels, lanes, box.positions(), 0, 0, lanes - channels);
  const bool whole = stride[3] == wide * stride[4], deep = stride[2] == box.size[1] * stride[3];  // rows, slabs that are one stretch
  for (i64 n = 0; n < box.images; ++n)
    for (i64 d = 0; d < (deep && stride[4] != 1 ? 1 : box.size[0]); ++d) {
      const i64 tall = deep && stride[4] != 1 ? box.size[0] * box.size[1] : box.size[1];
      const T* from = x.data + (box.image + n) * stride[0] + (box.at[0] + d) * stride[2] + box.at[1] * stride[3] + box.at[2] * stride[4];
      T* slab = to + (n * box.size[0] + d) * box.size[1] * wide * lanes;
      if (p.images_last && stride[1] != 1 && stride[3] == 1) {
        for (i64 w = 0; w < wide; ++w)
          k.transpose(from + w * stride[4], stride[1], slab + w * lanes, wide * lanes, channels, tall, nullptr);
        continue;
      }
      const bool joined = whole && (deep || stride[4] == 1);
      for (i64 h = 0; h < (joined ? 1 : tall); ++h, from += stride[3], slab += wide * lanes) {
        const i64 length = joined ? tall * wide : wide;
        if (stride[1] == 1)
          k.copy(from, stride[4], slab, lanes, length, 0, channels, lanes);
        else if (stride[4] == 1)
          k.transpose(from, stride[1], slab, lanes, channels, length, nullptr);
        else
          for (i64 i = 0; i < length; ++i)
            for (i64 c = 0; c < channels; ++c) slab[i * lanes + c] = from[i * stride[4] + c * stride[1]];
      }
    }
}

// The same for blocks of one lane: rows of every channel, with zeros after them.
template <class T>
void pack_channels(const Kernels<T>& k, const View<const T>& x, const Window& box, i64 channels, T* to) {
  const i64 wide = box.size[2], channel = box.positions(), *stride = x.stride;
  each_row(box.images, box.size[0], box.size[1], [&](i64 n, i64 d, i64 h) {
    const T* from =
        x.data + (box.image + n) * stride[0] + (box.at[0] + d) * stride[2] + (box.at[1] + h) * stride[3] + box.at[2] * stride[4];
    if (stride[4] == 1) {
      k.copy(from, stride[1], to, channel, channels, 0, wide, box.pitch);
    } else {
      k.copy(from, 0, to + wide, channel, channels, 0, 0, box.pitch - wide);
      if (stride[1] == 1)
        k.transpose(from, stride[4], to, channel, wide, channels, nullptr);
      else
        for (i64 c = 0; c < channels; ++c)
          for (i64 w = 0; w < wide; ++w) to[c * channel + w] = from[c * stride[1] + w * stride[4]];
    }
    to += box.pitch;
  });
}

// What the taps of a box read of dy, `channels` of them.
template <class T>
const T* packed_rows(const GradWeight& p, const Kernels<T>& k, const View<const T>& dy, const Window& box, i64 channels) {
  T* to = scratch<T>(1, channels * box.channel);
  const i64 step = p.axis[2].stride, phases = i64(p.phases.size()), *stride = dy.stride;
  std::vector<Columns> columns;
  const i64 first = (box.at[2] + floor_div(p.axis[2].low, step)) * step;
  for (i64 phase : p.phases) columns.emplace_back(first + phase, step, p.axis[2].output, box.columns);
  const i64 used = box.images * box.out_size[0] * box.out_size[1] * box.columns;
  for (i64 c = 0; c < channels; ++c) {
    T* at = to + c * box.channel;
    for (i64 i = 0; i < phases; ++i) std::fill(at + i * box.plane + used, at + (i + 1) * box.plane, T(0));
    std::fill(at + box.zeros(), at + box.channel, T(0));
  }
  const bool images_last = p.images_last && stride[1] != 1 && stride[3] == 1;
  const auto each = [&](i64 height, auto body) {
    each_row(box.images, box.out_size[0], height, [&](i64 n, i64 d, i64 h) {
      body(dy.data + (box.image + n) * stride[0] + (box.out_at[0] + d) * stride[2] + (box.out_at[1] + h) * stride[3],
           to + box.row(n, box.out_at[0] + d, box.out_at[1] + h));
    });
  };
  if (stride[4] == 1 && step > 1 && phases == step && !images_last) {  // rows of a channel as they lie in memory
    const RowSplit split(std::move(columns), step, box.columns);
    for (i64 c = 0; c < channels; ++c)
      each(box.out_size[1], [&](const T* row, T* line) { split(k, row + c * stride[1], line + c * box.channel, box.plane); });
    return to;
  }
  each(images_last ? std::min<i64>(1, box.out_size[1]) : box.out_size[1], [&](const T* row, T* line) {
    if (images_last) {  // no phases, no halo
      for (i64 c = 0; c < channels; ++c)
        k.transpose(row + c * stride[1] + box.at[2] * stride[4], stride[4], line + c * box.channel, box.columns, box.columns,
                    box.out_size[1], nullptr);
      return;
    }
    for (i64 i = 0; i < phases; ++i) {
      const Columns& z = columns[std::size_t(i)];
      T* at = line + i * box.plane;
      const T* from = row + (z.first + z.begin * step) * stride[4];
      if (step == 1 && stride[4] == 1) {
        k.copy(from, stride[1], at, box.channel, channels, z.begin, z.end, box.columns);
        continue;
      }
      k.copy(row, 0, at, box.channel, channels, 0, 0, z.begin);
      k.copy(row, 0, at + z.end, box.channel, channels, 0, 0, box.columns - z.end);
      if (stride[1] == 1)
        k.transpose(from, step * stride[4], at + z.begin, box.channel, z.end - z.begin, channels, nullptr);
      else
        for (i64 c = 0; c < channels; ++c)
          for (i64 q = 0; q < z.end - z.begin; ++q) at[c * box.channel + z.begin + q] = from[c * stride[1] + q * step * stride[4]];
    }
  });
  return to;
}

// The sums of a chunk over one box.
template <class T>
void add_box(const GradWeight& p, const Kernels<T>& k, const View<const T>& x, const View<const T>& dy, const Chunk& chunk,
             const Window& box, const Pieces& pieces, T* sums) {
  const i64 block = box.positions() * p.lanes, channel = chunk.group * p.inputs + chunk.block * p.lanes;
  const i64 channels = std::min(chunk.blocks * p.lanes, p.inputs - chunk.block * p.lanes);  // of every group
  T* lanes = scratch<T>(0, chunk.groups * chunk.blocks * block);
  View<const T> from = x, with = dy;
  from.data += channel * x.stride[1];
  if (p.vectors)
    for (i64 g = 0; g < chunk.groups; ++g, from.data += p.inputs * x.stride[1])
      for (i64 b = 0; b < chunk.blocks; ++b) {
        View<const T> part = from;
        part.data += b * p.lanes * x.stride[1];
        pack_block(p, k, part, box, std::min(p.lanes, channels - b * p.lanes), lanes + (g * chunk.blocks + b) * block);
      }
  else
    pack_channels(k, from, box, chunk.groups * channels, lanes);  // several groups only where all channels of each are there
  with.data += (chunk.group * p.outputs + chunk.output) * dy.stride[1];
  const T* rows =
      p.raw ? with.data + box.image * dy.stride[0] + box.out_at[0] * dy.stride[2] + box.out_at[1] * dy.stride[3] + box.at[2] * box.step
            : packed_rows(p, k, with, box, chunk.groups * chunk.outputs);
  const i64 tall = chunk.outputs * p.taps * p.lanes;
  for (std::size_t part = 0, i = 0; part < pieces.ends.size(); i = pieces.ends[part++])
    for (i64 g = 0; g < chunk.groups; ++g)
      for (i64 b = 0; b < chunk.blocks; ++b)
        for (std::size_t j = i; j < pieces.ends[part]; ++j) {
          const Piece& t = pieces.pieces[j];
          const i64 at = g * chunk.blocks + b;
          k.correlated[p.vectors][t.rows](t.runs, t.first, t.last, pieces.rows_at.data() + t.rows_at, pieces.lanes_at.data() + t.lanes_at,
                                          rows + g * chunk.outputs * box.channel, box.step, lanes + at * block, sums + at * tall,
                                          pieces.at.data() + t.at);
        }
}

// Sums of a chunk to the gradient.
template <class T>
void write(const GradWeight& p, const Kernels<T>& k, const Chunk& chunk, const T* sums, const View<T>& grad) {
  for (i64 g = 0; g < chunk.groups; ++g)
    for (i64 b = 0; b < chunk.blocks; ++b, sums += chunk.outputs * p.taps * p.lanes) {
      const i64 first = (chunk.block + b) * p.lanes;
      View<T> to = grad;
      to.data += ((chunk.group + g) * p.inputs + first) * grad.stride[0] + chunk.output * grad.stride[1];
      collect_weights(k, sums, p.lanes, {p.axis[0].kernel, p.axis[1].kernel, p.axis[2].kernel}, std::min(p.lanes, p.inputs - first),
                      chunk.outputs, to);
    }
}

template <class T>
void run(const GradWeight& p, const Kernels<T>& k, const View<const T>& x, const View<const T>& dy, const View<T>& grad) {
  T* spans = p.spans > 1 ? scratch<T>(3, p.spans * p.chunks() * p.sums()) : nullptr;  // [span][chunk]
  Pool pool(p);
  parallel_for(p.spans * p.chunks(), p.threads, [&](i64 task) {
    const Chunk chunk(p, task % p.chunks());
    const i64 span = task / p.chunks(), count = chunk.groups * chunk.blocks * chunk.outputs * p.taps * p.lanes;
    T* sums = spans ? spans + task * p.sums() : scratch<T>(2, count);
    std::fill_n(sums, count, T(0));
    const auto tables = pool.take(chunk.outputs);
    for (i64 b = piece_begin(span, p.spans, p.boxes); b < piece_begin(span + 1, p.spans, p.boxes); ++b) {
      const Window box(p, b);
      add_box(p, k, x, dy, chunk, box, (*tables)(box), sums);
    }
    if (!spans) write(p, k, chunk, sums, grad);
  });
  if (spans)
    parallel_for(p.chunks(), p.threads, [&](i64 c) {
      const Chunk chunk(p, c);
      T* sums = spans + c * p.sums();
      const i64 count = chunk.groups * chunk.blocks * chunk.outputs * p.taps * p.lanes;
      add_spans(sums, p.spans, p.chunks() * p.sums(), count);
      write(p, k, chunk, sums, grad);
    });
}

// Images as the innermost axis: of small maps they are the longer rows, and what lies outside the crop is left out exactly.
constexpr i64 kShortRow = 9;
bool images_last(const Spec& s, i64 vectors) {
  const Axis &d = s.axis[0], &w = s.axis[2];
  return vectors && d.size == 1 && d.kernel == 1 && d.output() == 1 && d.lo == 0 && w.size < kShortRow && w.size < s.batch;
}

Spec positions(const Spec& s) {
  Spec turned = s;
  turned.batch = 1;
  turned.axis[0] = s.axis[1], turned.axis[1] = s.axis[2], turned.axis[2] = Axis{s.batch, 1, 1, 1, 0, 0};
  return turned;
}

template <class T>
View<T> turned(const View<T>& v, bool weight) {
  return {v.data, {weight ? v.stride[0] : 0, v.stride[1], v.stride[3], v.stride[4], weight ? 0 : v.stride[0]}};
}

// What the sums of a task's points may take: of large strides in three dimensions they are many.
constexpr i64 kMostSumsBytes = 16 << 20;

// Sums over fewer positions round so little that the transforms of phases of 4 taps would more than double it.
constexpr i64 kFewPositions = 200;

bool rounds_worse(const Spec& spec) {
  i64 positions = spec.batch, most_taps = 1;
  for (const Axis& a : spec.axis) positions *= a.size, most_taps = std::max(most_taps, ceil_div(a.kernel, a.stride));
  return most_taps == kMaxFilter && positions < kFewPositions;
}

// Whether Winograd's transforms are asked for, or estimated to be faster: on one thread, as the choice must not hang on their number.
bool by_winograd(const Spec& spec, const Isa& isa, Method method, const GradWeight& direct, bool channels_last) {
  const i64 bytes = direct.element_bytes;
  const i64 channels = std::min(spec.in_channels, spec.out_channels) / spec.groups;
  if (method < Method::winograd && (method != Method::automatic || channels < kWinogradChannels)) return false;
  const std::string why = Winograd::refusal(spec);
  if (method != Method::automatic && !why.empty()) throw std::invalid_argument(why);
  if (!why.empty() || (method == Method::automatic && rounds_worse(spec))) return false;
  const WinogradGrad plan(spec, isa, tile_of(method), 1, bytes);
  if (plan.tiles.boxes() == 0) return false;  // zeros
  return method != Method::automatic || (plan.products() * bytes <= kMostSumsBytes && cycles(plan, channels_last) < direct.cycles);
}

// Whether a name stands for lanes over the channels of a depthwise layer as well.
bool depthwise_too(Method method) { return method == Method::automatic || method == Method::direct || method == Method::depthwise; }

}  // namespace

template <class T>
void grad_weight(const Spec& spec, const Isa& isa, Method method, View<const T> x, View<const T> dy, View<T> grad, int threads) {
  const Kernels<T>& k = isa.kernels<T>();
  const bool last = images_last(spec, block_vectors(spec.in_channels / spec.groups, k.lanes));
  const GradWeight direct(last ? positions(spec) : spec, isa, threads, sizeof(T), (last ? turned(dy, false) : dy).stride, last);
  if (Depthwise::possible(spec) && depthwise_too(method)) {
    const DepthwiseGrad plan(spec, isa, threads, sizeof(T), x.stride[1] == 1 && dy.stride[1] == 1);
    if (method == Method::depthwise || plan.cycles < direct.cycles) return run(plan, k, x, dy, grad);
  }
  if (by_winograd(spec, isa, method, direct, dy.stride[1] == 1))
    run(WinogradGrad(spec, isa, tile_of(method), threads, sizeof(T)), k, x, dy, grad);
  else if (last)
    run(direct, k, turned(x, false), turned(dy, false), turned(grad, true));
  else
    run(direct, k, x, dy, grad);
}

template void grad_weight<float>(const Spec&, const Isa&, Method, View<const float>, View<const float>, View<float>, int);
template void grad_weight<double>(const Spec&, const Isa&, Method, View<const double>, View<const double>, View<double>, int);

}  // namespace tconv
