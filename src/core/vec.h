// SPDX-License-Identifier: Apache-2.0
// Vectors of N elements over the compiler's own vector extension (GCC, Clang): + and * work element by element.
// Included by isa_*.cc only, which are compiled with special flags: no standard header with inline functions may come in
// here, or the linker could pick a copy of it that an older processor cannot run.
#pragma once

namespace tconv {
namespace {

template <class T, int N>
struct VecOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T>
struct VecOf<T, 1> {
  typedef T type;
};
template <class T, int N>
using Vec = typename VecOf<T, N>::type;

template <class V, class T>
inline V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class T>
inline void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

}  // namespace
}  // namespace tconv
