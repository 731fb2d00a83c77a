// SPDX-License-Identifier: Apache-2.0
#include "half.h"

#include <algorithm>

#include "parallel.h"

namespace tconv {
namespace {

constexpr i64 kPiece = i64(1) << 16;  // elements: some ten microseconds, worth waking a thread for

template <class F>
void in_pieces(i64 count, int threads, F body) {
  parallel_for(ceil_div(count, kPiece), threads, [&](i64 i) { body(i * kPiece, std::min(kPiece, count - i * kPiece)); });
}

}  // namespace

void widen(const Isa& isa, Half kind, const std::uint16_t* from, i64 count, float* to, int threads) {
  in_pieces(count, threads, [&](i64 at, i64 n) { isa.half->widen(from + at, n, to + at, kind); });
}

void narrow(const Isa& isa, Half kind, const float* from, i64 count, std::uint16_t* to, int threads) {
  in_pieces(count, threads, [&](i64 at, i64 n) { isa.half->narrow(from + at, n, to + at, kind); });
}

void pair(const Isa& isa, const std::uint16_t* from, i64 outer, i64 channels, i64 inner, float* to, int threads) {
  const i64 words = ceil_div(channels, 2), rows = outer * words, at_once = std::max<i64>(1, kPiece / std::max<i64>(inner, 1));
  parallel_for(ceil_div(rows, at_once), threads, [&](i64 task) {
    for (i64 row = task * at_once; row < std::min(rows, (task + 1) * at_once); ++row) {
      const i64 o = row / words, c = row % words * 2;
      const std::uint16_t* first = from + (o * channels + c) * inner;
      isa.half->pair(first, c + 1 < channels ? first + inner : nullptr, inner, to + row * inner);
    }
  });
}

}  // namespace tconv
