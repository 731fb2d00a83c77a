// SPDX-License-Identifier: Apache-2.0
// The core without Python: every instruction set and orientation this machine (or emulator) runs, against the definition.
// Built for another processor with a cross compiler, it checks that processor's kernels under emulation: dev.py neon.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "../../src/core/grad_weight.h"
#include "../../src/core/half_layer.h"
#include "tile_model.h"

using namespace tconv;

namespace {

std::mt19937 random_engine(1);

i64 pick(i64 lo, i64 hi) { return lo + i64(random_engine() % std::uint32_t(hi - lo + 1)); }

template <class T>
std::vector<T> noise(i64 n) {
  std::vector<T> v(static_cast<std::size_t>(n));
  for (T& x : v) x = T(int(random_engine() % 2001) - 1000) / T(1000);
  return v;
}

i64 volume(const i64* size) { return size[0] * size[1] * size[2]; }

template <class T>
View<T> dense(T* data, i64 channels, const i64* size, bool last = false) {
  if (last) return {data, {channels * volume(size), 1, size[1] * size[2] * channels, size[2] * channels, channels}};
  return {data, {channels * volume(size), volume(size), size[1] * size[2], size[2], 1}};
}

// (n, c, positions) as (n, positions, c), or back.
template <class T>
std::vector<T> turned(const std::vector<T>& from, i64 channels, i64 positions, bool back) {
  std::vector<T> to(from.size());
  for (i64 i = 0; i < i64(from.size()); ++i) {
    const i64 n = i / (channels * positions), c = i / positions % channels, p = i % positions, other = (n * positions + p) * channels + c;
    back ? to[i] = from[other] : to[other] = from[i];
  }
  return to;
}

// full[i * stride + t * dilation] += x[i] * w[t] over every image, channel pair, position and tap that the crop keeps.
struct Definition {
  Spec s;
  i64 in[3], out[3], taps[3];

  explicit Definition(const Spec& spec) : s(spec) {
    for (int i = 0; i < 3; ++i) in[i] = s.axis[i].size, out[i] = s.axis[i].output(), taps[i] = s.axis[i].kernel;
  }
  template <class F>
  void each(F f) const {
    const i64 ci = s.in_channels / s.groups, co = s.out_channels / s.groups;
    for (i64 n = 0; n < s.batch; ++n)
      for (i64 c = 0; c < s.in_channels; ++c)
        for (i64 m = 0; m < co; ++m)
          for (i64 i = 0; i < volume(in); ++i)
            for (i64 t = 0; t < volume(taps); ++t) {
              const i64 at[3] = {i / in[2] / in[1], i / in[2] % in[1], i % in[2]};
              const i64 tap[3] = {t / taps[2] / taps[1], t / taps[2] % taps[1], t % taps[2]};
              i64 o = 0;
              bool inside = true;
              for (int a = 0; a < 3; ++a) {
                const i64 p = at[a] * s.axis[a].stride + tap[a] * s.axis[a].dilation - s.axis[a].lo;
                inside = inside && p >= 0 && p < out[a];
                o = o * out[a] + p;
              }
              const i64 channel = c / ci * co + m;
              if (inside)
                f((n * s.in_channels + c) * volume(in) + i, (c * co + m) * volume(taps) + t,
                  (n * s.out_channels + channel) * volume(out) + o);
            }
  }
};

int failures = 0, transformed = 0, rowwise = 0, quartered = 0, by_blocks = 0, paired = 0, tiled = 0;

template <class T>
void compare(const std::vector<T>& got, const std::vector<double>& sum, const std::vector<double>& size, const char* what, const char* isa,
             Method method, int line, double terms) {
  // Winograd's transforms mix the outputs of a tile, Strassen's quarters two positions: an error is as large as that of a full sum of the
  // largest values, which are 1.
  const bool mixes = method == Method::automatic || method >= Method::strassen;
  for (std::size_t i = 0; i < got.size(); ++i)
    if (!(std::fabs(double(got[i]) - sum[i]) <= 64 * std::numeric_limits<T>::epsilon() * ((mixes ? terms : size[i]) + 1e-30))) {
      std::printf("FAILED %s %s method %d problem %d element %zu: %g, definition %g\n", what, isa, int(method), line, i, double(got[i]),
                  sum[i]);
      ++failures;
      return;
    }
}

// Results do not depend on the number of threads: all are those of the first.
template <class T>
void same_bits(std::vector<T>& first, const std::vector<T>& got, const char* isa, int threads, int line) {
  if (first.empty()) first = got;
  if (first.size() == got.size() && (got.empty() || !std::memcmp(first.data(), got.data(), got.size() * sizeof(T)))) return;
  std::printf("FAILED %s with %d threads: other bits in problem %d\n", isa, threads, line);
  ++failures;
}

// Every output is the activation (with the slope 1/2) of what it is without one: once, and within 3 units in the last place.
template <class T>
void activated(const std::vector<T>& plain, const std::vector<T>& got, Activation kind, const char* isa, int line) {
  for (std::size_t i = 0; i < got.size(); ++i) {
    const long double x = plain[i], e = std::exp(-std::fabs(x));
    const long double want = kind == Activation::relu         ? std::max(x, 0.0L)
                             : kind == Activation::leaky_relu ? (x < 0 ? x / 2 : x)
                             : kind == Activation::tanh       ? std::tanh(x)
                                                              : (x < 0 ? e : 1) / (1 + e);
    const int units = kind == Activation::tanh || kind == Activation::sigmoid ? 3 : 0;
    const long double unit =
        std::max<long double>(std::numeric_limits<T>::epsilon() * std::fabs(want), std::numeric_limits<T>::denorm_min());
    if (got[i] == T(want) || std::fabs(got[i] - want) <= units * unit) continue;
    std::printf("FAILED activation %d %s problem %d element %zu: %.17g of %.17g\n", int(kind), isa, line, i, double(got[i]),
                double(plain[i]));
    ++failures;
    return;
  }
}

// The whole range, element by element, with counts around a vector's width.
template <class T>
void check_range(const Isa& isa) {
  const T huge = std::numeric_limits<T>::max(), tiny = std::numeric_limits<T>::min(), least = std::numeric_limits<T>::denorm_min();
  std::vector<T> x{0, huge, -huge, tiny, -tiny, least, -least, std::numeric_limits<T>::infinity(), -std::numeric_limits<T>::infinity()};
  for (int i = -4000; i < 4000; ++i) x.push_back(T(i) / 40), x.push_back(T(i) * std::ldexp(T(1), -int(pick(0, 120))));
  for (int kind = 1; kind <= int(Activation::sigmoid); ++kind)
    for (i64 count = 1, at = 0; at < i64(x.size()); at += count, count = std::min<i64>(pick(1, 40), i64(x.size()) - at)) {
      std::vector<T> row(x.begin() + at, x.begin() + at + count);
      row.insert(row.end(), {T(-7), std::numeric_limits<T>::quiet_NaN()});
      isa.kernels<T>().activate(row.data(), count, T(0), Activation(kind), T(0.5));
      isa.kernels<T>().activate(row.data() + count + 1, 1, T(1), Activation(kind), T(0.5));
      if (row[std::size_t(count)] != T(-7) || !std::isnan(row.back()))
        std::printf("FAILED activation %d %s: beyond the row, or NaN\n", kind, isa.name), ++failures;
      row.resize(std::size_t(count));
      activated<T>({x.begin() + at, x.begin() + at + count}, row, Activation(kind), isa.name, -1);
    }
}

template <class T>
void check(const Spec& spec, const Isa& isa, int line) {
  const Definition d(spec);
  const i64 nx = spec.batch * spec.in_channels * volume(d.in), ny = spec.batch * spec.out_channels * volume(d.out);
  const i64 nw = spec.in_channels * (spec.out_channels / spec.groups) * volume(d.taps);
  const std::vector<T> x = noise<T>(nx), w = noise<T>(nw), dy = noise<T>(ny), bias = noise<T>(spec.out_channels);
  std::vector<double> y(ny), ya(ny), dx(nx), dxa(nx), dw(nw), dwa(nw);
  for (i64 i = 0; i < ny; ++i) y[i] = bias[i / volume(d.out) % spec.out_channels], ya[i] = std::fabs(y[i]);
  d.each([&](i64 i, i64 t, i64 o) {
    y[o] += double(x[i]) * w[t], ya[o] += std::fabs(double(x[i]) * w[t]);
    dx[i] += double(dy[o]) * w[t], dxa[i] += std::fabs(double(dy[o]) * w[t]);
    dw[t] += double(dy[o]) * x[i], dwa[t] += std::fabs(double(dy[o]) * x[i]);
  });
  const View<const T> wv = dense<const T>(w.data(), spec.out_channels / spec.groups, d.taps);
  const T unwritten = std::numeric_limits<T>::quiet_NaN();
  for (Method method : {Method::positions, Method::channels, Method::depthwise, Method::rows, Method::strassen, Method::rowwise,
                        Method::winograd, Method::winograd2, Method::winograd4})
    for (Direction direction : {Direction::forward, Direction::grad_input})
      for (int layouts = 0; layouts < 4; ++layouts) {  // bit 0: the input is channels-last, bit 1: the output is
        if (!refusal(method, spec, direction, isa, sizeof(T)).empty()) continue;
        transformed += method >= Method::winograd, quartered += method == Method::strassen, rowwise += method == Method::rowwise;
        const bool forward = direction == Direction::forward;
        const i64 ins = forward ? spec.in_channels : spec.out_channels, outs = forward ? spec.out_channels : spec.in_channels;
        const i64 *in = forward ? d.in : d.out, *out = forward ? d.out : d.in;
        const std::vector<T> from = layouts & 1 ? turned(forward ? x : dy, ins, volume(in), false) : forward ? x : dy;
        std::vector<T> first;
        for (int threads : {1, int(pick(2, 5)), 16}) {
          const Layer layer(spec, direction, isa, method, threads, sizeof(T), {false, layouts == 3});
          std::vector<T> packed(layer.weight_elements(), unwritten), to(forward ? ny : nx, unwritten);
          layer.pack<T>(wv, packed.data());
          const View<const T> source = dense<const T>(from.data(), ins, in, layouts & 1);
          layer.run<T>(source, packed.data(), Epilogue<T>{forward ? bias.data() : nullptr}, dense<T>(to.data(), outs, out, layouts & 2));
          const std::vector<T> plain = to;
          const Epilogue<T> after{forward ? bias.data() : nullptr, Activation(1 + (line + layouts + threads) % 4), T(0.5)};
          std::fill(to.begin(), to.end(), unwritten);
          layer.run<T>(source, packed.data(), after, dense<T>(to.data(), outs, out, layouts & 2));
          activated(plain, to, after.activation, isa.name, line);
          to = plain;
          if (layouts & 2) to = turned(to, outs, volume(out), true);
          compare(to, forward ? y : dx, forward ? ya : dxa, forward ? "forward" : "grad_input", isa.name, method, line,
                  double(ins / spec.groups * volume(d.taps)));
          same_bits(first, to, isa.name, threads, line);
        }
      }
  for (int layouts = 0; layouts < 4; ++layouts) {  // bit 0: x is channels-last, bit 1: dy is
    const std::vector<T> xs = layouts & 1 ? turned(x, spec.in_channels, volume(d.in), false) : x;
    const std::vector<T> dys = layouts & 2 ? turned(dy, spec.out_channels, volume(d.out), false) : dy;
    for (Method method : {Method::automatic, Method::direct, Method::winograd, Method::winograd2, Method::winograd4}) {
      if (!refusal(method, spec, Direction::forward, isa, sizeof(T)).empty()) continue;
      std::vector<T> first;
      for (int threads : {1, 3, 16}) {
        std::vector<T> grad(nw, unwritten);
        grad_weight<T>(spec, isa, method, dense<const T>(xs.data(), spec.in_channels, d.in, layouts & 1),
                       dense<const T>(dys.data(), spec.out_channels, d.out, layouts & 2),
                       dense<T>(grad.data(), spec.out_channels / spec.groups, d.taps), threads);
        compare(grad, dw, dwa, "grad_weight", isa.name, method, line, double(spec.batch * volume(d.in)));
        same_bits(first, grad, isa.name, threads, line);
      }
    }
  }
}

// Calls that transform their weights as they read them have the bits of those that packed them before: many channels, few positions.
template <class T>
void check_calls(const Isa& isa) {
  Spec spec;
  spec.batch = 2, spec.in_channels = 65, spec.out_channels = 9 * 2 * isa.kernels<T>().lanes + 1;
  spec.axis[1] = {2, 3, 2, 1, 1, 0}, spec.axis[2] = {3, 4, 2, 1, 1, 1};
  const Definition d(spec);
  const std::vector<T> x = noise<T>(spec.batch * spec.in_channels * volume(d.in)),
                       dy = noise<T>(spec.batch * spec.out_channels * volume(d.out)),
                       w = noise<T>(spec.in_channels * spec.out_channels * volume(d.taps)), bias = noise<T>(spec.out_channels);
  const View<const T> wv = dense<const T>(w.data(), spec.out_channels, d.taps);
  for (Direction direction : {Direction::forward, Direction::grad_input})
    for (int threads : {1, 2, 16}) {
      const bool forward = direction == Direction::forward;
      const i64 ins = forward ? spec.in_channels : spec.out_channels, outs = forward ? spec.out_channels : spec.in_channels;
      const View<const T> from = dense<const T>(forward ? x.data() : dy.data(), ins, forward ? d.in : d.out);
      const Epilogue<T> after{forward ? bias.data() : nullptr};
      std::vector<T> first(forward ? dy.size() : x.size()), to = first;
      const Layer layer(spec, direction, isa, Method::winograd, threads, sizeof(T), {true});
      by_blocks += !layer.for_one_call(wv).packed;
      layer.run<T>(from, layer.for_one_call(wv), after, dense<T>(to.data(), outs, forward ? d.out : d.in));
      std::vector<T> packed(std::size_t(layer.weight_elements()));
      layer.pack<T>(wv, packed.data());
      layer.run<T>(from, packed.data(), after, dense<T>(first.data(), outs, forward ? d.out : d.in));
      same_bits(first, to, isa.name, threads, -1);
    }
}

std::vector<std::uint16_t> rounded(const Isa& isa, const std::vector<float>& from) {
  std::vector<std::uint16_t> to(from.size());
  isa.half->narrow(from.data(), i64(from.size()), to.data(), Half::bfloat16);
  return to;
}
std::vector<float> widened(const Isa& isa, const std::vector<std::uint16_t>& from) {
  std::vector<float> to(from.size());
  isa.half->widen(from.data(), i64(from.size()), to.data(), Half::bfloat16);
  return to;
}

// Pairs of bfloat16, in tiles or not, where `isa` computes nothing by itself: the forward layer and the input's gradient, with and without
// an activation.
void check_pairs(const Spec& spec, const Isa& isa, int line) {
  const Definition d(spec);
  const i64 nx = spec.batch * spec.in_channels * volume(d.in), ny = spec.batch * spec.out_channels * volume(d.out);
  const auto x = rounded(isa, noise<float>(nx)), dy = rounded(isa, noise<float>(ny));
  const auto w = rounded(isa, noise<float>(spec.in_channels * (spec.out_channels / spec.groups) * volume(d.taps)));
  const std::vector<float> wide_x = widened(isa, x), wide_dy = widened(isa, dy), wide_w = widened(isa, w),
                           bias = noise<float>(spec.out_channels);
  std::vector<double> y(ny), dx(nx);
  for (i64 i = 0; i < ny; ++i) y[i] = bias[i / volume(d.out) % spec.out_channels];
  d.each([&](i64 i, i64 t, i64 o) { y[o] += double(wide_x[i]) * wide_w[t], dx[i] += double(wide_dy[o]) * wide_w[t]; });
  for (Direction direction : {Direction::forward, Direction::grad_input})
    for (bool last : {false, true}) {
      const bool forward = direction == Direction::forward;
      const i64 ins = forward ? spec.in_channels : spec.out_channels, outs = forward ? spec.out_channels : spec.in_channels;
      const i64 *in = forward ? d.in : d.out, *out = forward ? d.out : d.in;
      const auto from = last ? turned(forward ? x : dy, ins, volume(in), false) : forward ? x : dy;
      std::vector<std::uint16_t> first;
      for (int threads : {1, 3, 16}) {
        const HalfLayer layer(spec, direction, isa, Method::automatic, threads, {false, last}, Half::bfloat16);
        std::vector<float> packed(std::size_t(layer.layer().weight_elements()), std::numeric_limits<float>::quiet_NaN());
        const std::size_t size = std::size_t(forward ? ny : nx), beyond = 64;
        std::vector<std::uint16_t> to(size + beyond, 0x7fc0);
        layer.pack(w.data(), packed.data());
        const bool relu = line % 2;
        layer.run(from.data(), packed.data(), {forward ? bias.data() : nullptr, relu ? Activation::relu : Activation::none}, to.data());
        tiled += layer.layer().isa.term == Term::pairs_in_tiles, paired += layer.layer().isa.term == Term::pairs;
        if (std::count(to.begin() + i64(size), to.end(), 0x7fc0) != i64(beyond))
          std::printf("FAILED pairs %s problem %d: written beyond the output\n", layer.layer().isa.name, line), ++failures;
        to.resize(size);
        if (first.empty()) first = to;
        const std::vector<float> got = widened(isa, last ? turned(to, outs, volume(out), true) : to);
        std::vector<double> want = forward ? y : dx;
        for (double& value : want) value = relu ? std::max(value, 0.0) : value;
        for (std::size_t i = 0; i < got.size(); ++i)
          if (to != first || !(std::fabs(got[i] - want[i]) <= std::ldexp(std::fabs(want[i]), -8) + 1e-5)) {
            std::printf("FAILED pairs %s direction %d last %d threads %d problem %d element %zu: %g, definition %g\n",
                        layer.layer().isa.name, int(direction), last, threads, line, i, double(got[i]), want[i]);
            ++failures;
            return;
          }
      }
    }
}

// One axis of a kind: ordinary, far stamps, wide dilation, large kernel, stride and dilation with a common divisor, few taps a phase.
Axis random_axis(i64 kind, i64 scale) {
  switch (kind) {
    case 1:
      return {pick(1, 2 + scale), pick(1, 2), pick(1, 20 * scale), pick(1, 3), 0, 0};
    case 2:
      return {pick(1, 3 * scale), pick(1, 4), pick(1, 7), pick(1, 12 * scale), 0, 0};
    case 3:
      return {pick(1, 4), pick(1, 12 * scale), pick(1, 9), pick(1, 2), 0, 0};
    case 4:
      return {pick(1, 12 * scale), pick(1, 4), 2 * pick(1, 3), 2 * pick(1, 4), 0, 0};
    case 5: {
      static const i64 forms[][2] = {{4, 2}, {3, 2}, {5, 2}, {6, 2}, {3, 1}, {2, 1}, {1, 1},
                                     {2, 2}, {6, 3}, {7, 3}, {9, 3}, {8, 4}, {9, 4}};
      const i64* form = forms[pick(0, 12)];
      return {pick(1, 9 * scale), form[0], form[1], 1, 0, 0};
    }
    default:
      return {pick(1, 10 * scale), pick(1, 5), pick(1, 4), pick(1, 3), 0, 0};
  }
}

// Crops of a kind: none, few outputs left, zeros before, zeros after, nothing but zeros, a little of each.
void random_crop(Axis& a, i64 kind, i64 scale) {
  const i64 full = a.full();
  switch (kind) {
    case 1:
      a.lo = pick(0, full - 1), a.hi = full - 1 - a.lo - pick(0, std::min<i64>(full - 1 - a.lo, 3));
      break;
    case 2:
      a.lo = -pick(0, 12 * scale), a.hi = pick(0, full - 1);
      break;
    case 3:
      a.hi = -pick(0, 12 * scale), a.lo = pick(0, full - 1);
      break;
    case 4:
      a.lo = full + pick(0, 9), a.hi = -pick(10, 20);
      break;
    case 5:
      a.lo = pick(-3, std::min<i64>(6, full - 1)), a.hi = pick(-3, std::min<i64>(6, full - 1 - a.lo));
      break;
    default:
      break;
  }
}

Spec random_spec() {
  Spec s;
  const i64 channels = pick(0, 2);  // few, many groups, many channels
  s.groups = pick(1, channels == 1 ? 9 : 3);
  s.batch = pick(0, 7) ? pick(0, 4) : pick(5, 40);  // of small maps, images can be the longer rows
  s.in_channels = s.groups * pick(1, channels == 1 ? 3 : channels == 2 ? 40 : 6);
  s.out_channels = s.groups * pick(1, channels == 1 ? 3 : channels == 2 ? 70 : 20);
  if (channels == 1 && pick(0, 2) == 0) s.groups = pick(2, 70), s.in_channels = s.out_channels = s.groups;  // depthwise
  const i64 rank = pick(1, 3), scale = rank == 1 ? 8 : rank == 2 ? 3 : 1, kind = pick(0, 8);
  for (i64 i = 3 - rank; i < 3; ++i) {
    s.axis[i] = random_axis(std::min<i64>(kind, 5), scale);
    random_crop(s.axis[i], pick(0, 5), scale);
  }
  return s;
}

// Kernels as long as their strides, and halves of channels that are whole vectors of every instruction set.
Spec quartered_spec() {
  Spec s;
  s.batch = pick(0, 3), s.in_channels = s.out_channels = 32;
  const i64 kernel[2] = {pick(1, 2), pick(1, 3)};
  s.axis[1] = {pick(1, 3), kernel[0], kernel[0], 1, 0, 0}, s.axis[2] = {pick(1, 9), kernel[1], kernel[1], 1, 0, 0};
  for (i64 i : {1, 2}) random_crop(s.axis[i], pick(0, 5), 1);
  return s;
}

// Problems that the definition's loops finish in milliseconds.
Spec small_spec(bool quartered) {
  for (;;) {
    const Spec s = quartered ? quartered_spec() : random_spec();
    const Definition d(s);
    const double pairs = double(s.batch * s.in_channels) * double(s.out_channels / s.groups * volume(d.in)) * double(volume(d.taps));
    if (pairs < 2e5 && double(s.batch * s.out_channels) * double(volume(d.out)) < 2e4) return s;
  }
}

}  // namespace

int main(int count, char** values) {
  const int problems = count > 1 ? std::atoi(values[1]) : 100;
  int isas_here;
  const Isa* list = isas(&isas_here);
  for (int i = 0; i < isas_here; ++i)
    if (list[i].supported()) {
      check_range<float>(list[i]), check_range<double>(list[i]);
      check_calls<float>(list[i]), check_calls<double>(list[i]);
    }
  if (by_blocks == 0) std::printf("FAILED: no call transformed its weights as it read them\n"), ++failures;
  for (int line = 0; line < problems; ++line) {  // the same on every machine, whatever instructions it has
    random_engine.seed(std::uint32_t(line));
    const Spec spec = small_spec(line % 8 == 7);
    for (int i = 0; i < isas_here; ++i)
      if (list[i].supported())
        random_engine.seed(std::uint32_t(line)), check<float>(spec, list[i], line), check<double>(spec, list[i], line);
    const Isa& best = *std::find_if(list, list + isas_here, [](const Isa& isa) { return isa.supported(); });
    for (const auto words : {best.dots, best.matrix, &model_of_tiles})
      if (words && words())
        check_pairs(spec, {"none", nullptr, best.f32, best.f64, best.half, Term::numbers, 1e9, false, words, nullptr}, line);
  }
  if (problems >= 10 && quartered == 0) std::printf("FAILED: no problem went through quarters\n"), ++failures;
  if (problems >= 10 && tiled == 0) std::printf("FAILED: no problem went through the tiles of the model\n"), ++failures;
  std::string names;
  for (int i = 0; i < isas_here; ++i)
    if (list[i].supported()) names += std::string(" ") + list[i].name;
  std::printf(
      "%d problems in all layouts, methods and activations, on%s: %d failed (%d results by Winograd's transforms, %d over positions, %d by "
      "Strassen's quarters, %d by pairs, %d by tiles of pairs)\n",
      problems, names.c_str(), failures, transformed, rowwise, quartered, paired, tiled);
  return failures != 0;
}
