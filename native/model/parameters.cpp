#include "model/parameters.h"

#include <ATen/ops/zeros.h>

namespace wrpo {

at::Tensor Parameters::slice(const at::Tensor& flat, const Parameter& p) const {
  int64_t count = 1;
  for (int64_t s : p.shape) count *= s;
  return flat.narrow(0, p.offset, count).view(p.shape);
}

const at::Tensor& Parameters::grad() {
  if (!grad_.defined()) grad_ = at::zeros({size_}, master.scalar_type());
  return grad_;
}

void Parameters::syncWork() {
  if (work.data_ptr() != master.data_ptr()) work.copy_(master);
}

}  // namespace wrpo
