// Packed batches: whatever the arrays hold, validate() refuses in one sentence, or every index stays inside its array.
#include "model/batch.h"

#include "fuzz/fuzz.h"
#include "fuzz/some_batch.h"

namespace wrpo::fuzz {
namespace {

void requireRising(const Ints& offsets, int64_t size, size_t count) {
  require(offsets.size() == count && offsets.front() == 0 && offsets.back() == size, "offsets go from 0 to the end");
  for (size_t i = 1; i < offsets.size(); ++i) require(offsets[i - 1] <= offsets[i], "offsets rise");
}

// What the decoder, the head and the objective rely on.
void requireSound(const Batch& b) {
  const auto G = size_t(b.groups()), K = size_t(b.responses());
  requireRising(b.promptOffsets, b.promptTokens(), G + 1);
  requireRising(b.responseOffsets, int64_t(b.targets.size()), K + 1);
  requireRising(b.groupOffsets, int64_t(K), G + 1);
  require(b.promptTokens() + b.responseRows() == b.size() && b.size() > 0, "every token is a prompt's or a response's");
  require(b.positions.size() == b.tokens.size(), "every token has a position");
  for (int32_t id : b.tokens) require(id >= 0 && id < vocabulary, "tokens are in the vocabulary");
  for (int32_t id : b.targets) require(id >= -1 && id < vocabulary, "targets are in the vocabulary");
  for (int32_t p : b.positions) require(p >= 0 && p <= 1 << 24, "positions are in the table's range");
  require(b.reference.empty() || b.reference.size() == K, "every response has a reference");
  require(b.longest() <= b.size(), "no sequence is longer than the batch");
  if (b.contestGroups.empty()) return;
  requireRising(b.contestGroups, int64_t(b.contestWeights.size()), G + 1);
  requireRising(b.contestOffsets, int64_t(b.contestResponses.size()), b.contestWeights.size() + 1);
  require(b.contestCoefficients.size() == b.contestResponses.size(), "every response that meets has a coefficient");
  for (int32_t k : b.contestResponses) require(k >= 0 && k < int32_t(K), "contests are between responses");
}

void once(Input& in) {
  const Batch batch = someBatch(in);
  try {
    batch.validate(vocabulary);
    requireSound(batch);
  } catch (const Error& error) {
    requireSentence(error);
  }
}

}  // namespace
}  // namespace wrpo::fuzz

WRPO_FUZZ(wrpo::fuzz::once)
