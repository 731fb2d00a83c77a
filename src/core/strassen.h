// SPDX-License-Identifier: Apache-2.0
// Layers whose kernels neither overlap nor leave gaps are matrix products: position q of the input and each of the stride's phases give
//
//   out[m, s q + p - lo] = sum over channels c of w[c, m, p] x[c, q]            the gradient by the input sums over the phases as well
//
// and no transform of few taps makes them cheaper. Strassen's product of quarters (quarters.h) does: neighbouring positions of a row are
// two rows of quarters, halves of the channels that are summed over their columns, halves of the outputs the columns of the result.
// One level of it takes 7/8 of the multiply-adds, and rounds as well as direct sums do whose parts are three times as long.
//
// It adds channels to one another, so that the smaller ones would be rounded like the larger ones. So every channel of a weight is brought
// to about 1 by a power of two, that of the outputs and then that of the inputs, and inputs and sums are multiplied by what was taken off:
// exactly, but for overflow (outside and inside scaling: Ballard, Benson, Druinsky, Lipshitz, Schwartz, arXiv:1507.00687).
//
//   V[7][pair of positions][phase, half of the channels]     the inputs' quarters, added up
//   U[7][phase, half of the channels][lane]                  the weights', for each output phase and block of lanes of half the outputs
//   M[7][pair of positions][lane]                            = V x U
//   sums[position][half of the outputs, lane]                from M; transposed to where the outputs lie
//
// A box is some pairs, for which V, M and the sums stay in a second-level cache. Many channels are taken some at a time, and then all
// blocks whose sums are held together pass over V before it is made of the next ones.
#pragma once

#include <algorithm>
#include <array>
#include <string>

#include "boxes.h"
#include "parallel.h"
#include "plan.h"

namespace tconv {

struct Strassen : Blocks {  // of half the outputs of a group
  // Look at `refusal` first.
  Strassen(const Spec& spec, Direction direction, const Isa& isa, int threads, i64 element_bytes);

  static std::string refusal(const Spec& spec, Direction direction, i64 lanes);

  struct Along : Turns {  // of tiles of `tile` positions, `count` of them from position `first` on
    i64 in_size, out_size, in_stride, out_stride, in_lo, out_lo;
    i64 tile, first, count;

    i64 position(i64 turn) const { return std::min(count, tile * begin(turn)); }
  };

  Along axis[3];
  i64 batch, groups, element_bytes;
  i64 channels, ins, outs;  // half the channels of a group; phases that are summed over, and written
  i64 kernel[3];
  i64 phases_at_once, channels_at_once;      // of V
  i64 part;                                  // terms of a part of a sum at most
  i64 images, pairs;                         // of a box
  i64 in_positions, out_positions;           // of a box at most
  i64 blocks_at_once, runs, blocks_per_run;  // blocks whose sums are held together; runs of blocks shared out to threads
  int threads;
  bool large;         // outputs that go past the caches
  double multiply;    // cycles of two vectors of multiply-adds
  bool quick_caches;  // kernels.h

  i64 taps() const { return ins * outs; }
  i64 terms() const { return ins * channels; }
  i64 chunks() const { return ceil_div(ins, phases_at_once) * ceil_div(channels, channels_at_once); }
  i64 boxes() const { return ceil_div(batch, images) * around(axis); }
  // Of a group: joined weights, the scales of its inputs, those of its outputs.
  i64 joined() const { return kStrassen * outs * terms() * outputs; }
  i64 out_scales() const { return joined() + round_up(2 * channels, 16); }
  i64 group_elements() const { return out_scales() + 2 * outputs; }
  i64 weight_elements() const { return groups * group_elements(); }
  i64 pixel_pitch() const { return tconv::pixel_pitch(2 * channels); }
  // Elements from pair to pair of V, and of M.
  i64 pitch() const { return round_up(phases_at_once * channels_at_once, 16) | 16; }
  // What a thread keeps: V, M, sums, inputs, zeros.
  static constexpr int kParts = 5;
  std::array<i64, kParts> parts() const;
  i64 workspace() const { return side_by_side(parts()); }

 private:
  void share_out();
  void grow_box(i64 most);
};

// Some of the terms of a sum: phases and channels of a half.
struct Chunk {
  i64 phase, phases, channel, channels;

  i64 terms() const { return phases * channels; }
  bool begins() const { return phase == 0 && channel == 0; }
  bool ends(const Strassen& s) const { return phase + phases == s.ins && channel + channels == s.channels; }
  bool all(const Strassen& s) const { return begins() && ends(s); }
};

template <class F>
void each_chunk(const Strassen& s, F body) {
  for (i64 p = 0; p < s.ins; p += s.phases_at_once)
    for (i64 c = 0; c < s.channels; c += s.channels_at_once)
      body(Chunk{p, std::min(s.phases_at_once, s.ins - p), c, std::min(s.channels_at_once, s.channels - c)});
}

// Where a group's joined weights begin of block b, an output phase and a chunk: [product][phase, channel][lane]; chunks follow one another.
inline i64 weights_at(const Strassen& s, i64 b, i64 out, const Chunk& c) {
  return kStrassen * (s.terms() * (b * s.block * s.outs + out * s.width(b)) + s.width(b) * (c.phase * s.channels + c.channel * c.phases));
}

// Estimated cycles on one thread, with or without joining the weights.
double cycles(const Strassen& plan, bool channels_last, bool with_weights);

template <class T>
void pack_weights(const Strassen& plan, const Kernels<T>& kernels, View<const T> weight, i64 group_stride, T* packed);

template <class T, class S>
void run(const Strassen& plan, const Kernels<T>& kernels, View<const T> in, const Weights<T>& weights, const Epilogue<T>& epilogue,
         View<S> out);

}  // namespace tconv
