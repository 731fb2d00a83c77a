// SPDX-License-Identifier: Apache-2.0
// A matrix unit in plain loops, so that its microkernels are checked on processors that have none: what AMX-BF16 is documented to do, and
// NaN in every tile whose shape was not set.
#pragma once

#include <cstring>

#include "../../src/core/kernels.h"
#include "../../src/core/matrix_kernel.h"

namespace tconv {

extern const Kernels<float> scalar_f32;
extern const Kernels<double> scalar_f64;
extern const Halves scalar_half;

struct TileModel {
  using Tile = float[kTileSide][kTileSide];
  static Tile& tile(int i) {
    static thread_local Tile tiles[8];
    return tiles[i];
  }
  static void begin() { std::memset(tile(0), 0, 8 * sizeof(Tile)); }
  static void end() { std::memset(tile(0), 0xff, 8 * sizeof(Tile)); }

  template <int I>
  static void zero() {
    std::memset(tile(I), 0, sizeof tile(I));
  }
  template <int I>
  static void load(const float* from, i64 step) {
    for (int r = 0; r < kTileSide; ++r) std::memcpy(tile(I)[r], from + r * step, sizeof tile(I)[r]);
  }
  template <int I>
  static void store(float* to, i64 step) {
    for (int r = 0; r < kTileSide; ++r) std::memcpy(to + r * step, tile(I)[r], sizeof tile(I)[r]);
  }
  template <int Sums, int Rows, int Lanes>
  static void add_products() {
    for (int r = 0; r < kTileSide; ++r)
      for (int lane = 0; lane < kTileSide; ++lane)
        for (int half = 0; half < 2; ++half) {
          float sum = 0;
          for (int word = 0; word < kTileSide; ++word) sum += number(tile(Rows)[r][word], half) * number(tile(Lanes)[word][lane], half);
          tile(Sums)[r][lane] += sum;
        }
  }

 private:
  static float number(float word, int half) {  // the first of a pair is the lower half
    std::uint32_t bits;
    std::memcpy(&bits, &word, sizeof bits);
    bits = half ? bits & 0xffff0000 : bits << 16;
    std::memcpy(&word, &bits, sizeof bits);
    return word;
  }
};

inline const Isa* model_of_tiles() {
  static const Kernels<float> words = [] {
    Kernels<float> k = with_tiles<TileModel>(scalar_f32);
    k.lanes = kTileSide;
    return k;
  }();
  static const Isa isa{"model", nullptr, &words, &scalar_f64, &scalar_half, Term::pairs_in_tiles, 0.125, false, nullptr, nullptr};
  return &isa;
}

}  // namespace tconv
