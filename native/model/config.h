// What a model is, as data. lib/model/config.ts reads it from a Hugging Face config.json.
#pragma once
#include <cstdint>

#include "kernels/kernels.h"

namespace wrpo {

// The head of a reward model (model/reward.h). No objectives: the model is a language model.
struct RewardShape {
  int64_t objectives = 0, gatingHidden = 0, gatingLayers = 0;  // gatingLayers: those before the output
  double temperature = 1;
};

struct ModelConfig {
  int64_t vocabSize, hiddenSize, layers, heads, kvHeads, headDim, intermediateSize, maxPositions;
  double rmsNormEps, initializerRange;
  bool tieWordEmbeddings;
  RopeSettings rope;
  RewardShape reward{};

  int64_t qkvSize() const { return (heads + 2 * kvHeads) * headDim; }
};

}  // namespace wrpo
