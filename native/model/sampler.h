// From the logits of the next token to a token.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

namespace wrpo {

// As in transformers, and in this order: the penalty, then temperature, top-k, top-p, min-p. No penalty is 1; topK 0,
// topP 1 and minP 0 leave every token in; temperature 0 takes the likeliest token, the first of equals.
struct Sampling {
  double temperature, topP, minP, repetitionPenalty;
  int64_t topK;
};

// Where a draw comes from: the same for the same seed and index (how many tokens of the sample were drawn before).
struct Draw {
  uint64_t seed, index;
};

// A token of a row of V logits, which is overwritten. `history`: the tokens that the penalty holds against themselves,
// once each however often they occur. Throws ERR_NON_FINITE when a logit is no number, or all are minus infinity.
int32_t sampleToken(const Sampling& sampling, std::span<float> logits, std::span<const int32_t> history, Draw draw);

}  // namespace wrpo
