// SwiGLU, and GeGLU with the tanh approximation of GELU, on the fused gate|up rows. Backward recomputes the activation
// instead of keeping it (F values a token saved) and writes the gradient over its input, so that no third buffer
// exists.
#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace wrpo {
namespace {

using namespace simd;

// The activation and its derivative.
template <class V>
struct Pair {
  V value, slope;
};
struct Silu {
  template <class V>
  static WRPO_INLINE Pair<V> at(const V& g) {
    V sigmoid = 1 / (exp(-g) + 1);
    return {g * sigmoid, sigmoid * (1 + g * (1 - sigmoid))};
  }
};
struct GeluTanh {
  template <class V>
  static WRPO_INLINE Pair<V> at(const V& g) {
    using S = std::remove_cvref_t<decltype(g[0])>;
    constexpr S k = S(0.79788456080286535588), c = S(0.044715);  // sqrt(2 / pi)
    V t = tanh(k * (g + c * g * g * g));
    return {S(0.5) * g * (1 + t), S(0.5) * (1 + t) + S(0.5) * g * (1 - t * t) * k * (1 + 3 * c * g * g)};
  }
};

template <class Act, class T>
WRPO_INLINE void forwardRows(const T* gateUp, T* h, int64_t F, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const T *gate = gateUp + t * 2 * F, *up = gate + F;
    for (int64_t i = 0; i < F; i += lanes<T>) {
      int64_t n = F - i < lanes<T> ? F - i : lanes<T>;
      put<T>(h + t * F + i, n, Act::at(get<T>(gate + i, n)).value * get<T>(up + i, n));
    }
  }
}

template <class Act, class T>
WRPO_INLINE void backwardRows(const T* dh, T* gateUp, T* h, int64_t F, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    T *gate = gateUp + t * 2 * F, *up = gate + F;
    for (int64_t i = 0; i < F; i += lanes<T>) {
      int64_t n = F - i < lanes<T> ? F - i : lanes<T>;
      auto u = get<T>(up + i, n), d = get<T>(dh + t * F + i, n);
      auto [value, slope] = Act::at(get<T>(gate + i, n));
      put<T>(h + t * F + i, n, value * u);
      put<T>(up + i, n, d * value);
      put<T>(gate + i, n, d * u * slope);
    }
  }
}

#define WRPO_SWIGLU(T)                                                                                           \
  WRPO_CLONES void forward(Activation a, const T* gateUp, T* h, int64_t F, int64_t begin, int64_t end) {         \
    if (a == Activation::Silu) forwardRows<Silu>(gateUp, h, F, begin, end);                                      \
    else forwardRows<GeluTanh>(gateUp, h, F, begin, end);                                                        \
  }                                                                                                              \
  WRPO_CLONES void backward(Activation a, const T* dh, T* gateUp, T* h, int64_t F, int64_t begin, int64_t end) { \
    if (a == Activation::Silu) backwardRows<Silu>(dh, gateUp, h, F, begin, end);                                 \
    else backwardRows<GeluTanh>(dh, gateUp, h, F, begin, end);                                                   \
  }
WRPO_SWIGLU(float)
WRPO_SWIGLU(double)
WRPO_SWIGLU(c10::BFloat16)
#undef WRPO_SWIGLU

}  // namespace

void cpu::swigluForward(Activation activation, const at::Tensor& gateUp, const at::Tensor& h) {
  byType(h.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    parallelRows(h.size(0), 16,
                 [&](int64_t b, int64_t e) { forward(activation, data<T>(gateUp), data<T>(h), h.size(1), b, e); });
  });
}

void cpu::swigluBackward(Activation activation, const at::Tensor& dh, const at::Tensor& gateUp, const at::Tensor& h) {
  byType(h.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    parallelRows(h.size(0), 16, [&](int64_t b, int64_t e) {
      backward(activation, data<T>(dh), data<T>(gateUp), data<T>(h), h.size(1), b, e);
    });
  });
}

}  // namespace wrpo
