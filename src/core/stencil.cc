// SPDX-License-Identifier: Apache-2.0
// Runs a plan: pack a box of inputs, multiply, interleave the phases into the output. See plan.h for the layout.
#include <algorithm>
#include <atomic>

#include "parallel.h"
#include "plan.h"

namespace tconv {
namespace {

constexpr i64 kStreamBytes = 16 << 20;

// The columns [begin, end) of a row that lie inside the input; column z is the input z * stride + start.
struct Inside {
  i64 begin, end;
  Inside(i64 start, i64 stride, i64 size, i64 columns)
      : begin(std::clamp<i64>(ceil_div(-start, stride), 0, columns)),
        end(std::clamp<i64>(ceil_div(size - start, stride), begin, columns)) {}
};

// Tasks: boxes, within a box chunks of groups, within a chunk runs of channel blocks (so that few boxes still feed all threads).
struct Tasks {
  Boxes boxes;
  i64 groups_at_once, chunks, runs, blocks_per_run;

  explicit Tasks(const Plan& p) : boxes(p) {
    const i64 wanted = p.threads > 1 ? 4 * p.threads : 1, boxes_or_one = std::max<i64>(boxes.count(), 1);
    // Depthwise layers have many groups of little work: whole chunks of them are one task.
    groups_at_once = even(p.groups, p.groups / std::max<i64>(1, ceil_div(wanted, boxes_or_one)));
    chunks = ceil_div(p.groups, groups_at_once);
    blocks_per_run = ceil_div(p.blocks, std::min(p.blocks, ceil_div(wanted, boxes_or_one * chunks)));
    runs = ceil_div(p.blocks, blocks_per_run);
  }
  i64 count() const { return boxes.count() * chunks * runs; }
};

// `columns` inputs in a row, of every channel: those inside the input are copied, the others are zero.
template <class T>
void pack_row(const Kernels<T>& k, const T* from, i64 channel_stride, i64 column_stride, Inside in, i64 channels, i64 columns, T* to,
              PanelPitch pitch) {
  const i64 inside = in.end - in.begin;
  from += in.begin * column_stride;
  if (pitch.position == 1 && (column_stride == 1 || !inside))
    return k.copy(from, channel_stride, to, pitch.channel, channels, in.begin, in.end, columns);
  if (pitch.position == 1) {
    k.copy(from, 0, to, pitch.channel, channels, in.begin, in.begin, in.begin);
    k.copy(from, 0, to + in.end, pitch.channel, channels, 0, 0, columns - in.end);
  } else {
    k.copy(from, 0, to, pitch.position, in.begin, 0, 0, channels);
    k.copy(from, 0, to + in.end * pitch.position, pitch.position, columns - in.end, 0, 0, channels);
  }
  to += in.begin * pitch.position;
  if (pitch.channel == 1 && channel_stride == 1)
    k.copy(from, column_stride, to, pitch.position, inside, 0, channels, channels);
  else if (pitch.position == 1 && channel_stride == 1)
    k.transpose(from, column_stride, to, pitch.channel, inside, channels, nullptr);
  else if (pitch.channel == 1 && column_stride == 1)
    k.transpose(from, channel_stride, to, pitch.position, channels, inside, nullptr);
  else
    for (i64 c = 0; c < channels; ++c)
      for (i64 z = 0; z < inside; ++z) to[c * pitch.channel + z * pitch.position] = from[c * channel_stride + z * column_stride];
}

// The lanes between the first position that a unit writes in a box and the last.
struct Lanes {
  i64 begin, end;

  Lanes(const Plan& p, const Unit& unit, const Box& box) {
    i64 first[2], last[2];
    for (int i = 0; i < 2; ++i) {
      const StencilAxis& a = p.axis[i];
      first[i] = box.size[i], last[i] = 0;
      for (const Unit::Lead& lead : unit.leads) {
        const Inside in(a.out_stride * (a.first + box.at[i]) + (i ? lead.row : lead.depth) - a.out_lo, a.out_stride, a.out_size,
                        box.size[i]);
        first[i] = std::min(first[i], in.begin), last[i] = std::max(last[i], in.end);
      }
    }
    const bool empty = first[0] >= last[0] || first[1] >= last[1];
    begin = empty ? 0 : p.lane(0, first[0], first[1]);
    end = empty ? 0 : p.lane(box.batches - 1, last[0] - 1, last[1] - 1) + box.size[2];
  }
};

// Accumulator rows of one unit: [slot][channel of the block], `pitch` lanes each.
template <class T>
void multiply(const Plan& p, const Kernels<T>& k, const Unit& unit, const T* panel, Lanes lanes, i64 b, const T* weights, T* acc,
              i64 pitch) {
  const i64 outputs = p.block_outputs(b), skipped = lanes.begin / k.lanes * k.lanes, vectors = ceil_div(lanes.end - skipped, k.lanes),
            channel = p.planes * p.plane;
  if (!vectors) return;
  panel += skipped, acc += skipped;
  for (const RowGroup& g : unit.groups) {
    const i64 taps = i64(g.offsets.size()), rows = g.slots * outputs, height = p.height(g, b);
    // Channels added up in one go, or a part of the taps of one channel.
    const i64 part = even(p.channels, kTerms / std::max<i64>(taps, 1)),
              taps_part = taps > kTerms ? even(taps, kTerms) : std::max<i64>(taps, 1);
    for (i64 r = 0; r < rows; r += height) {
      const i64 tall = std::min(height, rows - r);
      i64 most = kMaxVecs;
      while (!k.tile[tall][most]) --most;
      const i64 wide = ceil_div(vectors, ceil_div(vectors, most));
      const T* w = weights + (g.weights_before * outputs + r * taps) * p.channels;
      T* out = acc + (g.slot * outputs + r) * pitch;
      for (i64 c = 0; c < std::max<i64>(p.channels * (taps > 0), 1); c += part)
        for (i64 t = 0; t < std::max<i64>(taps, 1); t += taps_part)
          for (i64 v = 0; v < vectors; v += wide)
            k.tile[tall][std::min(wide, vectors - v)](std::min(part, p.channels - c), channel, std::min(taps_part, taps - t),
                                                      g.offsets.data() + t, w + (c * taps + t) * tall, panel + c * channel + v * k.lanes,
                                                      out + v * k.lanes, pitch, g.add || c > 0 || t > 0);
    }
  }
}

// Where the phases of a unit's row segment go: the same for every row and channel of a box.
struct Segment {
  i64 stride, run, base;          // position q of the run's phase p belongs to column base + q * stride + p
  bool whole;                     // all phases, at adjacent columns: one stretch of output, begin .. begin + count * stride + rest - 1
  i64 begin, first, count, rest;  // which starts with phase `first`

  template <class T>
  Segment(const StencilAxis& w, const Unit& unit, const Box& box, const View<T>& out)
      : stride(w.out_stride),
        run(unit.end - unit.begin),
        base(stride * (w.first + box.at[2]) + unit.begin - w.out_lo),
        whole(run == stride && out.stride[4] == 1),
        begin(std::max<i64>(base, 0)),
        first(begin - base) {
    const i64 columns = std::min(base + stride * box.size[2], w.out_size) - begin;
    count = columns / stride, rest = columns % stride;
  }
};

// One row of output: rows[p] holds phase p at positions 0 .. positions - 1.
template <class T>
void write_row(const Segment& s, const Kernels<T>& k, const StencilAxis& w, const T* const* rows, i64 positions, T bias, T* y,
               i64 column_stride, bool stream) {
  if (s.whole) {
    // The stretch may begin within a position: then the phases are taken in turn from there.
    const T* turned[kPhaseMost];
    for (i64 j = 0; j < s.run; ++j) turned[j] = j + s.first < s.run ? rows[j + s.first] : rows[j + s.first - s.run] + 1;
    k.weave(y + s.begin, turned, s.run, s.count, bias, stream);
    for (i64 j = 0; j < s.rest; ++j) y[s.begin + s.count * s.stride + j] = turned[j][s.count] + bias;
  } else {
    for (i64 p = 0; p < s.run; ++p) {
      const Inside in(s.base + p, s.stride, w.out_size, positions);
      for (i64 q = in.begin; q < in.end; ++q) y[(s.base + q * s.stride + p) * column_stride] = rows[p][q] + bias;
    }
  }
}

template <class T>
void write_unit(const Plan& p, const Kernels<T>& k, const Unit& unit, const Box& box, i64 outputs, const T* acc, i64 pitch, const T* bias,
                const View<T>& out, bool stream) {
  const StencilAxis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  const Segment segment(w, unit, box, out);
  const i64 run = segment.run;
  for (i64 n = 0; n < box.batches; ++n)
    for (i64 qd = 0; qd < box.size[0]; ++qd)
      for (i64 qh = 0; qh < box.size[1]; ++qh)
        for (std::size_t l = 0; l < unit.leads.size(); ++l) {
          const i64 od = d.out_stride * (d.first + box.at[0] + qd) + unit.leads[l].depth - d.out_lo;
          const i64 oh = h.out_stride * (h.first + box.at[1] + qh) + unit.leads[l].row - h.out_lo;
          if (od < 0 || od >= d.out_size || oh < 0 || oh >= h.out_size) continue;
          const i64 lane = p.lane(n, qd, qh);
          T* y = out.data + (box.batch + n) * out.stride[0] + od * out.stride[2] + oh * out.stride[3];
          if (out.stride[1] == 1 && outputs > 1 && out.stride[4] != 1) {
            for (i64 ph = 0; ph < run; ++ph) {
              const i64 base = segment.base + ph;
              const Inside in(base, w.out_stride, w.out_size, box.size[2]);
              k.transpose(acc + unit.slot[l * run + ph] * outputs * pitch + lane + in.begin, pitch,
                          y + (base + in.begin * w.out_stride) * out.stride[4], out.stride[4] * w.out_stride, outputs, in.end - in.begin,
                          bias);
            }
            continue;
          }
          for (i64 m = 0; m < outputs; ++m) {
            const T* rows[kPhaseMost];
            for (i64 ph = 0; ph < run; ++ph) rows[ph] = acc + (unit.slot[l * run + ph] * outputs + m) * pitch + lane;
            write_row(segment, k, w, rows, box.size[2], bias ? bias[m] : T(0), y + m * out.stride[1], out.stride[4], stream);
          }
        }
}

}  // namespace

template <class T>
void pack_panel(const Plan& p, const Kernels<T>& k, const View<const T>& in, i64 channels, const Box& box, T* panel, PanelPitch pitch) {
  const StencilAxis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  // Input coordinate of the panel's first element, for phase 0; and how many inputs along an axis the box needs.
  const auto start = [&](int i) { return p.axis[i].in_stride * (p.axis[i].first + box.at[i] - p.axis[i].shift_max) - p.axis[i].in_lo; };
  const auto needed = [&](int i) { return box.size[i] + p.axis[i].shift_max - p.axis[i].shift_min; };
  i64 plane = 0;
  for (i64 pd : d.in_phases)
    for (i64 ph : h.in_phases)
      for (i64 pw : w.in_phases) {
        T* to = panel + plane++ * p.plane * pitch.position;
        const Inside inside(start(2) + pw, w.in_stride, w.in_size, w.extent);
        // What lies between rows and after them is computed too, though never used: it must be some number, hence written.
        for (i64 n = 0; n < box.batches; ++n)
          for (i64 zd = 0; zd < d.extent; ++zd)
            for (i64 zh = 0; zh < h.extent; ++zh) {
              const i64 id = start(0) + pd + zd * d.in_stride, ih = start(1) + ph + zh * h.in_stride;
              const bool outside = id < 0 || id >= d.in_size || ih < 0 || ih >= h.in_size || zd >= needed(0) || zh >= needed(1);
              const Inside row = outside ? Inside(0, 1, 0, w.extent) : inside;
              const T* from = in.data;  // of the first column, which need not exist; none is read where no column does
              if (row.end > row.begin)
                from += (box.batch + n) * in.stride[0] + id * in.stride[2] + ih * in.stride[3] + (start(2) + pw) * in.stride[4];
              pack_row(k, from, in.stride[1], in.stride[4] * w.in_stride, row, channels, w.extent, to + p.lane(n, zd, zh) * pitch.position,
                       pitch);
            }
        const i64 end = p.lane(box.batches, 0, 0);
        pack_row(k, in.data, 0, 0, Inside(0, 1, 0, p.plane - end), channels, p.plane - end, to + end * pitch.position, pitch);
      }
}

template <class T>
void pack_weights(const Plan& p, View<const T> weight, i64 group_stride, T* packed) {
  std::vector<i64> element;  // of the kernel, in memory
  for (i64 d = 0; d < p.axis[0].kernel; ++d)
    for (i64 h = 0; h < p.axis[1].kernel; ++h)
      for (i64 w = 0; w < p.axis[2].kernel; ++w) element.push_back(d * weight.stride[2] + h * weight.stride[3] + w * weight.stride[4]);
  // Channel by channel, as the weight usually lies in memory; the order of one channel's weights in a tile is worked out once.
  constexpr i64 kChannels = 16;
  const i64 chunks = ceil_div(p.channels, kChannels);
  parallel_for(p.groups * chunks, p.threads, [&](i64 task) {
    const i64 group = task / chunks, begin = task % chunks * kChannels, end = std::min(p.channels, begin + kChannels);
    std::vector<i64> order;
    for (i64 b = 0; b < p.blocks; ++b) {
      const i64 outputs = p.block_outputs(b), first = b * p.block;
      const T* from = weight.data + group * group_stride + first * weight.stride[1];
      T* to = packed + (group * p.outputs + first) * p.channels * p.taps;
      for (const Unit& unit : p.units)
        for (const RowGroup& g : unit.groups) {
          const i64 taps = i64(g.offsets.size()), rows = g.slots * outputs, height = p.height(g, b);
          for (i64 r = 0; r < rows; r += height) {
            order.clear();
            for (i64 t = 0; t < taps; ++t)
              for (i64 i = r; i < std::min(rows, r + height); ++i)
                order.push_back(i % outputs * weight.stride[1] + element[std::size_t(g.taps[i / outputs][t])]);
            const i64 size = i64(order.size());
            for (i64 c = begin; c < end; ++c)
              for (i64 i = 0; i < size; ++i) to[c * size + i] = from[c * weight.stride[0] + order[i]];
            to += p.channels * size;
          }
        }
    }
  });
}

template <class T>
void run(const Plan& p, const Kernels<T>& k, View<const T> in, const T* packed, const T* bias, View<T> out) {
  const Tasks tasks(p);
  // An output larger than the last cache's share is not found there by who reads it next: it need not pass through.
  const bool stream =
      p.batch * p.groups * p.outputs * p.axis[0].out_size * p.axis[1].out_size * p.axis[2].out_size * i64(sizeof(T)) >= kStreamBytes;
  i64 unit_rows = 0;
  for (const Unit& unit : p.units) unit_rows = std::max(unit_rows, i64(unit.slot.size()) * p.block);
  parallel_for(tasks.count(), p.threads, [&](i64 task) {
    const i64 turn = task % tasks.runs, chunk = task / tasks.runs % tasks.chunks;
    const Box box = tasks.boxes(p, task / (tasks.runs * tasks.chunks));
    const i64 pitch = round_up(box.lanes(p), 16) | 16, last_group = std::min(p.groups, (chunk + 1) * tasks.groups_at_once);
    T* panel = scratch<T>(0, p.panel);
    T* acc = scratch<T>(1, unit_rows * pitch);
    for (i64 group = chunk * tasks.groups_at_once; group < last_group; ++group) {
      View<const T> from = in;
      from.data += group * p.channels * in.stride[1];
      pack_panel(p, k, from, p.channels, box, panel, {p.planes * p.plane, 1});
      std::fill_n(panel + p.panel - kSlack, kSlack, T(0));
      for (i64 b = turn * tasks.blocks_per_run; b < std::min(p.blocks, (turn + 1) * tasks.blocks_per_run); ++b) {
        const i64 outputs = p.block_outputs(b), first = group * p.outputs + b * p.block;
        const T* weights = packed + first * p.channels * p.taps;
        View<T> to = out;
        to.data += first * out.stride[1];
        for (const Unit& unit : p.units) {
          multiply(p, k, unit, panel, Lanes(p, unit, box), b, weights, acc, pitch);
          write_unit(p, k, unit, box, outputs, acc, pitch, bias ? bias + first : nullptr, to, stream);
          for (const RowGroup& g : unit.groups) weights += g.slots * i64(g.offsets.size()) * outputs * p.channels;
        }
      }
    }
    if (stream) std::atomic_thread_fence(std::memory_order_seq_cst);  // streamed stores are ordered by nothing less
  });
}

#define TCONV_STENCIL(T)                                                                                              \
  template void pack_panel<T>(const Plan&, const Kernels<T>&, const View<const T>&, i64, const Box&, T*, PanelPitch); \
  template void pack_weights<T>(const Plan&, View<const T>, i64, T*);                                                 \
  template void run<T>(const Plan&, const Kernels<T>&, View<const T>, const T*, const T*, View<T>);
TCONV_STENCIL(float)
TCONV_STENCIL(double)

}  // namespace tconv
