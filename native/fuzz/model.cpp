// What a model computes with any batch that it lets through: log-probs, a loss, and no step outside its memory.
#include "model/model.h"

#include <cmath>

#include "fuzz/fuzz.h"
#include "fuzz/some_batch.h"

namespace wrpo::fuzz {
namespace {

void compute(Input& in, const Batch& batch) {
  // The table of rotations has a row for every position up to the last.
  for (int32_t p : batch.positions)
    if (p > 4096) return;
  auto& model = tinyModel(in.ConsumeIntegralInRange(0, tinyModels - 1));
  auto logps = model.logProbs(batch, {}, true, true);
  require(int64_t(logps.sums.size()) == batch.responses(), "every response has a log-prob");
  for (double sum : logps.sums) require(sum <= 1e-3, "log-probs are negative");
  if (batch.contestGroups.empty()) return;
  Objective objective;
  objective.form = in.PickValueInArray({Objective::Form::Sigmoid, Objective::Form::Ipo, Objective::Form::Linear});
  objective.beta = 0.1;
  objective.lengthNormalized = in.ConsumeBool();
  auto step = model.accumulate(batch, {}, objective, 1)();
  require(step.losses.size() == batch.contestWeights.size() && std::isfinite(step.loss), "every contest has a loss");
}

void once(Input& in) {
  const Batch batch = someBatch(in);
  try {
    compute(in, batch);
  } catch (const Error& error) {
    requireSentence(error);
  }
}

}  // namespace
}  // namespace wrpo::fuzz

WRPO_FUZZ(wrpo::fuzz::once)
