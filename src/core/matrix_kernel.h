// SPDX-License-Identifier: Apache-2.0
// The microkernel of matrix.h, on a unit that multiplies tiles: 16 rows of 16 words by 16 words of 16 lanes, where a word is a pair of
// bfloat16. Pixels and weights lie as tiles want them: a pixel's words are adjacent, and weights have a row of lanes for every word.
//
//   sums 0 1   pixels 0 .. 15 of two vectors of lanes    = pixels 4 times lanes 6, 7      (numbers are those of the unit's eight tiles)
//   sums 2 3   pixels 16 .. 31                           = pixels 5 times lanes 6, 7
//
// A `Unit` is the processor's (amx.h) or, in tests, a model of it.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace tconv {
namespace {

// Calls f(half, vector) for the sums of H times 16 pixels and V vectors, as constants.
template <int H, int V, class F>
inline __attribute__((always_inline)) void each_sum(F f) {
  f(Flag<0>{}, Flag<0>{});
  if constexpr (V > 1) f(Flag<0>{}, Flag<1>{});
  if constexpr (H > 1) f(Flag<1>{}, Flag<0>{});
  if constexpr (H > 1 && V > 1) f(Flag<1>{}, Flag<1>{});
}

template <class Unit, int H, int V>
void multiply_tiles(const TileProducts& of) {
  constexpr i64 lanes = V * kTileSide;
  const i64 pitch = of.pitch, half = kTileSide * pitch, words = of.words, step = of.sums_step;
  each_sum<H, V>([&](auto h, auto v) {  // the bias is one row for all
    constexpr int tile = 2 * h.value + v.value;
    of.bias ? Unit::template load<tile>(of.bias + v.value * kTileSide, 0) : Unit::template zero<tile>();
  });
  const i64 taps = of.taps, *pixels_at = of.pixels_at, *weights_at = of.weights_at;
  const float *pixels = of.pixels, *weights = of.weights;
  for (i64 word = 0; word < words; word += kTileSide, pixels += kTileSide, weights += kTileSide * lanes)
    for (i64 t = 0; t < taps; ++t) {
      const float *rows = pixels + pixels_at[t], *w = weights + weights_at[t];
      Unit::template load<4>(rows, pitch);  // loads between products: each is hidden by the product before it
      Unit::template load<6>(w, lanes);
      Unit::template add_products<0, 4, 6>();
      if constexpr (V > 1) Unit::template load<7>(w + kTileSide, lanes), Unit::template add_products<1, 4, 7>();
      if constexpr (H > 1) Unit::template load<5>(rows + half, pitch), Unit::template add_products<2, 5, 6>();
      if constexpr (H > 1 && V > 1) Unit::template add_products<3, 5, 7>();
    }
  each_sum<H, V>([&](auto h, auto v) {
    Unit::template store<2 * h.value + v.value>(of.sums + h.value * kTileSide * step + v.value * kTileSide, step);
  });
}

template <class Unit>
constexpr Kernels<float> with_tiles(Kernels<float> k) {
  k.unit = {Unit::begin,
            Unit::end,
            {{multiply_tiles<Unit, 1, 1>, multiply_tiles<Unit, 1, 2>}, {multiply_tiles<Unit, 2, 1>, multiply_tiles<Unit, 2, 2>}}};
  return k;
}

}  // namespace
}  // namespace tconv
