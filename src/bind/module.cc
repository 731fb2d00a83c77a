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
#include <cstdint>
#include <functional>
#include <iterator>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

#include "../core/grad_bias.h"
#include "../core/grad_weight.h"
#include "../core/half.h"
#include "../core/half_layer.h"
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

// What arrays hold. Half precision is handed over as its bits, in dense arrays, and packed as float32's words.
enum class Dtype { float32, float64, bfloat16, float16 };
constexpr const char* kDtypes[] = {"float32", "float64", "bfloat16", "float16"};

Dtype dtype(const std::string& name) {
  const auto found = std::find(std::begin(kDtypes), std::end(kDtypes), name);
  require(found != std::end(kDtypes), "no such dtype");
  return Dtype(found - std::begin(kDtypes));
}

using Bits = std::uint16_t;

// A prepared stencil: geometry and kernel fixed, weights packed by the caller or anew in every call.
class Stencil {
 public:
  Stencil(const Problem& problem, bool forward, const std::string& kind, const std::string& kernel, int threads, bool pack_always)
      : problem_(problem), forward_(forward), dtype_(dtype(kind)) {
    const Direction direction = forward ? Direction::forward : Direction::grad_input;
    Use use{pack_always, problem.channels_last, true};
    if (dtype_ == Dtype::bfloat16 || dtype_ == Dtype::float16)
      half_.emplace(problem.spec, direction, isa(kernel), method(kernel), std::max(threads, 1), use,
                    dtype_ == Dtype::bfloat16 ? Half::bfloat16 : Half::float16);
    else
      whole_.emplace(problem.spec, direction, isa(kernel), method(kernel), std::max(threads, 1), dtype_ == Dtype::float64 ? 8 : 4, use);
    use.natural_weight = false;
    other_order_ = [this, direction, kernel, threads, use] {
      return Layer(problem_.spec, direction, isa(kernel), whole_->method, std::max(threads, 1), dtype_ == Dtype::float64 ? 8 : 4, use);
    };
  }

  i64 weight_elements() const { return layer().weight_elements(); }
  std::vector<i64> signature() const { return layer().signature(); }
  std::string kernel() const { return std::string(name(layer().method)) + "_" + layer().isa.name; }
  int threads() const { return layer().threads(); }
  int lanes() const {  // channels and positions of a vector of products
    const Isa& of = layer().isa;
    return dtype_ == Dtype::float64 ? of.f64->lanes : of.f32->lanes * (of.term == Term::numbers ? 1 : 2);
  }
  double multiply() const { return layer().isa.multiply; }  // cycles of two vectors of products
  i64 workspace_bytes() const { return layer().workspace() * (dtype_ == Dtype::float64 ? 8 : 4); }

  // (method, estimated cycles on one thread or None, why it was refused or ""), in the order of consideration.
  std::vector<std::tuple<std::string, std::optional<double>, std::string>> candidates() const {
    std::vector<std::tuple<std::string, std::optional<double>, std::string>> found;
    for (const Candidate& c : layer().candidates)
      found.emplace_back(name(c.method), c.refused.empty() ? std::optional(c.cycles) : std::nullopt, c.refused);
    return found;
  }

  void pack(const In& weight, const Out& packed) const {
    with_types([&](auto element, auto word) {
      using T = decltype(element);
      using Word = decltype(word);
      const View<const T> from = problem_.weight<const T>(weight);
      check_vector<Word>(packed, weight_elements(), "packed");
      check_dense<T>(weight, "weight");
      Word* to = static_cast<Word*>(packed.data());
      nb::gil_scoped_release release;
      pack_words(from, to);
    });
  }

  // With weights packed on the way, into memory that the calling thread keeps.
  void apply(const In& x, const In& weight, const std::optional<In>& bias, const Out& out, int activation, double slope) const {
    with_types([&](auto element, auto word) {
      using T = decltype(element);
      using Word = decltype(word);
      const Call<T, Word> call(*this, x, bias, out, activation, slope);
      const View<const T> from = problem_.weight<const T>(weight);
      check_dense<T>(weight, "weight");
      nb::gil_scoped_release release;
      apply_words(call, from);
    });
  }

  void run(const In& x, const In& packed, const std::optional<In>& bias, const Out& out, int activation, double slope) const {
    with_types([&](auto element, auto word) {
      using T = decltype(element);
      using Word = decltype(word);
      const Call<T, Word> call(*this, x, bias, out, activation, slope);
      check_vector<Word>(packed, weight_elements(), "packed");
      const Word* weights = static_cast<const Word*>(packed.data());
      nb::gil_scoped_release release;
      run_words(call, weights);
    });
  }

 private:
  const Layer& layer() const { return half_ ? half_->layer() : *whole_; }

  // The types of an array's elements and of the words that are packed and summed.
  template <class F>
  void with_types(F f) const {
    if (half_) return f(Bits(), float());
    dtype_ == Dtype::float64 ? f(double(), double()) : f(float(), float());
  }

  template <class T>
  void pack_words(const View<const T>& from, T* to) const {
    whole_->pack<T>(from, to);
  }
  void pack_words(const View<const Bits>& from, float* to) const { half_->pack(from.data, to); }

  // The arrays of a call and what follows the sums, checked.
  template <class T, class Word>
  struct Call {
    View<const T> in;
    View<T> out;
    Epilogue<Word> after;

    Call(const Stencil& s, const In& x, const std::optional<In>& bias, const Out& y, int activation, double slope)
        : in(s.problem_.data<const T>(x, !s.forward_, "input")), out(s.problem_.data<T>(y, s.forward_, "output")) {
      check_dense<T>(x, "input"), check_dense<T>(y, "output");
      if (bias) check_vector<Word>(*bias, s.problem_.spec.out_channels, "bias");
      require(!bias || s.forward_, "bias: grad_input has none");
      require(!activation || s.forward_, "activation: grad_input has none");
      require(activation >= 0 && activation <= int(Activation::sigmoid), "activation: no such number");
      after = {bias ? static_cast<const Word*>(bias->data()) : nullptr, Activation(activation), Word(slope)};
    }
  };

  // A weight in another order than the plan reads where it lies has a plan that packs it, of the same method for the same bits.
  template <class T>
  void apply_words(const Call<T, T>& call, const View<const T>& weight) const {
    const bool other = whole_->reads_raw() && !whole_->ready(weight);
    if (other) std::call_once(other_once_, [&] { other_.emplace(other_order_()); });
    const Layer& layer = other ? *other_ : *whole_;
    layer.run<T>(call.in, layer.for_one_call(weight), call.after, call.out);
  }
  void apply_words(const Call<Bits, float>& call, const View<const Bits>& weight) const {
    float* packed = scratch<float>(3, weight_elements());
    pack_words(weight, packed);
    run_words(call, packed);
  }

  template <class T>
  void run_words(const Call<T, T>& call, const T* packed) const {
    whole_->run<T>(call.in, packed, call.after, call.out);
  }
  void run_words(const Call<Bits, float>& call, const float* packed) const { half_->run(call.in.data, packed, call.after, call.out.data); }

  template <class T, class Array>
  static void check_vector(const Array& a, i64 size, const char* name) {
    require(a.dtype() == nb::dtype<T>() && a.ndim() == 1 && i64(a.shape(0)) == size && (size < 2 || a.stride(0) == 1), name,
            ": must be a contiguous vector of the right length and dtype");
  }

  // Half precision is converted as it lies.
  template <class T, class Array>
  static void check_dense(const Array& a, const char* name) {
    i64 step = 1;
    for (std::size_t i = a.ndim(); std::is_same_v<T, Bits> && a.size() > 0 && i-- > 0; step *= i64(a.shape(i)))
      require(a.shape(i) == 1 || a.stride(i) == step, name, ": must be dense where it is half precision");
  }

  Problem problem_;
  bool forward_;
  Dtype dtype_;
  std::optional<Layer> whole_;
  std::function<Layer()> other_order_;
  mutable std::once_flag other_once_;
  mutable std::optional<Layer> other_;
  std::optional<HalfLayer> half_;
};

template <class T>
void grad_weight_as(const Problem& p, const std::string& kernel, const In& x, const In& dy, const Out& grad, int threads) {
  const View<const T> from = p.data<const T>(x, false, "x"), dys = p.data<const T>(dy, true, "grad");
  const View<T> to = p.weight<T>(grad);
  const Method how = method(kernel);
  const Isa& found = isa(kernel);
  nb::gil_scoped_release release;
  grad_weight<T>(p.spec, found, how, from, dys, to, std::max(threads, 1));
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
      .def(nb::init<const Problem&, bool, const std::string&, const std::string&, int, bool>(), nb::arg("problem"), nb::arg("forward"),
           nb::arg("dtype"), nb::arg("kernel"), nb::arg("threads"), nb::arg("pack_always") = false)
      .def_prop_ro("weight_elements", &Stencil::weight_elements)
      .def_prop_ro("kernel", &Stencil::kernel)
      .def_prop_ro("candidates", &Stencil::candidates)
      .def_prop_ro("threads", &Stencil::threads)
      .def_prop_ro("lanes", &Stencil::lanes)
      .def_prop_ro("multiply", &Stencil::multiply)
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
      [](const Problem& p, bool forward, const std::string& dtype, const std::string& kernel) {
        const i64 bytes = dtype == "float64" ? sizeof(double) : sizeof(float);
        return refusal(method(kernel), p.spec, forward ? Direction::forward : Direction::grad_input, isa(kernel), bytes);
      },
      nb::arg("problem"), nb::arg("forward"), nb::arg("dtype"), nb::arg("kernel"), "Why a kernel cannot compute a problem, or nothing.");
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
      "use_team",
      [](std::uintptr_t parallel, std::uintptr_t number) {
        use_team(reinterpret_cast<Team>(parallel), reinterpret_cast<int (*)()>(number));
      },
      nb::arg("parallel"), nb::arg("number"),
      "Run loops on the threads of the OpenMP runtime whose GOMP_parallel and omp_get_thread_num have these addresses; 0: on our own.");
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
