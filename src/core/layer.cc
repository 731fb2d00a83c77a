// SPDX-License-Identifier: Apache-2.0
#include "layer.h"

#include <algorithm>
#include <cstdio>
#include <stdexcept>

namespace tconv {
namespace {

// Work that is worth waking another thread for: some tens of microseconds.
constexpr double kCyclesPerThread = 1e5;

// Estimated cycles on one thread, as cycles(Gather) has them.
double cycles(const Plan& p, int lanes) {
  const Boxes boxes(p);
  const double vectors = double(boxes.count()) * double(ceil_div(boxes(p, 0).lanes(p), lanes));
  double rows = 0;  // multiply-adds a vector of lanes and channel, low tiles counted at what they reach
  for (const Unit& u : p.units)
    for (const RowGroup& g : u.groups) {
      const double n = double(g.slots * p.block);
      rows += n * double(g.offsets.size()) * (n < 4 ? 4 / n : 1.0) * double(p.outputs) / double(p.block);
    }
  const double phases = double(p.axis[0].out_stride) * double(p.axis[1].out_stride) * double(p.axis[2].out_stride);
  const double moved = double(p.channels * p.planes) + 1.5 * double(p.outputs) * phases;
  return double(p.groups) * vectors * (0.51 * rows * double(p.channels) + 2 * moved);
}

// Whether lanes over channels are worth an estimate: channels fill vectors, and the axes are short enough to be listed.
bool plausible(const Plan& p) {
  double listed = 0;
  for (const StencilAxis& a : p.axis) listed += double(a.out_size) * double(a.kernel);
  return p.outputs >= 8 && p.channels >= 4 && listed < 1e5;
}

// Whether Winograd's transforms are worth an estimate: channels enough to feed the products, and its error near that of the direct sum.
bool plausible(const Spec& spec, Direction direction) {
  const i64 in = spec.in_channels / spec.groups, out = spec.out_channels / spec.groups;
  return in >= 16 && out >= 16 && Winograd::refusal(spec, direction, 0).empty();
}

}  // namespace

Layer::Layer(const Spec& spec, Direction dir, const Isa& isa_, Method wanted, int threads, i64 element_bytes, bool pack_always)
    : direction(dir), isa(isa_), method(wanted), channels_per_group(spec.in_channels / spec.groups) {
  if (method >= Method::winograd) {
    why = Winograd::refusal(spec, dir, tile_of(method));
    if (!why.empty()) throw std::invalid_argument(why);
    why = "asked for by name";
    winograd = std::make_unique<const Winograd>(spec, dir, isa, tile_of(method), threads, element_bytes);
    return;
  }
  const int lanes = element_bytes == 8 ? isa.f64->lanes : isa.f32->lanes;
  // All methods as one thread would run them: they round differently, and the choice must not hang on the number of threads.
  auto by_positions = std::make_unique<const Plan>(spec, dir, isa, 1, element_bytes);
  double estimate = cycles(*by_positions, lanes);
  const bool may_be_winograd = method == Method::automatic && plausible(spec, dir);
  if (method > Method::direct) {
    why = "asked for by name";
  } else if (!plausible(*by_positions)) {
    method = Method::positions;
    why = "lanes over positions: the problem is too long or has too few channels for lanes over channels";
  } else {
    const double by_channels = cycles(Gather(spec, dir, 1, lanes, element_bytes));
    char text[160];
    std::snprintf(text, sizeof text, "lanes over positions: %.3g cycles; lanes over channels: %.3g cycles (estimates, one thread)",
                  estimate, by_channels);
    why = text;
    method = by_channels < estimate ? Method::channels : Method::positions;
    estimate = std::min(estimate, by_channels);
  }
  if (may_be_winograd) {
    const double by_winograd = cycles(Winograd(spec, dir, isa, 0, 1, element_bytes), pack_always);
    char text[80];
    std::snprintf(text, sizeof text, "; Winograd's tiles: %.3g cycles", by_winograd);
    why += text;
    if (by_winograd < estimate) method = Method::winograd, estimate = by_winograd;
  }
  threads = int(std::min(double(threads), 1 + estimate / kCyclesPerThread));
  if (method == Method::winograd)
    winograd = std::make_unique<const Winograd>(spec, dir, isa, 0, threads, element_bytes);
  else if (method == Method::channels)
    channels = std::make_unique<const Gather>(spec, dir, threads, lanes, element_bytes);
  else
    positions = threads == 1 ? std::move(by_positions) : std::make_unique<const Plan>(spec, dir, isa, threads, element_bytes);
}

std::vector<i64> Layer::signature() const {
  if (winograd) return {2, winograd->axis[0].tile, winograd->axis[1].tile, winograd->axis[2].tile};
  std::vector<i64> found{channels != nullptr};
  if (positions)
    for (const StencilAxis& a : positions->axis) {
      for (const auto& range : a.out_phases) found.insert(found.end(), {range.first, range.second});
      for (const Tap& t : a.taps) found.push_back(t.tap);
    }
  return found;
}

// The forward layer sums over input channels (stride 0) and writes output channels (stride 1); grad_input the other way.
template <class T>
void Layer::pack(View<const T> weight, T* packed) const {
  const i64 group_stride = weight.stride[0] * channels_per_group;
  if (direction == Direction::grad_input) std::swap(weight.stride[0], weight.stride[1]);
  if (winograd) return pack_weights<T>(*winograd, isa.kernels<T>(), weight, group_stride, packed);
  channels ? pack_weights<T>(*channels, isa.kernels<T>(), weight, group_stride, packed)
           : pack_weights<T>(*positions, weight, group_stride, packed);
}

template <class T>
void Layer::run(View<const T> in, const T* packed, const T* bias, View<T> out) const {
  if (winograd) return tconv::run<T>(*winograd, isa.kernels<T>(), in, packed, bias, out);
  channels ? tconv::run<T>(*channels, isa.kernels<T>(), in, packed, bias, out)
           : tconv::run<T>(*positions, isa.kernels<T>(), in, packed, bias, out);
}

#define TCONV_LAYER(T)                                   \
  template void Layer::pack<T>(View<const T>, T*) const; \
  template void Layer::run<T>(View<const T>, const T*, const T*, View<T>) const;
TCONV_LAYER(float)
TCONV_LAYER(double)

}  // namespace tconv
