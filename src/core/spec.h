// SPDX-License-Identifier: Apache-2.0
// What the core is told: the geometry of a problem and where its arrays lie. Integers and pointers only.
#pragma once

#include <cstdint>

namespace tconv {

using i64 = std::int64_t;

// One spatial axis in canonical form: full[i * stride + t * dilation] += x[i] * w[t], then the crop (lo, hi).
struct Axis {
  i64 size = 1, kernel = 1, stride = 1, dilation = 1, lo = 0, hi = 0;

  i64 full() const { return (size - 1) * stride + dilation * (kernel - 1) + 1; }
  i64 output() const { return full() - lo - hi; }
};

// Lower ranks are lifted to three axes (depth, height, width) with leading axes of size 1.
struct Spec {
  Axis axis[3];
  i64 batch = 1, in_channels = 1, out_channels = 1, groups = 1;
};

// A strided array of five axes. Data: (n, c, d, h, w); weight: (in channel, out channel of the group, d, h, w).
// Every layout, view and flip is a choice of strides (in elements), so the core knows none of them by name.
template <class T>
struct View {
  T* data = nullptr;
  i64 stride[5] = {0, 0, 0, 0, 0};
};

inline i64 floor_div(i64 a, i64 b) { return a / b - (a % b != 0 && (a % b < 0) != (b < 0)); }
inline i64 floor_mod(i64 a, i64 b) { return a - floor_div(a, b) * b; }
inline i64 ceil_div(i64 a, i64 b) { return -floor_div(-a, b); }
inline i64 round_up(i64 a, i64 b) { return ceil_div(a, b) * b; }

// The piece size that splits n into equal pieces of at most `most`.
inline i64 even(i64 n, i64 most) { return ceil_div(n, ceil_div(n, most > 1 ? most : 1)); }

// Where piece `index` of so many of n begins: they differ by one at most, larger ones first.
inline i64 piece_begin(i64 index, i64 pieces, i64 n) { return ceil_div(index * n, pieces); }

}  // namespace tconv
