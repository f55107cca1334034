// SwiGLU on the fused gate|up rows. Backward recomputes the activation instead of keeping it (F values a token saved)
// and writes the gradient over its input, so that no third buffer exists.
#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace wrpo {
namespace {

using namespace simd;

template <class T>
WRPO_INLINE VectorOf<T> get(const T* p, int64_t count) {
  return count == lanes<T> ? load<T>(p) : loadTail<T>(p, count, T(0));
}
template <class T>
WRPO_INLINE void put(T* p, int64_t count, const VectorOf<T>& v) {
  if (count == lanes<T>) store<T>(p, v);
  else storeTail<T>(p, count, v);
}

template <class T>
WRPO_INLINE void forwardRows(const T* gateUp, T* h, int64_t F, int64_t begin, int64_t end) {
  using S = ScalarOf<T>;
  for (int64_t t = begin; t < end; ++t) {
    const T *gate = gateUp + t * 2 * F, *up = gate + F;
    for (int64_t i = 0; i < F; i += lanes<T>) {
      int64_t n = F - i < lanes<T> ? F - i : lanes<T>;
      auto g = get<T>(gate + i, n);
      put<T>(h + t * F + i, n, g / (exp(-g) + S(1)) * get<T>(up + i, n));
    }
  }
}

template <class T>
WRPO_INLINE void backwardRows(const T* dh, T* gateUp, T* h, int64_t F, int64_t begin, int64_t end) {
  using S = ScalarOf<T>;
  for (int64_t t = begin; t < end; ++t) {
    T *gate = gateUp + t * 2 * F, *up = gate + F;
    for (int64_t i = 0; i < F; i += lanes<T>) {
      int64_t n = F - i < lanes<T> ? F - i : lanes<T>;
      auto g = get<T>(gate + i, n), u = get<T>(up + i, n), d = get<T>(dh + t * F + i, n);
      auto sigmoid = S(1) / (exp(-g) + S(1));
      auto silu = g * sigmoid;
      put<T>(h + t * F + i, n, silu * u);
      put<T>(up + i, n, d * silu);
      put<T>(gate + i, n, d * u * (sigmoid * (S(1) + g * (S(1) - sigmoid))));
    }
  }
}

#define WRPO_SWIGLU(T)                                                                             \
  WRPO_CLONES void forward(const T* gateUp, T* h, int64_t F, int64_t begin, int64_t end) {         \
    forwardRows<T>(gateUp, h, F, begin, end);                                                      \
  }                                                                                                \
  WRPO_CLONES void backward(const T* dh, T* gateUp, T* h, int64_t F, int64_t begin, int64_t end) { \
    backwardRows<T>(dh, gateUp, h, F, begin, end);                                                 \
  }
WRPO_SWIGLU(float)
WRPO_SWIGLU(double)
WRPO_SWIGLU(c10::BFloat16)
#undef WRPO_SWIGLU

}  // namespace

void swigluForward(const at::Tensor& gateUp, const at::Tensor& h) {
  byType(h.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    parallelRows(h.size(0), 16, [&](int64_t b, int64_t e) { forward(data<T>(gateUp), data<T>(h), h.size(1), b, e); });
  });
}

void swigluBackward(const at::Tensor& dh, const at::Tensor& gateUp, const at::Tensor& h) {
  byType(h.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    parallelRows(h.size(0), 16,
                 [&](int64_t b, int64_t e) { backward(data<T>(dh), data<T>(gateUp), data<T>(h), h.size(1), b, e); });
  });
}

}  // namespace wrpo
