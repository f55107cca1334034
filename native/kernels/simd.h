// One 64-byte vector type per arithmetic type, in the compiler's own vector extension: the same source runs on AVX-512,
// AVX2, SSE and NEON, and the lane order of every reduction is the same on all of them. bfloat16 is a storage type
// only: it is loaded into and rounded from float lanes.
#pragma once
#include <c10/util/BFloat16.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

// Put on the non-template entry points. The bodies they call are always inlined, so each clone is compiled whole for
// its instruction set; a lambda would not inherit the attribute, hence functions over a row range [begin, end).
#ifdef WRPO_HAVE_CLONES
#define WRPO_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WRPO_CLONES
#endif
#define WRPO_INLINE inline __attribute__((always_inline))

namespace wrpo::simd {

typedef float F32 __attribute__((vector_size(64)));
typedef double F64 __attribute__((vector_size(64)));
typedef int32_t I32 __attribute__((vector_size(64)));
typedef uint32_t U32 __attribute__((vector_size(64)));
typedef uint16_t U16 __attribute__((vector_size(32)));

// The type a storage type computes in: float for float and bfloat16, double for double.
template <class T>
struct Compute {
  using Scalar = float;
  using Vector = F32;
};
template <>
struct Compute<double> {
  using Scalar = double;
  using Vector = F64;
};
template <class T>
using ScalarOf = typename Compute<T>::Scalar;
template <class T>
using VectorOf = typename Compute<T>::Vector;
template <class T>
constexpr int64_t lanes = 64 / sizeof(ScalarOf<T>);

template <class T>
WRPO_INLINE VectorOf<T> load(const T* p) {
  VectorOf<T> v;
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    U16 bits;
    std::memcpy(&bits, p, sizeof(bits));
    U32 wide = __builtin_convertvector(bits, U32) << 16;
    std::memcpy(&v, &wide, sizeof(v));
  } else {
    std::memcpy(&v, p, sizeof(v));
  }
  return v;
}

template <class T>
WRPO_INLINE void store(T* p, const VectorOf<T>& v) {
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    U32 bits;
    std::memcpy(&bits, &v, sizeof(bits));
    U32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // round to nearest even
    U32 nan = (U32)(v != v);
    rounded = (rounded & ~nan) | (nan & 0x7fc0);
    U16 narrow = __builtin_convertvector(rounded, U16);
    std::memcpy(p, &narrow, sizeof(narrow));
  } else {
    std::memcpy(p, &v, sizeof(v));
  }
}

template <class V, class S>
WRPO_INLINE V splat(S s) {
  return V{} + s;
}

template <class V>
WRPO_INLINE auto sum(const V& v) {
  auto total = v[0];
  for (int i = 1; i < int(sizeof(V) / sizeof(v[0])); ++i) total += v[i];
  return total;
}

template <class V>
WRPO_INLINE V max(const V& a, const V& b) {
  return a > b ? a : b;
}

// e^x: 2^n times a degree-6 polynomial on [-ln2/2, ln2/2] (relative error below 1.5 ulp); 0 below the normal range.
WRPO_INLINE F32 exp(F32 x) {
  const F32 low = splat<F32>(-87.33f), high = splat<F32>(88.37f);
  F32 clamped = x < low ? low : (x > high ? high : x);
  const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  F32 shifted = clamped * 1.44269504088896341f + magic;
  F32 n = shifted - magic;
  F32 r = clamped - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  F32 p = splat<F32>(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  I32 exponent;
  std::memcpy(&exponent, &shifted, sizeof(exponent));
  exponent = (exponent - 0x4b400000 + 127) << 23;
  F32 scale;
  std::memcpy(&scale, &exponent, sizeof(scale));
  F32 result = p * scale;
  return x < low ? splat<F32>(0.f) : result;
}

// float64 exists for tests against finite differences: exactness over speed.
WRPO_INLINE F64 exp(F64 x) {
  F64 result;
  for (int i = 0; i < 8; ++i) result[i] = std::exp(x[i]);
  return result;
}

// tanh: an odd polynomial near zero, where 1 - 2 / (e^2x + 1) would cancel (relative error below 2 ulp).
WRPO_INLINE F32 tanh(F32 x) {
  F32 magnitude = x < 0.f ? -x : x;
  F32 far = 1.f - 2.f / (exp(magnitude * 2.f) + 1.f);
  F32 z = x * x;
  F32 p = splat<F32>(-5.70498872745e-3f);
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  return magnitude < 0.625f ? p * z * x + x : (x < 0.f ? -far : far);
}
WRPO_INLINE F64 tanh(F64 x) {
  F64 result;
  for (int i = 0; i < 8; ++i) result[i] = std::tanh(x[i]);
  return result;
}

// The last, partial block of lanes, through a padded buffer.
template <class T>
WRPO_INLINE VectorOf<T> loadTail(const T* p, int64_t n, T fill) {
  T buffer[lanes<T>];
  for (int64_t i = 0; i < lanes<T>; ++i) buffer[i] = i < n ? p[i] : fill;
  return load<T>(buffer);
}
template <class T>
WRPO_INLINE void storeTail(T* p, int64_t n, const VectorOf<T>& v) {
  T buffer[lanes<T>];
  store<T>(buffer, v);
  for (int64_t i = 0; i < n; ++i) p[i] = buffer[i];
}

// `count` elements, at most the lanes; the others are zero.
template <class T>
WRPO_INLINE VectorOf<T> get(const T* p, int64_t count) {
  return count == lanes<T> ? load<T>(p) : loadTail<T>(p, count, T(0));
}
template <class T>
WRPO_INLINE void put(T* p, int64_t count, const VectorOf<T>& v) {
  if (count == lanes<T>) store<T>(p, v);
  else storeTail<T>(p, count, v);
}

}  // namespace wrpo::simd
