#include "model/weights.h"

#include <ATen/CPUGeneratorImpl.h>

namespace wrpo {

Weights::Weights(const ModelConfig& c, at::ScalarType dtype, Use use, at::Device device) : config_(c), use_(use) {
  auto add = [&](const std::string& name, std::vector<int64_t> shape, bool fusedWithPrevious = false) {
    if (!fusedWithPrevious) size_ = alignParameter(size_);
    bool decay = shape.size() > 1;
    parameters_.push_back({name, shape, size_, decay});
    int64_t count = 1;
    for (int64_t s : shape) count *= s;
    size_ += count;
  };
  int64_t H = c.hiddenSize, F = c.intermediateSize, d = c.headDim;
  add("model.embed_tokens.weight", {c.vocabSize, H});
  for (int64_t l = 0; l < c.layers; ++l) {
    std::string layer = "model.layers." + std::to_string(l) + ".", attention = layer + "self_attn.";
    add(layer + "input_layernorm.weight", {H});
    if (c.fusedProjections) {
      add(attention + "qkv_proj.weight", {c.qkvSize(), H});
    } else {
      add(attention + "q_proj.weight", {c.heads * d, H});
      add(attention + "k_proj.weight", {c.kvHeads * d, H}, true);
      add(attention + "v_proj.weight", {c.kvHeads * d, H}, true);
    }
    if (c.qkvBias) {
      add(attention + "q_proj.bias", {c.heads * d});
      add(attention + "k_proj.bias", {c.kvHeads * d}, true);
      add(attention + "v_proj.bias", {c.kvHeads * d}, true);
    }
    if (c.headNorm) {
      add(attention + "q_norm.weight", {d});
      add(attention + "k_norm.weight", {d});
    }
    add(attention + "o_proj.weight", {H, c.heads * d});
    // Llama calls the norm before the MLP by what precedes it, Gemma gives that name to a norm of its own.
    add(layer + "post_attention_layernorm.weight", {H});
    if (c.branchNorms) add(layer + "pre_feedforward_layernorm.weight", {H});
    if (c.fusedProjections) {
      add(layer + "mlp.gate_up_proj.weight", {2 * F, H});
    } else {
      add(layer + "mlp.gate_proj.weight", {F, H});
      add(layer + "mlp.up_proj.weight", {F, H}, true);
    }
    add(layer + "mlp.down_proj.weight", {H, F});
    if (c.branchNorms) add(layer + "post_feedforward_layernorm.weight", {H});
  }
  add("model.norm.weight", {H});
  if (c.reward.objectives > 0) {
    add("regression_layer.weight", {c.reward.objectives, H});
    add("reward_transform_matrix", {c.reward.objectives, c.reward.objectives});
    for (int64_t i = 0, in = H; i <= c.reward.gatingLayers; ++i) {
      std::string layer = "gating.layers." + std::to_string(i) + ".";
      int64_t out = i < c.reward.gatingLayers ? c.reward.gatingHidden : c.reward.objectives;
      add(layer + "weight", {out, in});
      add(layer + "bias", {out});
      in = out;
    }
    add("gating.logit_scale", {1});
  } else if (!c.tieWordEmbeddings) {
    add("lm_head.weight", {c.vocabSize, H});
  }
  size_ = alignParameter(size_);
  allocate(dtype, device, use == Use::Trained);
  view = viewsOf(work);
}

WeightViews Weights::viewsOf(const at::Tensor& flat) const {
  // Walks parameters_ in the order the constructor laid them out.
  size_t next = 0;
  auto take = [&](int count = 1) {
    const Parameter& first = parameters_[next];
    int64_t rows = 0;
    for (int i = 0; i < count; ++i) rows += parameters_[next + i].shape[0];
    next += count;
    auto shape = first.shape;
    shape[0] = rows;
    return slice(flat, {first.name, shape, first.offset, first.decay});
  };
  WeightViews views;
  views.embed = take();
  for (int64_t l = 0; l < config_.layers; ++l) {
    LayerWeights w;
    w.inputNorm = take();
    w.qkv = take(config_.fusedProjections ? 1 : 3);
    if (config_.qkvBias) w.qkvBias = take(3);
    if (config_.headNorm) w.qNorm = take(), w.kNorm = take();
    w.o = take();
    if (config_.branchNorms) w.attentionNorm = take();
    w.mlpNorm = take();
    w.gateUp = take(config_.fusedProjections ? 1 : 2);
    w.down = take();
    if (config_.branchNorms) w.mlpOutNorm = take();
    views.layers.push_back(w);
  }
  views.norm = take();
  // What a reward model has behind this is read by name, from the masters.
  if (config_.reward.objectives == 0) views.head = config_.tieWordEmbeddings ? views.embed : take();
  return views;
}

const WeightViews& Weights::gradView() {
  if (gradView_.layers.empty()) {
    if (use_ == Use::Trained) gradView_ = viewsOf(grad());
    else gradView_.layers.resize(config_.layers);
  }
  return gradView_;
}

void Weights::setUse(Use use) {
  use_ = use;
  grad_ = at::Tensor();
  gradView_ = {};
  allocateMasters(use == Use::Trained);
}

void Weights::initialize(uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  for (const auto& p : parameters_) {
    auto stored = slice(masters(), p);
    auto w = stored.host();
    if (p.decay) w.normal_(0, config_.initializerRange, generator);
    else w.fill_(p.name.ends_with(".bias") ? 0 : 1 - config_.normPlus);
    stored.assign(w);
  }
  syncWork();
}

}  // namespace wrpo
