// A token drawn from any row of numbers is one that the row allows, and there is none where a number is none.
#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "fuzz/fuzz.h"
#include "fuzz/some_sampling.h"

namespace wrpo::fuzz {
namespace {

void once(Input& in) {
  auto sampling = someSampling(in);
  // As the generator lets them through.
  if (!(sampling.temperature == 0 || (sampling.temperature >= 1e-4 && sampling.temperature <= 1e4)))
    sampling.temperature = 1;
  if (!(sampling.topP > 0 && sampling.topP <= 1)) sampling.topP = 1;
  if (!(sampling.minP >= 0 && sampling.minP <= 1)) sampling.minP = 0;
  if (!(sampling.repetitionPenalty > 0 && sampling.repetitionPenalty <= 1e4)) sampling.repetitionPenalty = 1;
  sampling.topK = std::max<int64_t>(sampling.topK, 0);
  std::vector<float> logits(in.ConsumeIntegralInRange(1, 40));
  bool finite = true;
  for (float& z : logits) {
    switch (in.ConsumeIntegralInRange(0, 15)) {
      case 0:
        z = in.PickValueInArray({0.f, -0.f, std::nanf(""), HUGE_VALF, -HUGE_VALF, 1e38f, -1e38f, 1e-45f});
        break;
      case 1:
        z = in.ConsumeFloatingPoint<float>();
        break;
      default:
        z = in.ConsumeFloatingPointInRange(-20.f, 20.f);
    }
    finite = finite && std::isfinite(z);
  }
  std::vector<int32_t> history(in.ConsumeIntegralInRange(0, 4));
  for (int32_t& id : history) id = in.ConsumeIntegralInRange<int32_t>(0, int32_t(logits.size()) - 1);
  const auto given = logits;
  try {
    const auto id =
        sampleToken(sampling, logits, history, {in.ConsumeIntegral<uint64_t>(), in.ConsumeIntegral<uint64_t>()});
    require(id >= 0 && id < int32_t(given.size()), "a token is of the vocabulary");
    for (float z : given) require(!std::isnan(z), "no token of a row with NaN");
    require(given[id] > -HUGE_VALF, "no token that is excluded");
  } catch (const Error& error) {
    requireSentence(error);
    bool large = false;  // times the penalty a number may be none
    for (float z : given) large = large || std::abs(z) > 1e30f;
    require(!finite || large, "a row of numbers has a next token");
  }
}

}  // namespace
}  // namespace wrpo::fuzz

WRPO_FUZZ(wrpo::fuzz::once)
