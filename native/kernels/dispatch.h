// From a tensor's dtype to one of the three compiled entry points of an op.
#pragma once
#include <ATen/core/Tensor.h>

#include "error.h"

namespace wrpo {

// Calls body(T{}) with T the storage type.
template <class Body>
void byType(at::ScalarType type, Body&& body) {
  switch (type) {
    case at::kFloat:
      return body(float{});
    case at::kDouble:
      return body(double{});
    case at::kBFloat16:
      return body(c10::BFloat16{});
    default:
      fail("ERR_INTERNAL",
           std::string("no kernel for dtype ") + c10::toString(type) + "; expected float32, float64 or bfloat16");
  }
}

// The type that statistics (rstd, lse, log-probs) and gradients have beside a storage type.
inline at::ScalarType computeType(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

template <class T>
T* data(const at::Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

}  // namespace wrpo
