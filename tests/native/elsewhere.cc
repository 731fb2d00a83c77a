// SPDX-License-Identifier: Apache-2.0
// The kernels as a processor other than x86 sees them, compiled on any: what their headers name without asking must exist there.
#include <cstdint>

#undef __x86_64__
#include "../../src/core/isa_scalar.cc"
