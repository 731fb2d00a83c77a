// SPDX-License-Identifier: Apache-2.0
// The bias's gradient: the sum of dy over images and positions, one for each channel.
#pragma once

#include "spec.h"

namespace tconv {

template <class T>
void grad_bias(const Spec& spec, View<const T> dy, T* grad, int threads);

}  // namespace tconv
