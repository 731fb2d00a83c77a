// SPDX-License-Identifier: Apache-2.0
// Layers whose kernels neither overlap nor leave gaps are matrix products: position q of the input and each of the stride's phases give
//
//   out[m, s q + p - lo] = sum over channels c of w[c, m, p] x[c, q]            the gradient by the input sums over the phases as well
//
// and no transform of few taps makes them cheaper. Strassen's product of quarters (quarters.h) does: neighbouring positions of a row are
// two rows of quarters, halves of the channels that are summed over their columns, halves of the outputs the columns of the result.
// One level of it takes 7/8 of the multiply-adds, and rounds as well as direct sums do whose parts are twice as long.
//
//   V[7][pair of positions][phase, half of the channels]     the inputs' quarters, added up
//   U[7][phase, half of the channels][lane]                  the weights', for each output phase and block of lanes of half the outputs
//   M[7][pair of positions][lane]                            = V x U
//   sums[position][half of the outputs, lane]                from M; transposed to where the outputs lie
//
// A box is some pairs, for which V, M and the sums stay in a second-level cache. Many channels are taken some at a time, and then all
// blocks whose sums are held together pass over V before it is made of the next ones.
#pragma once

#include <array>
#include <string>

#include "plan.h"

namespace tconv {

struct Strassen : Blocks {  // of half the outputs of a group
  // Look at `refusal` first.
  Strassen(const Spec& spec, Direction direction, const Isa& isa, int threads, i64 element_bytes);

  static std::string refusal(const Spec& spec, Direction direction, i64 lanes);

  struct Along {
    i64 in_size, out_size, in_stride, out_stride, in_lo, out_lo;
    i64 first, count, unit;  // positions from `first` on; boxes begin at whole units of them
    i64 turns, box;          // boxes, and units of the larger ones

    i64 units() const { return ceil_div(count, unit); }
    void cut(i64 into) { turns = into, box = ceil_div(units(), turns); }
    i64 begin(i64 turn) const {
      return count < unit * piece_begin(turn, turns, units()) ? count : unit * piece_begin(turn, turns, units());
    }
  };

  Along axis[3];
  i64 batch, groups, channels, ins, outs;  // half the channels of a group; phases that are summed over, and written
  i64 kernel[3];
  i64 phases_at_once, channels_at_once;      // of V
  i64 part;                                  // terms of a part of a sum at most
  i64 images, pairs;                         // of a box
  i64 in_positions, out_positions;           // of a box at most
  i64 blocks_at_once, runs, blocks_per_run;  // blocks whose sums are held together; runs of blocks shared out to threads
  int threads;
  bool large;       // outputs that go past the caches
  double multiply;  // cycles of two vectors of multiply-adds

  i64 taps() const { return ins * outs; }
  i64 terms() const { return ins * channels; }
  i64 chunks() const { return ceil_div(ins, phases_at_once) * ceil_div(channels, channels_at_once); }
  i64 boxes() const { return ceil_div(batch, images) * axis[0].turns * axis[1].turns * axis[2].turns; }
  i64 weight_elements() const { return groups * kStrassen * outs * terms() * outputs; }
  i64 pixel_pitch() const { return tconv::pixel_pitch(2 * channels); }
  // Elements from pair to pair of V, and of M.
  i64 pitch() const { return round_up(phases_at_once * channels_at_once, 16) | 16; }
  // Where the weights of a block for an output phase begin, of a group's.
  i64 weights_before(i64 b, i64 out) const { return kStrassen * terms() * (b * block * outs + out * width(b)); }

  // What a thread keeps: V, M, sums, inputs, zeros.
  static constexpr int kParts = 5;
  std::array<i64, kParts> parts() const;
  i64 workspace() const {
    i64 total = 0;
    for (i64 size : parts()) total += round_up(size, 64);
    return total;
  }

 private:
  void share_out(i64 element_bytes);
  void grow_box(i64 most);
};

// Estimated cycles on one thread, with or without joining the weights.
double cycles(const Strassen& plan, bool channels_last, bool with_weights);

template <class T>
void pack_weights(const Strassen& plan, const Kernels<T>& kernels, View<const T> weight, i64 group_stride, T* packed);

template <class T, class S>
void run(const Strassen& plan, const Kernels<T>& kernels, View<const T> in, const Weights<T>& weights, const Epilogue<T>& epilogue,
         View<S> out);

}  // namespace tconv
