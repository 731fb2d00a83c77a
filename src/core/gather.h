// SPDX-License-Identifier: Apache-2.0
// The other orientation of the same stencil: lanes over output channels, rows over output positions. For small maps, for
// channels-last arrays, and where borders would waste lanes: only taps that fall inside the input are multiplied.
// (Indirect convolution: Dukhan, arXiv:1907.02129.)
//
// Along an axis, the outputs of one phase that read the same taps inside the input form a class; a triple of classes is a
// set of rows with one list of taps. A row is read through one pointer a tap, so channels must be adjacent: channels-first
// inputs are transposed, some images at a time; channels-last ones are read where they lie, and written there.
//
// Long rows are read in steps: one pointer a tap serves a whole row of outputs, and the taps of an input gradient, which are adjacent
// along a row, are one tap of as many times the channels.
//
//   input  [image][position][channel]     weights  [block of 2 vectors of output channels, or of 1 that is left][tap][channel][lane]
//   sums   [image][output position][output channel of some blocks]
#pragma once

#include <array>

#include "plan.h"

namespace tconv {

struct Gather : Blocks {
  Gather(const Spec& spec, Direction direction, const Isa& isa, int threads, i64 element_bytes);
  Gather(const Gather&) = delete;  // triples point into classes

  // Outputs of one axis that read the same taps; in merged classes a tap may fall outside the input for some of them.
  struct Class {
    std::vector<i64> outputs;
    std::vector<Tap> taps;
  };
  struct Triple {
    std::array<const Class*, 3> along;
    i64 taps() const { return i64(along[0]->taps.size() * along[1]->taps.size() * along[2]->taps.size()); }
    i64 rows() const { return i64(along[0]->outputs.size() * along[1]->outputs.size() * along[2]->outputs.size()); }
    bool stepped;  // whether the rows are read in steps
  };

  // Consecutive outputs of the outermost axis that has more than one, whose sums fit a second-level cache, with the inputs they read.
  struct Slab {
    i64 out_begin, out_end, in_begin, in_end;
    std::vector<Class> classes;
    std::vector<Triple> triples;
  };

  StencilAxis axis[3];
  int cut;  // the axis of the slabs
  std::vector<Class> classes[3];
  std::vector<Slab> slabs;
  i64 batch, groups, channels, taps;
  i64 images;                     // of one task
  i64 runs, blocks_per_run;       // blocks are shared out in runs where images alone would not feed all threads
  i64 blocks_at_once;             // whose sums fit a second-level cache
  i64 slab_outputs, slab_inputs;  // positions of the largest slab
  int threads;
  bool large;         // outputs that go past the caches
  bool one_set;       // lines of a square of a channels-first output share one set of the first-level cache, which is too small
  double multiply;    // cycles of two vectors of multiply-adds
  bool quick_caches;  // kernels.h

  // Whether each weight is read by one task, which may then pack it itself: into a cache, not by way of memory.
  bool reads_weights_once() const { return batch <= images && slabs.size() == 1; }
  i64 pixel_pitch() const { return tconv::pixel_pitch(channels); }
  i64 weight_elements() const { return groups * blocks * taps * channels * block; }
  // Elements that a thread needs at most: transposed inputs, sums, zeros and a bias for every lane.
  i64 workspace() const {
    return images * (slab_inputs * pixel_pitch() + slab_outputs * blocks_at_once * block) + channels + blocks_at_once * block;
  }

 private:
  void make_slabs(i64 count);
  void share_out(bool one_place);
};

// Input coordinate that an output reads through a tap.
inline i64 input_of(const StencilAxis& a, i64 output, const Tap& tap) {
  return a.in_stride * ((output + a.out_lo - tap.out_phase) / a.out_stride - tap.shift) + tap.in_phase - a.in_lo;
}

// The taps of a class of columns that join into one: those of pixels adjacent in memory, `pixel` elements apart, whose weights are.
i64 joined_taps(const Gather& plan, const Gather::Class& columns, i64 pixel);

// Estimated cycles on one thread: multiply-adds, transposing, weights read, and writing.
double cycles(const Gather& plan, bool channels_last);

template <class T>
void pack_weights(const Gather& plan, const Kernels<T>& kernels, View<const T> weight, i64 group_stride, T* packed);

template <class T, class S>
void run(const Gather& plan, const Kernels<T>& kernels, View<const T> in, const Weights<T>& weights, const Epilogue<T>& epilogue,
         View<S> out);

}  // namespace tconv
