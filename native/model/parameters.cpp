#include "model/parameters.h"

#include <ATen/ops/zeros.h>

#include "kernels/dispatch.h"

namespace wrpo {

at::Tensor Parameters::slice(const at::Tensor& flat, const Parameter& p) const {
  int64_t count = 1;
  for (int64_t s : p.shape) count *= s;
  return flat.narrow(0, p.offset, count).view(p.shape);
}

Stored Parameters::slice(const Stored& flat, const Parameter& p) const {
  return {slice(flat.tensor, p), flat.low.defined() ? slice(flat.low, p) : flat.low};
}

at::Tensor Parameters::states() const { return at::zeros({size_}, work.options().dtype(computeType(dtype()))); }

const at::Tensor& Parameters::grad() {
  if (!grad_.defined()) grad_ = states();
  return grad_;
}

void Parameters::syncWork() {
  if (!masters_.low.defined() && !masters_.tensor.is_same(work)) work.copy_(masters_.tensor);
}

void Parameters::allocate(at::ScalarType dtype, at::Device device, bool trained) {
  work = at::zeros({size_}, at::TensorOptions(dtype).device(device));
  allocateMasters(trained);
}

void Parameters::allocateMasters(bool trained) {
  auto wide = computeType(dtype());
  if (!trained || dtype() == wide) masters_ = {work, {}};
  else if (device().is_cpu()) masters_ = {work.to(wide), {}};
  else masters_ = {work, at::zeros({size_}, work.options().dtype(at::kShort))};
}

}  // namespace wrpo
