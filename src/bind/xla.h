// SPDX-License-Identifier: Apache-2.0
// The operators as XLA's foreign functions, for JAX.
#pragma once

#include <utility>
#include <vector>

namespace tconv {

// Each handler's name and address, an XLA_FFI_Handler.
const std::vector<std::pair<const char*, void*>>& xla_handlers();

}  // namespace tconv
