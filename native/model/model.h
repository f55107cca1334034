// A model and what a training step asks of it. Used from the engine thread only.
#pragma once
#include <memory>
#include <vector>

#include "model/decoder.h"
#include "model/head.h"
#include "model/reward.h"
#include "train/objective.h"

namespace wrpo {

struct LogProbs {
  std::vector<double> sums;      // [K] summed log-prob of each response
  std::vector<int32_t> counts;   // [K] predicted tokens of each response
  std::vector<double> perToken;  // one a predicted token, responses in order, when asked for
  std::vector<uint8_t> argmax;   // whether each predicted token was the arg max, when asked for
};

struct Accumulated {
  double loss;                          // sum(weight * loss) / normalizer over the batch's contests
  std::vector<double> logps;            // [K]
  std::vector<int32_t> counts;          // [K]
  std::vector<double> losses, margins;  // per contest
};

class Model {
 public:
  Model(const ModelConfig& config, at::ScalarType dtype, int64_t headChunkBytes);

  LogProbs logProbs(const Batch& batch, bool perToken, bool argmax);
  // Adds the gradient of the batch's objective to weights().grad().
  Accumulated accumulate(const Batch& batch, const Objective& objective, double normalizer);
  // Of a reward model: every response of the batch begins at the token whose state gates and ends in the last token.
  Scores score(const Batch& batch);

  Weights& weights() { return weights_; }
  const ModelConfig& config() const { return config_; }

 private:
  void requireLanguageHead() const;
  const ModelConfig config_;
  Weights weights_;
  Workspace workspace_;
  Decoder decoder_;
  Head head_;
};

}  // namespace wrpo
