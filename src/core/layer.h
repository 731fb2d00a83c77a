// SPDX-License-Identifier: Apache-2.0
// A forward layer or input gradient prepared for one problem: which method computes it, and why.
#pragma once

#include <memory>
#include <vector>

#include "gather.h"
#include "plan.h"

namespace tconv {

// positions: lanes over output positions (plan.h). channels: lanes over output channels (gather.h).
enum class Method { automatic, positions, channels };

const char* name(Method method);

// A method that could compute a problem: its estimated cycles on one thread, or why it was not considered.
struct Candidate {
  Method method;
  double cycles;
  const char* refused;  // null: considered
};

struct Layer {
  Layer(const Spec& spec, Direction direction, const Isa& isa, Method method, int threads, i64 element_bytes);

  Direction direction;
  const Isa& isa;
  std::unique_ptr<const Plan> positions;  // one of the two
  std::unique_ptr<const Gather> channels;
  i64 channels_per_group;  // input channels of the weight
  std::vector<Candidate> candidates;
  Method chosen;  // the candidate of the fewest cycles

  int threads() const { return channels ? channels->threads : positions->threads; }
  i64 workspace() const { return channels ? channels->workspace() : positions->workspace(); }  // elements that each thread keeps
  i64 weight_elements() const { return channels ? channels->weight_elements() : positions->weight_elements(); }
  // What the order of packed weights depends on, beside weight and kernel.
  std::vector<i64> signature() const;

  // weight: strides of (in channel, out channel of the group, d, h, w).
  template <class T>
  void pack(View<const T> weight, T* packed) const;
  template <class T>
  void run(View<const T> in, const T* packed, const Epilogue<T>& epilogue, View<T> out) const;
};

}  // namespace tconv
