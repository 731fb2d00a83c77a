// SPDX-License-Identifier: Apache-2.0
#include "isa.h"

TCONV_INSTANTIATE(avx512, 16, 32)

namespace tconv {
extern const Kernels<float> avx512_dots;
constexpr Kernels<float> avx512_dots = with_dots<16, 32>(avx512_f32);
}  // namespace tconv
