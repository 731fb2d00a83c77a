// SPDX-License-Identifier: Apache-2.0
#include "tiles.h"

#include <algorithm>

namespace tconv {

double tap_cycles(double h, double v, double vector_bytes, double slower) {
  const double multiply = slower * h * v / 2, load = (h + (1 + vector_bytes / 64) * v) / 2;
  return std::max({multiply * (1 + std::clamp(0.6 * load / multiply - 0.35, 0.0, 0.15)), load, 4.7});
}

template <class T>
int tile_vecs(const Kernels<T>& kernels, i64 rows, int vecs) {
  while (!kernels.tile[rows][vecs]) --vecs;
  return vecs;
}

template <class T>
int tile_rows(const Kernels<T>& kernels, i64 rows, i64 depth, int vecs, i64 multiple) {
  int best = int(multiple);
  double lowest = 1e300;
  for (int r = int(std::min<i64>(kMaxRows, rows) / multiple * multiple); r >= 1; r -= int(multiple)) {
    const int v = tile_vecs(kernels, r, vecs);
    if (v < std::min(vecs, 2)) continue;
    // Cycles of the tiles of h rows, and their fixed cost; counted per vector of lanes.
    const auto cycles = [&](i64 h) {
      const double tap = tap_cycles(double(h), v, double(kernels.lanes * i64(sizeof(T))));
      return h ? (tap * double(depth) + 1.5 * double(h) * v + kTileCycles) / v : 0.0;
    };
    const double cost = double(rows / r) * cycles(r) + cycles(rows % r);
    if (cost < lowest * 0.999) lowest = cost, best = r;
  }
  return best;
}

template int tile_rows<float>(const Kernels<float>&, i64, i64, int, i64);
template int tile_rows<double>(const Kernels<double>&, i64, i64, int, i64);
template int tile_vecs<float>(const Kernels<float>&, i64, int);
template int tile_vecs<double>(const Kernels<double>&, i64, int);

}  // namespace tconv
