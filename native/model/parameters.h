// Parameters in flat buffers: one for the working values, one (the same, unless they are bfloat16) for the float32
// masters, one for the gradients. What an optimiser needs of a model, whichever of its parameters are trained.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace wrpo {

// A parameter under its Hugging Face name, as a range of the flat buffers.
struct Parameter {
  std::string name;
  std::vector<int64_t> shape;
  int64_t offset;  // in elements
  bool decay;      // weight decay applies (not to norms)
};

class Parameters {
 public:
  at::Tensor work, master;  // flat; master shares storage with work unless dtype is bfloat16

  at::ScalarType dtype() const { return work.scalar_type(); }
  const std::vector<Parameter>& parameters() const { return parameters_; }
  at::Tensor slice(const at::Tensor& flat, const Parameter& p) const;

  // Allocated and zero at the first call.
  const at::Tensor& grad();
  bool hasGrad() const { return grad_.defined(); }

  // After the masters changed by hand: rounds them into the working copy.
  void syncWork();

 protected:
  Parameters() = default;
  ~Parameters() = default;
  std::vector<Parameter> parameters_;
  int64_t size_ = 0;
  at::Tensor grad_;
};

// Every tensor starts on a cache line of float32.
inline int64_t alignParameter(int64_t offset) { return (offset + 15) / 16 * 16; }

}  // namespace wrpo
