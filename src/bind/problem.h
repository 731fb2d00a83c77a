// SPDX-License-Identifier: Apache-2.0
// What the handlers of XLA and TensorFlow share: a problem from the shapes of dense arrays and the words that shapes leave open, and the
// three operators on such arrays, with the layers prepared for them kept.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "../core/spec.h"

namespace tconv {

using Sizes = std::vector<i64>;

inline void require(bool ok, const char* what, const char* rule = "") {
  if (!ok) throw std::invalid_argument(std::string("tconv._core: ") + what + rule);
}

// Refuses what has no meaning, and sizes whose products do not fit into 62 bits.
void check(const Spec& spec);

// Sizes as Python writes a tuple.
std::string text(const Sizes& sizes);

// A dense array as a framework hands it over.
struct Dense {
  void* data;
  Sizes shape;
};

// What the shapes of the arrays leave open.
struct Words {
  Sizes stride, dilation;  // one per spatial axis
  Sizes crop;              // lo and hi per spatial axis
  i64 groups;
  bool last;    // data is (N, *size, C) and not (N, C, *size)
  Sizes order;  // the axes of the weight that hold Cin, Cout / groups and each spatial axis
  bool flip;    // the kernel lies reversed

  int rank() const { return int(stride.size()); }
  int channels() const { return last ? rank() + 1 : 1; }
  int spatial(int i) const { return (last ? 1 : 2) + i; }
  // Refuses words that do not fit each other; all else takes them as they are.
  void check() const;
};

// The problem of an input and a weight of these shapes; throws std::invalid_argument where it has no meaning.
class DenseProblem {
 public:
  DenseProblem(const Words& words, const Sizes& x, const Sizes& w);

  const Words& words;
  Spec spec;

  Sizes output_shape() const;
  void check_output(const Sizes& y) const;
  // The arrays as the core has them, once their shapes are known to fit.
  template <class T>
  View<T> data(const Dense& a, bool output) const;
  template <class T>
  View<T> weight(const Dense& a) const;
};

// The shape of the input, or of the weight, that belongs to the other two shapes.
Sizes input_shape(const Words& words, const Sizes& y, const Sizes& w);
Sizes weight_shape(const Words& words, const Sizes& x, const Sizes& y);

void check_bias(const DenseProblem& p, const Dense& bias);

// The layer with bias or nullptr, and its gradients, of arrays of double or float.
void conv_transpose(const DenseProblem& p, bool is_double, const Dense& x, const Dense& w, const Dense* bias, const Dense& y, int threads);
void grad_input(const DenseProblem& p, bool is_double, const Dense& dy, const Dense& w, const Dense& dx, int threads);
void grad_weight(const DenseProblem& p, bool is_double, const Dense& x, const Dense& dy, const Dense& dw, int threads);

// The bias's gradient, of dy with as many channels as db has elements; where words say no more than the layout of dy.
i64 output_channels(const Words& words, const Sizes& dy);
void grad_bias(const Words& words, bool is_double, const Dense& dy, const Dense& db, int threads);

// How many threads a call uses where its framework does not say: 1 until it is set.
int default_threads();
void set_default_threads(int threads);

}  // namespace tconv
