// SPDX-License-Identifier: Apache-2.0
// What tiles of the microkernel cost, and which ones cover the rows of a layer.
#pragma once

#include "kernels.h"

namespace tconv {

constexpr double kTileCycles = 15;  // of a tile, however short its sums

// Cycles of a tap of an h x v tile: two multiply-adds in `multiply` cycles, or two loads in one (lanes may straddle lines), or the latency
// of one addition after another, whichever is most; the closer loads come to two a cycle, the more of them wait for the second-level cache.
// (Measured: of 64-byte vectors 12x2 95 %, 8x3 99 %, 8x2 90 %; of 32-byte vectors 6x2 99 %, 4x3 98 %, 4x2 84 %.)
double tap_cycles(double h, double v, double vector_bytes, double multiply = 1);

// The height of the tiles that cover `rows` rows: the one of lowest expected cost. It depends on the weight and the kernel
// alone, so packed weights serve any input size. Tiles are at most `vecs` wide, their height a multiple of `multiple`, as is `rows`.
template <class T>
int tile_rows(const Kernels<T>& kernels, i64 rows, i64 depth, int vecs = kMaxVecs, i64 multiple = 1);

// The widest tile of a height.
template <class T>
int tile_vecs(const Kernels<T>& kernels, i64 rows, int vecs = kMaxVecs);

}  // namespace tconv
