// SPDX-License-Identifier: Apache-2.0
// Lanes over channels on a matrix unit (AMX), where a number is a pair of bfloat16. The unit is so fast that what is around the products
// counts: tiles are always whole, no pointers are worked out, and sums are complete when they leave it.
//
// Positions q of plan.h's stencil are cut into boxes. A box's inputs are copied into a panel, channels adjacent, with zeros where the input
// ends; positions run on over the ends of rows, so that any 16 in a row are a tile:
//
//   panel     [input phase][image][depth][row][column][channel]
//   weights   [block of 1 or 2 vectors of output channels][tap][channel][block]
//   sums      [position][phase along the row][block], of 32 positions: rounded and written before the next ones
//
// A tap is one offset in the panel. Channels are padded with zeros to whole tiles.
#pragma once

#include <string>

#include "plan.h"

namespace tconv {

struct Matrix {
  Matrix(const Spec& spec, Direction direction, const Isa& isa, int threads);

  // A phase of the output along the row: offsets of its taps.
  struct Phase {
    std::vector<i64> pixels, weights;
  };
  // All of those, of one phase of the other axes.
  struct Lead {
    i64 depth, row;
    std::vector<Phase> phases;
  };
  // Positions of some images.
  struct Box {
    i64 image, images, at[3], size[3];
  };

  StencilAxis axis[3];
  i64 batch, groups, channels, depth, outputs, taps;
  i64 vecs, block, blocks;   // vectors and lanes of a block of weights, and how many blocks a group has
  int cut;                   // the axis that is cut into boxes
  i64 images;                // of a box
  i64 extent[3], plane;      // pixels of the largest box's panel along the axes, and of all of them
  i64 planes;                // input phases
  i64 pitch;                 // elements from pixel to pixel
  i64 runs, blocks_per_run;  // blocks are shared out where boxes alone would not feed all threads
  bool on;                   // whether positions run on into the next map
  std::vector<Lead> leads;
  int threads;

  // Pixels from the first position of a map to its last one, the gaps between rows included.
  i64 rows(i64 height, i64 width) const { return (height - 1) * extent[2] + width; }
  i64 places() const { return ceil_div(batch, images) * axis[cut].boxes; }
  Box box(i64 place) const;
  i64 panel() const { return (planes * plane + kTallRows) * pitch; }
  i64 sums() const { return kTallRows * axis[2].out_stride * block; }
  i64 weight_elements() const { return groups * blocks * taps * depth * block; }
  i64 width(i64) const { return block; }  // of any block
  // Elements that a thread needs: a panel, columns on their way into it, sums and a bias.
  i64 workspace() const { return panel() + kColumns * pitch + sums() + block; }

  static constexpr i64 kColumns = 64;  // that are transposed at once

 private:
  void make_boxes();
  void share_out();
  void make_leads();
};

// Why a panel would be unreasonable, or nothing.
std::string matrix_refusal(const Spec& spec, Direction direction);

// Estimated cycles on one thread: products, filling panels, and writing.
double cycles(const Matrix& plan, bool channels_last);

template <class T>
void pack_weights(const Matrix& plan, const Kernels<T>& kernels, View<const T> weight, i64 group_stride, T* packed);

// Of dense arrays.
template <class T, class S>
void run(const Matrix& plan, const Kernels<T>& kernels, View<const T> in, const Weights<T>& weights, const Epilogue<T>& epilogue,
         View<S> out);

}  // namespace tconv
