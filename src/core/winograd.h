// SPDX-License-Identifier: Apache-2.0
// The stencil of plan.h with fewer multiplications: Winograd's F(m, r) along every axis, inside each stride phase.
//
// In a layer of stride s, phase po of an axis has the few taps t = po, po + s, ...: k4 s2, k8 s4, k16 s8 have 2 in every phase, k3 s2 has
// 2 and 1, k5 s2 has 3 and 2. With positions q counted without the crop, out[s q + po - lo] = sum over j of w[po + s j] x[q - j], all
// phases of one number of taps read the same inputs, so m positions q are a tile whose transformed inputs serve all of them:
//
//   inputs of a tile    k4 s2, m = 3            k3 s2, m = 3                          k5 s2, m = 2
//   x[q-1 .. q+2]  ->   4 points, 2 phases      4 points, phase 0;  3 copies, phase 1      4 points, phase 0;  3 points, phase 1
//
// With one position more a tile of any of them takes 5 points: fewer products, and more rounding (transforms.h), hence shorter sums. Which
// tiles an axis takes is what is estimated fastest.
//
// The crop lo puts the first and last outputs of some phases at positions of their own, one more than any phase has. Where that one costs
// a tile, on maps of few positions, phases are counted from the first output instead: out[s q + po] has the taps of the phase (po + lo)
// mod s, and those of one number of taps may read inputs one step apart, hence be two classes.
//
// grad_input turns it round: the phases of dy are inputs, and those of one number of taps add up before the one transform of their outputs.
// Phases of one class on every axis are a family. For a family and a box of tiles,
//
//   V[point][tile][input phase, channel]          from the inputs: lanes over channels
//   M[tile][point][lane]                          = V x U, row by row through pointers, as in gather.h
//   U[point][input phase, channel][lane]          transformed weights, for each output phase and block of 2 vectors, or 1
//   sums[image][output position][lane]            from M; transposed to where the outputs lie once all families are there
//
// U is read once a box, V and M stay in a second-level cache. Copied points of a phase with one tap share their weights.
//
// A call that transforms its weights, where these would be many and inputs few, does it by blocks: V of all tiles is made first and shared
// by all threads; then a task is a block of outputs, transforms its weights as it reads them, some channels of a phase of inputs at a time,
// and multiplies all tiles by them, or a piece of the tiles where blocks alone would not feed all threads. U stays in a second-level cache
// then, and never is in memory. Both ways add up in the same order.
//
// A filter of more than 4 taps is a sum of pieces of 3 and a rest: k5 s1 is 3 + 2, the 7 and 6 taps of k25 s4 are 1 + 3 + 3 and 3 + 3.
// Pieces of 3 read other inputs, as input phases do, and like those add up before the one transform of outputs; the rest is a family of its
// own.
#pragma once

#include <array>
#include <string>
#include <utility>

#include "boxes.h"
#include "parallel.h"
#include "plan.h"

namespace tconv {

constexpr i64 kRoomBytes = 16 << 10;  // what lies between the transforms along two axes, in the first-level cache

// What tiles are chosen for: an operator, whose weights are transformed; a call that transforms them; the weight's gradient, which loads
// and stores the sums of all points once a box.
enum class Serves { operators, calls, gradients };

struct Winograd : Blocks {
  // `tile` is m, or 0 for what is estimated fastest on each axis; weights are transformed once or in `every_call`. Look at `refusal` first:
  // nothing else is set where it says something.
  Winograd(const Spec& spec, Direction direction, const Isa& isa, int tile, int threads, i64 element_bytes, Serves serves,
           bool every_call = false);

  static std::string refusal(const Spec& spec);

  // Phases of one axis that have the same number of taps, or pieces of so many, and read the same inputs.
  struct Class {
    i64 taps = 0, reach = 0, points = 0, weights = 0;  // where filters begin to read; points whose weights differ
    std::vector<i64> in, out;                          // inputs where each piece of each phase begins, from there on; phases written
  };
  struct Along : Turns {  // of tiles of `tile` positions, from position `first` on
    i64 in_size, out_size, in_stride, out_stride, in_lo, out_lo, kernel;
    i64 crop;  // what phases were shifted by, so that position 0 has all of its outputs: out_lo is 0 then
    i64 tile, first;
    std::vector<Class> classes;  // that of the most taps first
    bool forward;

    // Kernel element at step j of a filter that reads from `in` on and writes phase `out`.
    i64 element(const Class& c, i64 in, i64 out, i64 j) const {
      return forward ? out + crop - out_stride * (c.reach + in + j) : in + in_stride * (c.reach + j);
    }
    i64 stride() const { return forward ? out_stride : in_stride; }
    bool adds(const Class& c, i64 out) const;  // whether an earlier class writes this phase too
    // What a position reads: these steps of the input, counted from its own.
    i64 reach_begin() const;
    i64 reach_end() const;
    i64 products() const;  // a channel and all phases
  };
  struct Family {
    const Class* along[3];
    i64 points, weights, ins, outs;  // products over the axes
    i64 before;                      // packed weights of a block's earlier families, in units of (channel, lane)
  };

  Along axis[3];
  std::vector<Family> families;
  i64 batch, groups, channels;
  i64 terms;                                              // of a part of a sum at most
  i64 images;                                             // of a box
  i64 weights;                                            // packed for a channel and a lane
  i64 blocks_at_once, runs, blocks_per_run;               // blocks whose sums are held together; runs of blocks shared out to threads
  i64 depth, points, in_positions, out_positions, tiles;  // the most of any family, box and image: sizes of scratch
  int threads;
  double multiply;            // cycles of two vectors of multiply-adds
  bool quick_caches = false;  // as those of the processor are (kernels.h); tiles are chosen as if they were not
  bool by_blocks;             // whether weights are transformed in every call, and it is worth it
  i64 pieces = 1;             // of all tiles, then

  void share_out(i64 element_bytes, bool every_call);
  // Boxes of so many tiles at most, and the runs of blocks that share them out.
  void share_boxes(i64 most);
  // Boxes alone, of the first axis that is cut so many more.
  void grow_box(i64 most, i64 more = 0);
  i64 boxes() const { return ceil_div(batch, images) * around(axis); }
  // Boxes one after another, of a run of blocks, of a group: a thread comes by as few weights as can be.
  i64 tasks() const { return boxes() * runs * groups; }
  i64 many_points() const;  // on how many axes tiles take as many as round worse
  bool deep() const;        // whether tiles have three axes
  // Cycles of the products and of the transforms of a group, all images.
  std::pair<double, double> tile_cycles() const;
  i64 weight_elements() const { return groups * blocks * block * channels * weights; }

  // Elements from tile to tile of V and of M, and of each half of what lies between the transforms along two axes.
  i64 pitch() const { return round_up(depth, 16) | 16; }
  i64 product_pitch() const { return (points + 1) * block; }
  i64 pixel_pitch() const { return tconv::pixel_pitch(channels); }
  i64 room = 0;
  // By blocks: the outermost axis of several tiles, or -1 for images; tiles of the largest piece and outputs of its channels; elements of V
  // of all tiles and families.
  int outermost() const { return batch > 1 ? -1 : axis[0].tiles > 1 ? 0 : axis[1].tiles > 1 ? 1 : 2; }
  i64 all_tiles() const { return batch * axis[0].tiles * axis[1].tiles * axis[2].tiles; }
  i64 piece_tiles() const;
  i64 piece_outputs() const;
  i64 shared() const;
  // Whether parts of sums end where a phase of inputs does, so that it does not matter whether phases are multiplied one at a time.
  bool parts_in_phases() const { return channels >= 64; }
  // Whole parts, whose transformed weights for a block stay in a second-level cache.
  i64 channels_at_once(const Family& f, i64 element_bytes) const;
  // What a thread keeps: V, M, sums, inputs, room, one tile's inputs over a border, biases; by blocks a block's taps and points.
  static constexpr int kParts = 9;
  std::array<i64, kParts> parts() const;
  i64 workspace() const { return side_by_side(parts()); }

 private:
  void choose_tiles(const Spec& spec, bool forward, int wanted, i64 element_bytes, Serves serves);
  void make_families();
  bool worth_blocks(i64 element_bytes) const;
  i64 smaller() const;
  double end(i64 wide) const;                // with runs of so many blocks
  i64 room_of_box(i64 element_bytes) const;  // tiles
};

// Estimated cycles on one thread, to compare with those of the direct kernels; with or without transforming the weights.
double cycles(const Winograd& plan, bool with_weights);

template <class T>
void pack_weights(const Winograd& plan, const Kernels<T>& kernels, View<const T> weight, i64 group_stride, T* packed);

template <class T, class S>
void run(const Winograd& plan, const Kernels<T>& kernels, View<const T> in, const Weights<T>& weights, const Epilogue<T>& epilogue,
         View<S> out);

}  // namespace tconv
