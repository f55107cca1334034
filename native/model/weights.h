// A model's parameters in flat buffers: one for the working weights, one (the same, unless they are bfloat16) for the
// float32 masters, one for the gradients. Projections that read the same input are stored fused; parameters, under the
// names of Hugging Face's Llama and its descendants, are views into them, so nothing is ever copied to look at, load or
// save one.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "model/config.h"

namespace wrpo {

// A parameter under its Hugging Face name, as a range of the flat buffers.
struct Parameter {
  std::string name;
  std::vector<int64_t> shape;
  int64_t offset;  // in elements
  bool decay;      // weight decay applies (not to norms)
};

struct LayerWeights {
  at::Tensor inputNorm, qkv, qkvBias, qNorm, kNorm, o, attentionNorm, mlpNorm, gateUp, down, mlpOutNorm;
};
// The same tensors of a model, over any flat buffer; those that its family does not have are undefined.
struct WeightViews {
  at::Tensor embed, norm, head;  // head is embed when they are tied, undefined in a reward model
  std::vector<LayerWeights> layers;
};

class Weights {
 public:
  // Zeros. dtype float32, float64 or bfloat16.
  Weights(const ModelConfig& config, at::ScalarType dtype);

  at::Tensor work, master;  // flat; master shares storage with work unless dtype is bfloat16
  WeightViews view;         // of work

  at::ScalarType dtype() const { return work.scalar_type(); }
  at::ScalarType gradType() const { return master.scalar_type(); }
  const std::vector<Parameter>& parameters() const { return parameters_; }
  at::Tensor slice(const at::Tensor& flat, const Parameter& p) const;

  // Allocated and zero at the first call.
  const at::Tensor& grad();
  const WeightViews& gradView();
  bool hasGrad() const { return grad_.defined(); }

  // Normal(0, initializer_range) for matrices, zeros for biases, factors of one for norms; the same for the same seed.
  void initialize(uint64_t seed);
  // After the masters changed by hand: rounds them into the working copy.
  void syncWork();

 private:
  WeightViews viewsOf(const at::Tensor& flat) const;
  ModelConfig config_;
  std::vector<Parameter> parameters_;
  int64_t size_ = 0;
  at::Tensor grad_;
  WeightViews gradView_;
};

}  // namespace wrpo
