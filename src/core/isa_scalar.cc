// SPDX-License-Identifier: Apache-2.0
#include "isa.h"

TCONV_INSTANTIATE(scalar, 1, 16)
