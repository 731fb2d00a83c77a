// SPDX-License-Identifier: Apache-2.0
// The other orientation of the same stencil: lanes over output channels, rows over output positions. For small maps, for
// channels-last arrays, and where borders would waste lanes: only taps that fall inside the input are multiplied.
//
// Along an axis, the outputs of one phase that read the same taps inside the input form a class; a triple of classes is a
// set of rows with one list of taps. A row is read through one pointer a tap, so channels must be adjacent: channels-first
// inputs are transposed, some images at a time; channels-last ones are read where they lie, and written there.
//
//   input  [image][position][channel]     weights  [block of 2 vectors of output channels][tap][channel][block]
//   sums   [image][output position][output channel of some blocks]
#pragma once

#include "plan.h"

namespace tconv {

struct Gather {
  Gather(const Spec& spec, Direction direction, int threads, int lanes, i64 element_bytes);
  Gather(const Gather&) = delete;  // triples point into classes

  // Outputs of one axis that read the same taps; in merged classes a tap may fall outside the input for some of them.
  struct Class {
    std::vector<i64> outputs;
    std::vector<Tap> taps;
  };
  struct Triple {
    const Class* along[3];
    i64 taps() const { return i64(along[0]->taps.size() * along[1]->taps.size() * along[2]->taps.size()); }
    i64 rows() const { return i64(along[0]->outputs.size() * along[1]->outputs.size() * along[2]->outputs.size()); }
  };

  StencilAxis axis[3];
  std::vector<Class> classes[3];
  std::vector<Triple> triples;
  i64 batch, groups, channels, outputs, taps;
  i64 block, blocks;         // lanes of a block of weights, and how many blocks a group has
  i64 images;                // of one task
  i64 runs, blocks_per_run;  // blocks are shared out in runs where images alone would not feed all threads
  i64 blocks_at_once;        // whose sums fit a second-level cache
  int threads;

  i64 weight_elements() const { return groups * blocks * taps * channels * block; }
  i64 in_positions() const { return axis[0].in_size * axis[1].in_size * axis[2].in_size; }
  i64 out_positions() const { return axis[0].out_size * axis[1].out_size * axis[2].out_size; }
};

// Estimated cycles on one thread: multiply-adds, transposing, weights read, and writing.
double cycles(const Gather& plan);

template <class T>
void pack_weights(const Gather& plan, View<const T> weight, i64 group_stride, T* packed);

template <class T>
void run(const Gather& plan, const Kernels<T>& kernels, View<const T> in, const T* packed, const T* bias, View<T> out);

}  // namespace tconv
