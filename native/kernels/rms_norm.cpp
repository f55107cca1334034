// RMSNorm with the residual addition fused in front of it: one read and one write of x per token instead of three
// passes. Rounding follows transformers: LlamaRMSNorm rounds x * rstd to the storage type before the weight multiplies
// it, Gemma's, whose factor is 1 + w, only the product.
#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace wrpo {
namespace {

using namespace simd;

template <class T>
WRPO_INLINE void forwardRows(const T* x, const T* residual, T* summed, const T* w, ScalarOf<T> plus, ScalarOf<T> eps,
                             T* y, ScalarOf<T>* rstd, int64_t H, int64_t begin, int64_t end) {
  using V = VectorOf<T>;
  using S = ScalarOf<T>;
  constexpr int64_t L = lanes<T>;
  for (int64_t t = begin; t < end; ++t) {
    const T* row = x + t * H;
    if (residual) {
      T* to = summed + t * H;
      const T* add = residual + t * H;
      int64_t i = 0;
      for (; i + L <= H; i += L) store<T>(to + i, load<T>(row + i) + load<T>(add + i));
      for (; i < H; ++i) to[i] = T(S(row[i]) + S(add[i]));
      row = to;
    }
    V squares{};
    int64_t i = 0;
    for (; i + L <= H; i += L) squares += load<T>(row + i) * load<T>(row + i);
    S total = sum(squares);
    for (; i < H; ++i) total += S(row[i]) * S(row[i]);
    S r = S(1) / std::sqrt(total / S(H) + eps);
    rstd[t] = r;
    for (i = 0; i + L <= H; i += L) {
      V v = load<T>(row + i) * r;
      if (std::is_same_v<T, c10::BFloat16> && plus == 0) {
        T rounded[L];
        store<T>(rounded, v);
        v = load<T>(rounded);
      }
      store<T>(y + t * H + i, v * (load<T>(w + i) + plus));
    }
    for (; i < H; ++i) {
      S n = S(row[i]) * r;
      y[t * H + i] = T((plus == 0 ? S(T(n)) : n) * (S(w[i]) + plus));
    }
  }
}

// With n = x * rstd, f = plus + w and s = mean(dy * f * n): dx += rstd * (dy * f - n * s), dw += sum over rows of dy *
// n.
template <class T>
WRPO_INLINE void backwardRows(const T* dy, const T* x, const T* w, ScalarOf<T> plus, const ScalarOf<T>* rstd, T* dx,
                              ScalarOf<T>* dw, int64_t H, int64_t begin, int64_t end) {
  using V = VectorOf<T>;
  using S = ScalarOf<T>;
  constexpr int64_t L = lanes<T>;
  for (int64_t t = begin; t < end; ++t) {
    const T *g = dy + t * H, *row = x + t * H;
    S r = rstd[t];
    V dots{};
    int64_t i = 0;
    for (; i + L <= H; i += L) {
      V n = load<T>(row + i) * r, d = load<T>(g + i);
      dots += d * (load<T>(w + i) + plus) * n;
      store<S>(dw + i, load<S>(dw + i) + d * n);
    }
    S s = sum(dots);
    for (; i < H; ++i) {
      S n = S(row[i]) * r;
      s += S(g[i]) * (S(w[i]) + plus) * n;
      dw[i] += S(g[i]) * n;
    }
    s /= S(H);
    T* out = dx + t * H;
    for (i = 0; i + L <= H; i += L) {
      V n = load<T>(row + i) * r;
      store<T>(out + i, load<T>(out + i) + (load<T>(g + i) * (load<T>(w + i) + plus) - n * s) * r);
    }
    for (; i < H; ++i) out[i] = T(S(out[i]) + r * (S(g[i]) * (S(w[i]) + plus) - S(row[i]) * r * s));
  }
}

#define WRPO_RMS(T)                                                                                                 \
  WRPO_CLONES void forward(const T* x, const T* residual, T* summed, const T* w, ScalarOf<T> plus, ScalarOf<T> eps, \
                           T* y, ScalarOf<T>* rstd, int64_t H, int64_t begin, int64_t end) {                        \
    forwardRows<T>(x, residual, summed, w, plus, eps, y, rstd, H, begin, end);                                      \
  }                                                                                                                 \
  WRPO_CLONES void backward(const T* dy, const T* x, const T* w, ScalarOf<T> plus, const ScalarOf<T>* rstd, T* dx,  \
                            ScalarOf<T>* dw, int64_t H, int64_t begin, int64_t end) {                               \
    backwardRows<T>(dy, x, w, plus, rstd, dx, dw, H, begin, end);                                                   \
  }
WRPO_RMS(float)
WRPO_RMS(double)
WRPO_RMS(c10::BFloat16)
#undef WRPO_RMS

}  // namespace

void cpu::rmsNormForward(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& sum, const NormWeight& w,
                         double eps, const at::Tensor& y, const at::Tensor& rstd) {
  byType(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using S = ScalarOf<T>;
    const T* r = residual.defined() ? data<T>(residual) : nullptr;
    T* s = residual.defined() ? data<T>(sum) : nullptr;
    parallelRows(x.size(0), 64, [&](int64_t begin, int64_t end) {
      forward(data<T>(x), r, s, data<T>(w.weight), S(w.plus), S(eps), data<T>(y), data<S>(rstd), x.size(1), begin, end);
    });
  });
}

void cpu::rmsNormBackward(const at::Tensor& dy, const at::Tensor& x, const NormWeight& w, const at::Tensor& rstd,
                          const at::Tensor& dx, const at::Tensor& dw) {
  byType(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using S = ScalarOf<T>;
    int64_t rows = x.size(0), H = x.size(1);
    // Fixed blocks of rows, summed in order: dw does not depend on the number of threads. Short ones, summed in
    // float64: a long float32 sum would lose more than plain ATen's.
    constexpr int64_t block = 32;
    int64_t blocks = (rows + block - 1) / block;
    std::vector<S> partial(blocks * H, S(0));
    parallelRows(blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        backward(data<T>(dy), data<T>(x), data<T>(w.weight), S(w.plus), data<S>(rstd), data<T>(dx),
                 partial.data() + b * H, H, b * block, std::min(rows, (b + 1) * block));
    });
    if (!dw.defined()) return;
    std::vector<double> total(H, 0);
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t i = 0; i < H; ++i) total[i] += double(partial[b * H + i]);
    for (int64_t i = 0; i < H; ++i) data<S>(dw)[i] += S(total[i]);
  });
}

}  // namespace wrpo
