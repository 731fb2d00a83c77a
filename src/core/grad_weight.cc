// SPDX-License-Identifier: Apache-2.0
// Packs boxes of both sides, multiplies, and writes the sums. See grad_weight.h for the layout.
#include "grad_weight.h"

#include <algorithm>
#include <array>

#include "parallel.h"
#include "plan.h"

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

// A box of positions, and what its taps read of dy: rows out_at .. out_at + out_size - 1 along depth and height.
struct Window {
  i64 image, images, at[3], size[3], out_at[2], out_size[2];
  i64 pitch;                    // positions of a row of lanes
  i64 columns, plane, channel;  // of the panel of dy

  Window(const GradWeight& p, i64 index) {
    for (int i = 2; i >= 0; --i) {
      const Reaches& a = p.axis[i];
      const i64 along = ceil_div(a.size, a.box), turn = index % along;
      at[i] = turn * a.box, size[i] = std::min(a.box, a.size - at[i]);
      index /= along;
      if (i == 2) continue;
      out_at[i] = std::max<i64>(0, at[i] * a.stride + a.low);
      out_size[i] = std::max<i64>(0, std::min(a.output, (at[i] + size[i] - 1) * a.stride + a.high + 1) - out_at[i]);
    }
    image = index * p.box_batch, images = std::min(p.box_batch, p.batch - image);
    pitch = p.vectors ? size[2] : round_up(size[2], p.width);
    columns = size[2] + p.axis[2].halo();
    // A vector along w may reach beyond the last column. An odd number of lines: planes a power of two apart would share cache sets.
    plane = round_up(images * out_size[0] * out_size[1] * columns + pitch - size[2], 16) | 16;
    channel = i64(p.phases.size()) * plane + round_up(pitch, 16);  // zeros at the end
  }
  i64 positions() const { return images * size[0] * size[1] * pitch; }
  i64 zeros() const { return channel - round_up(pitch, 16); }
  i64 row(i64 n, i64 od, i64 oh) const { return ((n * out_size[0] + od - out_at[0]) * out_size[1] + oh - out_at[1]) * columns; }
  bool like(const Window& o) const {
    return images == o.images && std::equal(size, size + 3, o.size) && std::equal(out_size, out_size + 2, o.out_size);
  }
};

// What the microkernel is told about one tile in one part of a box.
struct Piece {
  i64 rows, first, last, runs;
  std::size_t rows_at, lanes_at, at;
};

// All tiles of a chunk over a box, part by part: they are the same for every group and block of lanes.
class Pieces {
 public:
  template <class T>
  Pieces(const GradWeight& p, const Kernels<T>& k, i64 outputs) : p_(p) {
    // Rows of one tap along depth and height, or of several where those are few, which then meet zeros at the border.
    i64 unit = outputs;
    const i64 counts[] = {i64(p.axis[2].taps.size()), i64(p.axis[1].taps.size()), i64(p.axis[0].taps.size())};
    for (i64 count : counts) unit *= unit < kFewRows ? count : 1;
    const i64 height = unit ? tile_rows(k, unit, kTerms, std::max(int(p.vectors), 1)) : 1;
    i64 in_unit = 0;
    for (const Reach& d : p.axis[0].taps)
      for (const Reach& h : p.axis[1].taps)
        for (const Reach& w : p.axis[2].taps)
          for (i64 o = 0; o < outputs; ++o, in_unit = (in_unit + 1) % unit) {
            if (in_unit % height == 0) tiles_.emplace_back();
            const i64 tap = (d.tap * p.axis[1].kernel + h.tap) * p.axis[2].kernel + w.tap;
            tiles_.back().push_back({{&d, &h, &w}, o, (o * p.taps + tap) * p.lanes});
          }
  }

  void fit(const Window& box) {
    if (seen_ && box.like(last_) && same_clip(box)) return;
    last_ = box, seen_ = true;
    rows_at.clear(), lanes_at.clear(), at.clear(), pieces.clear(), ends.clear();
    const i64 rows = box.images * box.size[0] * box.size[1], columns = round_up(even(box.size[2], p_.part), p_.vectors ? 1 : p_.width);
    const i64 runs = std::max<i64>(1, p_.part / box.size[2]);
    for (i64 r = 0; r < rows; r += runs)
      for (i64 c = 0; c < box.size[2]; c += columns) {
        for (const auto& tile : tiles_) add(box, tile, r, std::min(rows, r + runs), c, std::min(box.size[2], c + columns));
        ends.push_back(pieces.size());
      }
  }

  std::vector<i64> rows_at, lanes_at, at;
  std::vector<Piece> pieces;
  std::vector<std::size_t> ends;  // of every part

 private:
  static constexpr i64 kFewRows = 8;
  struct Row {
    std::array<const Reach*, 3> tap;
    i64 output, at;
  };

  // Inputs of a box, along one axis, that a tap joins to outputs.
  static i64 begin(const Window& box, int i, const Reach& t) { return std::clamp<i64>(t.begin - box.at[i], 0, box.size[i]); }
  static i64 end(const Window& box, int i, const Reach& t) { return std::clamp<i64>(t.end - box.at[i], 0, box.size[i]); }

  bool same_clip(const Window& box) const {
    for (int i = 0; i < 3; ++i) {
      const Reaches& a = p_.axis[i];
      if (i < 2 && box.out_at[i] - box.at[i] * a.stride != last_.out_at[i] - last_.at[i] * a.stride) return false;
      for (const Reach& t : a.taps)
        if (begin(box, i, t) != begin(last_, i, t) || end(box, i, t) != end(last_, i, t)) return false;
    }
    return true;
  }

  // A tile in rows r .. r_end - 1 and columns c .. c_end - 1 of a box.
  void add(const Window& box, const std::vector<Row>& tile, i64 r, i64 r_end, i64 c, i64 c_end) {
    Piece piece{i64(tile.size()), c_end, c, 0, rows_at.size(), lanes_at.size(), at.size()};
    for (const Row& row : tile) {
      piece.first = std::min(piece.first, std::max(c, begin(box, 2, *row.tap[2])));
      piece.last = std::max(piece.last, std::min(c_end, end(box, 2, *row.tap[2])));
    }
    if (piece.first >= piece.last) return;
    if (!p_.vectors) piece.first -= piece.first % p_.width, piece.last = round_up(piece.last, p_.width);
    for (; r < r_end; ++r) {
      const i64 h = r % box.size[1], d = r / box.size[1] % box.size[0], n = r / box.size[1] / box.size[0];
      bool any = false;
      const auto inside = [&](const Row& row) {
        return d >= begin(box, 0, *row.tap[0]) && d < end(box, 0, *row.tap[0]) && h >= begin(box, 1, *row.tap[1]) &&
               h < end(box, 1, *row.tap[1]);
      };
      for (const Row& row : tile) any = any || inside(row);
      if (!any) continue;
      ++piece.runs;
      lanes_at.push_back(r * box.pitch * p_.lanes);
      for (const Row& row : tile) rows_at.push_back(inside(row) ? place(box, row, n, d, h) : box.zeros());
    }
    if (!piece.runs) return;
    for (const Row& row : tile) at.push_back(row.at);
    pieces.push_back(piece);
  }

  // Where a row reads for position 0 of a run.
  i64 place(const Window& box, const Row& row, i64 n, i64 d, i64 h) const {
    const Reaches& w = p_.axis[2];
    const i64 phase = std::lower_bound(p_.phases.begin(), p_.phases.end(), w.phase(*row.tap[2])) - p_.phases.begin();
    const i64 od = (box.at[0] + d) * p_.axis[0].stride + row.tap[0]->reach, oh = (box.at[1] + h) * p_.axis[1].stride + row.tap[1]->reach;
    return row.output * box.channel + phase * box.plane + box.row(n, od, oh) + w.shift(*row.tap[2]);
  }

  const GradWeight& p_;
  std::vector<std::vector<Row>> tiles_;
  bool seen_ = false;
  Window last_{p_, 0};
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
      if (stride[4] != 1 && stride[1] != 1 && stride[3] == 1) {  // images last
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

// The columns begin .. end - 1 of a phase's rows lie inside dy; column z is the output first + z * stride.
struct Columns {
  i64 first, begin, end;

  Columns(const GradWeight& p, const Window& box, i64 phase) {
    const Reaches& w = p.axis[2];
    first = (box.at[2] + floor_div(w.low, w.stride)) * w.stride + phase;
    begin = std::clamp<i64>(ceil_div(-first, w.stride), 0, box.columns);
    end = std::clamp<i64>(ceil_div(w.output - first, w.stride), begin, box.columns);
  }
};

// One row of dy, of one channel, to the planes of its phases. The phases' columns differ by one at either end.
template <class T>
void split_row(const Kernels<T>& k, const std::vector<Columns>& columns, i64 stride, const T* row, T* to, i64 plane) {
  i64 begin = 0, end = columns[0].end;
  for (const Columns& c : columns) begin = std::max(begin, c.begin), end = std::min(end, c.end);
  if (begin < end) k.unweave(row + columns[0].first + begin * stride, stride, end - begin, to + begin, plane);
  for (std::size_t i = 0; i < columns.size(); ++i) {
    const Columns& c = columns[i];
    T* at = to + i64(i) * plane;
    for (i64 z = c.begin; z < std::min(c.end, begin); ++z) at[z] = row[c.first + z * stride];
    for (i64 z = std::max({c.begin, begin, end}); z < c.end; ++z) at[z] = row[c.first + z * stride];
  }
}

// What the taps of a box read of dy, `channels` of them.
template <class T>
void pack_rows(const GradWeight& p, const Kernels<T>& k, const View<const T>& dy, const Window& box, i64 channels, T* to) {
  const i64 step = p.axis[2].stride, phases = i64(p.phases.size()), *stride = dy.stride;
  std::vector<Columns> columns;
  for (i64 phase : p.phases) columns.emplace_back(p, box, phase);
  const i64 used = box.images * box.out_size[0] * box.out_size[1] * box.columns;
  for (i64 c = 0; c < channels; ++c) {
    T* at = to + c * box.channel;
    for (i64 i = 0; i < phases; ++i) std::fill(at + i * box.plane + used, at + (i + 1) * box.plane, T(0));
    std::fill(at + box.zeros(), at + box.channel, T(0));
  }
  const bool split = stride[4] == 1 && phases == step, images_last = stride[4] != 1 && stride[1] != 1 && stride[3] == 1;
  each_row(box.images, box.out_size[0], images_last ? 1 : box.out_size[1], [&](i64 n, i64 d, i64 h) {
    const T* row = dy.data + (box.image + n) * stride[0] + (box.out_at[0] + d) * stride[2] + (box.out_at[1] + h) * stride[3];
    T* line = to + box.row(n, box.out_at[0] + d, box.out_at[1] + h);
    if (images_last) {  // no phases, no halo
      for (i64 c = 0; c < channels; ++c)
        k.transpose(row + c * stride[1] + box.at[2] * stride[4], stride[4], line + c * box.channel, box.columns, box.columns,
                    box.out_size[1], nullptr);
      return;
    }
    for (i64 i = 0; i < phases; ++i) {
      const Columns& z = columns[std::size_t(i)];
      T* at = line + i * box.plane;
      if (step == 1 && stride[4] == 1) {
        k.copy(row + z.first + z.begin, stride[1], at, box.channel, channels, z.begin, z.end, box.columns);
        continue;
      }
      if (z.begin) k.copy(row, 0, at, box.channel, channels, 0, 0, z.begin);
      if (z.end < box.columns) k.copy(row, 0, at + z.end, box.channel, channels, 0, 0, box.columns - z.end);
      if (split) continue;
      const T* from = row + (z.first + z.begin * step) * stride[4];
      if (stride[1] == 1)
        k.transpose(from, step * stride[4], at + z.begin, box.channel, z.end - z.begin, channels, nullptr);
      else
        for (i64 c = 0; c < channels; ++c)
          for (i64 q = 0; q < z.end - z.begin; ++q) at[c * box.channel + z.begin + q] = from[c * stride[1] + q * step * stride[4]];
    }
    for (i64 c = 0; c < channels && split && step > 1; ++c)
      split_row(k, columns, step, row + c * stride[1], line + c * box.channel, box.plane);
  });
}

// The sums of a chunk over one box.
template <class T>
void add_box(const GradWeight& p, const Kernels<T>& k, const View<const T>& x, const View<const T>& dy, const Chunk& chunk,
             const Window& box, const Pieces& pieces, T* sums) {
  const i64 block = box.positions() * p.lanes, channel = chunk.group * p.inputs + chunk.block * p.lanes;
  const i64 channels = std::min(chunk.blocks * p.lanes, p.inputs - chunk.block * p.lanes);  // of every group
  T* lanes = scratch<T>(0, chunk.groups * chunk.blocks * block);
  T* rows = scratch<T>(1, chunk.groups * chunk.outputs * box.channel);
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
  pack_rows(p, k, with, box, chunk.groups * chunk.outputs, rows);
  const i64 tall = chunk.outputs * p.taps * p.lanes;
  for (std::size_t part = 0, i = 0; part < pieces.ends.size(); i = pieces.ends[part++])
    for (i64 g = 0; g < chunk.groups; ++g)
      for (i64 b = 0; b < chunk.blocks; ++b)
        for (std::size_t j = i; j < pieces.ends[part]; ++j) {
          const Piece& t = pieces.pieces[j];
          const i64 at = g * chunk.blocks + b;
          k.correlated[p.vectors][t.rows](t.runs, t.first, t.last, pieces.rows_at.data() + t.rows_at, pieces.lanes_at.data() + t.lanes_at,
                                          rows + g * chunk.outputs * box.channel, lanes + at * block, sums + at * tall,
                                          pieces.at.data() + t.at);
        }
}

// Sums of a chunk to the gradient.
template <class T>
void write(const GradWeight& p, const Kernels<T>& k, const Chunk& chunk, const T* sums, const View<T>& grad) {
  std::vector<i64> element;  // of the kernel, in memory
  bool dense = grad.stride[1] == p.taps || p.outputs == 1;
  for (i64 d = 0; d < p.axis[0].kernel; ++d)
    for (i64 h = 0; h < p.axis[1].kernel; ++h)
      for (i64 w = 0; w < p.axis[2].kernel; ++w) {
        element.push_back(d * grad.stride[2] + h * grad.stride[3] + w * grad.stride[4]);
        dense = dense && element.back() == i64(element.size()) - 1;
      }
  const i64 rows = chunk.outputs * p.taps;
  for (i64 g = 0; g < chunk.groups; ++g)
    for (i64 b = 0; b < chunk.blocks; ++b, sums += rows * p.lanes) {
      const i64 first = (chunk.block + b) * p.lanes, lanes = std::min(p.lanes, p.inputs - first);
      T* to = grad.data + ((chunk.group + g) * p.inputs + first) * grad.stride[0] + chunk.output * grad.stride[1];
      if (dense)
        k.transpose(sums, p.lanes, to, grad.stride[0], rows, lanes, nullptr);
      else
        for (i64 l = 0; l < lanes; ++l)
          for (i64 r = 0; r < rows; ++r)
            to[l * grad.stride[0] + r / p.taps * grad.stride[1] + element[std::size_t(r % p.taps)]] = sums[r * p.lanes + l];
    }
}

template <class T>
void run(const GradWeight& p, const Kernels<T>& k, const View<const T>& x, const View<const T>& dy, const View<T>& grad) {
  T* spans = p.spans > 1 ? scratch<T>(3, p.spans * p.chunks() * p.sums()) : nullptr;  // [span][chunk]
  parallel_for(p.spans * p.chunks(), p.threads, [&](i64 task) {
    const Chunk chunk(p, task % p.chunks());
    const i64 span = task / p.chunks(), count = chunk.groups * chunk.blocks * chunk.outputs * p.taps * p.lanes;
    T* sums = spans ? spans + task * p.sums() : scratch<T>(2, count);
    std::fill_n(sums, count, T(0));
    Pieces pieces(p, k, chunk.outputs);
    for (i64 b = span * p.boxes / p.spans; b < (span + 1) * p.boxes / p.spans; ++b) {
      const Window box(p, b);
      pieces.fit(box);
      add_box(p, k, x, dy, chunk, box, pieces, sums);
    }
    if (!spans) write(p, k, chunk, sums, grad);
  });
  if (spans)
    parallel_for(p.chunks(), p.threads, [&](i64 c) {
      const Chunk chunk(p, c);
      T* sums = spans + c * p.sums();
      const i64 count = chunk.groups * chunk.blocks * chunk.outputs * p.taps * p.lanes;
      for (i64 span = 1; span < p.spans; ++span) {
        const T* more = spans + (span * p.chunks() + c) * p.sums();
        for (i64 i = 0; i < count; ++i) sums[i] += more[i];
      }
      write(p, k, chunk, sums, grad);
    });
}

// Images as the innermost axis: of small maps they are the longer rows, and what lies outside the crop is left out exactly.
constexpr i64 kShortRow = 16;
bool images_last(const Spec& s, i64 vectors) {
  const Axis& d = s.axis[0];
  return vectors && d.size == 1 && d.kernel == 1 && d.output() == 1 && d.lo == 0 && s.axis[2].size < kShortRow && s.axis[2].size < s.batch;
}

template <class T>
View<T> turned(const View<T>& v, bool weight) {
  return {v.data, {weight ? v.stride[0] : 0, v.stride[1], v.stride[3], v.stride[4], weight ? 0 : v.stride[0]}};
}

}  // namespace

template <class T>
void grad_weight(const Spec& spec, const Isa& isa, View<const T> x, View<const T> dy, View<T> grad, int threads) {
  const Kernels<T>& k = isa.kernels<T>();
  if (!images_last(spec, block_vectors(spec.in_channels / spec.groups, k.lanes)))
    return run(GradWeight(spec, isa, threads, sizeof(T)), k, x, dy, grad);
  Spec positions = spec;
  positions.batch = 1;
  positions.axis[0] = spec.axis[1], positions.axis[1] = spec.axis[2], positions.axis[2] = Axis{spec.batch, 1, 1, 1, 0, 0};
  run(GradWeight(positions, isa, threads, sizeof(T)), k, turned(x, false), turned(dy, false), turned(grad, true));
}

template void grad_weight<float>(const Spec&, const Isa&, View<const float>, View<const float>, View<float>, int);
template void grad_weight<double>(const Spec&, const Isa&, View<const double>, View<const double>, View<double>, int);

}  // namespace tconv
