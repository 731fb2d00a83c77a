// SPDX-License-Identifier: Apache-2.0
#include "depthwise.h"

#include <algorithm>

#include "parallel.h"

namespace tconv {
namespace {

constexpr i64 kRowBytes = 32 << 10;  // of output a task, at least

// The input that an output reads through a tap; reads() tells whether there is one.
i64 input_of(const StencilAxis& a, i64 output, const Tap& tap) {
  return a.in_stride * ((output + a.out_lo - tap.out_phase) / a.out_stride - tap.shift) + tap.in_phase - a.in_lo;
}
bool reads(const StencilAxis& a, i64 output, const Tap& tap) {
  const i64 at = input_of(a, output, tap);
  return floor_mod(output + a.out_lo, a.out_stride) == tap.out_phase && at >= 0 && at < a.in_size;
}

// The taps that an output of an axis reads.
std::vector<Tap> taps_at(const StencilAxis& a, i64 output) {
  std::vector<Tap> found;
  for (const Tap& t : a.taps)
    if (reads(a, output, t)) found.push_back(t);
  return found;
}

bool same(const std::vector<Tap>& x, const std::vector<Tap>& y) {
  return std::equal(x.begin(), x.end(), y.begin(), y.end(), [](const Tap& s, const Tap& t) { return s.tap == t.tap; });
}

// The operands of one row of output: for every tap of the outer axes that reads a row of input, and every tap of a stretch.
template <class T>
struct Operands {
  std::vector<const T*> x, w;

  Operands(const Depthwise& p, const Depthwise::Stretch& s, const std::vector<Tap>& ds, const std::vector<Tap>& hs, i64 od, i64 oh,
           const View<const T>& in, const T* image, const T* packed) {
    for (const Tap& d : ds)
      for (const Tap& h : hs)
        for (const Tap& t : s.taps) {
          x.push_back(image + input_of(p.axis[0], od, d) * in.stride[2] + input_of(p.axis[1], oh, h) * in.stride[3] +
                      input_of(p.axis[2], s.first, t) * in.stride[4]);
          w.push_back(packed + ((d.tap * p.axis[1].kernel + h.tap) * p.axis[2].kernel + t.tap) * p.channels);
        }
  }
};

// An array with adjacent channels: a view of it, or a copy when its strides spread them.
template <class T>
struct Adjacent {
  std::vector<std::remove_const_t<T>> copy;
  View<T> view, original;
  i64 extent[5];

  Adjacent(const View<T>& v, i64 batch, i64 channels, i64 d, i64 h, i64 w) : view(v), original(v), extent{batch, channels, d, h, w} {
    if (v.stride[1] == 1) return;
    copy.resize(std::size_t(batch * d * h * w * channels));
    view = {copy.data(), {d * h * w * channels, 1, h * w * channels, w * channels, channels}};
  }
  // Calls f(element of the copy, element of the original) for all of them.
  template <class F>
  void each(F f) {
    if (copy.empty()) return;
    auto at = copy.begin();
    for (i64 n = 0; n < extent[0]; ++n)
      for (i64 d = 0; d < extent[2]; ++d)
        for (i64 h = 0; h < extent[3]; ++h)
          for (i64 w = 0; w < extent[4]; ++w)
            for (i64 c = 0; c < extent[1]; ++c)
              f(*at++, original.data[n * original.stride[0] + c * original.stride[1] + d * original.stride[2] + h * original.stride[3] +
                                     w * original.stride[4]]);
  }
};

}  // namespace

Depthwise::Depthwise(const Spec& spec, Direction direction, int threads_)
    : batch(spec.batch), channels(spec.groups), taps(1), threads(threads_) {
  for (int i = 0; i < 3; ++i) {
    axis[i] = StencilAxis(spec.axis[i], direction);
    taps *= axis[i].kernel;
  }
  const StencilAxis& w = axis[2];
  for (i64 phase = 0; phase < std::min(w.out_stride, w.out_size); ++phase)
    for (i64 o = phase; o < w.out_size; o += w.out_stride) {
      std::vector<Tap> found = taps_at(w, o);
      if (o > phase && same(stretches.back().taps, found))
        ++stretches.back().count;
      else
        stretches.push_back({o, 1, std::move(found)});
    }
}

double cycles(const Depthwise& p, int lanes) {
  double terms = 0;
  for (const StencilAxis& a : p.axis) terms = std::max(terms, double(a.taps.size()));
  const double outputs = double(p.batch) * double(p.axis[0].out_size) * double(p.axis[1].out_size) * double(p.axis[2].out_size);
  double each = 1;
  for (const StencilAxis& a : p.axis) each *= double(a.taps.size()) / double(std::max<i64>(1, std::min(a.out_stride, a.kernel)));
  const i64 vectors = p.channels < lanes ? p.channels : ceil_div(p.channels, lanes);
  return outputs * double(vectors) * (1.5 * each + 6);
}

template <class T>
void pack_weights(const Depthwise& p, const Kernels<T>&, View<const T> weight, i64 group_stride, T* packed) {
  for (i64 d = 0; d < p.axis[0].kernel; ++d)
    for (i64 h = 0; h < p.axis[1].kernel; ++h)
      for (i64 w = 0; w < p.axis[2].kernel; ++w)
        for (i64 c = 0; c < p.channels; ++c)
          *packed++ = weight.data[c * group_stride + d * weight.stride[2] + h * weight.stride[3] + w * weight.stride[4]];
}

namespace {

template <class T>
void run_adjacent(const Depthwise& p, const Kernels<T>& k, const View<const T>& in, const T* packed, const Epilogue<T>& epilogue,
                  const View<T>& out) {
  const i64 rows = p.axis[0].out_size * p.axis[1].out_size;
  const i64 at_once = std::max<i64>(1, kRowBytes / (p.axis[2].out_size * p.channels * i64(sizeof(T))));
  const i64 chunks = ceil_div(rows, at_once);
  // Long rows, as in 1-D, are cut as well.
  const i64 cuts = std::max<i64>(
      1, std::min(p.axis[2].out_size * p.channels * i64(sizeof(T)) / kRowBytes, 4 * p.threads / std::max<i64>(1, p.batch * chunks)));
  parallel_for(p.batch * chunks * cuts, p.threads, [&](i64 task) {
    const i64 image = task / (chunks * cuts), chunk = task / cuts % chunks, cut = task % cuts;
    for (i64 row = chunk * at_once; row < std::min(rows, (chunk + 1) * at_once); ++row) {
      const i64 od = row / p.axis[1].out_size, oh = row % p.axis[1].out_size;
      const std::vector<Tap> ds = taps_at(p.axis[0], od), hs = taps_at(p.axis[1], oh);
      T* y = out.data + image * out.stride[0] + od * out.stride[2] + oh * out.stride[3];
      for (const Depthwise::Stretch& s : p.stretches) {
        const i64 begin = cut * s.count / cuts, end = (cut + 1) * s.count / cuts;
        const i64 x_step = p.axis[2].in_stride * in.stride[4], y_step = p.axis[2].out_stride * out.stride[4];
        const Operands<T> from(p, s, ds, hs, od, oh, in, in.data + image * in.stride[0] + begin * x_step, packed);
        k.depthwise(y + s.first * out.stride[4] + begin * y_step, y_step, from.x.data(), x_step, from.w.data(), i64(from.x.size()),
                    end - begin, p.channels, epilogue.bias);
        if (epilogue.activation != Activation::none)
          for (i64 q = begin; q < end; ++q)
            k.activate(y + s.first * out.stride[4] + q * y_step, p.channels, T(0), epilogue.activation, epilogue.slope);
      }
    }
  });
}

}  // namespace

template <class T>
void run(const Depthwise& p, const Kernels<T>& k, View<const T> x, const T* packed, const Epilogue<T>& epilogue, View<T> y) {
  const StencilAxis* a = p.axis;
  Adjacent<const T> inputs(x, p.batch, p.channels, a[0].in_size, a[1].in_size, a[2].in_size);
  Adjacent<T> outputs(y, p.batch, p.channels, a[0].out_size, a[1].out_size, a[2].out_size);
  inputs.each([](T& copy, const T& original) { copy = original; });
  run_adjacent(p, k, inputs.view, packed, epilogue, outputs.view);
  outputs.each([](const T& copy, T& original) { original = copy; });
}

#define TCONV_DEPTHWISE(T)                                                                    \
  template void pack_weights<T>(const Depthwise&, const Kernels<T>&, View<const T>, i64, T*); \
  template void run<T>(const Depthwise&, const Kernels<T>&, View<const T>, const T*, const Epilogue<T>&, View<T>);
TCONV_DEPTHWISE(float)
TCONV_DEPTHWISE(double)

}  // namespace tconv
