// SPDX-License-Identifier: Apache-2.0
// One input and one output channel a group, channels adjacent in memory: lanes run over the groups, and nothing is packed but the weight.
//
//   y[position][channel] = sum over taps of x[position's input][channel] * weights[tap][channel]
//
// A row of output is cut by stride phases, and each phase where its taps begin to fall outside the input: within such a stretch every
// position reads the same offsets.
#pragma once

#include "plan.h"

namespace tconv {

struct Depthwise {
  Depthwise(const Spec& spec, Direction direction, int threads);

  // Outputs o = first, first + out_stride, ... of the last axis that read the same taps.
  struct Stretch {
    i64 first, count;
    std::vector<Tap> taps;
  };

  StencilAxis axis[3];
  std::vector<Stretch> stretches;
  i64 batch, channels, taps;
  int threads;

  // Whether lanes over groups can compute a problem.
  static bool possible(const Spec& spec) { return spec.groups > 1 && spec.in_channels == spec.groups && spec.out_channels == spec.groups; }
  i64 weight_elements() const { return taps * channels; }
  i64 workspace() const { return 0; }
};

// Estimated cycles on one thread.
double cycles(const Depthwise& plan, int lanes);

template <class T>
void pack_weights(const Depthwise& plan, const Kernels<T>& kernels, View<const T> weight, i64 group_stride, T* packed);

// Arrays whose channels are not adjacent are copied.
template <class T>
void run(const Depthwise& plan, const Kernels<T>& kernels, View<const T> in, const T* packed, const Epilogue<T>& epilogue, View<T> out);

}  // namespace tconv
