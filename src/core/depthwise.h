// SPDX-License-Identifier: Apache-2.0
// One input and one output channel a group, channels adjacent in memory: lanes run over the groups, and nothing is packed but the weight.
// Where channels are not adjacent, blocks of them are transposed, a map at a time, and the result is transposed back.
//
//   y[position][channel] = sum over taps of x[position's input][channel] * weights[tap][channel]
//
// A row of output is cut by stride phases, and each phase where its taps begin to fall outside the input: within such a stretch every
// position reads the same offsets.
#pragma once

#include "plan.h"

namespace tconv {

// What the outputs of an axis read, in order of the taps.
struct AxisReads {
  struct Read {
    i64 tap, input;
  };
  std::vector<Read> all;
  std::vector<i64> begin;  // [output], and the end

  AxisReads() = default;
  explicit AxisReads(const StencilAxis& axis);
  const Read* of(i64 output) const { return all.data() + begin[std::size_t(output)]; }
};

struct Depthwise {
  Depthwise(const Spec& spec, Direction direction, int threads);

  // Outputs o = first, first + out_stride, ... of the last axis that read the same taps.
  struct Stretch {
    i64 first, count;
    std::vector<Tap> taps;
  };

  StencilAxis axis[3];
  AxisReads reads[2];  // of the outer axes
  std::vector<Stretch> stretches;
  i64 batch, channels, taps;
  int threads;

  // Whether lanes over groups can compute a problem.
  static bool possible(const Spec& spec) { return spec.groups > 1 && spec.in_channels == spec.groups && spec.out_channels == spec.groups; }
  i64 weight_elements() const { return taps * channels; }
  i64 workspace() const { return 0; }  // of adjacent channels; else two maps of a block of channels
};

// Estimated cycles on one thread.
double cycles(const Depthwise& plan, int lanes, bool channels_last);

template <class T>
void pack_weights(const Depthwise& plan, const Kernels<T>& kernels, View<const T> weight, i64 group_stride, T* packed);

template <class T, class S>
void run(const Depthwise& plan, const Kernels<T>& kernels, View<const T> in, const Weights<T>& weights, const Epilogue<T>& epilogue,
         View<S> out);

}  // namespace tconv
