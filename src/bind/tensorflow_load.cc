// SPDX-License-Identifier: Apache-2.0
// The library for tf.load_op_library, which finds operators by what is registered while a library is loaded. They are those of _core, which
// lies beside it and is loaded already; this is nothing but the occasion.
#include <dlfcn.h>

#include <string>

namespace {

void find_and_register() {
  Dl_info here;
  if (!dladdr(reinterpret_cast<void*>(&find_and_register), &here)) return;
  std::string path = here.dli_fname;
  path.replace(path.rfind('/') + 1, std::string::npos, TCONV_CORE);
  if (void* core = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD))
    if (void* found = dlsym(core, "tconv_register_tensorflow")) reinterpret_cast<void (*)()>(found)();
}

const bool once = (find_and_register(), true);

}  // namespace
