// SPDX-License-Identifier: Apache-2.0
// Arrays whose channels are adjacent, as lanes over channels want them, and the ways there and back from arrays of any strides.
#pragma once

#include "kernels.h"
#include "spec.h"

namespace tconv {

// A channels-last array of some images: strides (image, d, h, w); `data` is where position (0, 0, 0) is, or would be.
template <class T>
struct Pixels {
  T* data;
  i64 image, stride[3];
};

// `size` positions packed as (d, h, w, channel), of which the first one has the number `begin`.
template <class T>
Pixels<T> packed_pixels(T* data, const i64* size, i64 channels, const i64* begin) {
  Pixels<T> p{data, size[0] * size[1] * size[2] * channels, {size[1] * size[2] * channels, size[2] * channels, channels}};
  for (int i = 0; i < 3; ++i) p.data -= begin[i] * p.stride[i];
  return p;
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
void gather_pixels(const Kernels<T>& k, const View<const T>& in, const i64* size, i64 channels, i64 images, T* to) {
  for (i64 n = 0; n < images; ++n)
    each_stretch(size, in.stride + 2, [&](i64 d, i64 h, i64 length) {
      const T* from = in.data + n * in.stride[0] + d * in.stride[2] + h * in.stride[3];
      T* pixel = to + ((n * size[0] + d) * size[1] + h) * size[2] * channels;
      if (in.stride[4] == 1) return k.transpose(from, in.stride[1], pixel, channels, channels, length, nullptr);
      for (i64 i = 0; i < length; ++i)
        for (i64 c = 0; c < channels; ++c) pixel[i * channels + c] = from[i * in.stride[4] + c * in.stride[1]];
    });
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

// Sums (image, d, h, w, lane) to an output of any strides.
template <class T>
void scatter_pixels(const Kernels<T>& k, const T* sums, const i64* size, i64 lanes, i64 images, i64 outputs, const View<T>& out) {
  for (i64 n = 0; n < images; ++n)
    each_stretch(size, out.stride + 2, [&](i64 d, i64 h, i64 length) {
      T* y = out.data + n * out.stride[0] + d * out.stride[2] + h * out.stride[3];
      const T* from = sums + ((n * size[0] + d) * size[1] + h) * size[2] * lanes;
      if (out.stride[4] == 1) return k.transpose(from, lanes, y, out.stride[1], length, outputs, nullptr);
      if (out.stride[1] == 1) return k.copy(from, lanes, y, out.stride[4], length, 0, outputs, outputs);
      for (i64 i = 0; i < length; ++i)
        for (i64 m = 0; m < outputs; ++m) y[i * out.stride[4] + m * out.stride[1]] = from[i * lanes + m];
    });
}

}  // namespace tconv
