// What a model is, as data. lib/model/config.ts reads it from a Hugging Face config.json.
#pragma once
#include <cstdint>

#include "kernels/kernels.h"

namespace wrpo {

struct ModelConfig {
  int64_t vocabSize, hiddenSize, layers, heads, kvHeads, headDim, intermediateSize, maxPositions;
  double rmsNormEps, initializerRange;
  bool tieWordEmbeddings;
  RopeSettings rope;

  int64_t qkvSize() const { return (heads + 2 * kvHeads) * headDim; }
};

}  // namespace wrpo
