// SPDX-License-Identifier: Apache-2.0
// Which instruction sets this build holds, and which of them this processor (and its operating system) runs.
#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

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
// Tiles have a state that Linux keeps for processes that ask, which is when it is known whether it does; asked for when first needed, since
// signals need larger stacks then.
bool has_amx_bf16() {
#if defined(__linux__)
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;  // cpuid 7, edx
  constexpr long kRequest = 0x1023, kTileData = 18;       // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a, b, c, d;
  return cpu_has_avx512_bf16() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBf16) && (d & kTile) &&
         syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
// Zen 4 halves its vectors of 64 bytes.
double avx512_multiply() { return __builtin_cpu_is("amdfam19h") ? 2.0 : 1.0; }
// Zen 5, family 1Ah, loads two such vectors and stores one in a cycle, and has one in a cycle from the second level.
bool avx512_has_quick_caches() {
  unsigned a, b, c, d;
  return __builtin_cpu_is("amd") && __get_cpuid(1, &a, &b, &c, &d) && (a >> 8 & 15) + (a >> 20 & 255) >= 0x1a;
}
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
extern const Kernels<float> avx512_dots, avx512_amx;
#endif

namespace {

#if defined(__x86_64__) || defined(_M_X64)
// Zen 4 and 5 issue as many dot products as multiply-adds, Cooper Lake half as many, its successors, which have tiles, a quarter.
double dots_multiply() { return __builtin_cpu_is("amd") ? avx512_multiply() : __builtin_cpu_is("cooperlake") ? 2.0 : 4.0; }
const Isa* avx512_with_dots() {
  static const Isa dots{"avx512_bf16",   cpu_has_avx512_bf16,       &avx512_dots, &avx512_f64, &avx512_half, Term::pairs,
                        dots_multiply(), avx512_has_quick_caches(), nullptr,      nullptr};
  static const bool supported = dots.supported();
  return supported ? &dots : nullptr;
}
// A product of tiles takes 16 cycles, of which two vectors' pairs are a 128th.
const Isa* avx512_with_tiles() {
  static const Isa tiles{"amx_bf16",           has_amx_bf16, &avx512_amx, &avx512_f64, &avx512_half,
                         Term::pairs_in_tiles, 0.125,        false,       nullptr,     nullptr};
  static const bool supported = tiles.supported();
  return supported ? &tiles : nullptr;
}
#endif

Isa make_isa(const char* name, bool (*supported)(), const Kernels<float>* f32, const Kernels<double>* f64, const Halves* half) {
#if defined(__x86_64__) || defined(_M_X64)
  if (!std::strcmp(name, "avx512"))
    return {
        name, supported, f32, f64, half, Term::numbers, avx512_multiply(), avx512_has_quick_caches(), avx512_with_dots, avx512_with_tiles};
#endif
  return {name, supported, f32, f64, half, Term::numbers, 1.0, false, nullptr, nullptr};
}

}  // namespace

const Isa* isas(int* count) {
  static const Isa list[] = {
#define X(name, lanes, registers, supported) make_isa(#name, [] { return bool(supported); }, &name##_f32, &name##_f64, &name##_half),
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
