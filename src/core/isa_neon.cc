// SPDX-License-Identifier: Apache-2.0
#include "isa.h"

TCONV_INSTANTIATE(neon, 4, 32)
