// SPDX-License-Identifier: Apache-2.0
// Runs a plan: pack a box of inputs, multiply, interleave the phases into the output. See plan.h for the layout.
#include <algorithm>
#include <optional>

#include "parallel.h"
#include "phases.h"
#include "pixels.h"
#include "plan.h"

namespace tconv {
namespace {

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
void pack_row(const Kernels<T>& k, const T* from, i64 channel_stride, i64 column_stride, Columns in, i64 channels, i64 columns, T* to,
              i64 pitch) {
  const i64 inside = in.end - in.begin;
  from += in.begin * column_stride;
  if (column_stride == 1 || !inside) return k.copy(from, channel_stride, to, pitch, channels, in.begin, in.end, columns);
  k.copy(from, 0, to, pitch, channels, in.begin, in.begin, in.begin);
  k.copy(from, 0, to + in.end, pitch, channels, 0, 0, columns - in.end);
  to += in.begin;
  if (channel_stride == 1) return k.transpose(from, column_stride, to, pitch, inside, channels, nullptr);
  for (i64 c = 0; c < channels; ++c)
    for (i64 z = 0; z < inside; ++z) to[c * pitch + z] = from[c * channel_stride + z * column_stride];
}

// The input coordinate of a panel's first element along an axis, for phase 0.
i64 start(const Plan& p, const Box& box, int i) { return p.axis[i].in_stride * (box.at[i] - p.axis[i].shift_max) - p.axis[i].in_lo; }

// Calls body(lane, from) for every row of one phase along depth and height: its place in a plane, and the element of its coordinate 0, or
// none where the row lies outside the input or nobody needs it.
template <class F>
void each_line(const Plan& p, const i64* stride, const Box& box, i64 pd, i64 ph, F body) {
  const StencilAxis &d = p.axis[0], &h = p.axis[1];
  const auto needed = [&](int i) { return box.size[i] + p.axis[i].halo(); };
  for (i64 n = 0; n < box.batches; ++n)
    for (i64 zd = 0; zd < d.extent; ++zd)
      for (i64 zh = 0; zh < h.extent; ++zh) {
        const i64 id = start(p, box, 0) + pd + zd * d.in_stride, ih = start(p, box, 1) + ph + zh * h.in_stride;
        const bool inside = id >= 0 && id < d.in_size && ih >= 0 && ih < h.in_size && zd < needed(0) && zh < needed(1);
        body(p.lane(n, zd, zh), inside ? std::optional((box.batch + n) * stride[0] + id * stride[2] + ih * stride[3]) : std::nullopt);
      }
}

// Calls body(to, from, inside, columns) for every row of a box's panel: its place in the panel, the element of the first column, which need
// not exist, and the columns that lie inside the input. Rows follow one another without gaps. What lies between positions and after
// them is computed too, though never used: it must be some number, hence written.
template <class F>
void each_panel_row(const Plan& p, const i64* stride, const Box& box, F body) {
  const StencilAxis& w = p.axis[2];
  i64 plane = 0;
  for (i64 pd : p.axis[0].in_phases)
    for (i64 ph : p.axis[1].in_phases)
      for (i64 pw : w.in_phases) {
        const i64 to = plane++ * p.plane, end = p.lane(box.batches, 0, 0);
        const Columns inside(start(p, box, 2) + pw, w.in_stride, w.in_size, w.extent), none(0, 1, 0, w.extent);
        each_line(p, stride, box, pd, ph, [&](i64 lane, std::optional<i64> line) {
          const bool some = line && inside.end > inside.begin;
          body(to + lane, some ? *line + inside.first * stride[4] : 0, some ? inside : none, w.extent);
        });
        body(to + end, 0, Columns(0, 1, 0, p.plane - end), p.plane - end);
      }
}

// Whether rows of the input, whose columns are adjacent, are taken apart into all of their phases.
bool splits(const Plan& p, const i64* stride) {
  return stride[4] == 1 && p.axis[2].in_stride > 1 && i64(p.axis[2].in_phases.size()) == p.axis[2].in_stride;
}

// Such a panel, channel after channel as they lie in memory.
template <class T>
void pack_split(const Plan& p, const Kernels<T>& k, const View<const T>& in, const Box& box, T* panel) {
  const StencilAxis& w = p.axis[2];
  std::vector<Columns> columns;
  for (i64 pw : w.in_phases) columns.emplace_back(start(p, box, 2) + pw, w.in_stride, w.in_size, w.extent);
  const i64 end = p.lane(box.batches, 0, 0);
  for (i64 c = 0; c < p.channels; ++c) {
    const T* from = in.data + c * in.stride[1];
    for (i64 pd : p.axis[0].in_phases)
      for (i64 ph : p.axis[1].in_phases) {
        each_line(p, in.stride, box, pd, ph, [&](i64 lane, std::optional<i64> line) {
          if (line) return split_row(k, columns, w.in_stride, w.extent, from + *line, panel + lane, p.plane);
          k.copy(from, 0, panel + lane, p.plane, w.in_stride, 0, 0, w.extent);
        });
        k.copy(from, 0, panel + end, p.plane, w.in_stride, 0, 0, p.plane - end);
        panel += w.in_stride * p.plane;
      }
  }
}

// Whether a row of the panel is a row of the input.
bool adjacent(const Plan& p, const i64* stride) { return stride[4] * p.axis[2].in_stride == 1; }

// The rows of a panel as few stretches of one channel: rows that are adjacent in both are one.
std::vector<Stretch> panel_stretches(const Plan& p, const i64* stride, const Box& box) {
  std::vector<Stretch> found;
  found.reserve(std::size_t(p.planes * p.plane / p.axis[2].extent + p.planes));
  i64 zeros = 0;
  each_panel_row(p, stride, box, [&](i64 to, i64 from, Columns row, i64 columns) {
    const i64 count = row.end - row.begin;
    zeros += row.begin;
    if (count > 0) {
      if (!found.empty() && !zeros && found.back().from + found.back().count == from + row.begin)
        found.back().count += count;
      else
        found.push_back({to + row.begin - zeros, zeros, from + row.begin, count});
      zeros = 0;
    }
    zeros += columns - row.end;
    if (to + columns == p.planes * p.plane && zeros) found.push_back({to + columns - zeros, zeros, 0, 0});
  });
  return found;
}

// The inputs of a box, wherever they lie.
template <class T>
void pack_panel(const Plan& p, const Kernels<T>& k, const View<const T>& in, const Box& box, const std::vector<Stretch>& stretches,
                T* panel) {
  const i64 channel = p.planes * p.plane;
  if (splits(p, in.stride)) return pack_split(p, k, in, box, panel);
  if (adjacent(p, in.stride))
    for (i64 c = 0; c < p.channels; ++c)
      k.copy_stretches(in.data + c * in.stride[1], in.stride[1], panel + c * channel, stretches.data(), i64(stretches.size()));
  else
    each_panel_row(p, in.stride, box, [&](i64 to, i64 from, Columns row, i64 columns) {
      pack_row(k, in.data + from, in.stride[1], in.stride[4] * p.axis[2].in_stride, row, p.channels, columns, panel + to, channel);
    });
}

// Positions q .. q + count - 1 of one row of a box, and where they lie in a strip of lanes.
struct Piece {
  i64 image, depth, row, q, count, lane;
};

// Vectors of lanes of a box that are computed together, and the pieces of rows among them.
struct Strip {
  i64 lane, vectors;
  std::size_t first, last;
};

struct Strips {
  std::vector<Strip> strips;
  std::vector<Piece> pieces;

  Strips(const Plan& p, const Box& box, i64 lanes) {
    pieces.reserve(std::size_t(box.batches * box.size[0] * box.size[1] + box.lanes(p) / (p.strip * lanes) + 1));
    const i64 rows = p.breaks == Break::rows ? 1 : box.size[1], slabs = p.breaks == Break::never ? box.batches * box.size[0] : 1;
    for (i64 n = 0; n < box.batches; ++n)
      for (i64 d = 0; d < box.size[0]; ++d)
        for (i64 h = 0; h < box.size[1]; ++h)
          if (h % rows == 0 && (n * box.size[0] + d) % slabs == 0) {
            const i64 last = n * box.size[0] + d + slabs - 1;
            cut(p, p.lane(n, d, h), p.lane(last / box.size[0], last % box.size[0], h + rows - 1) + box.size[2], lanes);
          }
    place(p, box, lanes);
  }

 private:
  // Strips over the lanes begin .. end - 1, of even width.
  void cut(const Plan& p, i64 begin, i64 end, i64 lanes) {
    const i64 vectors = ceil_div(end - begin, lanes), wide = even(vectors, p.strip);
    for (i64 v = 0; v < vectors; v += wide) strips.push_back({begin + v * lanes, std::min(wide, vectors - v), 0, 0});
  }

  // The pieces of rows in every strip: rows and strips are both in the order of their lanes.
  void place(const Plan& p, const Box& box, i64 lanes) {
    std::size_t at = 0;
    const auto end = [&] { return strips[at].lane + strips[at].vectors * lanes; };
    for (i64 n = 0; n < box.batches; ++n)
      for (i64 d = 0; d < box.size[0]; ++d)
        for (i64 h = 0; h < box.size[1]; ++h)
          for (i64 q = 0, row = p.lane(n, d, h), count; q < box.size[2]; q += count) {
            while (end() <= row + q) strips[++at].first = pieces.size();
            count = std::min(box.size[2] - q, end() - row - q);
            pieces.push_back({n, d, h, q, count, row + q - strips[at].lane});
            strips[at].last = pieces.size();
          }
  }
};

// A piece of a row of output that a unit writes: position i of phase p belongs to column base + i * stride + p.
struct Segment {
  i64 stride, run, base, size, count;
  bool whole;        // all phases, at adjacent columns
  i64 begin, first;  // the first column, if whole, and the phase it belongs to
  i64 full, rest;    // positions with all phases, from that phase on, and further columns

  Segment(const StencilAxis& w, const Unit& unit, i64 q, i64 positions, i64 column_stride)
      : stride(w.out_stride),
        run(unit.end - unit.begin),
        base(stride * q + unit.begin - w.out_lo),
        size(w.out_size),
        count(positions),
        whole(run == stride && column_stride == 1),
        begin(std::max<i64>(base, 0)),
        first(begin - base),
        full((std::min(base + stride * positions, size) - begin) / stride),
        rest(std::min(base + stride * positions, size) - begin - full * stride) {}
};

// `room` is where columns come together that are rounded.
template <class T, class S>
void write_piece(const Segment& s, const Kernels<T>& k, const T* const* rows, T bias, S* y, i64 column_stride, bool stream, T* room) {
  constexpr bool rounded = !std::is_same_v<T, S>;
  if (s.whole) {
    // The piece may begin within a position: then the phases are taken in turn from there.
    const T* turned[kPhaseMost];
    if (s.first) {
      for (i64 j = 0; j < s.run; ++j) turned[j] = j + s.first < s.run ? rows[j + s.first] : rows[j + s.first - s.run] + 1;
      rows = turned;
    }
    T* to = room;
    if constexpr (!rounded) to = y + s.begin;
    k.weave(to, rows, s.run, s.full, bias, stream && !rounded);
    for (i64 j = 0; j < s.rest; ++j) to[s.full * s.stride + j] = rows[j][s.full] + bias;
    if constexpr (rounded) narrow(k, room, s.full * s.stride + s.rest, y + s.begin);
  } else {
    for (i64 p = 0; p < s.run; ++p) {
      const Columns in(s.base + p, s.stride, s.size, s.count);
      for (i64 i = in.begin; i < in.end; ++i) {
        const T sum = rows[p][i] + bias;
        S* to = y + (s.base + i * s.stride + p) * column_stride;
        if constexpr (rounded)
          narrow(k, &sum, 1, to);
        else
          *to = sum;
      }
    }
  }
}

// A piece of a row of output that a unit writes, wherever its channels begin.
struct OutputRow {
  Segment segment;
  i64 sums, to;  // where phase 0 of channel 0 lies among the sums, and the row in the output
};

// The rows of output of every unit and strip of a box.
struct OutputRows {
  std::vector<OutputRow> rows;
  std::vector<std::size_t> ends;  // [unit][strip]

  OutputRows(const Plan& p, const Box& box, const Strips& strips, const i64* stride) {
    for (const Unit& unit : p.units) rows.reserve(rows.capacity() + strips.pieces.size() * unit.leads.size());
    for (const Unit& unit : p.units)
      for (const Strip& strip : strips.strips) {
        for (std::size_t i = strip.first; i < strip.last; ++i) add(p, unit, box, strips.pieces[i], stride);
        ends.push_back(rows.size());
      }
  }

 private:
  void add(const Plan& p, const Unit& unit, const Box& box, const Piece& piece, const i64* stride) {
    const StencilAxis &d = p.axis[0], &h = p.axis[1];
    const Segment segment(p.axis[2], unit, box.at[2] + piece.q, piece.count, stride[4]);
    for (std::size_t l = 0; l < unit.leads.size(); ++l) {
      const i64 od = d.out_stride * (box.at[0] + piece.depth) + unit.leads[l].depth - d.out_lo;
      const i64 oh = h.out_stride * (box.at[1] + piece.row) + unit.leads[l].row - h.out_lo;
      if (od >= 0 && od < d.out_size && oh >= 0 && oh < h.out_size)
        rows.push_back({segment, i64(l) * segment.run * p.block * p.pitch + piece.lane,
                        (box.batch + piece.image) * stride[0] + od * stride[2] + oh * stride[3]});
    }
  }
};

// Writes a strip while the next one is multiplied: a little after every tile, so that the stores drain meanwhile.
template <class T, class S>
class Writer {
 public:
  Writer(const Plan& plan, const Kernels<T>& kernels, const Epilogue<T>& epilogue, const View<S>& out, bool stream, T* room)
      : p_(plan), k_(kernels), after_(epilogue), out_(out), stream_(stream), room_(room) {}

  // Takes over a strip's sums, of so many channels from `channel` on.
  void begin(const OutputRow* rows, const OutputRow* end, T* sums, i64 channel, i64 outputs, const Unit& unit, const Strip& strip) {
    rest();
    leads_ = i64(unit.leads.size()), lanes_ = strip.vectors * k_.lanes;
    row_ = first_ = rows, end_ = end, sums_ = sums, outputs_ = outputs;
    bias_ = after_.bias ? after_.bias + channel : nullptr;
    to_ = out_.data + channel * out_.stride[1];
    transposed_ = out_.stride[1] == 1 && outputs > 1 && out_.stride[4] != 1;
    if (row_ < end_) part_ = 0, parts_ = transposed_ ? row_->segment.run : outputs, steps_ = (end_ - row_) * parts_;
  }

  // About 1 / `times` of what there was to write.
  void some(i64 times) {
    if (row_ < end_)
      for (i64 n = ceil_div(steps_, times); n > 0 && row_ < end_; --n) step();
  }
  void rest() {
    while (row_ < end_) step();
  }

 private:
  void step() {
    if (row_ == first_ && after_.activation != Activation::none) activate();
    transposed_ ? write_phase(row_->segment, part_) : write_channel(row_->segment, part_);
    if (++row_ == end_ && ++part_ < parts_) row_ = first_;
  }

  void write_channel(const Segment& s, i64 m) {
    const T* phases[kPhaseMost];
    for (i64 p = 0; p < s.run; ++p) phases[p] = sums_ + row_->sums + (p * p_.block + m) * p_.pitch;
    write_piece(s, k_, phases, bias_ && after_.activation == Activation::none ? bias_[m] : T(0), to_ + row_->to + m * out_.stride[1],
                out_.stride[4], stream_, room_);
  }

  void write_phase(const Segment& s, i64 phase) {
    const Columns in(s.base + phase, s.stride, s.size, s.count);
    const T* from = sums_ + row_->sums + phase * p_.block * p_.pitch + in.begin;
    const T* bias = after_.activation == Activation::none ? bias_ : nullptr;
    S* y = to_ + row_->to + (s.base + phase + in.begin * s.stride) * out_.stride[4];
    const i64 count = in.end - in.begin, step = out_.stride[4] * s.stride;
    if constexpr (std::is_same_v<T, S>) {
      k_.transpose(from, p_.pitch, y, step, outputs_, count, bias);
    } else {
      k_.transpose(from, p_.pitch, room_, outputs_, outputs_, count, bias);
      scatter_rounded(k_, room_, outputs_, count, outputs_, y, 1, step);
    }
  }

  // All sums of a channel, or of a phase where channels are adjacent, for the whole strip, gaps included: their rows are written next.
  void activate() {
    const i64 run = row_->segment.run;
    for (i64 lead = 0; lead < leads_; ++lead)
      for (i64 i = 0; i < (transposed_ ? outputs_ : run); ++i) {
        const i64 phase = lead * run + (transposed_ ? part_ : i), m = transposed_ ? i : part_;
        k_.activate(sums_ + (phase * p_.block + m) * p_.pitch, lanes_, bias_ ? bias_[m] : T(0), after_.activation, after_.slope);
      }
  }

  const Plan& p_;
  const Kernels<T>& k_;
  const Epilogue<T>& after_;
  const View<S>& out_;
  const bool stream_;
  T* const room_;
  bool transposed_ = false;
  const OutputRow *first_ = nullptr, *row_ = nullptr, *end_ = nullptr;
  const T* bias_ = nullptr;
  T* sums_ = nullptr;
  S* to_ = nullptr;
  i64 outputs_ = 0, part_ = 0, parts_ = 0, steps_ = 0, leads_ = 0, lanes_ = 0;
};

// Sums of one unit for a strip; meanwhile another strip is written.
template <class T, class S>
void multiply(const Plan& p, const Kernels<T>& k, const Unit& unit, const T* panel, const Strip& strip, i64 b, const T* weights, T* sums,
              Writer<T, S>& writer) {
  const i64 outputs = p.block_outputs(b), channel = p.planes * p.plane;
  panel += strip.lane;
  for (const RowGroup& g : unit.groups) {
    const RowGroup::Rows& of = p.rows(g, b);
    const i64 taps = i64(g.offsets.size()), rows = i64(of.sums.size());
    // Channels added up in one go, or a part of the taps of one channel.
    const i64 part = even(p.channels, terms_at_once(taps * p.channels) / std::max<i64>(taps, 1)),
              taps_part = taps > kTerms ? even(taps, kTerms) : std::max<i64>(taps, 1);
    for (i64 r = 0; r < rows; r += of.height) {
      const i64 tall = std::min<i64>(of.height, rows - r), most = tile_vecs(k, tall),
                wide = ceil_div(strip.vectors, ceil_div(strip.vectors, most));
      const T* w = weights + (g.weights_before * outputs + r * taps) * p.channels;
      for (i64 c = 0; c < std::max<i64>(p.channels * (taps > 0), 1); c += part)
        for (i64 t = 0; t < std::max<i64>(taps, 1); t += taps_part)
          for (i64 v = 0; v < strip.vectors; v += wide) {
            k.tile[tall][std::min(wide, strip.vectors - v)](
                std::min(part, p.channels - c), channel, std::min(taps_part, taps - t), g.offsets.data() + t, w + (c * taps + t) * tall,
                panel + c * channel + v * k.lanes, sums + v * k.lanes, of.sums.data() + r, g.add || c > 0 || t > 0);
            writer.some(unit.tiles * ceil_div(strip.vectors, wide));
          }
    }
  }
}

}  // namespace

i64 Plan::unit_rows() const {
  i64 most = 0;
  for (const Unit& unit : units) most = std::max(most, i64(unit.slot.size()) * block);
  return most;
}

template <class T, class S>
void run(const Plan& p, const Kernels<T>& k, View<const T> in, const T* packed, const Epilogue<T>& epilogue, View<S> out) {
  const Tasks tasks(p);
  const bool stream =
      p.batch * p.groups * p.outputs * p.axis[0].out_size * p.axis[1].out_size * p.axis[2].out_size * i64(sizeof(T)) >= kStreamBytes;
  const i64 unit_rows = p.unit_rows();
  parallel_for(tasks.count(), p.threads, [&](i64 task) {
    // Boxes one after another, as in gather.cc.
    const i64 places = tasks.boxes.count(), turn = task / places % tasks.runs, chunk = task / places / tasks.runs;
    const Box box = tasks.boxes(p, task % places);
    const i64 last_group = std::min(p.groups, (chunk + 1) * tasks.groups_at_once);
    const Strips strips(p, box, k.lanes);
    const std::vector<Stretch> stretches = adjacent(p, in.stride) ? panel_stretches(p, in.stride, box) : std::vector<Stretch>();
    T* panel = scratch<T>(0, p.panel);
    T* sums = scratch<T>(1, 3 * unit_rows * p.pitch);
    const OutputRows written(p, box, strips, out.stride);
    Writer<T, S> writer(p, k, epilogue, out, stream, sums + 2 * unit_rows * p.pitch);
    bool odd = false;
    for (i64 group = chunk * tasks.groups_at_once; group < last_group; ++group) {
      View<const T> from = in;
      from.data += group * p.channels * in.stride[1];
      pack_panel(p, k, from, box, stretches, panel);
      std::fill_n(panel + p.panel - kSlack, kSlack, T(0));
      for (i64 b = turn * tasks.blocks_per_run; b < std::min(p.blocks, (turn + 1) * tasks.blocks_per_run); ++b) {
        const i64 outputs = p.block_outputs(b), first = group * p.outputs + b * p.block;
        const OutputRow* row = written.rows.data();
        for (std::size_t u = 0, at = 0; u < p.units.size(); ++u)
          for (const Strip& strip : strips.strips) {
            const OutputRow* end = written.rows.data() + written.ends[at++];
            if (row < end) {
              T* fresh = sums + (odd ? unit_rows * p.pitch : 0);
              multiply(p, k, p.units[u], panel, strip, b, packed + first * p.channels * p.weights, fresh, writer);
              writer.begin(row, end, fresh, first, outputs, p.units[u], strip);
              odd = !odd;
            }
            row = end;
          }
      }
    }
    writer.rest();
    fence(stream);
  });
}

TCONV_RUNS(Plan)

}  // namespace tconv
