#include <ATen/Parallel.h>

#include "kernels/kernels.h"

namespace wrpo {

void parallelRows(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  at::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { body(begin, end); });
}

}  // namespace wrpo
