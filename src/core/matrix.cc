// SPDX-License-Identifier: Apache-2.0
// Runs matrix.h: fill the panel of a box, multiply 32 positions at a time, round and write them.
#include "matrix.h"

#include <algorithm>
#include <stdexcept>

#include "parallel.h"
#include "pixels.h"
#include "weights.h"

namespace tconv {
namespace {

// The columns of a row of the panel that lie inside the input: of column j it is `first` + j * in_stride.
struct Columns {
  i64 first, begin, end;

  Columns(const StencilAxis& a, i64 at, i64 phase, i64 count) : first(a.in_stride * (at - a.shift_max) + phase - a.in_lo) {
    begin = std::clamp<i64>(ceil_div(-first, a.in_stride), 0, count);
    end = std::clamp<i64>(floor_div(a.in_size - 1 - first, a.in_stride) + 1, begin, count);
  }
};

// Fills the panel of a box with the inputs of a group.
class Panel {
 public:
  Panel(const Matrix& m, const Kernels<float>& k, const Matrix::Box& box, const View<const float>& in, float* panel, float* room)
      : m_(m), k_(k), box_(box), in_(in), room_(room) {
    const auto& [d, h, w] = m.axis;
    for (const i64 pd : d.in_phases)
      for (const i64 ph : h.in_phases) {
        const Columns ds(d, box.at[0], pd, box.size[0] + d.halo()), hs(h, box.at[1], ph, box.size[1] + h.halo());
        for (i64 n = 0; n < box.images; ++n)
          for (i64 i = 0; i < box.size[0] + d.halo(); ++i)
            for (i64 j = 0; j < box.size[1] + h.halo(); ++j) {
              float* to = panel + ((n * m.extent[0] + i) * m.extent[1] + j) * m.extent[2] * m.pitch;
              const bool inside = i >= ds.begin && i < ds.end && j >= hs.begin && j < hs.end;
              fill(inside ? in.data + n * in.stride[0] + (ds.first + i * d.in_stride) * in.stride[2] +
                                (hs.first + j * h.in_stride) * in.stride[3]
                          : nullptr,
                   to);
            }
        panel += i64(w.in_phases.size()) * m.plane * m.pitch;
      }
  }

 private:
  // A row of all phases along it, from the input's row, or of zeros.
  void fill(const float* row, float* to) const {
    const StencilAxis& w = m_.axis[2];
    const i64 count = box_.size[2] + w.halo();
    for (const i64 phase : w.in_phases) {
      const Columns columns(w, box_.at[2], phase, row ? count : 0);
      std::fill_n(to, columns.begin * m_.pitch, 0.0f);
      if (row) copy(row + columns.first * in_.stride[4], columns, to);
      std::fill_n(to + columns.end * m_.pitch, (count - columns.end) * m_.pitch, 0.0f);
      to += m_.plane * m_.pitch;
    }
  }

  // Pixels as they lie, or columns transposed some at a time.
  void copy(const float* from, const Columns& columns, float* to) const {
    const i64 step = m_.axis[2].in_stride;
    if (in_.stride[1] == 1)
      return k_.copy(from + columns.begin * step * in_.stride[4], step * in_.stride[4], to + columns.begin * m_.pitch, m_.pitch,
                     columns.end - columns.begin, 0, m_.channels, m_.depth);
    const i64 at_once = step == 1 ? columns.end : std::max<i64>(1, Matrix::kColumns / step);
    for (i64 j = columns.begin, some; j < columns.end; j += some) {
      some = std::min(at_once, columns.end - j);
      float* pixels = to + j * m_.pitch;
      transpose(from + j * step, step == 1 ? pixels : room_, (some - 1) * step + 1);
      if (step > 1) k_.copy(room_, step * m_.pitch, pixels, m_.pitch, some, 0, m_.depth, m_.depth);
    }
  }

  void transpose(const float* from, float* to, i64 count) const {
    k_.transpose(from, in_.stride[1], to, m_.pitch, m_.channels, count, nullptr);
    for (i64 i = 0; i < count && m_.channels < m_.depth; ++i) std::fill_n(to + i * m_.pitch + m_.channels, m_.depth - m_.channels, 0.0f);
  }

  const Matrix& m_;
  const Kernels<float>& k_;
  const Matrix::Box& box_;
  const View<const float>& in_;
  float* room_;
};

// Positions in a row, of some that follow one another in the panel.
struct Positions {
  i64 from, count, image, at[3];
};

// Those of `count` positions from number `first` of the panel on that belong to the box.
void find_positions(const Matrix& m, const Matrix::Box& box, i64 first, i64 count, std::vector<Positions>& found) {
  found.clear();
  for (i64 f = first, next; f < first + count; f = next) {
    const i64 line = f / m.extent[2], column = f - line * m.extent[2];
    next = std::min(first + count, (line + 1) * m.extent[2]);
    const i64 maps = line / m.extent[1], row = line - maps * m.extent[1], image = maps / m.extent[0], slice = maps - image * m.extent[0];
    if (column < box.size[2] && row < box.size[1] && slice < box.size[0] && image < box.images)
      found.push_back(
          {f - first, std::min(next - f, box.size[2] - column), image, {box.at[0] + slice, box.at[1] + row, box.at[2] + column}});
  }
}

// While it lives, this thread's tiles have their shapes.
struct InUse {
  const MatrixUnit& of;
  explicit InUse(const MatrixUnit& unit) : of(unit) { of.begin(); }
  ~InUse() { of.end(); }
};

// One block of output channels of a box.
struct Block {
  const float *panel, *weights, *bias;
  float* sums;
  i64 outputs;
};

template <class S>
void write(const Matrix& m, const Kernels<float>& k, const Block& of, const Matrix::Lead& lead, const Positions& s, const View<S>& out) {
  const auto& [d, h, w] = m.axis;
  const i64 od = d.out_stride * s.at[0] + lead.depth, oh = h.out_stride * s.at[1] + lead.row, ow = w.out_stride * s.at[2];
  if (od >= d.out_size || oh >= h.out_size) return;
  S* y = out.data + s.image * out.stride[0] + od * out.stride[2] + oh * out.stride[3] + ow * out.stride[4];
  scatter_rounded(k, of.sums + s.from * w.out_stride * m.block, m.block, std::min(w.out_stride * s.count, w.out_size - ow), of.outputs, y,
                  out.stride[1], out.stride[4]);
}

// Positions from number `first` of the panel on, for the phases of a lead.
template <class S>
void compute(const Matrix& m, const Kernels<float>& k, const Block& of, const Matrix::Lead& lead, i64 first, bool tall,
             const std::vector<Positions>& some, const Epilogue<float>& epilogue, const View<S>& out) {
  const i64 step = m.axis[2].out_stride * m.block;
  const auto multiply = k.unit.multiply[tall][m.vecs - 1];
  float* sums = of.sums;
  for (const Matrix::Phase& phase : lead.phases) {
    multiply({of.panel + first * m.pitch, m.pitch, of.weights, i64(phase.pixels.size()), phase.pixels.data(), phase.weights.data(), m.depth,
              of.bias, sums, step});
    sums += m.block;
  }
  if (epilogue.activation != Activation::none)
    for (i64 row = 0; row < (tall ? kTallRows : kTileSide); ++row)
      k.activate(of.sums + row * step, i64(lead.phases.size()) * m.block, 0.0f, epilogue.activation, epilogue.slope);
  for (const Positions& s : some) write(m, k, of, lead, s, out);
}

// All positions of a box, map by map or all in one; of one lead after the other, whose weights stay in a cache.
template <class S>
void compute_box(const Matrix& m, const Kernels<float>& k, const Matrix::Box& box, const Block& of, const Epilogue<float>& epilogue,
                 const View<S>& out) {
  const i64 rows = m.rows(box.size[1], box.size[2]), map = m.extent[1] * m.extent[2], maps = box.images * m.extent[0];
  std::vector<Positions> some;
  for (const Matrix::Lead& lead : m.leads)
    for (i64 n = 0; n < (m.on ? 1 : maps); ++n) {
      const i64 end = m.on ? (maps - 1) * map + rows : n * map + rows;
      for (i64 first = n * map; first < end; first += kTallRows) {
        find_positions(m, box, first, std::min<i64>(end - first, kTallRows), some);
        if (!some.empty()) compute(m, k, of, lead, first, end - first > kTileSide, some, epilogue, out);
      }
    }
}

}  // namespace

template <class T>
void pack_weights(const Matrix& m, const Kernels<T>& k, View<const T> weight, i64 group_stride, T* packed) {
  pack_blocks(m, m.depth, k, weight, group_stride, packed);
}

template <class T, class S>
void run(const Matrix& m, const Kernels<T>& k, View<const T> in, const Weights<T>& weights, const Epilogue<T>& epilogue, View<S> out) {
  if constexpr (!std::is_same_v<T, float> || !std::is_same_v<S, BFloat16>) {
    throw std::logic_error("a matrix unit's words are pairs of bfloat16");
  } else {
    const i64 places = m.places();
    parallel_for(places * m.groups * m.runs, m.threads, [&](i64 task) {
      const i64 place = task % places, turn = task / places % m.runs, group = task / places / m.runs;
      const Matrix::Box box = m.box(place);
      float *panel, *room, *sums, *bias;
      scratch<float, 4>(0, {m.panel(), Matrix::kColumns * m.pitch, m.sums(), m.block}, {&panel, &room, &sums, &bias});
      View<const float> from = in;
      from.data += box.image * in.stride[0] + group * m.channels * in.stride[1];
      Panel(m, k, box, from, panel, room);
      const InUse unit(k.unit);
      const i64 last = std::min(m.blocks, (turn + 1) * m.blocks_per_run);
      for (i64 b = turn * m.blocks_per_run; b < last; ++b) {
        const i64 channel = group * m.outputs + b * m.block, outputs = std::min(m.block, m.outputs - b * m.block);
        for (i64 lane = 0; epilogue.bias && lane < m.block; ++lane) bias[lane] = lane < outputs ? epilogue.bias[channel + lane] : 0;
        View<S> to = out;
        to.data += box.image * out.stride[0] + channel * out.stride[1];
        compute_box(
            m, k, box,
            {panel, weights.packed + (group * m.blocks + b) * m.taps * m.depth * m.block, epilogue.bias ? bias : nullptr, sums, outputs},
            epilogue, to);
      }
    });
  }
}

template void pack_weights<float>(const Matrix&, const Kernels<float>&, View<const float>, i64, float*);
template void pack_weights<double>(const Matrix&, const Kernels<double>&, View<const double>, i64, double*);
TCONV_RUNS(Matrix)

}  // namespace tconv
