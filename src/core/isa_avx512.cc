// SPDX-License-Identifier: Apache-2.0
#include "isa.h"

#include "amx.h"
#include "matrix_kernel.h"

TCONV_INSTANTIATE(avx512, 16, 32)

namespace tconv {
namespace {

constexpr Halves kHalves{widen, narrow<RoundedByProcessor, 16>, pair, narrow_rows<RoundedByProcessor, 16>, turn<RoundedByProcessor, 16>};

// Tables whose words are pairs of bfloat16.
constexpr Kernels<float> with_words(Kernels<float> k) {
  k.half = &kHalves;
  return k;
}
constexpr Kernels<float> with_dots(Kernels<float> k) {
  fill_products<DotProduct, float, 16, 32>(k);
  return k;
}

}  // namespace

extern const Kernels<float> avx512_dots, avx512_amx;
constexpr Kernels<float> avx512_dots = with_dots(with_words(avx512_f32));
constexpr Kernels<float> avx512_amx = with_tiles<Amx>(with_words(avx512_f32));

}  // namespace tconv
