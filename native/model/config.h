// What a model is, as data. lib/model/config.ts reads it from a Hugging Face config.json; what families differ in is a
// field here, and the decoder has one branch for each.
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

  bool qkvBias;           // Qwen2: biases of the query, key and value projections
  bool headNorm;          // Qwen3, Gemma 3: a norm of every query and key head before the rotation
  bool branchNorms;       // Gemma: a norm of what attention and MLP add to the stream, too
  bool fusedProjections;  // Phi-3: qkv_proj and gate_up_proj are stored as one tensor each
  double normPlus;        // 1 in Gemma, whose norms multiply by 1 + weight; otherwise 0
  Activation activation;
  double embeddingScale;                  // Gemma: sqrt(hidden size); otherwise 1
  double queryScale;                      // of <q, k>; 1/sqrt(headDim) but in Gemma
  double attentionSoftcap, finalSoftcap;  // Gemma 2; 0 = none
  std::vector<int64_t> windows;           // [layers] keys that a row sees, itself included; 0 = all before it
  RopeSettings rope, localRope;           // localRope, where it has a dim: of the layers with a window (Gemma 3)
  RewardShape reward{};

  int64_t qkvSize() const { return (heads + 2 * kvHeads) * headDim; }
};

}  // namespace wrpo
