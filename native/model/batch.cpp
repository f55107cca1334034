#include "model/batch.h"

#include <algorithm>
#include <string>

#include "error.h"

namespace wrpo {
namespace {

void checkOffsets(const char* name, const std::vector<int32_t>& offsets, int64_t size) {
  bool good = !offsets.empty() && offsets.front() == 0 && offsets.back() == size;
  for (size_t i = 1; good && i < offsets.size(); ++i) good = offsets[i] >= offsets[i - 1];
  if (!good) fail("ERR_DATA", std::string(name) + " must rise from 0 to " + std::to_string(size));
}

}  // namespace

void Batch::validate(int64_t vocabSize) const {
  if (tokens.empty()) fail("ERR_DATA", "a packed batch must hold at least one token");
  if (promptOffsets.empty() || responseOffsets.empty())
    fail("ERR_DATA", "a batch needs promptOffsets and responseOffsets");
  checkOffsets("promptOffsets", promptOffsets, promptTokens());
  checkOffsets("responseOffsets", responseOffsets, int64_t(targets.size()));
  checkOffsets("groupOffsets", groupOffsets, responses());
  if (groupOffsets.size() != promptOffsets.size())
    fail("ERR_DATA", "groupOffsets and promptOffsets must be equally long");
  if (promptTokens() + responseRows() != size())
    fail("ERR_DATA", "tokens has " + std::to_string(size()) + " entries; promptOffsets and responseOffsets describe " +
                         std::to_string(promptTokens() + responseRows()));
  if (positions.size() != tokens.size()) fail("ERR_DATA", "positions and tokens must be equally long");
  for (size_t i = 0; i < tokens.size(); ++i)
    if (tokens[i] < 0 || tokens[i] >= vocabSize)
      fail("ERR_DATA", "token id " + std::to_string(tokens[i]) + " at position " + std::to_string(i) +
                           " of the batch; the model's vocabulary has " + std::to_string(vocabSize) + " tokens");
  for (int32_t target : targets)
    if (target < -1 || target >= vocabSize)
      fail("ERR_DATA", "target id " + std::to_string(target) + "; the model's vocabulary has " +
                           std::to_string(vocabSize) + " tokens");
  for (int32_t position : positions)
    if (position < 0 || position > (1 << 24))
      fail("ERR_DATA", "position " + std::to_string(position) + " is out of range");
  if (!reference.empty() && int64_t(reference.size()) != responses())
    fail("ERR_DATA", "reference needs one log-prob per response: expected " + std::to_string(responses()) +
                         ", received " + std::to_string(reference.size()));
  if (contestGroups.empty()) return;
  checkOffsets("contestGroups", contestGroups, int64_t(contestWeights.size()));
  if (contestGroups.size() != promptOffsets.size())
    fail("ERR_DATA", "contestGroups and promptOffsets must be equally long");
  if (contestOffsets.size() != contestWeights.size() + 1)
    fail("ERR_DATA", "contestOffsets must have one entry more than contestWeights");
  checkOffsets("contestOffsets", contestOffsets, int64_t(contestResponses.size()));
  if (contestCoefficients.size() != contestResponses.size())
    fail("ERR_DATA", "contestCoefficients and contestResponses must be equally long");
  for (int64_t g = 0; g < groups(); ++g)
    for (int32_t e = contestOffsets[contestGroups[g]]; e < contestOffsets[contestGroups[g + 1]]; ++e)
      if (contestResponses[e] < groupOffsets[g] || contestResponses[e] >= groupOffsets[g + 1])
        fail("ERR_DATA", "a contest of prompt " + std::to_string(g) + " names response " +
                             std::to_string(contestResponses[e]) + ", which is another prompt's");
}

int64_t Batch::longest() const {
  int64_t rows = 0;
  for (int64_t g = 0; g < groups(); ++g) {
    int64_t prompt = promptOffsets[g + 1] - promptOffsets[g];
    for (int32_t k = groupOffsets[g]; k < groupOffsets[g + 1]; ++k)
      rows = std::max(rows, prompt + responseOffsets[k + 1] - responseOffsets[k]);
  }
  return rows;
}

}  // namespace wrpo
