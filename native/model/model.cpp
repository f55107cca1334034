#include "model/model.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/sum.h>

#include <algorithm>
#include <cmath>

#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "range.h"

namespace wrpo {
namespace {

// The rows that predict something: all of them in a shared batch (then the hidden states are used as they lie), a
// selection where segments hold prompts or a last token that is only read.
struct PredictedRows {
  bool all;
  std::vector<int32_t> targets;
  std::vector<int64_t> rows;
  std::vector<int32_t> responseOffsets;  // [K + 1] over the predicted rows

  explicit PredictedRows(const Batch& batch) {
    responseOffsets.push_back(0);
    for (int64_t k = 0; k < batch.responses(); ++k) {
      for (int32_t r = batch.responseOffsets[k]; r < batch.responseOffsets[k + 1]; ++r)
        if (batch.targets[r] >= 0) {
          targets.push_back(batch.targets[r]);
          rows.push_back(r);
        }
      responseOffsets.push_back(int32_t(targets.size()));
    }
    all = targets.size() == batch.targets.size();
  }
};

// The device, if it computes such a model.
at::Device checked(const ModelConfig& c, at::ScalarType dtype, at::Device device) {
  auto refuse = [](const std::string& what) { fail("ERR_DEVICE", "device \"cuda\": " + what); };
  if (device.is_cpu()) return device;
  if (dtype != at::kBFloat16) refuse("a GPU computes in bfloat16 only: expected dtype bfloat16 (or auto)");
  if (c.attentionSoftcap > 0) refuse("attention with a soft cap (Gemma 2) is computed on the CPU only");
  if (c.headDim % 8 != 0 || c.headDim > 256)
    refuse("heads of " + std::to_string(c.headDim) + " elements; its attention takes multiples of 8 up to 256");
  return device;
}

}  // namespace

Model::Model(const ModelConfig& config, at::ScalarType dtype, Weights::Use use, int64_t headChunkBytes,
             at::Device device)
    : config_(config),
      weights_(std::make_shared<Weights>(config, dtype, use, checked(config, dtype, device))),
      workspace_(device),
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

std::shared_ptr<Parameters> Model::requireTrained() const {
  if (weights_->frozen() && !adapters_)
    fail("ERR_CONFIG",
         "the model was loaded frozen, which keeps no master weights: load it without `frozen`, or add adapters, to "
         "train it");
  return trained();
}

uint64_t Model::fingerprint(bool withAdapters) const {
  uint64_t hash = wrpo::fingerprint(weights_->masters().host());
  if (withAdapters && adapters_) hash = hash * 0x9e3779b97f4a7c15ull + wrpo::fingerprint(adapters_->masters().host());
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
  auto hidden = decoder_.forward(batch, pass(batch, use), 0);
  if (!rows.all) hidden = hidden.index_select(0, place(rows.rows, hidden.device()));
  auto output = head_.logProbs(hidden, weights_->view.head, place(rows.targets, hidden.device()), argmax);
  auto logp = output.logp.to(at::kCPU).to(at::kDouble);
  const double* p = data<double>(logp);
  LogProbs result;
  for (int64_t k = 0; k < batch.responses(); ++k) {
    double sum = 0;
    for (int64_t r = rows.responseOffsets[k]; r < rows.responseOffsets[k + 1]; ++r) sum += p[r];
    result.sums.push_back(sum);
    result.counts.push_back(int32_t(rows.responseOffsets[k + 1] - rows.responseOffsets[k]));
  }
  if (perToken) result.perToken.assign(p, p + logp.numel());
  if (argmax) {
    auto best = output.argmax.to(at::kCPU);
    result.argmax.assign(data<uint8_t>(best), data<uint8_t>(best) + best.numel());
  }
  return result;
}

at::Tensor Model::nextLogits(const Batch& batch, std::span<KeyValueCache* const> caches) {
  workspace_.reset();
  auto hidden = decoder_.forward(batch, pass(batch, {}), caches);
  return head_.logits(hidden, weights_->view.head);
}

std::function<Accumulated()> Model::accumulate(const Batch& batch, const AdapterUse& use, const Objective& objective,
                                               double normalizer, int64_t keptLayers) {
  requireLanguageHead();
  auto trained = requireTrained();
  batch.validate(config_.vocabSize);
  if (batch.contestGroups.empty())
    fail("ERR_DATA", "accumulate needs contests: the batch has only log-probs to compute");
  workspace_.reset();
  const at::Device device = workspace_.device();
  const int64_t K = batch.responses(), Q = int64_t(batch.contestWeights.size());
  PredictedRows rows(batch);
  std::vector<int32_t> counts(K);
  for (int64_t k = 0; k < K; ++k) {
    counts[k] = rows.responseOffsets[k + 1] - rows.responseOffsets[k];
    if (counts[k] == 0) fail("ERR_DATA", "response " + std::to_string(k) + " of the batch predicts no token");
  }
  std::vector<int64_t> unitOffsets;
  for (int32_t k : batch.groupOffsets) unitOffsets.push_back(rows.responseOffsets[k]);

  auto lora = pass(batch, use);
  auto hidden = decoder_.forward(batch, lora, std::max<int64_t>(1, keptLayers));
  auto dHidden = workspace_.take(hidden.sizes(), hidden.scalar_type());
  auto index = rows.all ? at::Tensor() : place(rows.rows, device);
  auto predicted = rows.all ? hidden : hidden.index_select(0, index);
  auto dPredicted = rows.all ? dHidden : at::empty_like(predicted);

  ContestTables tables(batch, rows.responseOffsets, counts, device);
  // Called with the log-probs of whole prompts, in order: [g, next) are the prompts whose rows just became known.
  int64_t g = 0;
  auto dLossDLogp = [&](const HeadOutput& output, int64_t, int64_t last, at::Tensor& dLogp) {
    int64_t firstGroup = g;
    while (g < batch.groups() && unitOffsets[g + 1] <= last) ++g;
    Range range("contests");
    contests(output.logp, dLogp, tables, objective, normalizer, firstGroup, g);
  };
  const auto& grads = weights_->gradView();
  head_.forwardBackward(predicted, weights_->view.head, place(rows.targets, device), unitOffsets, dLossDLogp,
                        dPredicted, grads.head);
  Readback results(tables.results);
  trained->grad().narrow(0, 0, 1).add_(tables.results.narrow(0, 2 * K, Q).sum().mul_(0));  // 0, or no number
  if (!rows.all) {
    dHidden.zero_();
    dHidden.index_copy_(0, index, dPredicted);
  }
  decoder_.backward(batch, lora, dHidden);

  auto read = [results, counts = std::move(counts), weights = batch.contestWeights, normalizer, K, Q] {
    const double *logps = data<double>(results.values()), *losses = logps + 2 * K, *margins = losses + Q;
    Accumulated result{0, {logps, logps + K}, counts, {losses, losses + Q}, {margins, margins + Q}};
    for (int64_t q = 0; q < Q; ++q) result.loss += weights[q] * losses[q] / normalizer;
    if (!std::isfinite(result.loss))
      fail("ERR_NON_FINITE", "the loss of a micro-batch is " + std::to_string(result.loss));
    return result;
  };
  if (device.is_cpu()) read();
  return read;
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
  auto hidden = decoder_.forward(batch, pass(batch, {}), 0);
  auto rows = [&](const std::vector<int64_t>& index) {
    return hidden.index_select(0, place(index, hidden.device())).to(at::kCPU).to(at::kDouble);
  };
  return rewardHead(config_.reward, *weights_, rows(gates), rows(lasts));
}

}  // namespace wrpo
