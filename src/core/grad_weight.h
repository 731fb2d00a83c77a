// SPDX-License-Identifier: Apache-2.0
// The weight's gradient: grad[ci, co, t] = sum over images and positions i of x[ci, i] * dy[co, i * stride + t * dilation - lo].
//
// A product of two matrices that sums over the positions of x, with a row for every output channel and tap and a lane for every input
// channel. With the stride phases along a row of dy taken apart, the positions of a row of x meet adjacent elements of dy, so that a tap is
// an offset for each run of positions, and nothing is copied for it:
//
//   lanes  [block of input channels][image][d][h][w][lane]                   positions of a box of x
//   rows   [output channel][phase][image][d][h][column], a row of zeros      what taps read of dy from there
//   sums   [block of input channels][output channel][tap][lane]
//
// Rows that are only broadcast are read where they lie in dy, a stride apart, unless they are short or read by many blocks: either no tap
// reads beyond a border, or a tile is rows of one tap, whose positions beyond it are left out, so that none meets zeros.
//
// Where a group has few input channels a block is one channel, and vectors run along w instead.
//
// A task owns some channels of both sides, whose sums stay in the second-level cache while it goes through its boxes: nothing as large as
// the weight is kept. Small weights are summed in spans of boxes, and the spans added in their order. Where sums are cut depends on the
// problem alone, never on the number of threads.
#pragma once

#include <vector>

#include "kernels.h"
#include "method.h"
#include "spec.h"

namespace tconv {

constexpr i64 kFewRows = 8;  // of a tile

// A tap of one axis that joins the inputs begin .. end - 1 to outputs: input * stride + reach.
struct Reach {
  i64 tap, reach, begin, end;
};

struct Reaches {
  Reaches() = default;
  explicit Reaches(const Axis& axis);

  i64 size, output, stride, kernel;
  std::vector<Reach> taps;  // those that join something
  i64 low, high;            // the smallest and the largest reach
  i64 box = 1;              // positions of a box, about

  i64 phase(const Reach& t) const { return floor_mod(t.reach, stride); }
  i64 shift(const Reach& t) const { return floor_div(t.reach, stride) - floor_div(low, stride); }  // from the first column of a panel
  // Whether every tap joins all inputs to outputs.
  bool inside() const;
  i64 halo() const { return floor_div(high, stride) - floor_div(low, stride); }
};

struct GradWeight {
  // `dy`: strides of (image, channel, d, h, w). `images_last`: the innermost axis of the spec is that of the images.
  GradWeight(const Spec& spec, const Isa& isa, int threads, i64 element_bytes, const i64 (&dy)[5], bool images_last = false);

  Reaches axis[3];
  i64 lie[5];                                           // strides of dy
  bool raw, beyond;                                     // rows of dy are read where they lie; some tap reads beyond a border
  std::vector<i64> phases;                              // of dy along a row: those that some tap reads
  i64 batch, groups, inputs, outputs, taps;             // channels of a group
  i64 vectors, lanes, blocks, width;                    // vectors of a block (0: along w), its lanes, blocks of a group, lanes of a vector
  i64 box_batch, boxes, spans;                          // images of a box, and how the sum is cut
  i64 part;                                             // positions added up in one go
  i64 groups_at_once, blocks_at_once, outputs_at_once;  // of a task
  int threads;
  bool images_last;
  double cycles;  // estimated, on one thread

  const Isa& isa;
  i64 element_bytes;

  i64 tile_height(i64 rows) const;  // of the tiles that cover so many rows
  i64 block_chunks() const { return ceil_div(blocks, blocks_at_once); }
  i64 output_chunks() const { return ceil_div(outputs, outputs_at_once); }
  i64 chunks() const { return ceil_div(groups, groups_at_once) * block_chunks() * output_chunks(); }
  i64 sums() const { return groups_at_once * blocks_at_once * outputs_at_once * taps * lanes; }  // of a chunk
};

// The vectors of a block of lanes that so many input channels are cheapest in; 0 for one channel and vectors along w.
i64 block_vectors(i64 inputs, i64 width);

// By these sums, or by winograd_grad.h where a method asks for it or it is estimated to be faster. Throws std::invalid_argument where it
// refuses the problem.
template <class T>
void grad_weight(const Spec& spec, const Isa& isa, Method method, View<const T> x, View<const T> dy, View<T> grad, int threads);

}  // namespace tconv
