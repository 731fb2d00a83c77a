// SPDX-License-Identifier: Apache-2.0
// Arrays whose channels are adjacent, as lanes over channels want them, and the ways there and back from arrays of any strides.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <type_traits>

#include "kernels.h"
#include "spec.h"

namespace tconv {

constexpr i64 kRounded = 64;  // positions and channels that are rounded together

// A channels-last array of some images: strides (image, d, h, w); `data` is where position (0, 0, 0) is, or would be.
template <class T>
struct Pixels {
  T* data;
  i64 image, stride[3];
};

// `size` positions packed as (d, h, w, channel), `pitch` elements apart, of which the first one has the number `begin`.
template <class T>
Pixels<T> packed_pixels(T* data, const i64* size, i64 pitch, const i64* begin) {
  Pixels<T> p{data, size[0] * size[1] * size[2] * pitch, {size[1] * size[2] * pitch, size[2] * pitch, pitch}};
  for (int i = 0; i < 3; ++i) p.data -= begin[i] * p.stride[i];
  return p;
}

// An output whose channels are adjacent as such an array, where it holds what is summed.
template <class T, class S>
Pixels<T> as_pixels(const View<S>& out) {
  if constexpr (std::is_same_v<T, S>) return {out.data, out.stride[0], {out.stride[2], out.stride[3], out.stride[4]}};
  return {};
}

// Calls body(d, h, length) for stretches of positions that are adjacent at these strides, as long as they get.
template <class F>
void each_stretch(const i64* size, const i64* stride, F body) {
  const bool rows = stride[1] == size[2] * stride[2], planes = rows && stride[0] == size[1] * stride[1];
  const i64 length = planes ? size[0] * size[1] * size[2] : rows ? size[1] * size[2] : size[2];
  for (i64 d = 0; d < (planes ? 1 : size[0]); ++d)
    for (i64 h = 0; h < (rows ? 1 : size[1]); ++h) body(d, h, length);
}

// `size` positions of some images, of any strides, as channels-last ones.
template <class T>
void gather_pixels(const Kernels<T>& k, const View<const T>& in, const i64* size, i64 channels, i64 images, T* to, i64 pitch) {
  for (i64 n = 0; n < images; ++n)
    each_stretch(size, in.stride + 2, [&](i64 d, i64 h, i64 length) {
      const T* from = in.data + n * in.stride[0] + d * in.stride[2] + h * in.stride[3];
      T* pixel = to + ((n * size[0] + d) * size[1] + h) * size[2] * pitch;
      if (in.stride[4] == 1) return k.transpose(from, in.stride[1], pixel, pitch, channels, length, nullptr);
      for (i64 i = 0; i < length; ++i)
        for (i64 c = 0; c < channels; ++c) pixel[i * pitch + c] = from[i * in.stride[4] + c * in.stride[1]];
    });
}

// Elements begin .. begin + size - 1 of some images with adjacent channels: as they lie, or turned.
template <class T>
Pixels<const T> pixels_of(const Kernels<T>& k, View<const T> in, const i64* begin, const i64* size, i64 channels, i64 images, T* turned,
                          i64 pitch) {
  if (in.stride[1] == 1 || channels == 1) return {in.data, in.stride[0], {in.stride[2], in.stride[3], in.stride[4]}};
  for (int i = 0; i < 3; ++i) in.data += begin[i] * in.stride[2 + i];
  if (size[0] * size[1] * size[2] > 0) gather_pixels(k, in, size, channels, images, turned, pitch);
  return packed_pixels<const T>(turned, size, pitch, begin);
}

// Applies an activation to `lanes` adjacent channels of some images.
template <class T>
void activate_pixels(const Kernels<T>& k, const Pixels<T>& at, const i64* begin, const i64* size, i64 lanes, i64 images,
                     const Epilogue<T>& after) {
  if (after.activation == Activation::none) return;
  const bool adjacent = at.stride[2] == lanes;  // a row of positions is one
  for (i64 n = 0; n < images; ++n)
    for (i64 d = begin[0]; d < begin[0] + size[0]; ++d)
      for (i64 h = begin[1]; h < begin[1] + size[1]; ++h)
        for (i64 w = begin[2]; w < begin[2] + (adjacent ? 1 : size[2]); ++w)
          k.activate(at.data + n * at.image + d * at.stride[0] + h * at.stride[1] + w * at.stride[2], adjacent ? lanes * size[2] : lanes,
                     T(0), after.activation, after.slope);
}

// A stretch of positions of half precision: rows along channels as they are, rows along positions by way of a transposed few.
template <class T, class S>
void scatter_rounded(const Kernels<T>& k, const T* sums, i64 lanes, i64 length, i64 outputs, S* y, i64 channel, i64 column) {
  if (channel == 1 && column == outputs && lanes == outputs) return narrow(k, sums, length * outputs, y);
  if constexpr (std::is_same_v<S, BFloat16>)
    if (channel == 1) return k.half->narrow_rows(sums, lanes, &y->bits, column, length, outputs);
  if (channel == 1) {
    for (i64 i = 0; i < length; ++i) narrow(k, sums + i * lanes, outputs, y + i * column);
    return;
  }
  if constexpr (std::is_same_v<S, BFloat16>)
    if (column == 1) return k.half->turn(sums, lanes, &y->bits, channel, length, outputs);
  T rows[kRounded * kRounded];
  for (i64 i = 0; i < length; i += kRounded)
    for (i64 m = 0; m < outputs; m += kRounded) {
      const i64 positions = std::min(kRounded, length - i), channels = std::min(kRounded, outputs - m);
      k.transpose(sums + i * lanes + m, lanes, rows, kRounded, positions, channels, nullptr);
      for (i64 j = 0; j < channels; ++j)
        if (column == 1)
          narrow(k, rows + j * kRounded, positions, y + i + (m + j) * channel);
        else
          for (i64 q = 0; q < positions; ++q) narrow(k, rows + j * kRounded + q, 1, y + (i + q) * column + (m + j) * channel);
    }
}

// At the end of a task, since stores past the caches are ordered by nothing less.
inline void fence(bool streamed) {
  if (streamed) std::atomic_thread_fence(std::memory_order_seq_cst);
}

// Whether an array begins, and its steps are, whole lines.
template <class T>
bool whole_lines(const T* data, i64 step) {
  return (reinterpret_cast<std::uintptr_t>(data) | std::uintptr_t(step) * sizeof(T)) % kLine == 0;
}

// Sums (image, d, h, w, lane) to an output of any strides, past the caches where `stream` asks for it and rows allow it.
template <class T, class S>
void scatter_pixels(const Kernels<T>& k, const T* sums, const i64* size, i64 lanes, i64 images, i64 outputs, const View<S>& out,
                    bool stream) {
  for (i64 n = 0; n < images; ++n)
    each_stretch(size, out.stride + 2, [&](i64 d, i64 h, i64 length) {
      S* y = out.data + n * out.stride[0] + d * out.stride[2] + h * out.stride[3];
      const T* from = sums + ((n * size[0] + d) * size[1] + h) * size[2] * lanes;
      if constexpr (!std::is_same_v<T, S>) {
        scatter_rounded(k, from, lanes, length, outputs, y, out.stride[1], out.stride[4]);
      } else {
        const auto transpose = stream && whole_lines(y, out.stride[1]) ? k.transpose_past : k.transpose;
        if (out.stride[4] == 1) return transpose(from, lanes, y, out.stride[1], length, outputs, nullptr);
        if (out.stride[1] == 1) return k.copy(from, lanes, y, out.stride[4], length, 0, outputs, outputs);
        for (i64 i = 0; i < length; ++i)
          for (i64 m = 0; m < outputs; ++m) y[i * out.stride[4] + m * out.stride[1]] = from[i * lanes + m];
      }
    });
}

}  // namespace tconv
