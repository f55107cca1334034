// A packed micro-batch, without padding (lib/data/pack.ts makes it): first the prompts' tokens, each prompt once, then
// the responses. Response segment r of a prompt x with p tokens is [x_{p-1}, y_0 .. y_{n-2}] and predicts y_0 ..
// y_{n-1}, so every response row is a loss row; a prompt segment is x_0 .. x_{p-2} and may be empty. An unshared row
// has an empty prompt segment and its whole sequence as one response segment, with targets of -1 where nothing is
// predicted. A conversation to be scored (lib/model/reward.ts) is cut at its gate, and its response segment keeps the
// last token: [gate .. y_{n-1}], with targets of -1 only.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

namespace wrpo {

struct AttentionSegments;

struct Batch {
  std::vector<int32_t> tokens, positions;  // [T], T = prompt tokens + response rows
  std::vector<int32_t> targets;            // [R], one a response row; -1 = none
  std::vector<int32_t> promptOffsets;      // [G + 1] over prompt tokens
  std::vector<int32_t> responseOffsets;    // [K + 1] over response rows
  std::vector<int32_t> groupOffsets;       // [G + 1]: responses of prompt g are [groupOffsets[g], groupOffsets[g + 1])
  // Contests (train/objective.h): those of prompt g are [contestGroups[g], contestGroups[g + 1]), and the responses
  // that meet in contest q are entries [contestOffsets[q], contestOffsets[q + 1]). Empty where only log-probs are
  // wanted.
  std::vector<int32_t> contestGroups, contestOffsets, contestResponses;
  std::vector<double> contestCoefficients, contestWeights;
  std::vector<double> reference;  // [K] summed reference log-probs, or empty
  // What cuda/attention.cpp makes of the offsets at a GPU's first layer.
  mutable std::shared_ptr<AttentionSegments> attentionSegments;

  int64_t groups() const { return int64_t(promptOffsets.size()) - 1; }
  int64_t responses() const { return int64_t(responseOffsets.size()) - 1; }
  int64_t promptTokens() const { return promptOffsets.back(); }
  int64_t responseRows() const { return responseOffsets.back(); }
  int64_t size() const { return int64_t(tokens.size()); }
  // Rows of the longest sequence: a prompt's and a response's.
  int64_t longest() const;

  // Throws ERR_DATA unless every index stays inside its array and every token inside the vocabulary.
  void validate(int64_t vocabSize) const;
};

}  // namespace wrpo
