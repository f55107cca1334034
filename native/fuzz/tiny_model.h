// Models small enough to compute with at every execution.
#pragma once
#include <array>
#include <memory>

#include "model/model.h"

namespace wrpo::fuzz {

constexpr int32_t vocabulary = 17;
constexpr int tinyModels = 3;

// Full attention; a window, biases and tied embeddings; Gemma 2's norms and caps with a rotation that changes with
// length.
inline std::shared_ptr<Model> sharedTinyModel(int which) {
  static std::array<std::shared_ptr<Model>, tinyModels> models;
  auto& model = models[which];
  if (model) return model;
  ModelConfig c{};
  c.vocabSize = vocabulary, c.hiddenSize = 8, c.layers = 2, c.heads = 2, c.kvHeads = 1, c.headDim = 4;
  c.intermediateSize = 12, c.maxPositions = 64, c.rmsNormEps = 1e-5, c.initializerRange = 0.3;
  c.tieWordEmbeddings = which == 1, c.qkvBias = which == 1, c.branchNorms = which == 2;
  c.activation = which == 2 ? Activation::GeluTanh : Activation::Silu;
  c.embeddingScale = 1, c.queryScale = 0.5;
  if (which == 2) c.attentionSoftcap = 20, c.finalSoftcap = 10;
  c.windows = {which == 1 ? 3 : 0, 0};
  c.rope.dim = 4;
  if (which == 2) c.rope.type = "dynamic", c.rope.factor = 2, c.rope.originalMaxPosition = 6;
  model = std::make_shared<Model>(c, at::kFloat, Weights::Use::Trained, 1024);
  model->weights().initialize(7);
  return model;
}
inline Model& tinyModel(int which) { return *sharedTinyModel(which); }

}  // namespace wrpo::fuzz
