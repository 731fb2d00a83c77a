// SPDX-License-Identifier: Apache-2.0
// The matrix unit of Intel's servers since Sapphire Rapids, AMX-BF16 (Intel SDM, volume 1, chapter 18). Written so, it needs neither a
// flag nor a header.
#pragma once

#include "kernels.h"

namespace tconv {
namespace {

struct Amx {
  // All eight tiles have 16 rows of 64 bytes.
  struct alignas(64) Shapes {
    std::uint8_t palette, start_row, reserved[14];
    std::uint16_t row_bytes[16];
    std::uint8_t rows[16];
  };

  static void begin() {
    static constexpr Shapes shapes{1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    asm volatile("ldtilecfg %0" : : "m"(shapes));
  }
  static void end() { asm volatile("tilerelease"); }

  template <int Tile>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
  }
  // Rows `step` floats apart.
  template <int Tile>
  static void load(const float* from, i64 step) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(step * i64(sizeof(float))), "i"(Tile) : "memory");
  }
  template <int Tile>
  static void store(float* to, i64 step) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(step * i64(sizeof(float))), "i"(Tile) : "memory");
  }
  template <int Sums, int Rows, int Lanes>
  static void add_products() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(Rows), "i"(Lanes));
  }
};

}  // namespace
}  // namespace tconv
