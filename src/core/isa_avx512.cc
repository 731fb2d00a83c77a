// SPDX-License-Identifier: Apache-2.0
#include "isa.h"

#include "amx.h"
#include "matrix.h"

TCONV_INSTANTIATE(avx512, 16, 32)

namespace tconv {
namespace {

// A table whose words are pairs of bfloat16.
constexpr Kernels<float> with_dots(Kernels<float> k) {
  fill_products<DotProduct, float, 16, 32>(k);
  return k;
}

}  // namespace

extern const Kernels<float> avx512_dots, avx512_amx;
constexpr Kernels<float> avx512_dots = with_dots(avx512_f32);
constexpr Kernels<float> avx512_amx = with_tiles<Amx>(avx512_f32);

}  // namespace tconv
