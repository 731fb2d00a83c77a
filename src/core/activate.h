// SPDX-License-Identifier: Apache-2.0
// What follows the sums, in vectors: bias, then relu, leaky_relu, tanh or sigmoid. See vec.h for what may be included.
//
// Both curves come from q = expm1(r) of a reduced argument z = -n ln 2 + r, |r| <= ln 2 / 2 (Cody and Waite, Software Manual for the
// Elementary Functions, 1980: ln 2 in two parts, so that n times the first one is exact), n >= 0 because only e^-|.| is ever needed:
//
//   q = r + r^2 P(r)         P: (e^r - 1 - r) / r^2, interpolated at the Chebyshev nodes of [-ln 2 / 2, ln 2 / 2] in 80 digits and
//                            rounded (tests/test_activation.py makes the coefficients again)
//   sigmoid(x) = 1 / (1 + e) for x >= 0, e / (1 + e) below, with e = 2^-n (1 + q) = exp(-|x|): right down to subnormal results
//   tanh(x) = -m / (2 + m) with the sign of x, and m = 2^-n q + (2^-n - 1) = expm1(-2 |x|): right down to subnormal x
//
// Both lie within 3 units in the last place of the true value for every x: no element calls a library.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "vec.h"

namespace tconv {
namespace {

template <class T>
struct Curve;

template <>
struct Curve<float> {
  using Bits = std::uint32_t;
  static constexpr int kMantissa = 23;
  static constexpr Bits kBias = 127, kSign = Bits(1) << 31;
  static constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: added to n, its last bits are n
  static constexpr float kHigh = 0.693359375f, kLow = -0.00021219444f;
  static constexpr float kLowest = -104.0f;  // exp of less is zero
  static constexpr float kP[] = {0.5f, 0.16666667f, 0.041666467f, 0.0083333105f, 0.0013933642f, 0.00019890981f};
};

template <>
struct Curve<double> {
  using Bits = std::uint64_t;
  static constexpr int kMantissa = 52;
  static constexpr Bits kBias = 1023, kSign = Bits(1) << 63;
  static constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kHigh = 0.69314718036912381649017333984375, kLow = 1.9082149292705877e-10;
  static constexpr double kLowest = -746.0;
  static constexpr double kP[] = {0.5,
                                  0.1666666666666667,
                                  0.04166666666666667,
                                  0.008333333333326141,
                                  0.0013888888888883752,
                                  0.00019841269874800493,
                                  2.4801587325533363e-05,
                                  2.7557255425746435e-06,
                                  2.7557273661348637e-07,
                                  2.510520637395701e-08,
                                  2.0914679376583935e-09};
};

template <class To, class V>
inline To bits_as(V v) {
  static_assert(sizeof(To) == sizeof(V));
  To to;
  __builtin_memcpy(&to, &v, sizeof to);
  return to;
}

template <class T, int N>
struct Reduced {
  using C = Curve<T>;
  using vec = Vec<T, N>;
  using bits = Vec<typename C::Bits, N>;

  bits n;
  vec q;  // expm1(r)

  // z <= 0, not far beyond kLowest, or NaN: then q is NaN and n any number.
  explicit Reduced(vec z) {
    const vec rounded = z * T(1.4426950408889634) + C::kMagic, whole = rounded - C::kMagic;
    n = bits_as<bits>(vec{} + C::kMagic) - bits_as<bits>(rounded);
    const vec r = (z - whole * C::kHigh) - whole * C::kLow;
    constexpr int last = int(sizeof C::kP / sizeof(T)) - 1;
    vec p = vec{} + C::kP[last];
#pragma GCC unroll 16
    for (int i = last - 1; i >= 0; --i) p = p * r + C::kP[i];
    q = r + r * r * p;
  }

  static vec power(bits m) { return bits_as<vec>((C::kBias - m) << C::kMantissa); }  // 2^-m
  vec expm1() const {
    const vec scale = power(n);
    return scale * q + (scale - T(1));
  }
  // In two steps, since 2^-n itself may be no normal number.
  vec exp() const { return (q + T(1)) * power(n >> 1) * power(n - (n >> 1)); }
};

template <class T, int N>
inline Vec<T, N> magnitude(Vec<T, N> x) {
  using bits = typename Reduced<T, N>::bits;
  return bits_as<Vec<T, N>>(bits_as<bits>(x) & ~Curve<T>::kSign);
}

// A comparison with NaN is false, so that NaN goes on.
template <class T, int N>
inline Vec<T, N> at_least(Vec<T, N> x, T least) {
  const Vec<T, N> low = Vec<T, N>{} + least;
  return x < low ? low : x;
}

template <class T, int N>
inline Vec<T, N> sigmoid(Vec<T, N> x) {
  using vec = Vec<T, N>;
  const vec zero = {}, one = zero + T(1);
  const vec e = Reduced<T, N>(at_least<T, N>(-magnitude<T, N>(x), Curve<T>::kLowest)).exp();
  return (x >= zero ? one : e) / (one + e);
}

template <class T, int N>
inline Vec<T, N> tanh(Vec<T, N> x) {
  using vec = Vec<T, N>;
  using bits = typename Reduced<T, N>::bits;
  // Beyond -40 even 1 + expm1 is nothing beside 1.
  const vec m = Reduced<T, N>(at_least<T, N>(T(-2) * magnitude<T, N>(x), T(-40))).expm1();
  const vec y = magnitude<T, N>(m / (m + T(2)));
  return bits_as<vec>(bits_as<bits>(y) | (bits_as<bits>(x) & Curve<T>::kSign));
}

// Whole vectors where they lie, the last elements by way of a vector of their own: every element goes through the same instructions.
template <class T, int N, class F>
inline void each_vector(T* row, i64 count, T bias, F f) {
  using vec = Vec<T, N>;
  T part[N] = {};
  for (; count > 0; row += N, count -= N) {
    T* at = row;
    if (count < N) {
      at = part;
      for (i64 i = 0; i < count; ++i) part[i] = row[i];
    }
    store(at, f(load<vec>(at) + bias));
    for (i64 i = 0; count < N && i < count; ++i) row[i] = part[i];
  }
}

template <class T, int N>
void activate(T* row, i64 count, T bias, Activation kind, T slope) {
  using vec = Vec<T, N>;
  const vec zero = {};
  switch (kind) {
    case Activation::none:
      return each_vector<T, N>(row, count, bias, [](vec x) { return x; });
    case Activation::relu:
      return each_vector<T, N>(row, count, bias, [=](vec x) { return x < zero ? zero : x; });
    case Activation::leaky_relu:
      return each_vector<T, N>(row, count, bias, [=](vec x) { return x < zero ? x * slope : x; });
    case Activation::tanh:
      return each_vector<T, N>(row, count, bias, [](vec x) { return tanh<T, N>(x); });
    case Activation::sigmoid:
      return each_vector<T, N>(row, count, bias, [](vec x) { return sigmoid<T, N>(x); });
  }
}

}  // namespace
}  // namespace tconv
