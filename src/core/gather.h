// SPDX-License-Identifier: Apache-2.0
// The other orientation of the same stencil: lanes over output channels, rows over output positions. For small maps, and
// for layers whose borders would waste lanes: only taps that fall inside the input are multiplied.
//
// Along an axis, the outputs of one phase that read the same taps inside the input form a class; a triple of classes is a
// set of rows with one list of taps. A few taps at a time, the inputs of a chunk of rows are packed as the microkernel's
// broadcasts, and products are added to sums that stay in the second-level cache:
//
//   rows     [tile of R rows][channel][tap][R]         weights   [block of 2 vectors of output channels][tap][channel][block]
//   sums     [row][output channel]
#pragma once

#include "plan.h"

namespace tconv {

struct Gather {
  Gather(const Spec& spec, Direction direction, int threads, int lanes, i64 element_bytes);

  // Outputs of one axis that read the same taps; in merged classes a tap may fall outside the input for some of them.
  struct Class {
    std::vector<i64> outputs;
    std::vector<Tap> taps;
  };
  // Rows begin .. end - 1 of a triple of classes, whose rows are numbered by (image, depth, row, column).
  struct Chunk {
    const Class* along[3];
    i64 begin, end;
    i64 taps() const { return i64(along[0]->taps.size() * along[1]->taps.size() * along[2]->taps.size()); }
  };

  StencilAxis axis[3];
  std::vector<Class> classes[3];
  std::vector<Chunk> chunks;
  i64 batch, groups, channels, outputs, taps;
  i64 block, blocks;          // lanes of a block of weights, and how many blocks a group has
  i64 runs, blocks_per_run;   // blocks are shared out in runs where chunks alone would not feed all threads
  i64 taps_at_once;
  int threads;

  Gather(const Gather&) = delete;  // chunks point into classes
  i64 weight_elements() const { return groups * blocks * taps * channels * block; }
  // Input coordinate that an output reads through a tap.
  i64 input(int i, i64 output, const Tap& tap) const;
};

// Estimated cycles on one thread: multiply-adds, packing, weights read, and writing.
double cycles(const Gather& plan);

template <class T>
void pack_weights(const Gather& plan, View<const T> weight, i64 group_stride, T* packed);

template <class T>
void run(const Gather& plan, const Kernels<T>& kernels, View<const T> in, const T* packed, const T* bias, View<T> out);

}  // namespace tconv
