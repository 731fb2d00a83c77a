// SPDX-License-Identifier: Apache-2.0
#include "isa.h"

TCONV_INSTANTIATE(sse2, 4, 16)
