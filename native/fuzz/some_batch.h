// Batches from bytes: well-formed ones of which a few numbers were changed, added or left out.
#pragma once
#include "fuzz/fuzz.h"
#include "fuzz/tiny_model.h"
#include "model/batch.h"

namespace wrpo::fuzz {

using Ints = std::vector<int32_t>;

// A batch as lib/data/pack.ts makes them, of a few prompts, each with one contest of all its responses.
inline Batch wellFormed(Input& in) {
  Batch b;
  b.promptOffsets = b.responseOffsets = b.groupOffsets = b.contestGroups = b.contestOffsets = {0};
  const int groups = in.ConsumeIntegralInRange(1, 3);
  Ints responsePositions;
  for (int g = 0; g < groups; ++g) {
    const int prompt = in.ConsumeIntegralInRange(0, 5);
    for (int i = 0; i < prompt; ++i) b.positions.push_back(i);
    b.promptOffsets.push_back(b.promptOffsets.back() + prompt);
    const int responses = in.ConsumeIntegralInRange(0, 3);
    for (int k = 0; k < responses; ++k) {
      const int rows = in.ConsumeIntegralInRange(0, 5);
      for (int i = 0; i < rows; ++i) {
        responsePositions.push_back(prompt + i);
        b.targets.push_back(in.ConsumeIntegralInRange(-1, vocabulary - 1));
      }
      b.contestResponses.push_back(b.responses());
      b.contestCoefficients.push_back(in.ConsumeFloatingPointInRange(-1.0, 1.0));
      b.responseOffsets.push_back(b.responseOffsets.back() + rows);
    }
    b.groupOffsets.push_back(int32_t(b.responses()));
    b.contestWeights.push_back(1);
    b.contestOffsets.push_back(int32_t(b.contestResponses.size()));
    b.contestGroups.push_back(int32_t(b.contestWeights.size()));
  }
  b.positions.insert(b.positions.end(), responsePositions.begin(), responsePositions.end());
  for (size_t i = 0; i < b.positions.size(); ++i) b.tokens.push_back(in.ConsumeIntegralInRange(0, vocabulary - 1));
  if (in.ConsumeBool()) b.reference.assign(b.responses(), -3);
  if (in.ConsumeBool()) b.contestGroups.clear();
  return b;
}

inline int32_t oddNumber(Input& in) {
  return in.ConsumeBool() ? in.ConsumeIntegralInRange(-2, 20) : in.ConsumeIntegral<int32_t>();
}

template <class T, class Odd>
void spoil(Input& in, std::vector<T>& list, Odd odd) {
  const size_t at = list.empty() ? 0 : in.ConsumeIntegralInRange<size_t>(0, list.size() - 1);
  switch (in.ConsumeIntegralInRange(0, 3)) {
    case 0:
      list.insert(list.begin() + at, odd());
      break;
    case 1:
      if (!list.empty()) list.erase(list.begin() + at);
      break;
    case 2:
      list.clear();
      break;
    default:
      if (!list.empty()) list[at] = odd();
  }
}

inline Batch someBatch(Input& in) {
  Batch batch = wellFormed(in);
  Ints* ints[] = {&batch.tokens,        &batch.positions,       &batch.targets,
                  &batch.promptOffsets, &batch.responseOffsets, &batch.groupOffsets,
                  &batch.contestGroups, &batch.contestOffsets,  &batch.contestResponses};
  std::vector<double>* reals[] = {&batch.contestCoefficients, &batch.contestWeights, &batch.reference};
  for (int n = in.ConsumeIntegralInRange(0, 3); n > 0; --n) {
    if (in.ConsumeIntegralInRange(0, 3) > 0) spoil(in, *in.PickValueInArray(ints), [&] { return oddNumber(in); });
    else spoil(in, *in.PickValueInArray(reals), [] { return 0.5; });
  }
  return batch;
}

}  // namespace wrpo::fuzz
