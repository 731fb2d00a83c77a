// SPDX-License-Identifier: Apache-2.0
#include "layer.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "parallel.h"

namespace tconv {
namespace {

// Work that is worth waking another thread for: some tens of microseconds.
constexpr double kCyclesPerThread = 1e5;

// Cycles of packing an element of a weight, and how many more where the weight is too large for the caches: an input gradient's lanes are
// pages apart, and of few taps only small squares are transposed. Fewer where the task that reads weights packs them.
double pack_positions(Direction dir, i64 taps, double large) {
  return (dir == Direction::forward ? 1.8 : taps < 8 ? 2.4 : 0.9) + 2.0 * large;
}
double pack_channels(Direction dir, double large, bool at_once) {
  if (dir == Direction::forward) return (at_once ? 0.7 : 1.0) * (0.6 + 0.8 * large);
  return (at_once ? 0.85 : 1.0) * (0.7 + 1.3 * std::min(1.0, 3.4 * large));
}
// Points beside the same model of rows as they are, and where rows are taken apart for points from row to row; both where caches keep pace.
constexpr double kAgainstDirect = 1.1, kTakenApart = 1.25, kQuickAgainst = 0.98, kQuickApart = 1.05;
constexpr double kPackRows = 1.0;          // where weights are repeated along a row
constexpr double kPackPoints = 4.0;        // of a weight by points, beside what packing it takes
constexpr double kLargeWeight = 32 << 20;  // bytes
constexpr double kRawShare = 0.04;         // of the time of tiles, if their weights are not packed

constexpr double kMostTurned = 4 << 20;  // bytes
constexpr i64 kMostPointed = 4 << 20;    // bytes of a weight that points make larger, for the time of packing twice
constexpr i64 kManyChannels = 64;

// Terms of the longest sum: those of the stride phase that has most taps, or of all.
i64 longest_sum(const Spec& spec, Direction dir) {
  i64 terms = (dir == Direction::forward ? spec.in_channels : spec.out_channels) / spec.groups;
  for (const Axis& a : spec.axis) terms *= dir == Direction::forward ? ceil_div(a.kernel, a.stride) : a.kernel;
  return terms;
}

// Why a method is not worth an estimate, or nothing. `turned_bytes`: of a position of a vector of channels that must be transposed.
std::string implausible(Method method, const Spec& spec, Direction dir, const Plan& by_positions, i64 bytes, i64 turned_bytes) {
  if (method == Method::winograd && std::min(by_positions.channels, by_positions.outputs) < kWinogradChannels)
    return "a group has fewer than 16 channels, too few to pay for the transforms";
  if (method == Method::strassen && by_positions.channels * (dir == Direction::forward ? 1 : by_positions.taps) < kStrassenTerms)
    return "sums have fewer than 256 terms, and would round more for less";
  if (method == Method::rowwise && std::min(by_positions.channels, by_positions.outputs) >= kManyChannels)
    return "both sides have 64 channels and more, which fill the vectors of winograd's tiles";
  if (method == Method::rowwise && longest_sum(spec, dir) < kRowwiseTerms)
    return "sums have fewer than 64 terms, and would round more for little";
  if (method == Method::rowwise && spec.in_channels * (spec.out_channels / spec.groups) * by_positions.taps * bytes > kMostPointed)
    return "its weight is larger than 4 MiB, and would be larger still";
  if (method == Method::depthwise) {
    double in = double(turned_bytes), out = in;
    for (const StencilAxis& a : by_positions.axis) in *= double(a.in_size), out *= double(a.out_size);
    return in + out > kMostTurned ? "maps of a vector of channels are larger than 4 MiB, too large to transpose" : "";
  }
  if (method == Method::rows) return turned_bytes ? "" : "channels are adjacent, not columns";
  if (method != Method::channels) return {};
  double listed = 0;
  for (const StencilAxis& a : by_positions.axis) listed += double(a.out_size) * double(a.kernel);
  if (by_positions.outputs < 8) return "a group writes fewer than 8 channels, which leaves most lanes empty";
  if (listed >= 1e6) return "every output and tap of an axis is listed, and these axes are too long for that";
  return {};
}

// Whether a method is among those that a name stands for.
bool stands_for(Method asked, Method method) {
  return asked == method || asked == Method::automatic || (asked == Method::direct && method < Method::strassen);
}

// What Winograd's tiles are chosen for: asked for by name, they are the same in a call and in an operator.
Serves serves(Method asked, Use use) { return asked == Method::automatic && use.pack_always ? Serves::calls : Serves::operators; }

// Cycles of packing the weights of a plan over positions.
double packing(const Plan& plan, Direction dir, i64 bytes, Use use) {
  if (!use.pack_always) return 0;
  const double elements = double(plan.weight_elements()), large = std::min(1.0, elements * double(bytes) / kLargeWeight);
  return elements * pack_positions(dir, plan.taps, large);
}

// Whether it is worth it to read weights where they lie, which makes tiles slower by kRawShare.
bool better_raw(const Plan& plan, Direction dir, i64 bytes, Use use) {
  return dir == Direction::grad_input && use.natural_weight && plan.natural &&
         packing(plan, dir, bytes, use) > kRawShare * cycles(plan, use.channels_last);
}

int lanes_of(const Isa& isa, i64 element_bytes) { return element_bytes == 8 ? isa.f64->lanes : isa.f32->lanes; }

// Every method with its estimate as one thread would run it: methods round differently, and the choice must not hang on the number of
// threads. A method asked for by name is the only one considered.
std::vector<Candidate> consider(const Spec& spec, Direction dir, const Isa& isa, Method asked, const Plan& by_positions, i64 bytes,
                                Use use) {
  const int lanes = lanes_of(isa, bytes);
  const double weight = double(spec.in_channels * by_positions.taps * spec.out_channels / spec.groups);
  const double large = std::min(1.0, weight * double(bytes) / kLargeWeight);
  const auto estimate = [&](Method method) {
    switch (method) {
      case Method::positions:
        return by_positions.raw ? (1 + kRawShare) * cycles(by_positions, use.channels_last)
                                : cycles(by_positions, use.channels_last) + packing(by_positions, dir, bytes, use);
      case Method::channels: {
        if (isa.term == Term::pairs_in_tiles) {
          const Matrix plan(spec, dir, isa, 1);
          return cycles(plan, use.channels_last) +
                 (use.pack_always ? double(plan.weight_elements()) * pack_channels(dir, large, false) : 0.0);
        }
        const Gather plan(spec, dir, isa, 1, bytes);
        return cycles(plan, use.channels_last) +
               (use.pack_always ? double(plan.weight_elements()) * pack_channels(dir, large, plan.reads_weights_once()) : 0.0);
      }
      case Method::depthwise:
        return cycles(Depthwise(spec, dir, 1), lanes, use.channels_last);
      case Method::rows: {
        const DepthwiseRows plan(spec, dir, 1, lanes, bytes);
        return cycles(plan) + (use.pack_always ? double(plan.weight_elements()) * kPackRows : 0.0);
      }
      case Method::rowwise: {
        const Plan plan(spec, dir, isa, 1, bytes, !use.channels_last, true);
        const bool apart = plan.rows.ins > 1 && plan.rows.along(1);
        const double beside = isa.quick_caches ? (apart ? kQuickApart : kQuickAgainst) : apart ? kTakenApart : kAgainstDirect;
        return beside * cycles(plan, use.channels_last) + packing(plan, dir, bytes, use) +
               (use.pack_always ? double(plan.weight_elements()) * kPackPoints : 0.0);
      }
      case Method::strassen:
        return cycles(Strassen(spec, dir, isa, 1, bytes), use.channels_last, use.pack_always);
      default:
        return cycles(Winograd(spec, dir, isa, tile_of(method), 1, bytes, serves(asked, use), use.pack_always), use.pack_always);
    }
  };
  const Method last = asked > Method::winograd ? asked : Method::winograd;
  std::vector<Candidate> found;
  for (Method method : {Method::positions, Method::channels, Method::depthwise, Method::rows, Method::strassen, Method::rowwise, last}) {
    Candidate c{method, std::numeric_limits<double>::infinity(), refusal(method, spec, dir, isa, bytes)};
    if (c.refused.empty() && !stands_for(asked, method))
      c.refused = asked == Method::direct ? "it is not direct" : "another method was asked for by name";
    if (c.refused.empty() && isa.term == Term::pairs && method > Method::channels) c.refused = "it does not multiply pairs of bfloat16";
    if (c.refused.empty() && isa.term == Term::pairs_in_tiles && method != Method::channels)
      c.refused = "a matrix unit has lanes over channels alone";
    if (c.refused.empty() && isa.term == Term::pairs_in_tiles) c.refused = matrix_refusal(spec, dir);
    if (c.refused.empty() && asked != method && isa.term != Term::pairs_in_tiles)
      c.refused = implausible(method, spec, dir, by_positions, bytes, use.channels_last ? 0 : lanes * bytes);
    if (c.refused.empty()) c.cycles = estimate(method);
    found.push_back(std::move(c));
  }
  return found;
}

// The one of the fewest cycles.
const Candidate& best(const std::vector<Candidate>& candidates) {
  return *std::min_element(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) { return a.cycles < b.cycles; });
}

}  // namespace

std::string refusal(Method method, const Spec& spec, Direction direction, const Isa& isa, i64 element_bytes) {
  if (method >= Method::winograd) return Winograd::refusal(spec);
  if (method == Method::rowwise) return RowPoints::refusal(spec);
  if (method == Method::strassen) return Strassen::refusal(spec, direction, lanes_of(isa, element_bytes));
  if (method != Method::depthwise && method != Method::rows) return {};
  if (method == Method::rows && Depthwise::possible(spec))
    return DepthwiseRows::refusal(spec, direction, lanes_of(isa, element_bytes), element_bytes);
  return Depthwise::possible(spec) ? "" : "it is not depthwise: a group has more than one input or output channel, or there is one group";
}

Layer::Layer(const Spec& spec, Direction dir, const Isa& isa_, Method asked, int threads, i64 element_bytes, Use use)
    : direction(dir), isa(isa_), channels_per_group(spec.in_channels / spec.groups) {
  if (const std::string why = refusal(asked, spec, dir, isa, element_bytes); !why.empty()) throw std::invalid_argument(why);
  const auto over_positions = [&](int count, bool by_points = false) {
    auto found = std::make_unique<Plan>(spec, dir, isa, count, element_bytes, !use.channels_last, by_points);
    found->raw = better_raw(*found, dir, element_bytes, use);
    return found;
  };
  const i64 lanes = lanes_of(isa, element_bytes);
  auto by_positions = over_positions(1);
  candidates = consider(spec, dir, isa, asked, *by_positions, element_bytes, use);
  method = best(candidates).method, cycles = best(candidates).cycles;
  threads = int(std::min(double(threads), 1 + cycles / kCyclesPerThread));
  if (method >= Method::winograd)
    plan = std::make_unique<const Winograd>(spec, dir, isa, tile_of(method), threads, element_bytes, serves(asked, use), use.pack_always);
  else if (method == Method::rowwise)
    plan = std::unique_ptr<const Plan>(over_positions(threads, true));
  else if (method == Method::strassen)
    plan = std::make_unique<const Strassen>(spec, dir, isa, threads, element_bytes);
  else if (method == Method::rows)
    plan = std::make_unique<const DepthwiseRows>(spec, dir, threads, lanes, element_bytes);
  else if (method == Method::depthwise)
    plan = std::make_unique<const Depthwise>(spec, dir, threads);
  else if (method == Method::channels && isa.term == Term::pairs_in_tiles)
    plan = std::make_unique<const Matrix>(spec, dir, isa, threads);
  else if (method == Method::channels)
    plan = std::make_unique<const Gather>(spec, dir, isa, threads, element_bytes);
  else
    plan = std::unique_ptr<const Plan>(threads == 1 ? std::move(by_positions) : over_positions(threads));
}

std::vector<i64> Layer::signature() const {
  std::vector<i64> found{i64(method), i64(isa.term)};
  if (const auto* positions = std::get_if<std::unique_ptr<const Plan>>(&plan)) {
    found.insert(found.end(), {(*positions)->block, (*positions)->raw});
    for (const StencilAxis& a : (*positions)->axis) {
      found.insert(found.end(), {a.out_stride, a.out_lo, a.out_begin, a.out_end});
      for (const Tap& t : a.taps) found.push_back(t.tap);
    }
  }
  if (const auto* rows = std::get_if<std::unique_ptr<const DepthwiseRows>>(&plan))
    for (const std::vector<i64>& tap : (*rows)->order) found.insert(found.end(), tap.begin(), tap.end());
  if (const auto* winograd = std::get_if<std::unique_ptr<const Winograd>>(&plan))
    for (const Winograd::Along& a : (*winograd)->axis) found.insert(found.end(), {a.tile, a.crop});
  return found;
}

// The forward layer sums over input channels (stride 0) and writes output channels (stride 1); grad_input the other way.
template <class T>
Weights<T> Layer::as_it_lies(View<const T> weight) const {
  const i64 group_stride = weight.stride[0] * channels_per_group;
  if (direction == Direction::grad_input) std::swap(weight.stride[0], weight.stride[1]);
  return {weight, group_stride};
}

template <class T>
void Layer::pack(const View<const T>& weight, T* packed) const {
  const Weights<T> from = as_it_lies(weight);
  with_plan([&](const auto& p) { pack_weights<T>(p, isa.kernels<T>(), from.lie, from.group_stride, packed); });
}

bool Layer::reads_raw() const {
  const auto* positions = std::get_if<std::unique_ptr<const Plan>>(&plan);
  return positions && (*positions)->raw;
}

template <class T>
const T* Layer::ready(const View<const T>& weight) const {
  if (!reads_raw()) return nullptr;
  const Plan& p = *std::get<std::unique_ptr<const Plan>>(plan);
  i64 step = 1;
  for (int i = 2; i >= 0; step *= p.axis[i--].kernel)
    if (p.axis[i].kernel > 1 && weight.stride[2 + i] != step) return nullptr;
  return (p.channels == 1 || weight.stride[1] == step) && weight.stride[0] == p.channels * step ? weight.data : nullptr;
}

template <class T>
Weights<T> Layer::for_one_call(const View<const T>& weight) const {
  if (const T* found = ready(weight)) return found;
  const auto* channels = std::get_if<std::unique_ptr<const Gather>>(&plan);
  if (channels && (*channels)->reads_weights_once()) return as_it_lies(weight);
  const auto* winograd = std::get_if<std::unique_ptr<const Winograd>>(&plan);
  if (winograd && (*winograd)->by_blocks) return as_it_lies(weight);
  T* packed = scratch<T>(3, weight_elements());
  pack<T>(weight, packed);
  return packed;
}

template <class T, class S>
void Layer::run(View<const T> in, const Weights<T>& weights, const Epilogue<T>& epilogue, View<S> out) const {
  with_plan([&](const auto& p) { tconv::run<T>(p, isa.kernels<T>(), in, weights, epilogue, out); });
}

template void Layer::pack<float>(const View<const float>&, float*) const;
template void Layer::pack<double>(const View<const double>&, double*) const;
template const float* Layer::ready<float>(const View<const float>&) const;
template const double* Layer::ready<double>(const View<const double>&) const;
template Weights<float> Layer::for_one_call<float>(const View<const float>&) const;
template Weights<double> Layer::for_one_call<double>(const View<const double>&) const;
template void Layer::run<float>(View<const float>, const Weights<float>&, const Epilogue<float>&, View<float>) const;
template void Layer::run<float>(View<const float>, const Weights<float>&, const Epilogue<float>&, View<BFloat16>) const;
template void Layer::run<float>(View<const float>, const Weights<float>&, const Epilogue<float>&, View<Float16>) const;
template void Layer::run<double>(View<const double>, const Weights<double>&, const Epilogue<double>&, View<double>) const;

}  // namespace tconv
