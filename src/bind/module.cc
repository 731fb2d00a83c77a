// SPDX-License-Identifier: Apache-2.0
// The Python module tconv._core: checks what it is handed against the problem, releases the GIL, makes one call.
// It converts nothing and allocates nothing that Python sees; words such as padding="same" are settled before.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <string>
#include <tuple>

#include "../core/grad_bias.h"
#include "../core/grad_weight.h"
#include "../core/half.h"
#include "../core/layer.h"
#include "../core/parallel.h"
#include "problem.h"
#include "tensorflow.h"
#include "xla.h"

namespace nb = nanobind;
using namespace tconv;

namespace {

using In = nb::ndarray<nb::ro, nb::device::cpu>;
using Out = nb::ndarray<nb::device::cpu>;
using Crop = std::pair<i64, i64>;

// The problem as Python holds it; the same checks as tconv.Spec, for callers that come here directly.
struct Problem {
  Spec spec;
  int rank;
  bool channels_last, batched;

  Problem(i64 batch, i64 in_channels, i64 out_channels, i64 groups, const std::vector<i64>& size, const std::vector<i64>& kernel,
          const std::vector<i64>& stride, const std::vector<i64>& dilation, const std::vector<Crop>& crop, bool last, bool has_batch)
      : rank(int(size.size())), channels_last(last), batched(has_batch) {
    const std::size_t n = size.size();
    require(n >= 1 && n <= 3 && kernel.size() == n && stride.size() == n && dilation.size() == n && crop.size() == n,
            "one to three spatial axes, each with size, kernel, stride, dilation and crop");
    require(batched || batch == 1, "arrays without a batch axis hold one image");
    spec.batch = batch, spec.in_channels = in_channels, spec.out_channels = out_channels, spec.groups = groups;
    for (std::size_t i = 0; i < n; ++i) spec.axis[3 - n + i] = {size[i], kernel[i], stride[i], dilation[i], crop[i].first, crop[i].second};
    check(spec);
  }

  // The strides of a data array, once its shape is known to be the problem's.
  template <class T, class Array>
  View<T> data(const Array& array, bool output, const char* name) const {
    require(array.dtype() == nb::dtype<std::remove_const_t<T>>(), name, ": wrong dtype");
    require(int(array.ndim()) == rank + 1 + batched, name, ": wrong number of axes");
    View<T> view{static_cast<T*>(const_cast<void*>(static_cast<const void*>(array.data()))), {}};
    int at = 0;
    const auto take = [&](int axis, i64 expected) {
      require(i64(array.shape(at)) == expected, name, ": wrong shape");
      view.stride[axis] = array.stride(at++);
    };
    if (batched) take(0, spec.batch);
    if (!channels_last) take(1, output ? spec.out_channels : spec.in_channels);
    for (int i = 3 - rank; i < 3; ++i) take(2 + i, output ? spec.axis[i].output() : spec.axis[i].size);
    if (channels_last) take(1, output ? spec.out_channels : spec.in_channels);
    return view;
  }

  // Weight (in_channels, out_channels / groups, *kernel).
  template <class T, class Array>
  View<T> weight(const Array& array) const {
    require(array.dtype() == nb::dtype<std::remove_const_t<T>>() && int(array.ndim()) == rank + 2, "weight: wrong dtype or number of axes");
    require(i64(array.shape(0)) == spec.in_channels && i64(array.shape(1)) == spec.out_channels / spec.groups, "weight: wrong shape");
    View<T> view{static_cast<T*>(const_cast<void*>(static_cast<const void*>(array.data()))), {array.stride(0), array.stride(1), 0, 0, 0}};
    for (int i = 0; i < rank; ++i) {
      require(i64(array.shape(2 + i)) == spec.axis[3 - rank + i].kernel, "weight: wrong shape");
      view.stride[5 - rank + i] = array.stride(2 + i);
    }
    return view;
  }
};

// A kernel's name: METHOD_ISA, where the methods "auto" and "direct" leave the choice to the estimates.
const Isa& isa(const std::string& kernel) {
  const Isa* found = find_isa(kernel.substr(std::min(kernel.size(), kernel.find('_') + 1)).c_str());
  require(found, "no such kernel, or this processor lacks it");
  return *found;
}

Method method(const std::string& kernel) {
  const std::string name = kernel.substr(0, kernel.find('_'));
  const auto found = std::find(std::begin(kMethods), std::end(kMethods), name);
  require(found != std::end(kMethods), "no such kernel");
  return Method(found - std::begin(kMethods));
}

// A prepared stencil: geometry and kernel fixed, weights packed by the caller or anew in every call.
class Stencil {
 public:
  Stencil(const Problem& problem, bool forward, bool is_double, const std::string& kernel, int threads, bool pack_always)
      : problem_(problem),
        forward_(forward),
        double_(is_double),
        layer_(problem.spec, forward ? Direction::forward : Direction::grad_input, isa(kernel), method(kernel), std::max(threads, 1),
               is_double ? 8 : 4, {pack_always, problem.channels_last}) {}

  i64 weight_elements() const { return layer_.weight_elements(); }
  std::vector<i64> signature() const { return layer_.signature(); }
  std::string kernel() const { return std::string(name(layer_.method)) + "_" + layer_.isa.name; }
  int threads() const { return layer_.threads(); }
  int lanes() const { return double_ ? layer_.isa.f64->lanes : layer_.isa.f32->lanes; }
  i64 workspace_bytes() const { return layer_.workspace() * (double_ ? 8 : 4); }

  // (method, estimated cycles on one thread or None, why it was refused or ""), in the order of consideration.
  std::vector<std::tuple<std::string, std::optional<double>, std::string>> candidates() const {
    std::vector<std::tuple<std::string, std::optional<double>, std::string>> found;
    for (const Candidate& c : layer_.candidates)
      found.emplace_back(name(c.method), c.refused.empty() ? std::optional(c.cycles) : std::nullopt, c.refused);
    return found;
  }

  void pack(const In& weight, const Out& packed) const { double_ ? pack_as<double>(weight, packed) : pack_as<float>(weight, packed); }

  // With weights packed on the way, into memory that the calling thread keeps.
  void apply(const In& x, const In& weight, const std::optional<In>& bias, const Out& out, int activation, double slope) const {
    double_ ? apply_as<double>(x, weight, {*this, bias, activation, slope}, out)
            : apply_as<float>(x, weight, {*this, bias, activation, slope}, out);
  }

  void run(const In& x, const In& packed, const std::optional<In>& bias, const Out& out, int activation, double slope) const {
    double_ ? run_as<double>(x, packed, {*this, bias, activation, slope}, out)
            : run_as<float>(x, packed, {*this, bias, activation, slope}, out);
  }

 private:
  template <class T>
  void pack_as(const In& weight, const Out& packed) const {
    const View<const T> from = problem_.weight<const T>(weight);
    check_vector<T>(packed, weight_elements(), "packed");
    T* to = static_cast<T*>(packed.data());
    nb::gil_scoped_release release;
    layer_.pack<T>(from, to);
  }

  // What follows the sums, checked.
  template <class T>
  struct After : Epilogue<T> {
    After(const Stencil& s, const std::optional<In>& bias, int activation, double slope) {
      if (bias) check_vector<T>(*bias, s.problem_.spec.out_channels, "bias");
      require(!bias || s.forward_, "bias: grad_input has none");
      require(!activation || s.forward_, "activation: grad_input has none");
      require(activation >= 0 && activation <= int(Activation::sigmoid), "activation: no such number");
      this->bias = bias ? static_cast<const T*>(bias->data()) : nullptr;
      this->activation = Activation(activation);
      this->slope = T(slope);
    }
  };

  template <class T>
  void apply_as(const In& x, const In& weight, const After<T>& after, const Out& out) const {
    const View<const T> in = problem_.data<const T>(x, !forward_, "input"), from = problem_.weight<const T>(weight);
    const View<T> to = problem_.data<T>(out, forward_, "output");
    nb::gil_scoped_release release;
    T* packed = scratch<T>(3, weight_elements());
    layer_.pack<T>(from, packed);
    layer_.run<T>(in, packed, after, to);
  }

  template <class T>
  void run_as(const In& x, const In& packed, const After<T>& after, const Out& out) const {
    const View<const T> in = problem_.data<const T>(x, !forward_, "input");
    const View<T> to = problem_.data<T>(out, forward_, "output");
    check_vector<T>(packed, weight_elements(), "packed");
    const T* weights = static_cast<const T*>(packed.data());
    nb::gil_scoped_release release;
    layer_.run<T>(in, weights, after, to);
  }

  template <class T, class Array>
  static void check_vector(const Array& a, i64 size, const char* name) {
    require(a.dtype() == nb::dtype<T>() && a.ndim() == 1 && i64(a.shape(0)) == size && (size == 1 || a.stride(0) == 1), name,
            ": must be a contiguous vector of the right length and dtype");
  }

  Problem problem_;
  bool forward_, double_;
  Layer layer_;
};

template <class T>
void grad_weight_as(const Problem& p, const std::string& kernel, const In& x, const In& dy, const Out& grad, int threads) {
  const View<const T> from = p.data<const T>(x, false, "x"), dys = p.data<const T>(dy, true, "grad");
  const View<T> to = p.weight<T>(grad);
  method(kernel);  // gradients of the weight have one orientation; its name must exist all the same
  const Isa& found = isa(kernel);
  nb::gil_scoped_release release;
  grad_weight<T>(p.spec, found, from, dys, to, std::max(threads, 1));
}

template <class T>
void grad_bias_as(const Problem& p, const In& dy, const Out& grad, int threads) {
  const View<const T> dys = p.data<const T>(dy, true, "grad");
  require(grad.dtype() == nb::dtype<T>() && grad.ndim() == 1 && i64(grad.shape(0)) == p.spec.out_channels &&
              (p.spec.out_channels == 1 || grad.stride(0) == 1),
          "bias: must be a contiguous vector of the right length and dtype");
  T* to = static_cast<T*>(grad.data());
  nb::gil_scoped_release release;
  grad_bias<T>(p.spec, dys, to, std::max(threads, 1));
}

template <class From, class To>
void convert(void (*run)(const Isa&, Half, From*, i64, To*, int), const Isa& isa, bool brain, const In& from, const Out& to, int threads) {
  const i64 count = i64(from.size());
  require(from.dtype() == nb::dtype<std::remove_const_t<From>>() && to.dtype() == nb::dtype<To>() && from.ndim() == 1 && to.ndim() == 1 &&
              i64(to.size()) == count && (count < 2 || (from.stride(0) == 1 && to.stride(0) == 1)),
          "contiguous vectors of one length and of the right dtypes");
  From* source = static_cast<From*>(from.data());
  To* target = static_cast<To*>(to.data());
  nb::gil_scoped_release release;
  run(isa, brain ? Half::bfloat16 : Half::float16, source, count, target, std::max(threads, 1));
}

}  // namespace

NB_MODULE(_core, m) {
  nb::set_leak_warnings(false);  // plans kept in caches of the Python modules outlive this one
  nb::class_<Problem>(m, "Problem", "Geometry and array layout of one problem.")
      .def(nb::init<i64, i64, i64, i64, const std::vector<i64>&, const std::vector<i64>&, const std::vector<i64>&, const std::vector<i64>&,
                    const std::vector<Crop>&, bool, bool>(),
           nb::arg("batch"), nb::arg("in_channels"), nb::arg("out_channels"), nb::arg("groups"), nb::arg("size"), nb::arg("kernel"),
           nb::arg("stride"), nb::arg("dilation"), nb::arg("crop"), nb::arg("channels_last"), nb::arg("batched"));
  nb::class_<Stencil>(m, "Stencil", "A prepared forward layer or input gradient.")
      .def(nb::init<const Problem&, bool, bool, const std::string&, int, bool>(), nb::arg("problem"), nb::arg("forward"), nb::arg("double"),
           nb::arg("kernel"), nb::arg("threads"), nb::arg("pack_always") = false)
      .def_prop_ro("weight_elements", &Stencil::weight_elements)
      .def_prop_ro("kernel", &Stencil::kernel)
      .def_prop_ro("candidates", &Stencil::candidates)
      .def_prop_ro("threads", &Stencil::threads)
      .def_prop_ro("lanes", &Stencil::lanes)
      .def_prop_ro("workspace_bytes", &Stencil::workspace_bytes)
      .def_prop_ro("signature", &Stencil::signature)
      .def("apply", &Stencil::apply, nb::arg("x").noconvert(), nb::arg("weight").noconvert(), nb::arg("bias").noconvert().none(),
           nb::arg("out").noconvert(), nb::arg("activation") = 0, nb::arg("slope") = 0.0)
      .def("pack", &Stencil::pack, nb::arg("weight").noconvert(), nb::arg("packed").noconvert())
      .def("run", &Stencil::run, nb::arg("x").noconvert(), nb::arg("packed").noconvert(), nb::arg("bias").noconvert().none(),
           nb::arg("out").noconvert(), nb::arg("activation") = 0, nb::arg("slope") = 0.0);
  m.def(
      "grad_weight",
      [](const Problem& p, const std::string& kernel, const In& x, const In& dy, const Out& grad, int threads) {
        x.dtype() == nb::dtype<double>() ? grad_weight_as<double>(p, kernel, x, dy, grad, threads)
                                         : grad_weight_as<float>(p, kernel, x, dy, grad, threads);
      },
      nb::arg("problem"), nb::arg("kernel"), nb::arg("x").noconvert(), nb::arg("dy").noconvert(), nb::arg("grad").noconvert(),
      nb::arg("threads"));
  m.def(
      "grad_bias",
      [](const Problem& p, const In& dy, const Out& grad, int threads) {
        dy.dtype() == nb::dtype<double>() ? grad_bias_as<double>(p, dy, grad, threads) : grad_bias_as<float>(p, dy, grad, threads);
      },
      nb::arg("problem"), nb::arg("dy").noconvert(), nb::arg("grad").noconvert(), nb::arg("threads"));
  m.def(
      "widen",
      [](const std::string& kernel, const In& half, const Out& to, bool brain, int threads) {
        convert<const std::uint16_t, float>(widen, isa(kernel), brain, half, to, threads);
      },
      nb::arg("kernel"), nb::arg("half").noconvert(), nb::arg("to").noconvert(), nb::arg("brain"), nb::arg("threads"),
      "Bits of bfloat16 (brain) or float16 to float32: vectors of one length.");
  m.def(
      "narrow",
      [](const std::string& kernel, const In& wide, const Out& to, bool brain, int threads) {
        convert<const float, std::uint16_t>(narrow, isa(kernel), brain, wide, to, threads);
      },
      nb::arg("kernel"), nb::arg("wide").noconvert(), nb::arg("to").noconvert(), nb::arg("brain"), nb::arg("threads"),
      "float32 to bits of bfloat16 (brain) or float16, to nearest, ties to even: vectors of one length.");
  m.def(
      "refusal",
      [](const Problem& p, bool forward, const std::string& kernel) {
        return refusal(method(kernel), p.spec, forward ? Direction::forward : Direction::grad_input);
      },
      nb::arg("problem"), nb::arg("forward"), nb::arg("kernel"), "Why a kernel cannot compute a problem, or nothing.");
  m.def(
      "xla_handlers",
      [] {
        nb::dict found;
        for (const auto& [name, address] : xla_handlers()) found[name] = nb::capsule(address);
        return found;
      },
      "The operators as XLA's foreign functions.");
  m.def("find_tensorflow", &find_tensorflow, nb::arg("library"),
        "Find TensorFlow's C API in its loaded library: what it lacks, or nothing.");
  m.def("set_default_threads", &set_default_threads, nb::arg("threads"), "How many threads frameworks' calls use by default.");
  m.def(
      "methods", [] { return std::vector<std::string>(std::begin(kMethods), std::end(kMethods)); }, "The methods of each instruction set.");
  m.def(
      "isas",
      [] {
        std::vector<std::pair<std::string, bool>> found;
        int count;
        const Isa* list = isas(&count);
        for (int i = 0; i < count; ++i) found.emplace_back(list[i].name, list[i].supported());
        return found;
      },
      "The instruction sets of this build, best first, and whether this processor runs each.");
}
