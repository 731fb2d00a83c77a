// SPDX-License-Identifier: Apache-2.0
// Which instruction sets this build holds, and which of them this processor (and its operating system) runs.
#include <cstring>

#include "kernels.h"

namespace tconv {
namespace {

#if defined(__x86_64__) || defined(_M_X64)
// The compiler's builtin asks cpuid and xgetbv: the operating system must save the wider registers too.
bool cpu_has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq");
}
bool cpu_has_avx512_bf16() { return cpu_has_avx512() && __builtin_cpu_supports("avx512bf16"); }
// Zen 4 halves its vectors of 64 bytes.
double avx512_multiply() { return __builtin_cpu_is("amdfam19h") ? 2.0 : 1.0; }
bool cpu_has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

}  // namespace

#define X(name, lanes, registers, supported) \
  extern const Kernels<float> name##_f32;    \
  extern const Kernels<double> name##_f64;   \
  extern const Halves name##_half;
#include "kernels.inc"
#undef X

#if defined(__x86_64__) || defined(_M_X64)
extern const Kernels<float> avx512_dots;
#endif

namespace {

const Isa* dots_of(const char* name) {
#if defined(__x86_64__) || defined(_M_X64)
  // Zen 4 and 5 issue as many dot products as multiply-adds, Cooper Lake and its successors half as many.
  static const Isa dots{"avx512_bf16", cpu_has_avx512_bf16, &avx512_dots, &avx512_f64,
                        &avx512_half,  nullptr,             __builtin_cpu_is("amd") ? 1.0 : 2.0, avx512_multiply()};
  if (!std::strcmp(name, "avx512") && dots.supported()) return &dots;
#endif
  (void)name;
  return nullptr;
}

double multiply_of(const char* name) {
#if defined(__x86_64__) || defined(_M_X64)
  if (!std::strcmp(name, "avx512")) return avx512_multiply();
#endif
  (void)name;
  return 1.0;
}

}  // namespace

const Isa* isas(int* count) {
  static const Isa list[] = {
#define X(name, lanes, registers, supported) \
  {#name, [] { return bool(supported); }, &name##_f32, &name##_f64, &name##_half, dots_of(#name), 0.0, multiply_of(#name)},
#include "kernels.inc"
#undef X
  };
  *count = int(sizeof list / sizeof *list);
  return list;
}

const Isa* find_isa(const char* name) {
  int count;
  const Isa* list = isas(&count);
  for (int i = 0; i < count; ++i)
    if (list[i].supported() && !std::strcmp(name, list[i].name)) return &list[i];
  return nullptr;
}

}  // namespace tconv
