#include "kernels/softmax.h"

#include <cmath>

#include "kernels/simd.h"

namespace wrpo {
namespace {

using namespace simd;

template <class T>
WRPO_INLINE void softmax(T* scores, int64_t ld, int64_t rows, Visible visible, Logits<T> logits, T* sums, T* lse,
                         int64_t lseStride) {
  constexpr int64_t L = lanes<T>;
  const T lowest = -std::numeric_limits<T>::infinity();
  for (int64_t i = 0; i < rows; ++i) {
    T *s = scores + i * ld, scale = logits.scale;
    int64_t low = visible.low(i), end = visible.end + i, whole = (end + L - 1) / L * L;
    if (logits.cap > 0) {
      for (int64_t j = 0; j < whole; j += L) store<T>(s + j, tanh(load(s + j) * (scale / logits.cap)) * logits.cap);
      scale = 1;
    }
    std::fill(s, s + low, lowest);
    std::fill(s + end, s + whole, lowest);
    auto high = splat<VectorOf<T>>(lowest);
    for (int64_t j = 0; j < whole; j += L) high = max(high, load(s + j));
    T top = high[0];
    for (int j = 1; j < L; ++j) top = std::max(top, high[j]);
    VectorOf<T> total{};
    for (int64_t j = 0; j < whole; j += L) {
      auto e = exp((load(s + j) - top) * scale);
      store<T>(s + j, e);
      total += e;
    }
    std::fill(s + whole, s + ld, T(0));
    sums[i] = sum(total);
    lse[i * lseStride] = top * scale + std::log(sums[i]);
  }
}

}  // namespace

#define WRPO_SOFTMAX(T)                                                                                         \
  WRPO_CLONES void softmaxRows(T* scores, int64_t ld, int64_t rows, Visible visible, Logits<T> logits, T* sums, \
                               T* lse, int64_t lseStride) {                                                     \
    softmax<T>(scores, ld, rows, visible, logits, sums, lse, lseStride);                                        \
  }
WRPO_SOFTMAX(float)
WRPO_SOFTMAX(double)
#undef WRPO_SOFTMAX

}  // namespace wrpo
