// The head of ArmoRM (LlamaForRewardModelWithGating): several rewards of a conversation, weighed by gates that its
// prompt decides.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "model/weights.h"

namespace wrpo {

// Of K conversations and n objectives.
struct Scores {
  std::vector<double> scores;          // [K]
  std::vector<double> rewards, gates;  // [K * n], conversation by conversation
};

//   rewards = W last,   gates = s * softmax(MLP(gate) / temperature),   score = <gates, rewards T>
// `gate` and `last` [K, H], float64, are the final hidden states at the end of the prompt and of the conversation.
// Beside the decoder this is nothing, so all of it is float64, from the masters.
Scores rewardHead(const RewardShape& shape, const Weights& weights, const at::Tensor& gate, const at::Tensor& last);

}  // namespace wrpo
