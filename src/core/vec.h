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

// The lower halves of words.
template <int N, class V>
inline Vec<std::uint16_t, N> narrowed(V words) {
  if constexpr (N == 1)
    return std::uint16_t(words);
  else
    return __builtin_convertvector(words, Vec<std::uint16_t, N>);
}

// Past the caches; the address is a multiple of the vector's size. Such stores are weakly ordered: a fence follows before the task ends.
template <class V, class T>
inline void stream(T* p, V v) {
#if defined(__x86_64__)
  if constexpr (sizeof(V) == 64) {
    asm volatile("vmovntps %1, %0" : "=m"(*reinterpret_cast<V*>(p)) : "v"(v));
    return;
  } else if constexpr (sizeof(V) == 32) {
    asm volatile("vmovntps %1, %0" : "=m"(*reinterpret_cast<V*>(p)) : "x"(v));
    return;
  }
#endif
  store(p, v);
}

// What a microkernel adds to a sum for a row's word, spread over a vector, and a vector of lanes.
struct MultiplyAdd {
  template <class T>
  static T spread(const T& row) {
    return row;
  }
  template <class V, class T>
  static void add(V& sum, const T& row, const V& lanes) {
    sum += row * lanes;
  }
};

#if defined(__x86_64__)
// Words are pairs of bfloat16, whose two products are added. (AVX-512 BF16; written so, it needs neither a flag nor a header.)
struct DotProduct {
  template <class T>
  static Vec<T, 16> spread(const T& row) {  // once for all vectors of lanes: two loads a cycle are the limit
    Vec<T, 16> all;
    asm("vbroadcastss %1, %0" : "=v"(all) : "m"(row));
    return all;
  }
  static void add(Vec<float, 16>& sum, const Vec<float, 16>& row, const Vec<float, 16>& lanes) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(lanes), "v"(row));
  }
};
#endif

template <int I>
struct Flag {
  static constexpr int value = I;
};

template <int... I>
struct Indices {};
template <int N, int... I>
struct CountTo : CountTo<N - 1, N - 1, I...> {};
template <int... I>
struct CountTo<0, I...> {
  using type = Indices<I...>;
};

// a0 b0 c0 a1 b1 c1 ...: part `Part` of P vectors whose elements take turns. Those of the first p vectors are in place in `before`.
template <int Part, int P, int p = 1, class V, int... J>
inline V in_turn(const V (&v)[P], V before, Indices<J...> all) {
  constexpr int n = sizeof...(J), at = Part * n;
  const V now = __builtin_shufflevector(before, v[p], ((at + J) % P == p ? n + (at + J) / P : p == 1 ? (at + J) / P : J)...);
  if constexpr (p + 1 < P)
    return in_turn<Part, P, p + 1>(v, now, all);
  else
    return now;
}

// Every Pth element of P vectors from element `First` on. Those that lie in the first p vectors are in place in `before`.
template <int First, int P, int p = 1, class V, int... J>
inline V every(const V (&v)[P], V before, Indices<J...> all) {
  constexpr int n = sizeof...(J);
  const V now = __builtin_shufflevector(before, v[p], ((First + J * P) / n >= p ? n + (First + J * P) % n : p == 1 ? First + J * P : J)...);
  if constexpr (p + 1 < P)
    return every<First, P, p + 1>(v, now, all);
  else
    return now;
}

// One step of a transposition: of the 2 x 2 blocks of D x D elements in two rows, the diagonal stays and the others change places.
template <int D, bool Low, class V, int... J>
inline V swap_blocks(V a, V b, Indices<J...>) {
  constexpr int n = sizeof...(J);
  return __builtin_shufflevector(a, b, (Low ? ((J & D) ? n + J - D : J) : ((J & D) ? n + J : J + D))...);
}

// The transpose of N rows of N elements, in registers.
template <class V, int N, int D = N / 2>
inline void transpose_square(V (&row)[N]) {
  using all = typename CountTo<N>::type;
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i)
    if (!(i & D)) {
      const V a = row[i], b = row[i + D];
      row[i] = swap_blocks<D, true>(a, b, all{});
      row[i + D] = swap_blocks<D, false>(a, b, all{});
    }
  if constexpr (D > 1) transpose_square<V, N, D / 2>(row);
}

}  // namespace
}  // namespace tconv
