// SPDX-License-Identifier: Apache-2.0
// The operators as TensorFlow's own, registered through its C API.
#pragma once

#include <string>

namespace tconv {

// Finds what is needed of TensorFlow's C API in its library, which must be loaded: a sentence on what it lacks, or nothing.
std::string find_tensorflow(const std::string& library);

}  // namespace tconv

// Registers operators and kernels, once `find_tensorflow` has found everything. The library that TensorFlow loads calls it by its name.
extern "C" void tconv_register_tensorflow();
