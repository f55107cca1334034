// The offsets of a batch, for checks that fill in the rest.
#pragma once
#include "model/batch.h"

namespace wrpo::check {

// prompts[g]: tokens of prompt g; responses[g]: the lengths of its responses.
inline Batch packed(const std::vector<int32_t>& prompts, const std::vector<std::vector<int32_t>>& responses) {
  Batch b;
  b.promptOffsets = b.responseOffsets = b.groupOffsets = {0};
  for (size_t g = 0; g < prompts.size(); ++g) {
    b.promptOffsets.push_back(b.promptOffsets.back() + prompts[g]);
    for (int32_t n : responses[g]) b.responseOffsets.push_back(b.responseOffsets.back() + n);
    b.groupOffsets.push_back(int32_t(b.responseOffsets.size()) - 1);
  }
  b.tokens.resize(b.promptTokens() + b.responseRows());
  return b;
}

}  // namespace wrpo::check
