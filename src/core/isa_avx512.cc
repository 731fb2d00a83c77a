// SPDX-License-Identifier: Apache-2.0
#include "isa.h"

TCONV_INSTANTIATE(avx512, 16, 32)
