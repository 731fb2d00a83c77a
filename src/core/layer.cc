// SPDX-License-Identifier: Apache-2.0
#include "layer.h"

#include <algorithm>

namespace tconv {
namespace {

// Work that is worth waking another thread for: some tens of microseconds.
constexpr double kCyclesPerThread = 1e5;

// Why lanes over channels are not worth an estimate, or null.
const char* channels_refused(const Plan& p) {
  double listed = 0;
  for (const StencilAxis& a : p.axis) listed += double(a.out_size) * double(a.kernel);
  if (p.outputs < 8) return "a group writes fewer than 8 channels, which leaves most lanes empty";
  if (p.channels < 4) return "a group sums over fewer than 4 channels, too few for a pointer a tap";
  if (listed >= 1e5) return "every output and tap of an axis is listed, and these axes are too long for that";
  return nullptr;
}

// Every method with its estimate as one thread would run it: methods round differently, and the choice must not hang on the number of
// threads. A method asked for by name is the only one considered.
std::vector<Candidate> consider(const Spec& spec, Direction dir, Method asked, const Plan& by_positions, int lanes, i64 element_bytes) {
  const auto refusal = [&](Method method, const char* reason) {
    return asked == Method::automatic ? reason : asked == method ? nullptr : "another method was asked for by name";
  };
  std::vector<Candidate> found{{Method::positions, cycles(by_positions), refusal(Method::positions, nullptr)},
                               {Method::channels, 0, refusal(Method::channels, channels_refused(by_positions))}};
  if (!found[1].refused) found[1].cycles = cycles(Gather(spec, dir, 1, lanes, element_bytes));
  return found;
}

// The one of the fewest cycles; there always is one.
const Candidate& best(const std::vector<Candidate>& candidates) {
  const auto before = [](const Candidate& a, const Candidate& b) { return !a.refused && (b.refused || a.cycles < b.cycles); };
  return *std::min_element(candidates.begin(), candidates.end(), before);
}

}  // namespace

const char* name(Method method) { return method == Method::positions ? "positions" : method == Method::channels ? "channels" : "direct"; }

Layer::Layer(const Spec& spec, Direction dir, const Isa& isa_, Method method, int threads, i64 element_bytes)
    : direction(dir), isa(isa_), channels_per_group(spec.in_channels / spec.groups) {
  const int lanes = element_bytes == 8 ? isa.f64->lanes : isa.f32->lanes;
  auto by_positions = std::make_unique<const Plan>(spec, dir, isa, 1, element_bytes);
  candidates = consider(spec, dir, method, *by_positions, lanes, element_bytes);
  chosen = best(candidates).method;
  threads = int(std::min(double(threads), 1 + best(candidates).cycles / kCyclesPerThread));
  if (chosen == Method::channels)
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
