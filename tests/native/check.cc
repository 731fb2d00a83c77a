// SPDX-License-Identifier: Apache-2.0
// The core without Python: every instruction set and orientation this machine (or emulator) runs, against the definition.
// Built for another processor with a cross compiler, it checks that processor's kernels under emulation: dev.py neon.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../../src/core/layer.h"

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

template <class T>
View<T> dense(T* data, i64 a, i64 b, const i64* size) {
  (void)a;
  return {data, {b * size[0] * size[1] * size[2], size[0] * size[1] * size[2], size[1] * size[2], size[2], 1}};
}

// full[i * stride + t * dilation] += x[i] * w[t] over every image, channel pair, position and tap that the crop keeps.
struct Definition {
  Spec s;
  i64 in[3], out[3], taps[3];

  explicit Definition(const Spec& spec) : s(spec) {
    for (int i = 0; i < 3; ++i) in[i] = s.axis[i].size, out[i] = s.axis[i].output(), taps[i] = s.axis[i].kernel;
  }
  i64 volume(const i64* n) const { return n[0] * n[1] * n[2]; }

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
              if (inside) f((n * s.in_channels + c) * volume(in) + i, (c * co + m) * volume(taps) + t, (n * s.out_channels + channel) * volume(out) + o);
            }
  }
};

int failures = 0;

template <class T>
void compare(const std::vector<T>& got, const std::vector<double>& sum, const std::vector<double>& size, const char* what, const char* isa,
             Method method, int line) {
  for (std::size_t i = 0; i < got.size(); ++i)
    if (!(std::fabs(double(got[i]) - sum[i]) <= 64 * std::numeric_limits<T>::epsilon() * (size[i] + 1e-30))) {
      std::printf("FAILED %s %s method %d problem %d element %zu: %g, definition %g\n", what, isa, int(method), line, i, double(got[i]), sum[i]);
      ++failures;
      return;
    }
}

template <class T>
void check(const Spec& spec, const Isa& isa, int line) {
  const Definition d(spec);
  const i64 nx = spec.batch * spec.in_channels * d.volume(d.in), ny = spec.batch * spec.out_channels * d.volume(d.out);
  const i64 nw = spec.in_channels * (spec.out_channels / spec.groups) * d.volume(d.taps);
  const std::vector<T> x = noise<T>(nx), w = noise<T>(nw), dy = noise<T>(ny), bias = noise<T>(spec.out_channels);
  std::vector<double> y(ny), ya(ny), dx(nx), dxa(nx), dw(nw), dwa(nw);
  for (i64 i = 0; i < ny; ++i) y[i] = bias[i / d.volume(d.out) % spec.out_channels], ya[i] = std::fabs(y[i]);
  d.each([&](i64 i, i64 t, i64 o) {
    y[o] += double(x[i]) * w[t], ya[o] += std::fabs(double(x[i]) * w[t]);
    dx[i] += double(dy[o]) * w[t], dxa[i] += std::fabs(double(dy[o]) * w[t]);
    dw[t] += double(dy[o]) * x[i], dwa[t] += std::fabs(double(dy[o]) * x[i]);
  });
  const View<const T> xv = dense<const T>(x.data(), spec.batch, spec.in_channels, d.in);
  const View<const T> dyv = dense<const T>(dy.data(), spec.batch, spec.out_channels, d.out);
  const View<const T> wv = dense<const T>(w.data(), spec.in_channels, spec.out_channels / spec.groups, d.taps);
  for (Method method : {Method::positions, Method::channels}) {
    for (Direction direction : {Direction::forward, Direction::grad_input}) {
      const bool forward = direction == Direction::forward;
      const Layer layer(spec, direction, isa, method, int(pick(1, 3)), sizeof(T));
      std::vector<T> packed(layer.weight_elements()), to(forward ? ny : nx);
      layer.pack<T>(wv, packed.data());
      const View<T> out = forward ? dense<T>(to.data(), 0, spec.out_channels, d.out) : dense<T>(to.data(), 0, spec.in_channels, d.in);
      layer.run<T>(forward ? xv : dyv, packed.data(), forward ? bias.data() : nullptr, out);
      compare(to, forward ? y : dx, forward ? ya : dxa, forward ? "forward" : "grad_input", isa.name, method, line);
    }
  }
  std::vector<T> grad(nw);
  grad_weight<T>(spec, isa, xv, dyv, dense<T>(grad.data(), 0, spec.out_channels / spec.groups, d.taps), int(pick(1, 3)));
  compare(grad, dw, dwa, "grad_weight", isa.name, Method::automatic, line);
}

Spec random_spec() {
  Spec s;
  s.groups = pick(1, 3);
  s.batch = pick(1, 3);
  s.in_channels = s.groups * pick(1, 6);
  s.out_channels = s.groups * pick(1, pick(0, 1) ? 4 : 20);
  const int rank = int(pick(1, 3));
  for (int i = 3 - rank; i < 3; ++i) {
    Axis& a = s.axis[i];
    a = {pick(1, rank == 1 ? 70 : i == 2 ? 18 : 6), pick(1, 5), pick(1, 4), pick(1, 3), 0, 0};
    a.lo = pick(-2, std::min<i64>(6, a.full() - 1));
    a.hi = pick(-2, std::min<i64>(6, a.full() - 1 - a.lo));
  }
  return s;
}

}  // namespace

int main(int count, char** values) {
  const int problems = count > 1 ? std::atoi(values[1]) : 100;
  int isas_here;
  const Isa* list = isas(&isas_here);
  for (int line = 0; line < problems; ++line) {
    const Spec spec = random_spec();
    for (int i = 0; i < isas_here; ++i)
      if (list[i].supported()) check<float>(spec, list[i], line), check<double>(spec, list[i], line);
  }
  std::string names;
  for (int i = 0; i < isas_here; ++i)
    if (list[i].supported()) names += std::string(" ") + list[i].name;
  std::printf("%d problems, 5 results each, on%s: %d failed\n", problems, names.c_str(), failures);
  return failures != 0;
}
