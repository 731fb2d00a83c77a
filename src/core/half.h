// SPDX-License-Identifier: Apache-2.0
// Whole arrays of half precision to float and back, and to words of two, on the pool's threads.
#pragma once

#include "kernels.h"

namespace tconv {

void widen(const Isa& isa, Half kind, const std::uint16_t* from, i64 count, float* to, int threads);
void narrow(const Isa& isa, Half kind, const float* from, i64 count, std::uint16_t* to, int threads);

// Pairs of neighbouring channels as words: (outer, channels, inner) to (outer, half of them, inner), with zeros where they are odd.
void pair(const Isa& isa, const std::uint16_t* from, i64 outer, i64 channels, i64 inner, float* to, int threads);

}  // namespace tconv
