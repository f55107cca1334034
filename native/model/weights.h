// A model's weights in flat buffers (model/parameters.h). Projections that read the same input are stored fused;
// parameters, under the names of Hugging Face's Llama and its descendants, are views into them, so nothing is ever
// copied to look at, load or save one.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "model/config.h"
#include "model/parameters.h"

namespace wrpo {

struct LayerWeights {
  at::Tensor inputNorm, qkv, qkvBias, qNorm, kNorm, o, attentionNorm, mlpNorm, gateUp, down, mlpOutNorm;
};
// The same tensors of a model, over any flat buffer; those that its family does not have are undefined.
struct WeightViews {
  at::Tensor embed, norm, head;  // head is embed when they are tied, undefined in a reward model
  std::vector<LayerWeights> layers;
};

class Weights : public Parameters {
 public:
  // Frozen weights have no masters beside the working ones and get no gradients.
  enum class Use { Trained, Frozen };

  // Zeros. dtype float32, float64 or bfloat16.
  Weights(const ModelConfig& config, at::ScalarType dtype, Use use, at::Device device);

  WeightViews view;  // of work

  // Views of grad(); of frozen weights they are undefined.
  const WeightViews& gradView();
  bool frozen() const { return use_ == Use::Frozen; }
  // Lets go of masters and gradients, or takes masters (the working weights, widened) again.
  void setUse(Use use);

  // Normal(0, initializer_range) for matrices, zeros for biases, factors of one for norms; the same for the same seed.
  void initialize(uint64_t seed);

 private:
  WeightViews viewsOf(const at::Tensor& flat) const;
  ModelConfig config_;
  Use use_;
  WeightViews gradView_;
};

}  // namespace wrpo
