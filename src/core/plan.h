// SPDX-License-Identifier: Apache-2.0
// One plan for the forward layer and its input gradient: both are the same stencil, read and written at different strides.
//
//   out[m, out_stride * q + po - out_lo] = sum over channels c and taps of weight[c, m, tap] * in[c, in_stride * (q - shift) + pi - in_lo]
//
// forward:     in_stride 1, out_stride s; tap t belongs to the output phase po = (t d - lo + out_lo) mod s, and reads at the shift
//              (t d - lo + out_lo - po) / s. With out_lo = 0 no position is without outputs; with out_lo = lo mod s the phases of a
//              kernel of 2 s taps read the same inputs, so that few output channels fill a tile together.
// grad_input:  in_stride s, out_stride 1; tap t reads the input phase pi = t d mod s at shift -(t d - pi) / s
//
// Where there are few rows to multiply all the same, `fold` positions of an axis count as one: strides and phases grow by that factor.
//
// Positions q are cut into boxes. A box's inputs are packed into a panel, with zeros where the input ends:
//
//   panel[channel][input phase][image][depth][row][column]       rows of one pitch, so a tap is one constant offset and
//                                                                lanes run on over rows and images: small maps fill vectors
//
// Strips of a box's lanes, a few vectors wide, are turned by the microkernel into sums[row][lane] with rows = (output phase, channel m),
// small enough for the first-level cache, and from there stride phases are interleaved into the output before the next strip begins:
// stores drain while the next strip is multiplied. Weights are packed once in the order the microkernel reads them.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels.h"
#include "row_points.h"
#include "spec.h"
#include "tiles.h"

namespace tconv {

// Elements from pixel to pixel where their channels are copied side by side: an odd number of lines, unless channels are few, as pixels a
// power of two apart share sets of a first-level cache (measured: 4 KiB apart, products of 12 rows take 2.5 times as long, 2 KiB 1.4
// times).
inline i64 pixel_pitch(i64 channels) { return channels < 64 ? channels : round_up(channels, 16) | 16; }

// The output channels of a group in blocks, with lanes over them: of two vectors, the last one perhaps of one.
struct Blocks {
  i64 outputs, lanes, block, blocks;  // lanes of a vector, and of a block

  Blocks(i64 outputs_, i64 lanes_)
      : outputs(outputs_), lanes(lanes_), block(outputs <= lanes ? lanes : kGatherVecs * lanes), blocks(ceil_div(outputs, block)) {}

  // Lanes of some blocks.
  i64 width(i64 first, i64 count = 1) const { return std::min(count * block, round_up(outputs - first * block, lanes)); }
  double all() const { return double(width(0, blocks)) / double(block); }  // the last counted as what it is

  // Cycles of a row and a term for all outputs; of one vector, loads count as well.
  double take(double with_loads, double multiply) const {
    const i64 vectors = ceil_div(outputs, lanes);
    return double(vectors / 2) * products_take(1, with_loads, multiply) +
           double(vectors % 2) * products_take(0.5, 0.65 * with_loads, multiply);
  }
};

constexpr i64 kManyWeights = 8 << 20;  // elements: so many or more come from memory, not from a cache

// Phases along a row that are computed together at most: a run of them is still a whole line of output.
constexpr i64 kPhaseMost = 64;

// The last vector of a panel's lanes may read this many elements beyond the last position.
constexpr i64 kSlack = 16;

struct Tap {
  i64 tap, out_phase, in_phase, shift;
};

enum class Direction { forward, grad_input };

struct StencilAxis {
  StencilAxis() = default;
  StencilAxis(const Axis& axis, Direction direction, bool shared = false, i64 fold = 1);
  StencilAxis(const Axis& axis, const RowPoints& rows);

  i64 in_size, out_size, in_stride, out_stride, in_lo, out_lo, kernel;
  std::vector<Tap> taps;       // those that join an input to an output that exists, by output phase
  std::vector<i64> in_phases;  // those that some tap reads
  i64 out_begin, out_end;      // the phases that some output has lie in this range
  i64 count;                   // positions q
  i64 shift_min, shift_max;
  // Boxes, positions of the larger ones, which come first, and the inputs these read a phase: box + halo, less what rows share. Boxes are
  // whole numbers of `unit` positions.
  i64 boxes = 1, box = 0, extent = 0, unit = 1;

  std::vector<Tap> of_phase(i64 phase) const;  // of the output
  i64 halo() const { return shift_max - shift_min; }
  void cut(i64 into) { boxes = into, box = std::min(count, ceil_div(ceil_div(count, unit), boxes) * unit); }
  i64 begin(i64 index) const { return std::min(count, piece_begin(index, boxes, ceil_div(count, unit)) * unit); }
};

// Of an output of so many maps, in floating point: sizes may be any 62-bit number.
inline double output_bytes(const StencilAxis (&axis)[3], i64 maps, i64 element_bytes) {
  return double(maps * element_bytes) * double(axis[0].out_size) * double(axis[1].out_size) * double(axis[2].out_size);
}

// Rows of a unit that are multiplied together: they read the same offsets of the panel.
struct RowGroup {
  std::vector<i64> slots;              // phases of the unit
  std::vector<i64> offsets;            // in the panel, one a tap
  std::vector<std::vector<i64>> taps;  // [phase of the group][tap]: index into the kernel
  bool add = false;                    // to sums of an earlier group
  i64 weights_before = 0;              // packed weights of earlier groups, per (channel, m)

  // For a block of channels, and for the last block: the height of the tiles, and where the sums of each row lie.
  struct Rows {
    int height = 0;
    std::vector<i64> sums;
  };
  Rows rows, last_rows;

  // Which of `slots` and which channel a row of tiles is. Rows come channel by channel where their sums are `woven`, so that a tile holds
  // what stands side by side in the output; else slot by slot.
  std::pair<i64, i64> row(i64 i, i64 outputs, bool woven) const {
    const i64 count = i64(slots.size());
    return woven ? std::pair(i % count, i / count) : std::pair(i / outputs, i % outputs);
  }
};

// The phases computed together: all phases along the row (or a run of them), for one or more phases of the other axes.
struct Unit {
  struct Lead {
    i64 depth, row;
  };
  std::vector<Lead> leads;
  i64 begin, end;         // phases along the row
  std::vector<i64> slot;  // [lead][phase - begin] -> `block` rows of the sums
  std::vector<RowGroup> groups;
  i64 tiles;  // that cover the rows of all groups
};

// Where strips of lanes end beside the end of a box: nowhere, so that they run on over the gaps; at the end of an image's (depth's) rows;
// at the end of every row of positions.
enum class Break { never, slabs, rows };

struct Plan {
  // `rows_lie`: the columns of an input row are expected to be adjacent. `by_points`: with row_points.h's tiles.
  Plan(const Spec& spec, Direction direction, const Isa& isa, int threads, i64 element_bytes, bool rows_lie = true, bool by_points = false);

  StencilAxis axis[3];
  i64 batch, groups, channels, outputs;  // channels summed over and channels written, per group
  i64 box_batch;
  i64 plane, planes, panel;  // elements of a phase plane, planes a channel, elements of a panel
  i64 block, blocks;         // output channels that are computed together
  i64 taps;                  // of the whole kernel
  double products;           // of a channel, an output and a position: one a tap, or as many as positions are folded
  i64 weights;               // packed for a channel and an output: one a tap, or more where folded positions share a tap
  i64 lanes;                 // of a vector
  double box_cycles, pack_cycles, write_cycles;  // estimated: of a box, of packing it, of writing a vector of output beside that
  i64 wide, strip, pitch;                        // vectors of a tile and of a strip at most, and the elements between two rows of sums
  bool natural;                                  // sums take the weights of an output in the order of (channel, tap)
  bool raw = false;                              // such weights are read as they lie, (output, channel, tap), rather than packed
  bool large, far;                               // the output: too large for the caches, or for those of a core
  bool woven;                                    // all phases of a row of output are rows of one tile
  bool once;                                     // each input is read once: one tile holds all rows, and a position reads its own input
  Break breaks;
  std::vector<Unit> units;
  RowPoints rows;
  int threads;

  // Boxes one after another, of a run of blocks, of some groups: threads at work together do not write to adjacent channels.
  struct Tasks {
    i64 boxes, groups_at_once, runs, blocks_at_once, count;

    i64 box(i64 task) const { return task % boxes; }
    i64 first_block(i64 task) const { return task / boxes % runs * blocks_at_once; }
    i64 first_group(i64 task) const { return task / boxes / runs * groups_at_once; }
  } tasks;

  i64 weight_elements() const { return groups * channels * outputs * weights; }
  i64 unit_rows() const;  // rows of sums of the largest unit
  // Elements that a thread needs: a panel, sums of two strips, and room for a part of them to be rounded in; of rows by points, sums of
  // points and rows of inputs.
  i64 workspace() const { return panel + strip_sums() * unit_rows() * pitch + rows.at_once * input_rows(); }
  i64 strip_sums() const { return rows.tile ? 4 : 3; }
  // Phases of a row of output that are computed together; along a row of tiles, those of one point.
  i64 run() const { return rows.along(2) ? rows.outs : std::min(axis[2].out_end - axis[2].out_begin, kPhaseMost); }
  // Elements between lines of positions of a row's tiles.
  i64 position_pitch() const { return round_up(axis[2].extent + rows.behind() + kSlack, 16) | 16; }
  // Rows of inputs of a box and channel, taken apart along the row; or a row and the positions of its tiles.
  i64 input_rows() const {
    if (rows.along(2)) return (axis[2].in_stride + rows.points() * rows.ins) * position_pitch();
    const i64 phases = i64(axis[0].in_phases.size() * axis[2].in_phases.size());
    return rows.tile ? round_up(phases * box_batch * axis[0].extent * rows.rows(axis[1].extent) * axis[2].extent + kSlack, 16) | 16 : 0;
  }
  i64 block_outputs(i64 b) const { return b + 1 < blocks ? block : outputs - b * block; }
  const RowGroup::Rows& rows_of(const RowGroup& g, i64 b) const { return b + 1 < blocks ? g.rows : g.last_rows; }
  // Row (n, d, h) of a box in its panel: where lane 0 of the row lies.
  i64 lane(i64 n, i64 d, i64 h) const { return ((n * axis[0].extent + d) * axis[1].extent + h) * axis[2].extent; }

 private:
  void make_units();
};

// A box of positions of some images.
struct Box {
  i64 batch, batches, at[3], size[3];

  // From the first position to the last, the gaps between rows included.
  i64 lanes(const Plan& p) const { return p.lane(batches - 1, size[0] - 1, size[1] - 1) + size[2]; }
};

// All boxes of a plan, in order.
struct Boxes {
  i64 batches, count;

  explicit Boxes(const Plan& p);
  Box operator()(const Plan& p, i64 index) const;
};

// Fills plan.tasks, so that threads end together.
void share_out(Plan& plan);

// Estimated cycles on one thread: the tiles of all boxes, packing, and writing.
double cycles(const Plan& plan, bool channels_last);

// A weight with points for its taps along one axis.
template <class T>
PointWeights<T> point_weights(const Plan& plan, const Kernels<T>& kernels, const View<const T>& weight, i64 group_stride);

// weight: strides of (channel, m within its group, d, h, w), `group_stride` elements from group to group.
template <class T>
void pack_weights(const Plan& plan, const Kernels<T>& kernels, View<const T> weight, i64 group_stride, T* packed);

template <class T, class S>
void run(const Plan& plan, const Kernels<T>& kernels, View<const T> in, const Weights<T>& weights, const Epilogue<T>& epilogue,
         View<S> out);

}  // namespace tconv
