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

}  // namespace tconv
