// SPDX-License-Identifier: Apache-2.0
// Half precision to float and back, to nearest, ties to even; an element at a time and without branches, so that compilers make vectors
// of it for each instruction set. See vec.h for what may be included. (Rounding of float16: Giesen, "Float to half done quick", 2012.)
#pragma once

#include "kernels.h"
#include "vec.h"

namespace tconv {
namespace {

constexpr std::uint32_t kInfinity = 0x7f800000;

inline std::uint32_t bits_of(float x) { return __builtin_bit_cast(std::uint32_t, x); }
inline float float_of(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }

inline float from_bfloat16(std::uint16_t half) { return float_of(std::uint32_t(half) << 16); }

inline std::uint16_t to_bfloat16(float x) {
  const std::uint32_t u = bits_of(x), rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16, quiet = u >> 16 | 0x40;
  return std::uint16_t((u & 0x7fffffff) > kInfinity ? quiet : rounded);
}

// A vector of such, each in the upper half of its word, whose lower half is zero.
template <int N>
inline Vec<std::uint32_t, N> round_to_bfloat16(Vec<float, N> x) {
  Vec<std::uint32_t, N> found;
  if constexpr (N == 1) {
    found = std::uint32_t(to_bfloat16(x)) << 16;
  } else {
    const Vec<std::uint32_t, N> u = __builtin_bit_cast(Vec<std::uint32_t, N>, x);
    const auto nan = __builtin_bit_cast(Vec<std::uint32_t, N>, (u & 0x7fffffff) > kInfinity);
    found = ((nan & (u | 0x400000)) | (~nan & (u + 0x7fff + (u >> 16 & 1)))) & 0xffff0000;
  }
  return found;
}

// The exponent is moved by a multiplication, which is exact and makes subnormal numbers normal ones.
inline float from_float16(std::uint16_t half) {
  const std::uint32_t magnitude = std::uint32_t(half & 0x7fff) << 13, sign = std::uint32_t(half & 0x8000) << 16;
  const std::uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f);
  return float_of((magnitude >= 0x7c00u << 13 ? magnitude | kInfinity : finite) | sign);
}

inline std::uint16_t to_float16(float x) {
  constexpr std::uint32_t kHalf = 126u << 23, kSmallestNormal = 113u << 23, kTooLarge = 143u << 23, kShift = 112u << 23;
  const std::uint32_t u = bits_of(x) & 0x7fffffff, sign = bits_of(x) >> 16 & 0x8000;
  const std::uint32_t subnormal = bits_of(float_of(u) + 0.5f) - kHalf;  // the addition rounds to its last place, which is float16's
  const std::uint32_t normal = (u - kShift + 0xfff + (u >> 13 & 1)) >> 13;
  const std::uint32_t large = u > kInfinity ? 0x7e00 : 0x7c00;
  return std::uint16_t((u >= kTooLarge ? large : u < kSmallestNormal ? subnormal : normal) | sign);
}

void widen(const std::uint16_t* __restrict from, i64 count, float* __restrict to, Half kind) {
  if (kind == Half::bfloat16)
    for (i64 i = 0; i < count; ++i) to[i] = from_bfloat16(from[i]);
  else
    for (i64 i = 0; i < count; ++i) to[i] = from_float16(from[i]);
}

// A vector of numbers as bfloat16.
struct Rounded {
  template <int N>
  static Vec<std::uint16_t, N> vector(Vec<float, N> x) {
    return narrowed<N>(round_to_bfloat16<N>(x) >> 16);
  }
};

#if defined(__x86_64__)
// By the processor's own instruction (AVX-512 BF16), which takes numbers below 2^-126 for zero, as its products do.
struct RoundedByProcessor {
  template <int N>
  static Vec<std::uint16_t, N> vector(Vec<float, N> x) {
    if constexpr (N == 16) {
      Vec<std::uint16_t, N> found;
      asm("vcvtneps2bf16 %1, %0" : "=v"(found) : "v"(x));
      return found;
    } else {
      return Rounded::vector<N>(x);
    }
  }
};
#endif

// The last vector overlaps the one before it.
template <class R, int N>
inline void narrow_run(const float* from, i64 count, std::uint16_t* to) {
  const auto put = [&](i64 i) { store(to + i, R::template vector<N>(load<Vec<float, N>>(from + i))); };
  i64 i = 0;
  for (; i + N <= count; i += N) put(i);
  if (i == count) return;
  if (count >= N) return put(count - N);
  if constexpr (N > 1) narrow_run<R, N / 2>(from, count, to);
}

template <class R, int N>
void narrow(const float* __restrict from, i64 count, std::uint16_t* __restrict to, Half kind) {
  if (kind != Half::bfloat16) {
    for (i64 i = 0; i < count; ++i) to[i] = to_float16(from[i]);
    return;
  }
  narrow_run<R, N>(from, count, to);
}

// Rows that are shorter than a vector and follow one another are stored by whole ones, of which the next rows overwrite what is too much.
template <class R, int N>
void narrow_rows(const float* from, i64 from_pitch, std::uint16_t* to, i64 to_pitch, i64 rows, i64 count) {
  if (count < N && to_pitch == count && from_pitch >= N)
    for (; rows * count >= N + count; --rows, from += from_pitch, to += to_pitch)
      store(to, R::template vector<N>(load<Vec<float, N>>(from)));
  for (; rows > 0; --rows, from += from_pitch, to += to_pitch) narrow_run<R, N>(from, count, to);
}

// Squares in registers; the last one along positions overlaps the one before it, and the last one along channels may hold lanes that are
// none, as long as there are so many to read.
template <class R, int N>
void turn_squares(const float* from, i64 from_pitch, std::uint16_t* to, i64 to_pitch, i64 as, i64 bs, i64 lanes) {
  if constexpr (N == 1) {
    for (i64 a = 0; a < as; ++a)
      for (i64 b = 0; b < bs; ++b) to[a + b * to_pitch] = to_bfloat16(from[a * from_pitch + b]);
  } else {
    if (as < N) return turn_squares<R, N / 2>(from, from_pitch, to, to_pitch, as, bs, lanes);
    const auto square = [&](i64 a, i64 b, i64 most) __attribute__((always_inline)) {
      Vec<float, N> v[N];
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) v[i] = load<Vec<float, N>>(from + (a + i) * from_pitch + b);
      transpose_square(v);
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) {
        if (i >= most) break;
        store(to + a + (b + i) * to_pitch, R::template vector<N>(v[i]));
      }
    };
    i64 b = 0;
    for (; b < bs && b + N <= lanes; b += N)
      for (i64 a = 0; a < as; a += N) square(a + N <= as ? a : as - N, b, bs - b);
    if (b < bs) turn_squares<R, N / 2>(from + b, from_pitch, to + b * to_pitch, to_pitch, as, bs - b, lanes - b);
  }
}
template <class R, int N>
void turn(const float* from, i64 from_pitch, std::uint16_t* to, i64 to_pitch, i64 as, i64 bs) {
  turn_squares<R, N>(from, from_pitch, to, to_pitch, as, bs, from_pitch);
}

void pair(const std::uint16_t* __restrict first, const std::uint16_t* __restrict second, i64 count, float* __restrict to) {
  if (second)
    for (i64 i = 0; i < count; ++i) to[i] = float_of(std::uint32_t(first[i]) | std::uint32_t(second[i]) << 16);
  else
    for (i64 i = 0; i < count; ++i) to[i] = float_of(first[i]);
}

}  // namespace
}  // namespace tconv
