// The embedding's gradient, without atomics: threads share out the columns, each walks the rows in order.
#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace wrpo {

void cpu::embeddingBackward(const at::Tensor& dx, const std::vector<int32_t>& ids, const at::Tensor& dWeight) {
  if (!dWeight.defined()) return;
  byType(dx.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using S = simd::ScalarOf<T>;
    int64_t rows = dx.size(0), H = dx.size(1);
    const T* from = data<T>(dx);
    S* to = data<S>(dWeight);
    parallelRows(H, 32, [&](int64_t begin, int64_t end) {
      for (int64_t t = 0; t < rows; ++t)
        for (int64_t i = begin; i < end; ++i) to[int64_t(ids[t]) * H + i] += S(from[t * H + i]);
    });
  });
}

}  // namespace wrpo
