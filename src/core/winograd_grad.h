// SPDX-License-Identifier: Apache-2.0
// The weight's gradient with fewer multiplications: winograd.h transposed.
//
// Where a tile's outputs are y = A^T ((G g) * (B^T d)) of its taps g and inputs d, the gradient by g is G^T ((A dy) * (B^T d)), and the sum
// over tiles can be taken before G^T:
//
//   V[point][tile][input channel]                     B^T x: shared by all phases of a family
//   D[point][tile][output channel]                    A dy: one output phase at a time
//   M[phase, point][output channel][input channel]    += D x V over the tiles of a box; copied points of one tap add up
//   sums[output channel][tap][input channel]          G^T M, once all boxes of a span are there
//
// A task owns channels of both sides and a span of boxes. V and D of a box stay in a second-level cache, M further out: it is touched once
// a box. Where sums are cut depends on the problem alone, never on the number of threads.
#pragma once

#include <array>
#include <string>

#include "winograd.h"

namespace tconv {

struct WinogradGrad {
  // Look at Winograd::refusal first.
  WinogradGrad(const Spec& spec, const Isa& isa, int tile, int threads, i64 element_bytes);

  Winograd tiles;                       // and their boxes, as a task sees them
  i64 groups, inputs, outputs, taps;    // channels of a group
  i64 inputs_at_once, outputs_at_once;  // of a task
  i64 spans, lanes;                     // parts of the boxes; elements of a row of M
  int threads;

  i64 chunks() const { return groups * ceil_div(inputs, inputs_at_once) * ceil_div(outputs, outputs_at_once); }
  i64 sums() const { return outputs_at_once * taps * lanes; }
  i64 products() const { return tiles.weights * outputs_at_once * lanes; }
  // Where those of a family's input pieces and output phases begin.
  i64 products(const Winograd::Family& f, i64 in, i64 out) const {
    return (f.before + (in * f.outs + out) * f.weights) * outputs_at_once * lanes;
  }

  // Elements from tile to tile of V and D, and from position to position of inputs and gradients that were turned.
  static i64 pitch(i64 channels) { return round_up(channels, 16) | 16; }
  // What a thread keeps: V, D, M, sums, turned x, turned dy, what lies between transforms, one tile over a border.
  static constexpr int kParts = 8;
  std::array<i64, kParts> parts() const;
  i64 room() const { return tiles.points * std::max(lanes, outputs_at_once); }
};

// Estimated cycles on one thread, of arrays whose channels are adjacent or not.
double cycles(const WinogradGrad& plan, bool channels_last);

template <class T>
void run(const WinogradGrad& plan, const Kernels<T>& kernels, View<const T> x, View<const T> dy, View<T> grad);

}  // namespace tconv
