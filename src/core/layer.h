// SPDX-License-Identifier: Apache-2.0
// A forward layer or input gradient prepared for one problem: which method computes it, and why.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "gather.h"
#include "plan.h"
#include "winograd.h"

namespace tconv {

// positions: lanes over output positions (plan.h). channels: lanes over output channels (gather.h). direct: the faster of these.
// winograd: winograd.h with its default tiles, or with tiles of 2 or 4 positions. automatic: the fastest whose error stays small.
enum class Method { automatic, direct, positions, channels, winograd, winograd2, winograd4 };
constexpr const char* kMethods[] = {"auto", "direct", "positions", "channels", "winograd", "winograd2", "winograd4"};
constexpr int tile_of(Method m) { return m == Method::winograd2 ? 2 : m == Method::winograd4 ? 4 : 0; }

struct Layer {
  // `pack_always`: weights are packed for every call, and that counts. Throws std::invalid_argument where a method refuses the problem.
  Layer(const Spec& spec, Direction direction, const Isa& isa, Method method, int threads, i64 element_bytes, bool pack_always = false);

  Direction direction;
  const Isa& isa;
  Method method;                          // that computes it: neither automatic nor direct
  std::unique_ptr<const Plan> positions;  // one of the three
  std::unique_ptr<const Gather> channels;
  std::unique_ptr<const Winograd> winograd;
  i64 channels_per_group;  // input channels of the weight
  std::string why;         // the estimates behind the choice

  i64 weight_elements() const {
    return winograd ? winograd->weight_elements() : channels ? channels->weight_elements() : positions->weight_elements();
  }
  // What the order of packed weights depends on, beside weight and kernel.
  std::vector<i64> signature() const;

  // weight: strides of (in channel, out channel of the group, d, h, w).
  template <class T>
  void pack(View<const T> weight, T* packed) const;
  template <class T>
  void run(View<const T> in, const T* packed, const T* bias, View<T> out) const;
};

}  // namespace tconv
