// SPDX-License-Identifier: Apache-2.0
// A forward layer or input gradient prepared for one problem: which method computes it, and why.
#pragma once

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "depthwise.h"
#include "depthwise_rows.h"
#include "gather.h"
#include "matrix.h"
#include "method.h"
#include "plan.h"
#include "strassen.h"
#include "winograd.h"

namespace tconv {

// Why a method cannot compute a problem, or nothing.
std::string refusal(Method method, const Spec& spec, Direction direction, const Isa& isa, i64 element_bytes);

// A method that could compute a problem: its estimated cycles on one thread, or why it was not considered.
struct Candidate {
  Method method;
  double cycles;        // without end if refused
  std::string refused;  // empty: considered
};

// How a layer will be called: with another weight every time, with arrays whose channels are adjacent, and with weights that lie as
// (Cin, Cout, ...), so that they need not be packed.
struct Use {
  bool pack_always = false, channels_last = false, natural_weight = false;
};

struct Layer {
  // Throws std::invalid_argument where the method refuses the problem.
  Layer(const Spec& spec, Direction direction, const Isa& isa, Method method, int threads, i64 element_bytes, Use use = {});

  Direction direction;
  const Isa& isa;
  i64 channels_per_group;  // input channels of the weight
  std::vector<Candidate> candidates;
  Method method;  // the candidate of the fewest cycles; one that is refused only on a matrix unit
  double cycles;
  std::variant<std::unique_ptr<const Plan>, std::unique_ptr<const Gather>, std::unique_ptr<const Depthwise>,
               std::unique_ptr<const DepthwiseRows>, std::unique_ptr<const Strassen>, std::unique_ptr<const Winograd>,
               std::unique_ptr<const Matrix>>
      plan;

  template <class F>
  auto with_plan(F f) const {
    return std::visit([&](const auto& p) { return f(*p); }, plan);
  }
  int threads() const {
    return with_plan([](const auto& p) { return p.threads; });
  }
  i64 workspace() const {  // elements that each thread keeps
    return with_plan([](const auto& p) { return p.workspace(); });
  }
  i64 weight_elements() const {
    return with_plan([](const auto& p) { return p.weight_elements(); });
  }
  // What the order of packed weights depends on, beside weight and kernel.
  std::vector<i64> signature() const;

  // weight: strides of (in channel, out channel of the group, d, h, w).
  template <class T>
  void pack(const View<const T>& weight, T* packed) const;
  bool reads_raw() const;  // packed weights would be in their own order
  // Where a weight already lies in the order in which packed ones would, or null.
  template <class T>
  const T* ready(const View<const T>& weight) const;
  // A weight for one call: as it lies where a method needs it so or packs it itself, else packed into memory that the calling thread keeps.
  template <class T>
  Weights<T> for_one_call(const View<const T>& weight) const;
  // Sums are rounded to what the output holds.
  template <class T, class S>
  void run(View<const T> in, const Weights<T>& weights, const Epilogue<T>& epilogue, View<S> out) const;

 private:
  template <class T>
  Weights<T> as_it_lies(View<const T> weight) const;
};

}  // namespace tconv
