// Dropout without a stored mask: every element decides by a hash, so that backward finds the same mask again.
#include "kernels/row/dropout.h"

#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace wrpo {
namespace {

template <class T>
WRPO_INLINE void dropRows(const T* x, const uint32_t* keys, uint32_t threshold, simd::ScalarOf<T> scale, T* y,
                          int64_t width, int64_t begin, int64_t end) {
  using S = simd::ScalarOf<T>;
  for (int64_t t = begin; t < end; ++t) {
    const T* from = x + t * width;
    T* to = y + t * width;
    uint32_t key = keys[t];
    for (int64_t i = 0; i < width; ++i)
      to[i] = row::draw(key, uint32_t(i)) >= threshold ? T(S(from[i]) * scale) : T(S(0));
  }
}

#define WRPO_DROPOUT(T)                                                                                      \
  WRPO_CLONES void drop(const T* x, const uint32_t* keys, uint32_t threshold, simd::ScalarOf<T> scale, T* y, \
                        int64_t width, int64_t begin, int64_t end) {                                         \
    dropRows<T>(x, keys, threshold, scale, y, width, begin, end);                                            \
  }
WRPO_DROPOUT(float)
WRPO_DROPOUT(double)
WRPO_DROPOUT(c10::BFloat16)
#undef WRPO_DROPOUT

}  // namespace

void cpu::dropout(const at::Tensor& x, const at::Tensor& keys, double p, const at::Tensor& y) {
  const auto threshold = uint32_t(p * 0x1p32);
  byType(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    parallelRows(x.size(0), 16, [&](int64_t begin, int64_t end) {
      drop(data<T>(x), data<uint32_t>(keys), threshold, simd::ScalarOf<T>(1 / (1 - p)), data<T>(y), x.size(1), begin,
           end);
    });
  });
}

}  // namespace wrpo
