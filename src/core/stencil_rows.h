// SPDX-License-Identifier: Apache-2.0
// Strips of a box's lanes, and the rows of output that become of them: by way of sums, or from the registers.
#pragma once

#include <algorithm>
#include <vector>

#include "phases.h"
#include "pixels.h"
#include "plan.h"

namespace tconv {
namespace {

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
  // Strips over the lanes begin .. end - 1, of even width; of whole tiles where nothing is left to be written after them.
  void cut(const Plan& p, i64 begin, i64 end, i64 lanes) {
    const i64 vectors = ceil_div(end - begin, lanes),
              wide = round_up(even(vectors, p.strip), p.woven && p.breaks == Break::rows ? p.wide : 1);
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
        full(!first && base + stride * positions <= size ? positions : (std::min(base + stride * positions, size) - begin) / stride),
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
  Writer(const Plan& plan, const Kernels<T>& kernels, const Epilogue<T>& epilogue, const View<S>& out, T* room)
      : p_(plan), k_(kernels), after_(epilogue), out_(out), room_(room) {}

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
                out_.stride[4], p_.large, room_);
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
  T* const room_;
  bool transposed_ = false;
  const OutputRow *first_ = nullptr, *row_ = nullptr, *end_ = nullptr;
  const T* bias_ = nullptr;
  T* sums_ = nullptr;
  S* to_ = nullptr;
  i64 outputs_ = 0, part_ = 0, parts_ = 0, steps_ = 0, leads_ = 0, lanes_ = 0;
};

// A strip that goes from the registers to the output: one row of positions, all of whose outputs exist, at adjacent columns.
template <class T, class S>
class Woven {
 public:
  Woven(const Plan& plan, const Kernels<T>& kernels, const Epilogue<T>& epilogue, const View<S>& out)
      : p_(plan), k_(kernels), after_(epilogue), out_(out) {}

  static constexpr bool kRounded = std::is_same_v<S, BFloat16>;

  // Whether so many channels of a strip, from `channel` on, are such rows; then they are what the rest is about.
  bool begin(const OutputRow* rows, const OutputRow* end, i64 channel, i64 outputs, const Unit& unit, const Strip& strip) {
    const Segment& s = rows->segment;
    if (!(std::is_same_v<T, S> || kRounded) || !p_.woven || strip.last - strip.first != 1 || end - rows != i64(unit.leads.size()))
      return false;
    if (rows->sums != 0 || !s.whole || s.full < s.count || s.count < k_.lanes) return false;
    if (kRounded && after_.activation != Activation::none) return false;  // which comes before
    rows_ = rows, end_ = end, channel_ = channel, outputs_ = outputs;
    // Lines that are in no cache want whole channels written one after the other, unless they need not be read first.
    stream_ = p_.large && after_.activation == Activation::none && s.count % k_.lanes == 0;
    for (const OutputRow* row = rows; stream_ && row < end; ++row) stream_ = whole_lines(to(*row, 0), out_.stride[1]);
    return stream_ || !p_.large;
  }

  // What the tiles of a group write.
  const WovenRow<T>* of(const RowGroup& g) {
    const T* bias = after_.activation == Activation::none ? after_.bias : nullptr;
    const i64 leads = i64(g.slots.size()) / run();
    list_.resize(std::size_t(leads * outputs_));
    for (i64 i = 0; i < leads; ++i) {
      const OutputRow& row = rows_[g.slots[std::size_t(i * run())] / run()];
      for (i64 m = 0; m < outputs_; ++m) list_[std::size_t(m * leads + i)] = {to(row, m), bias ? bias[channel_ + m] : T(0)};
    }
    return list_.data();
  }
  i64 positions() const { return rows_->segment.count; }
  i64 run() const { return rows_->segment.run; }
  bool stream() const { return stream_; }

  // Fetches the lines that a tile is about to write, columns of some rows: a store that finds its line in no near cache holds up those
  // after it. (In line: GCC takes a function that only fetches for one without effect, and drops its calls.)
  __attribute__((always_inline)) void fetch(const WovenRow<T>* rows, i64 count, i64 column, i64 columns) const {
    for (const WovenRow<T>* row = rows; row < rows + count; ++row)
      for (i64 i = 0; i < columns; i += kLine / i64(sizeof(S))) __builtin_prefetch(static_cast<const S*>(row->to) + column + i, 1);
  }

  void activate() {
    if (after_.activation == Activation::none) return;
    if constexpr (std::is_same_v<T, S>)
      for (const OutputRow* row = rows_; row < end_; ++row)
        for (i64 m = 0; m < outputs_; ++m)
          k_.activate(to(*row, m), positions() * row->segment.run, after_.bias ? after_.bias[channel_ + m] : T(0), after_.activation,
                      after_.slope);
  }

 private:
  S* to(const OutputRow& row, i64 m) const { return out_.data + (channel_ + m) * out_.stride[1] + row.to + row.segment.begin; }

  const Plan& p_;
  const Kernels<T>& k_;
  const Epilogue<T>& after_;
  const View<S>& out_;
  const OutputRow *rows_ = nullptr, *end_ = nullptr;
  i64 channel_ = 0, outputs_ = 0;
  bool stream_ = false;
  std::vector<WovenRow<T>> list_;
};

}  // namespace
}  // namespace tconv
