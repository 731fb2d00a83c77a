// SPDX-License-Identifier: Apache-2.0
#include "problem.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>

#include "../core/grad_bias.h"
#include "../core/grad_weight.h"
#include "../core/layer.h"

namespace tconv {
namespace {

constexpr i64 kLimit = i64(1) << 62;
constexpr std::size_t kLayers = 512;  // that are kept

std::atomic<int> threads_wanted{1};

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument(why); }

// a * b for non-negative sizes, refused beyond 62 bits.
i64 times(i64 a, i64 b) {
  require(a == 0 || b <= kLimit / a, "sizes overflow 64 bits");
  return a * b;
}

// The sum of the sizes of an axis that its full output comes to: none is beyond a fourth of the limit.
i64 extent(i64 kernel, i64 dilation) {
  const i64 found = times(kernel - 1, dilation) + 1;
  require(found < kLimit / 4, "sizes overflow 64 bits");
  return found;
}

i64 reach(i64 size, i64 stride) {
  const i64 found = times(size - 1, stride);
  require(found < kLimit / 4, "sizes overflow 64 bits");
  return found;
}

void check_axes(const Words& words, const char* name, const Sizes& data, const Sizes& w) {
  const std::size_t axes = std::size_t(words.rank()) + 2;
  if (w.size() != axes) refuse("w=" + text(w) + ": must have " + std::to_string(axes) + " axes");
  if (data.size() != axes) refuse(name + ("=" + text(data)) + ": must have " + std::to_string(axes) + " axes for w of shape " + text(w));
}

// The shape of data, of its parts.
Sizes arrange(const Words& words, i64 batch, i64 channels, const Sizes& size) {
  Sizes found(size.size() + 2);
  found[0] = batch, found[std::size_t(words.channels())] = channels;
  std::copy(size.begin(), size.end(), found.begin() + words.spatial(0));
  return found;
}

Sizes dense_strides(const Sizes& shape) {
  Sizes found(shape.size(), 1);
  for (std::size_t i = shape.size(); i-- > 1;) found[i - 1] = found[i] * shape[i];
  return found;
}

// Data as the core has it.
template <class T>
View<T> view(const Words& words, const Dense& a) {
  const Sizes dense = dense_strides(a.shape);
  View<T> found{static_cast<T*>(a.data), {dense[0], dense[words.channels()], 0, 0, 0}};
  for (int i = 0; i < words.rank(); ++i) found.stride[5 - words.rank() + i] = dense[words.spatial(i)];
  return found;
}

const Isa& best_isa() {
  int count;
  const Isa* list = isas(&count);
  while (!list->supported()) ++list;  // the scalar one always is
  return *list;
}

// The prepared layer of a problem: planning takes longer than a small layer.
std::shared_ptr<const Layer> layer_of(const DenseProblem& p, Direction direction, bool is_double, int threads) {
  static auto& mutex = *new std::mutex;  // both outlive the threads of the frameworks, which may be at work when the process ends
  static auto& kept = *new std::map<Sizes, std::shared_ptr<const Layer>>;
  const Spec& s = p.spec;
  const bool natural = std::is_sorted(p.words.order.begin(), p.words.order.end()) && !p.words.flip;
  Sizes key{i64(direction), is_double, p.words.last, natural, threads, s.batch, s.in_channels, s.out_channels, s.groups};
  for (const Axis& a : s.axis) key.insert(key.end(), {a.size, a.kernel, a.stride, a.dilation, a.lo, a.hi});
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (const auto found = kept.find(key); found != kept.end()) return found->second;
  }
  const Use use{true, p.words.last, natural};
  auto made = std::make_shared<const Layer>(s, direction, best_isa(), Method::automatic, threads, is_double ? 8 : 4, use);
  const std::lock_guard<std::mutex> lock(mutex);
  if (kept.size() >= kLayers) kept.clear();
  return kept[key] = std::move(made);
}

template <class T>
void run(const DenseProblem& p, Direction direction, const Dense& in, const Dense& w, const Dense* bias, const Dense& out, int threads) {
  const bool forward = direction == Direction::forward;
  const View<const T> from = p.data<const T>(in, !forward), weight = p.weight<const T>(w);
  const View<T> to = p.data<T>(out, forward);
  Epilogue<T> after;
  if (bias) {
    check_bias(p, *bias);
    after.bias = static_cast<const T*>(bias->data);
  }
  if (p.spec.batch == 0) return;
  const auto layer = layer_of(p, direction, sizeof(T) == 8, threads);
  layer->run<T>(from, layer->for_one_call(weight), after, to);
}

}  // namespace

void check(const Spec& spec) {
  require(spec.batch >= 0 && spec.in_channels >= 1 && spec.out_channels >= 1 && spec.groups >= 1, "batch >= 0; channels and groups >= 1");
  require(spec.in_channels % spec.groups == 0 && spec.out_channels % spec.groups == 0, "groups must divide both channel counts");
  i64 in = times(std::max<i64>(spec.batch, 1), spec.in_channels), out = times(std::max<i64>(spec.batch, 1), spec.out_channels);
  i64 taps = times(spec.in_channels, spec.out_channels / spec.groups);
  for (const Axis& a : spec.axis) {
    require(a.size >= 1 && a.kernel >= 1 && a.stride >= 1 && a.dilation >= 1, "sizes, kernels, strides and dilations >= 1");
    require(a.lo < kLimit && a.lo > -kLimit && a.hi < kLimit && a.hi > -kLimit, "crop beyond 62 bits");
    require(times(a.size, a.stride) < kLimit / 4 && times(a.kernel, a.dilation) < kLimit / 4, "sizes overflow 64 bits");
    require(a.output() >= 1 && a.output() < kLimit, "the crop must leave at least one output");
    in = times(in, a.size), out = times(out, a.output()), taps = times(taps, a.kernel);
  }
  require(in < kLimit / 8 && out < kLimit / 8 && taps < kLimit / 8, "arrays overflow 64 bits");
}

std::string text(const Sizes& sizes) {
  std::string found = "(";
  for (std::size_t i = 0; i < sizes.size(); ++i) found += (i ? ", " : "") + std::to_string(sizes[i]);
  return found + (sizes.size() == 1 ? ",)" : ")");
}

void Words::check() const {
  const std::size_t n = stride.size();
  require(n >= 1 && n <= 3 && dilation.size() == n && crop.size() == 2 * n,
          "one to three spatial axes, each with stride, dilation and crop");
  require(order.size() == n + 2, "order must name every axis of the weight");
  for (const i64 axis : order) require(axis >= 0 && axis < i64(n) + 2, "order names an axis that the weight lacks");
  for (const i64 number : stride) require(number >= 1 && number < kLimit, "strides must be at least 1");
  for (const i64 number : dilation) require(number >= 1 && number < kLimit, "dilations must be at least 1");
  for (const i64 number : crop) require(number > -kLimit / 8 && number < kLimit / 8, "a crop is beyond 64 bits");
  require(groups >= 1, "groups must be at least 1");
}

DenseProblem::DenseProblem(const Words& from, const Sizes& x, const Sizes& w) : words(from) {
  check_axes(words, "x", x, w);
  const i64 channels = x[std::size_t(words.channels())], into = w[words.order[0]], out = w[words.order[1]];
  if (channels != into)
    refuse("x=" + text(x) + ": has " + std::to_string(channels) + " channels where w of shape " + text(w) + " takes " +
           std::to_string(into));
  if (into % words.groups) refuse("groups=" + std::to_string(words.groups) + ": must divide in_channels=" + std::to_string(into));
  spec.groups = words.groups, spec.batch = x[0], spec.in_channels = into, spec.out_channels = times(out, words.groups);
  for (int i = 0; i < words.rank(); ++i) {
    Axis& a = spec.axis[3 - words.rank() + i];
    a = {x[words.spatial(i)], w[words.order[2 + i]], words.stride[i], words.dilation[i], words.crop[2 * i], words.crop[2 * i + 1]};
    if (a.size < 1) refuse("x=" + text(x) + ": must have at least one position along every spatial axis");
    if (a.kernel < 1) refuse("w=" + text(w) + ": must have at least one tap along every spatial axis");
    const i64 kernel = a.kernel > 1 ? extent(a.kernel, a.dilation) : 1, full = reach(a.size, a.size > 1 ? a.stride : 1) + kernel;
    if (full - a.lo - a.hi < 1)
      refuse("padding=" + text({a.lo, a.hi}) + ": crops the full output of " + std::to_string(full) + " to " +
             std::to_string(full - a.lo - a.hi) + "; at least 1 must remain");
    if (a.kernel == 1) a.dilation = 1;  // what means nothing is small
    if (a.size == 1) a.stride = std::min(a.stride, kernel);
  }
  tconv::check(spec);
}

Sizes DenseProblem::output_shape() const {
  Sizes size;
  for (int i = 3 - words.rank(); i < 3; ++i) size.push_back(spec.axis[i].output());
  return arrange(words, spec.batch, spec.out_channels, size);
}

void DenseProblem::check_output(const Sizes& y) const {
  if (y != output_shape()) refuse("grad=" + text(y) + ": must have the shape of the output, " + text(output_shape()));
}

void check_bias(const DenseProblem& p, const Dense& bias) {
  const Sizes expected{p.spec.out_channels};
  if (bias.shape != expected)
    refuse("bias=" + text(bias.shape) + ": must have the shape " + text(expected) + ", one value per output channel");
}

template <class T>
View<T> DenseProblem::data(const Dense& a, bool output) const {
  Sizes size;
  for (int i = 3 - words.rank(); i < 3; ++i) size.push_back(output ? spec.axis[i].output() : spec.axis[i].size);
  const Sizes expected = arrange(words, spec.batch, output ? spec.out_channels : spec.in_channels, size);
  if (a.shape != expected) refuse("tconv._core: an array of shape " + text(a.shape) + " where the problem has " + text(expected));
  return view<T>(words, a);
}

template <class T>
View<T> DenseProblem::weight(const Dense& a) const {
  require(a.shape[words.order[0]] == spec.in_channels && a.shape[words.order[1]] * spec.groups == spec.out_channels,
          "the weight does not fit");
  const Sizes dense = dense_strides(a.shape);
  View<T> view{static_cast<T*>(a.data), {dense[words.order[0]], dense[words.order[1]], 0, 0, 0}};
  for (int i = 0; i < words.rank(); ++i) {
    const i64 taps = a.shape[words.order[2 + i]], along = dense[words.order[2 + i]];
    require(taps == spec.axis[3 - words.rank() + i].kernel, "the weight does not fit");
    view.stride[5 - words.rank() + i] = words.flip ? -along : along;
    if (words.flip) view.data += (taps - 1) * along;
  }
  return view;
}

// O = (I - 1) * stride + K - lo - hi has at most one I, and at most one K, for an O.
Sizes input_shape(const Words& words, const Sizes& y, const Sizes& w) {
  check_axes(words, "grad", y, w);
  Sizes size;
  for (int i = 0; i < words.rank(); ++i) {
    const i64 kernel = w[words.order[2 + i]], output = y[words.spatial(i)], stride = words.stride[i];
    if (kernel < 1) refuse("w=" + text(w) + ": must have at least one tap along every spatial axis");
    require(output >= 1 && output < kLimit / 4, "sizes overflow 64 bits, or there is no output");
    const i64 steps = output + words.crop[2 * i] + words.crop[2 * i + 1] - extent(kernel, kernel > 1 ? words.dilation[i] : 1);
    if (steps < 0 || steps % stride) refuse("grad=" + text(y) + ": no input has an output of this size");
    size.push_back(steps / stride + 1);
  }
  return arrange(words, y[0], w[words.order[0]], size);
}

Sizes weight_shape(const Words& words, const Sizes& x, const Sizes& y) {
  const std::size_t axes = std::size_t(words.rank()) + 2;
  if (x.size() != axes || y.size() != axes || x[0] != y[0])
    refuse("grad=" + text(y) + ": must have the rank and batch of x, whose shape is " + text(x));
  const i64 out = y[words.channels()];
  if (out % words.groups) refuse("groups=" + std::to_string(words.groups) + ": must divide out_channels=" + std::to_string(out));
  Sizes found(axes);
  found[words.order[0]] = x[words.channels()], found[words.order[1]] = out / words.groups;
  for (int i = 0; i < words.rank(); ++i) {
    const i64 size = x[words.spatial(i)], output = y[words.spatial(i)], dilation = words.dilation[i];
    if (size < 1) refuse("x=" + text(x) + ": must have at least one position along every spatial axis");
    require(output >= 1 && output < kLimit / 4, "sizes overflow 64 bits, or there is no output");
    const i64 steps = output + words.crop[2 * i] + words.crop[2 * i + 1] - reach(size, size > 1 ? words.stride[i] : 1) - 1;
    if (steps < 0 || steps % dilation) refuse("grad=" + text(y) + ": no kernel gives x of shape " + text(x) + " this size");
    found[words.order[2 + i]] = steps / dilation + 1;
  }
  return found;
}

void conv_transpose(const DenseProblem& p, bool is_double, const Dense& x, const Dense& w, const Dense* bias, const Dense& y, int threads) {
  is_double ? run<double>(p, Direction::forward, x, w, bias, y, threads) : run<float>(p, Direction::forward, x, w, bias, y, threads);
}

void grad_input(const DenseProblem& p, bool is_double, const Dense& dy, const Dense& w, const Dense& dx, int threads) {
  is_double ? run<double>(p, Direction::grad_input, dy, w, nullptr, dx, threads)
            : run<float>(p, Direction::grad_input, dy, w, nullptr, dx, threads);
}

void grad_weight(const DenseProblem& p, bool is_double, const Dense& x, const Dense& dy, const Dense& dw, int threads) {
  const auto compute = [&](auto zero) {
    using T = decltype(zero);
    grad_weight<T>(p.spec, best_isa(), Method::automatic, p.data<const T>(x, false), p.data<const T>(dy, true), p.weight<T>(dw), threads);
  };
  is_double ? compute(0.0) : compute(0.0f);
}

i64 output_channels(const Words& words, const Sizes& dy) {
  if (int(dy.size()) != words.rank() + 2) refuse("grad=" + text(dy) + ": must have " + std::to_string(words.rank() + 2) + " axes");
  return dy[words.channels()];
}

void grad_bias(const Words& words, bool is_double, const Dense& dy, const Dense& db, int threads) {
  Spec spec;  // a layer of one tap has dy's positions
  spec.batch = dy.shape[0], spec.out_channels = output_channels(words, dy.shape);
  for (int i = 0; i < words.rank(); ++i) spec.axis[3 - words.rank() + i].size = dy.shape[words.spatial(i)];
  check(spec);
  require(db.shape == Sizes{spec.out_channels}, "the bias does not fit");
  is_double ? grad_bias<double>(spec, view<const double>(words, dy), static_cast<double*>(db.data), threads)
            : grad_bias<float>(spec, view<const float>(words, dy), static_cast<float*>(db.data), threads);
}

int default_threads() { return threads_wanted; }
void set_default_threads(int threads) { threads_wanted = std::max(threads, 1); }

}  // namespace tconv
