// The norm of every query and key head (Qwen3, Gemma 3). Heads are short: a row's statistics are recomputed in backward
// rather than kept.
#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace wrpo {
namespace {

using namespace simd;

template <class T>
WRPO_INLINE ScalarOf<T> rstdOf(const T* x, int64_t d, ScalarOf<T> eps) {
  VectorOf<T> squares{};
  for (int64_t i = 0; i < d; i += lanes<T>) {
    auto v = get<T>(x + i, std::min(lanes<T>, d - i));
    squares += v * v;
  }
  return ScalarOf<T>(1) / std::sqrt(sum(squares) / ScalarOf<T>(d) + eps);
}

template <class T>
WRPO_INLINE void forwardRows(const T* x, int64_t ldX, const T* w, ScalarOf<T> plus, ScalarOf<T> eps, T* y, int64_t ldY,
                             int64_t heads, int64_t d, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t)
    for (int64_t h = 0; h < heads; ++h) {
      const T* from = x + t * ldX + h * d;
      T* to = y + t * ldY + h * d;
      auto r = rstdOf<T>(from, d, eps);
      for (int64_t i = 0; i < d; i += lanes<T>) {
        int64_t n = std::min(lanes<T>, d - i);
        auto v = get<T>(from + i, n) * r;
        if (std::is_same_v<T, c10::BFloat16> && plus == 0) {
          T rounded[lanes<T>];
          store<T>(rounded, v);
          v = load<T>(rounded);
        }
        put<T>(to + i, n, v * (get<T>(w + i, n) + plus));
      }
    }
}

// The formulas of rms_norm.cpp, but dy becomes dx.
template <class T>
WRPO_INLINE void backwardRows(T* dy, int64_t ldY, const T* x, int64_t ldX, const T* w, ScalarOf<T> plus,
                              ScalarOf<T> eps, ScalarOf<T>* dw, int64_t heads, int64_t d, int64_t begin, int64_t end) {
  using S = ScalarOf<T>;
  for (int64_t t = begin; t < end; ++t)
    for (int64_t h = 0; h < heads; ++h) {
      const T* from = x + t * ldX + h * d;
      T* g = dy + t * ldY + h * d;
      S r = rstdOf<T>(from, d, eps);
      VectorOf<T> dots{};
      for (int64_t i = 0; i < d; i += lanes<T>) {
        int64_t n = std::min(lanes<T>, d - i);
        auto unit = get<T>(from + i, n) * r, each = get<T>(g + i, n) * unit;
        dots += each * (get<T>(w + i, n) + plus);
        for (int64_t j = 0; j < n; ++j) dw[i + j] += each[j];
      }
      S mean = sum(dots) / S(d);
      for (int64_t i = 0; i < d; i += lanes<T>) {
        int64_t n = std::min(lanes<T>, d - i);
        auto unit = get<T>(from + i, n) * r;
        put<T>(g + i, n, (get<T>(g + i, n) * (get<T>(w + i, n) + plus) - unit * mean) * r);
      }
    }
}

#define WRPO_HEAD_NORM(T)                                                                                             \
  WRPO_CLONES void forward(const T* x, int64_t ldX, const T* w, ScalarOf<T> plus, ScalarOf<T> eps, T* y, int64_t ldY, \
                           int64_t heads, int64_t d, int64_t begin, int64_t end) {                                    \
    forwardRows<T>(x, ldX, w, plus, eps, y, ldY, heads, d, begin, end);                                               \
  }                                                                                                                   \
  WRPO_CLONES void backward(T* dy, int64_t ldY, const T* x, int64_t ldX, const T* w, ScalarOf<T> plus,                \
                            ScalarOf<T> eps, ScalarOf<T>* dw, int64_t heads, int64_t d, int64_t begin, int64_t end) { \
    backwardRows<T>(dy, ldY, x, ldX, w, plus, eps, dw, heads, d, begin, end);                                         \
  }
WRPO_HEAD_NORM(float)
WRPO_HEAD_NORM(double)
WRPO_HEAD_NORM(c10::BFloat16)
#undef WRPO_HEAD_NORM

}  // namespace

void cpu::headNormForward(const at::Tensor& x, const NormWeight& w, double eps, const at::Tensor& y) {
  byType(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using S = ScalarOf<T>;
    int64_t d = w.weight.size(0), heads = x.size(1) / d;
    parallelRows(x.size(0), 32, [&](int64_t begin, int64_t end) {
      forward(data<T>(x), x.stride(0), data<T>(w.weight), S(w.plus), S(eps), data<T>(y), y.stride(0), heads, d, begin,
              end);
    });
  });
}

void cpu::headNormBackward(const at::Tensor& dy, const at::Tensor& x, const NormWeight& w, double eps,
                           const at::Tensor& dw) {
  byType(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using S = ScalarOf<T>;
    int64_t rows = x.size(0), d = w.weight.size(0), heads = x.size(1) / d;
    // Fixed, short blocks of rows summed in order in float64, as in rms_norm.cpp.
    constexpr int64_t block = 16;
    int64_t blocks = (rows + block - 1) / block;
    std::vector<S> partial(blocks * d, S(0));
    parallelRows(blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        backward(data<T>(dy), dy.stride(0), data<T>(x), x.stride(0), data<T>(w.weight), S(w.plus), S(eps),
                 partial.data() + b * d, heads, d, b * block, std::min(rows, (b + 1) * block));
    });
    if (!dw.defined()) return;
    std::vector<double> total(d, 0);
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t i = 0; i < d; ++i) total[i] += double(partial[b * d + i]);
    for (int64_t i = 0; i < d; ++i) data<S>(dw)[i] += S(total[i]);
  });
}

}  // namespace wrpo
