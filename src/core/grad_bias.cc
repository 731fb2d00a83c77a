// SPDX-License-Identifier: Apache-2.0
// Short sums in the arrays' precision, their totals in double: one pass that waits for memory and rounds like one addition. Rows are cut
// into pieces by the problem alone, and the pieces added in their order.
#include "grad_bias.h"

#include <algorithm>
#include <vector>

#include "parallel.h"

namespace tconv {
namespace {

constexpr i64 kTerms = 256, kSide = 16;  // of a short sum, and how many run side by side
constexpr i64 kPieces = 64;              // most pieces that images and rows are cut into

// The sum of a row.
template <class T>
double total(const T* row, i64 count, i64 stride) {
  double sum = 0;
  for (i64 begin = 0; begin < count; begin += kTerms * kSide) {
    const i64 end = std::min(count, begin + kTerms * kSide);
    T side[kSide] = {};
    i64 i = begin;
    if (stride == 1)
      for (; i + kSide <= end; i += kSide)
        for (i64 s = 0; s < kSide; ++s) side[s] += row[i + s];
    for (; i < end; ++i) side[i % kSide] += row[i * stride];
    for (T s : side) sum += double(s);
  }
  return sum;
}

// Adds rows of adjacent channels to their sums.
template <class T>
void add_channels(const T* row, i64 count, i64 stride, i64 channels, std::vector<T>& few, double* sums) {
  for (i64 begin = 0; begin < count; begin += kTerms) {
    std::fill(few.begin(), few.end(), T(0));
    for (i64 i = begin; i < std::min(count, begin + kTerms); ++i)
      for (i64 c = 0; c < channels; ++c) few[std::size_t(c)] += row[i * stride + c];
    for (i64 c = 0; c < channels; ++c) sums[c] += double(few[std::size_t(c)]);
  }
}

}  // namespace

template <class T>
void grad_bias(const Spec& spec, View<const T> dy, T* grad, int threads) {
  const i64 channels = spec.out_channels, size[] = {spec.axis[0].output(), spec.axis[1].output(), spec.axis[2].output()};
  const bool deep = dy.stride[2] == size[1] * dy.stride[3], flat = dy.stride[3] == size[2] * dy.stride[4];  // rows that are one stretch
  const i64 all = spec.batch * size[0] * size[1], most = flat ? (deep ? size[0] * size[1] : size[1]) : 1;
  const i64 joined = all / most >= kPieces ? most : 1, rows = all / joined;
  const i64 pieces = std::clamp<i64>(rows, 1, kPieces);
  std::vector<double> sums(std::size_t(pieces * channels));
  parallel_for(pieces, threads, [&](i64 piece) {
    double* to = sums.data() + piece * channels;
    std::vector<T> few(static_cast<std::size_t>(channels));
    for (i64 r = piece * rows / pieces; r < (piece + 1) * rows / pieces; ++r) {
      const i64 at = r * joined, h = at % size[1], d = at / size[1] % size[0], n = at / size[1] / size[0];
      const T* row = dy.data + n * dy.stride[0] + d * dy.stride[2] + h * dy.stride[3];
      if (dy.stride[1] == 1 && channels > 1)
        add_channels(row, joined * size[2], dy.stride[4], channels, few, to);
      else
        for (i64 c = 0; c < channels; ++c) to[c] += total(row + c * dy.stride[1], joined * size[2], dy.stride[4]);
    }
  });
  for (i64 c = 0; c < channels; ++c) {
    double sum = 0;
    for (i64 piece = 0; piece < pieces; ++piece) sum += sums[std::size_t(piece * channels + c)];
    grad[c] = T(sum);
  }
}

template void grad_bias<float>(const Spec&, View<const float>, float*, int);
template void grad_bias<double>(const Spec&, View<const double>, double*, int);

}  // namespace tconv
