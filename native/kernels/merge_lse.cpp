// Attention over two disjoint key sets, merged: with l = log(e^l1 + e^l2), o = e^(l1-l) o1 + e^(l2-l) o2.
#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace wrpo {
namespace {

template <class T>
WRPO_INLINE void mergeRows(T* out, simd::ScalarOf<T>* lse, const T* out2, const simd::ScalarOf<T>* lse2, int64_t heads,
                           int64_t d, int64_t begin, int64_t end) {
  using S = simd::ScalarOf<T>;
  for (int64_t i = begin * heads; i < end * heads; ++i) {
    S l1 = lse[i], l2 = lse2[i];
    S top = l1 > l2 ? l1 : l2;
    S l = top + std::log1p(std::exp(-std::abs(l1 - l2)));
    S a = std::exp(l1 - l), b = std::exp(l2 - l);
    lse[i] = l;
    for (int64_t k = 0; k < d; ++k) out[i * d + k] = T(a * S(out[i * d + k]) + b * S(out2[i * d + k]));
  }
}

#define WRPO_MERGE(T)                                                                                                 \
  WRPO_CLONES void merge(T* out, simd::ScalarOf<T>* lse, const T* out2, const simd::ScalarOf<T>* lse2, int64_t heads, \
                         int64_t d, int64_t begin, int64_t end) {                                                     \
    mergeRows<T>(out, lse, out2, lse2, heads, d, begin, end);                                                         \
  }
WRPO_MERGE(float)
WRPO_MERGE(double)
WRPO_MERGE(c10::BFloat16)
#undef WRPO_MERGE

}  // namespace

void cpu::mergeLse(const at::Tensor& out, const at::Tensor& lse, const at::Tensor& out2, const at::Tensor& lse2,
                   int64_t heads) {
  byType(out.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using S = simd::ScalarOf<T>;
    parallelRows(out.size(0), 16, [&](int64_t b, int64_t e) {
      merge(data<T>(out), data<S>(lse), data<T>(out2), data<S>(lse2), heads, out.size(1) / heads, b, e);
    });
  });
}

}  // namespace wrpo
