// SPDX-License-Identifier: Apache-2.0
// Half precision, which is computed in float: whole arrays there and back, on the pool's threads.
#pragma once

#include "kernels.h"

namespace tconv {

void widen(const Isa& isa, Half kind, const std::uint16_t* from, i64 count, float* to, int threads);
void narrow(const Isa& isa, Half kind, const float* from, i64 count, std::uint16_t* to, int threads);

}  // namespace tconv
