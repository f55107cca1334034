#include "model/model.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>

#include <cmath>

#include "kernels/dispatch.h"
#include "kernels/kernels.h"

namespace wrpo {
namespace {

// The rows that predict something: all of them in a shared batch (then the hidden states are used as they lie), a
// selection where segments hold prompts or a last token that is only read.
struct PredictedRows {
  bool all;
  std::vector<int32_t> targets;
  std::vector<int64_t> rows;
  std::vector<int64_t> responseOffsets;  // [K + 1] over the predicted rows

  explicit PredictedRows(const Batch& batch) {
    responseOffsets.push_back(0);
    for (int64_t k = 0; k < batch.responses(); ++k) {
      for (int32_t r = batch.responseOffsets[k]; r < batch.responseOffsets[k + 1]; ++r)
        if (batch.targets[r] >= 0) {
          targets.push_back(batch.targets[r]);
          rows.push_back(r);
        }
      responseOffsets.push_back(int64_t(targets.size()));
    }
    all = targets.size() == batch.targets.size();
  }
  at::Tensor index() const {
    return at::from_blob(const_cast<int64_t*>(rows.data()), {int64_t(rows.size())}, at::kLong);
  }
};

}  // namespace

Model::Model(const ModelConfig& config, at::ScalarType dtype, Weights::Use use, int64_t headChunkBytes)
    : config_(config),
      weights_(std::make_shared<Weights>(config, dtype, use)),
      decoder_(config, *weights_, workspace_),
      head_(workspace_, headChunkBytes, config.finalSoftcap) {}

void Model::requireLanguageHead() const {
  if (config_.reward.objectives > 0)
    fail("ERR_MODEL",
         "this is a reward model, without a language-model head: it gives scores, not log-probs, a loss or text");
}

void Model::addAdapters(const LoraShape& shape, uint64_t seed) {
  if (adapters_) fail("ERR_CONFIG", "the model has adapters already: merge them before others are added");
  auto adapters = std::make_shared<Adapters>(shape, *weights_);
  adapters->initialize(seed);
  weights_->setUse(Weights::Use::Frozen);
  adapters_ = std::move(adapters);
}

void Model::mergeAdapters() {
  if (!adapters_) fail("ERR_CONFIG", "the model has no adapters to merge");
  weights_->setUse(Weights::Use::Trained);
  adapters_->mergeInto(*weights_);
  adapters_.reset();
}

std::shared_ptr<Parameters> Model::trained() const {
  if (adapters_) return adapters_;
  return weights_;
}

uint64_t Model::fingerprint(bool withAdapters) const {
  uint64_t hash = wrpo::fingerprint(weights_->master);
  if (withAdapters && adapters_) hash = hash * 0x9e3779b97f4a7c15ull + wrpo::fingerprint(adapters_->master);
  return hash;
}

LoraPass Model::pass(const Batch& batch, const AdapterUse& use) {
  if (!adapters_ || !use.enabled) return {};
  if (!use.dropout) return {*adapters_, workspace_};
  return {*adapters_, workspace_, batch, *use.dropout};
}

LogProbs Model::logProbs(const Batch& batch, const AdapterUse& use, bool perToken, bool argmax) {
  requireLanguageHead();
  batch.validate(config_.vocabSize);
  workspace_.reset();
  PredictedRows rows(batch);
  auto hidden = decoder_.forward(batch, pass(batch, use), false);
  if (!rows.all) hidden = hidden.index_select(0, rows.index());
  auto output = head_.logProbs(hidden, weights_->view.head, rows.targets, argmax);
  auto logp = output.logp.to(at::kDouble);
  const double* p = data<double>(logp);
  LogProbs result;
  for (int64_t k = 0; k < batch.responses(); ++k) {
    double sum = 0;
    for (int64_t r = rows.responseOffsets[k]; r < rows.responseOffsets[k + 1]; ++r) sum += p[r];
    result.sums.push_back(sum);
    result.counts.push_back(int32_t(rows.responseOffsets[k + 1] - rows.responseOffsets[k]));
  }
  if (perToken) result.perToken.assign(p, p + logp.numel());
  result.argmax = std::move(output.argmax);
  return result;
}

at::Tensor Model::nextLogits(const Batch& batch, std::span<KeyValueCache* const> caches) {
  workspace_.reset();
  auto hidden = decoder_.forward(batch, pass(batch, {}), caches);
  return head_.logits(hidden, weights_->view.head);
}

Accumulated Model::accumulate(const Batch& batch, const AdapterUse& use, const Objective& objective,
                              double normalizer) {
  requireLanguageHead();
  batch.validate(config_.vocabSize);
  if (batch.contestGroups.empty())
    fail("ERR_DATA", "accumulate needs contests: the batch has only log-probs to compute");
  workspace_.reset();
  const int64_t K = batch.responses();
  PredictedRows rows(batch);
  Accumulated result{0, std::vector<double>(K), std::vector<int32_t>(K),
                     std::vector<double>(batch.contestWeights.size()),
                     std::vector<double>(batch.contestWeights.size())};
  std::vector<double> gradient(K);
  for (int64_t k = 0; k < K; ++k) {
    result.counts[k] = int32_t(rows.responseOffsets[k + 1] - rows.responseOffsets[k]);
    if (result.counts[k] == 0) fail("ERR_DATA", "response " + std::to_string(k) + " of the batch predicts no token");
  }
  std::vector<int64_t> unitOffsets;
  for (int32_t k : batch.groupOffsets) unitOffsets.push_back(rows.responseOffsets[k]);

  auto lora = pass(batch, use);
  auto hidden = decoder_.forward(batch, lora, true);
  auto dHidden = workspace_.take(hidden.sizes(), hidden.scalar_type());
  auto predicted = rows.all ? hidden : hidden.index_select(0, rows.index());
  auto dPredicted = rows.all ? dHidden : at::empty_like(predicted);

  // Called with the log-probs of whole prompts, in order: [g, next) are the prompts whose rows just became known.
  int64_t g = 0;
  auto dLossDLogp = [&](const HeadOutput& output, int64_t, int64_t last, at::Tensor& dLogp) {
    int64_t firstGroup = g;
    while (g < batch.groups() && unitOffsets[g + 1] <= last) ++g;
    byType(output.logp.scalar_type(), [&](auto zero) {
      using S = decltype(zero);
      const S* logp = static_cast<const S*>(output.logp.data_ptr());
      S* d = static_cast<S*>(dLogp.data_ptr());
      for (int32_t k = batch.groupOffsets[firstGroup]; k < batch.groupOffsets[g]; ++k)
        for (int64_t r = rows.responseOffsets[k]; r < rows.responseOffsets[k + 1]; ++r)
          result.logps[k] += double(logp[r]);
      evaluateContests(objective, batch, firstGroup, g, result.logps, result.counts, normalizer, gradient,
                       result.losses, result.margins);
      for (int32_t k = batch.groupOffsets[firstGroup]; k < batch.groupOffsets[g]; ++k)
        for (int64_t r = rows.responseOffsets[k]; r < rows.responseOffsets[k + 1]; ++r) d[r] = S(gradient[k]);
    });
  };
  const auto& grads = weights_->gradView();
  head_.forwardBackward(predicted, weights_->view.head, rows.targets, unitOffsets, dLossDLogp, dPredicted, grads.head);

  for (size_t q = 0; q < result.losses.size(); ++q)
    result.loss += batch.contestWeights[q] * result.losses[q] / normalizer;
  if (!std::isfinite(result.loss))
    fail("ERR_NON_FINITE", "the loss of a micro-batch is " + std::to_string(result.loss));
  if (!rows.all) {
    dHidden.zero_();
    dHidden.index_copy_(0, rows.index(), dPredicted);
  }
  decoder_.backward(batch, lora, dHidden);
  return result;
}

Scores Model::score(const Batch& batch) {
  if (config_.reward.objectives == 0) fail("ERR_MODEL", "this is a language model, without a reward head");
  batch.validate(config_.vocabSize);
  std::vector<int64_t> gates, lasts;
  for (int64_t k = 0; k < batch.responses(); ++k) {
    gates.push_back(batch.responseOffsets[k]);
    lasts.push_back(batch.responseOffsets[k + 1] - 1);
    if (lasts[k] < gates[k]) fail("ERR_DATA", "conversation " + std::to_string(k) + " of the batch has no token");
  }
  workspace_.reset();
  auto hidden = decoder_.forward(batch, pass(batch, {}), false);
  auto rows = [&](std::vector<int64_t>& index) {
    return hidden.index_select(0, at::from_blob(index.data(), {int64_t(index.size())}, at::kLong)).to(at::kDouble);
  };
  return rewardHead(config_.reward, *weights_, rows(gates), rows(lasts));
}

}  // namespace wrpo
