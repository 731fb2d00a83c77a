// SPDX-License-Identifier: Apache-2.0
#include "layer.h"

#include <algorithm>
#include <cstdio>

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
      const double n = double(i64(g.slots.size()) * p.block);
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

}  // namespace

Layer::Layer(const Spec& spec, Direction dir, const Isa& isa_, Method method, int threads, i64 element_bytes)
    : direction(dir), isa(isa_), channels_per_group(spec.in_channels / spec.groups) {
  const int lanes = element_bytes == 8 ? isa.f64->lanes : isa.f32->lanes;
  // Both orientations as one thread would run them: they round differently, and the choice must not hang on the number of threads.
  auto by_positions = std::make_unique<const Plan>(spec, dir, isa, 1, element_bytes);
  double estimate = cycles(*by_positions, lanes);
  if (method != Method::automatic) {
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
  threads = int(std::min(double(threads), 1 + estimate / kCyclesPerThread));
  if (method == Method::channels)
    channels = std::make_unique<const Gather>(spec, dir, threads, lanes, element_bytes);
  else
    positions = threads == 1 ? std::move(by_positions) : std::make_unique<const Plan>(spec, dir, isa, threads, element_bytes);
}

std::vector<i64> Layer::signature() const {
  std::vector<i64> found{channels != nullptr};
  if (positions)
    for (const StencilAxis& a : positions->axis) {
      found.insert(found.end(), {a.out_stride, a.out_begin, a.out_end});
      for (const Tap& t : a.taps) found.push_back(t.tap);
    }
  return found;
}

// The forward layer sums over input channels (stride 0) and writes output channels (stride 1); grad_input the other way.
template <class T>
void Layer::pack(View<const T> weight, T* packed) const {
  const i64 group_stride = weight.stride[0] * channels_per_group;
  if (direction == Direction::grad_input) std::swap(weight.stride[0], weight.stride[1]);
  channels ? pack_weights<T>(*channels, isa.kernels<T>(), weight, group_stride, packed)
           : pack_weights<T>(*positions, weight, group_stride, packed);
}

template <class T>
void Layer::run(View<const T> in, const T* packed, const Epilogue<T>& epilogue, View<T> out) const {
  channels ? tconv::run<T>(*channels, isa.kernels<T>(), in, packed, epilogue, out)
           : tconv::run<T>(*positions, isa.kernels<T>(), in, packed, epilogue, out);
}

#define TCONV_LAYER(T)                                   \
  template void Layer::pack<T>(View<const T>, T*) const; \
  template void Layer::run<T>(View<const T>, const T*, const Epilogue<T>&, View<T>) const;
TCONV_LAYER(float)
TCONV_LAYER(double)

}  // namespace tconv
