// Parameters in flat buffers: one for the working values, one (the same, unless they are bfloat16) for the float32
// masters, one for the gradients. What an optimiser needs of a model, whichever of its parameters are trained. On a GPU
// the bfloat16 working values are the upper half of the masters, and only the lower one is kept beside them.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "device.h"

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
  at::Tensor work;  // flat

  at::ScalarType dtype() const { return work.scalar_type(); }
  at::Device device() const { return work.device(); }
  const std::vector<Parameter>& parameters() const { return parameters_; }
  at::Tensor slice(const at::Tensor& flat, const Parameter& p) const;
  Stored slice(const Stored& flat, const Parameter& p) const;

  // Flat; the working values themselves where those are float32 or float64, or frozen.
  const Stored& masters() const { return masters_; }

  // Zeros, flat, in the type of gradients.
  at::Tensor states() const;
  // Allocated and zero at the first call.
  const at::Tensor& grad();
  bool hasGrad() const { return grad_.defined(); }

  // After the masters changed by hand: rounds them into the working copy.
  void syncWork();

 protected:
  Parameters() = default;
  ~Parameters() = default;
  // work and masters, zeros; or masters beside what work holds.
  void allocate(at::ScalarType dtype, at::Device device, bool trained);
  void allocateMasters(bool trained);
  std::vector<Parameter> parameters_;
  int64_t size_ = 0;
  at::Tensor grad_;
  Stored masters_;
};

// Every tensor starts on a cache line of float32.
inline int64_t alignParameter(int64_t offset) { return (offset + 15) / 16 * 16; }

}  // namespace wrpo
