// SPDX-License-Identifier: Apache-2.0
// The microkernels of lanes over channels on a matrix unit, which multiplies tiles: 16 rows of 16 words by 16 words of 16 lanes, where a
// word is a pair of bfloat16. What the others broadcast and multiply one by one are the tiles' own layouts: rows are pixels, whose words
// are adjacent, and a block of weights has a row of lanes for every word.
//
//   sums 0 1   rows 0 .. 15 of two vectors of lanes      = rows 4 times lanes 6, 7      (numbers are those of the unit's eight tiles)
//   sums 2 3   rows 16 .. 31                             = rows 5 times lanes 6, 7
//
// Tiles are whole always: words are padded with zeros, in memory, and rows that lie at uneven steps, or are fewer than 16, are copied
// side by side on the way. A `Unit` is the processor's (isa_avx512.cc) or, in tests, a model of it.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace tconv {
namespace {

constexpr i64 kTileFloats = kTileSide * kTileSide;

// Rows of a tile, 16 at most.
struct EvenRows {
  const float* first;
  i64 step, count;
  const float* operator[](i64 r) const { return first + r * step; }
  bool even() const { return count == kTileSide || step == 0; }  // of step 0: one row for all
};
struct AnyRows {
  const float* const* rows;
  i64 count, step;
  AnyRows(const float* const* rows_, i64 count_) : rows(rows_), count(count_), step(count_ > 1 ? rows_[1] - rows_[0] : 0) {}
  const float* operator[](i64 r) const { return rows[r]; }
  bool even() const {
    i64 other = count - kTileSide;
    for (i64 r = 1; r < count; ++r) other |= (rows[r] - rows[0]) ^ (r * step);
    return other == 0;
  }
};

template <class Unit, int Tile, class Rows>
inline void load_rows(const Rows& rows, bool even, i64 column, float* room) {
  if (even) return Unit::template load<Tile>(rows[0] + column, rows.step);
  for (i64 r = 0; r < rows.count; ++r) __builtin_memcpy(room + r * kTileSide, rows[r] + column, kTileSide * sizeof(float));
  Unit::template load<Tile>(room, kTileSide);
}

template <class Unit, int Tile, class Rows>
inline void store_rows(const Rows& rows, bool even, i64 column, float* room) {
  if (even) return Unit::template store<Tile>(const_cast<float*>(rows[0]) + column, rows.step);
  Unit::template store<Tile>(room, kTileSide);
  for (i64 r = 0; r < rows.count; ++r)
    __builtin_memcpy(const_cast<float*>(rows[r]) + column, room + r * kTileSide, kTileSide * sizeof(float));
}

// Calls f(half, vector) for the sums of H times 16 rows and V vectors, as constants.
template <int H, int V, class F>
inline __attribute__((always_inline)) void each_sum(F f) {
  f(Flag<0>{}, Flag<0>{});
  if constexpr (V > 1) f(Flag<0>{}, Flag<1>{});
  if constexpr (H > 1) f(Flag<1>{}, Flag<0>{});
  if constexpr (H > 1 && V > 1) f(Flag<1>{}, Flag<1>{});
}

// Adds the products of one tap: words first .. last - 1 of the rows, times their lanes.
template <class Unit, int H, int V, class Rows>
inline __attribute__((always_inline)) void add_tap(i64 first, i64 last, const Rows (&rows)[H], const float* w) {
  alignas(64) float room[H][kTileFloats];
  bool even[H];
  for (int h = 0; h < H; ++h) even[h] = rows[h].even();
  for (i64 c = first; c < last; c += kTileSide) {
    const float* lanes = w + c * V * kTileSide;
    load_rows<Unit, 4>(rows[0], even[0], c, room[0]);
    if constexpr (H > 1) load_rows<Unit, 5>(rows[1], even[1], c, room[1]);
    Unit::template load<6>(lanes, V * kTileSide);
    if constexpr (V > 1) Unit::template load<7>(lanes + kTileSide, V * kTileSide);
    each_sum<H, V>([](auto h, auto v) { Unit::template add_products<2 * h.value + v.value, 4 + h.value, 6 + v.value>(); });
  }
}

// Sums begin with what lies at `base`, or with zeros.
template <class Unit, int H, int V, class Rows>
inline __attribute__((always_inline)) void begin_sums(const Rows (&base)[H], bool any) {
  alignas(64) float room[kTileFloats];
  each_sum<H, V>([&](auto h, auto v) {
    constexpr int tile = 2 * h.value + v.value;
    any ? load_rows<Unit, tile>(base[h.value], base[h.value].even(), v.value * kTileSide, room) : Unit::template zero<tile>();
  });
}
template <class Unit, int H, int V, class Rows>
inline __attribute__((always_inline)) void end_sums(const Rows (&out)[H]) {
  alignas(64) float room[kTileFloats];
  each_sum<H, V>(
      [&](auto h, auto v) { store_rows<Unit, 2 * h.value + v.value>(out[h.value], out[h.value].even(), v.value * kTileSide, room); });
}

// H such sides of `count` rows.
template <int H, class F>
inline auto halves(i64 count, F rows) {
  using Rows = decltype(rows(i64(0), count));
  struct Found {
    Rows of[H];
  };
  if constexpr (H == 1)
    return Found{{rows(0, count)}};
  else
    return Found{{rows(0, kTileSide), rows(kTileSide, count - kTileSide)}};
}

template <class Unit, int R, int V>
void gathered_tiles(i64 first, i64 last, i64 taps, const float* const* rows, const i64* offsets, const float* w, float* const* out,
                    const float* bias, bool add) {
  constexpr int H = R > kTileSide ? 2 : 1;
  const auto to = halves<H>(R, [&](i64 r, i64 count) { return AnyRows(out + r, count); });
  if (add)
    begin_sums<Unit, H, V>(to.of, true);
  else
    begin_sums<Unit, H, V>(halves<H>(R, [&](i64, i64) { return EvenRows{bias, 0, kTileSide}; }).of, bias);
  for (i64 t = 0; t < taps; ++t, rows += R)
    add_tap<Unit, H, V>(first, last, halves<H>(R, [&](i64 r, i64 count) { return AnyRows(rows + r, count); }).of, w + offsets[t]);
  end_sums<Unit, H, V>(to.of);
}

template <class Unit, int R, int V>
void stepped_tiles(i64 first, i64 last, i64 taps, const float* const* rows, i64 row_step, const i64* offsets, const float* w,
                   const Sums<float>& sums, i64 tiles) {
  constexpr int H = R > kTileSide ? 2 : 1;
  const auto even = [](const float* at, i64 step) {
    return halves<H>(R, [=](i64 r, i64 count) { return EvenRows{at + r * step, step, count}; });
  };
  const float* base = sums.base ? sums.base : sums.out;
  for (i64 tile = 0; tile < tiles; ++tile) {
    begin_sums<Unit, H, V>(even(base + tile * R * sums.base_step, sums.base_step).of, sums.base);
    for (i64 t = 0; t < taps; ++t) add_tap<Unit, H, V>(first, last, even(rows[t] + tile * R * row_step, row_step).of, w + offsets[t]);
    end_sums<Unit, H, V>(even(sums.out + tile * R * sums.out_step, sums.out_step).of);
  }
}

// A table whose words are pairs of bfloat16, multiplied by the unit.
template <class Unit, int R = kTallRows>
constexpr void fill_tiles(Kernels<float>& k) {
  k.gathered[1][R] = gathered_tiles<Unit, R, 1>, k.gathered[2][R] = gathered_tiles<Unit, R, 2>;
  k.stepped[1][R] = stepped_tiles<Unit, R, 1>, k.stepped[2][R] = stepped_tiles<Unit, R, 2>;
  if constexpr (R > 1) fill_tiles<Unit, R - 1>(k);
}
template <class Unit>
constexpr Kernels<float> with_tiles(Kernels<float> k) {
  fill_tiles<Unit>(k);
  k.unit = {Unit::begin, Unit::end};
  return k;
}

}  // namespace
}  // namespace tconv
