// A model and what a training step asks of it. Used from the engine thread only.
#pragma once
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "model/decoder.h"
#include "model/head.h"
#include "model/lora.h"
#include "model/reward.h"
#include "train/objective.h"

namespace wrpo {

struct LogProbs {
  std::vector<double> sums;      // [K] summed log-prob of each response
  std::vector<int32_t> counts;   // [K] predicted tokens of each response
  std::vector<double> perToken;  // one a predicted token, responses in order, when asked for
  std::vector<uint8_t> argmax;   // whether each predicted token was the arg max, when asked for
};

struct Accumulated {
  double loss;                          // sum(weight * loss) / normalizer over the batch's contests
  std::vector<double> logps;            // [K]
  std::vector<int32_t> counts;          // [K]
  std::vector<double> losses, margins;  // per contest
};

// Whether adapters take part, where there are any, and the masks they then drop inputs by; none: nothing is dropped.
struct AdapterUse {
  bool enabled = true;
  std::optional<DropoutDraw> dropout;
};

class Model {
 public:
  // Throws ERR_DEVICE for what a GPU does not compute.
  Model(const ModelConfig& config, at::ScalarType dtype, Weights::Use use, int64_t headChunkBytes,
        at::Device device = at::kCPU);

  LogProbs logProbs(const Batch& batch, const AdapterUse& use, bool perToken, bool argmax);
  // Adds the gradient of the batch's objective to trained()->grad(). On a GPU that is queued and nothing waits: what is
  // returned waits for the results. A loss that is no number is told there, on the CPU here, and makes the gradient
  // such, which an update then leaves. keptLayers: how many layers keep all that backward reads (model/decoder.h); from
  // 1, and more than there are means all.
  std::function<Accumulated()> accumulate(const Batch& batch, const AdapterUse& use, const Objective& objective,
                                          double normalizer, int64_t keptLayers = std::numeric_limits<int64_t>::max());
  // Logits [responses, V] of the token after each response of a batch whose rows continue sequences
  // (model/cached_attention.h), valid until the next call.
  at::Tensor nextLogits(const Batch& batch, std::span<KeyValueCache* const> caches);
  // Whether sequences of these lengths may use the same cache (model/decoder.h).
  bool rotatesAlike(int64_t length, int64_t other) const { return decoder_.rotatesAlike(length, other); }
  // Throws ERR_MODEL for a reward model.
  void requireLanguageHead() const;
  // Of a reward model: every response of the batch begins at the token whose state gates and ends in the last token.
  Scores score(const Batch& batch);

  // Freezes the weights and trains fresh adapters beside them.
  void addAdapters(const LoraShape& shape, uint64_t seed);
  // Adds the adapters to the weights, which are trained again, and drops them.
  void mergeAdapters();
  // The JavaScript thread's: whether either waits or runs, when that thread must not look at the parts of the model.
  bool changing = false;

  Weights& weights() { return *weights_; }
  Adapters* adapters() { return adapters_.get(); }
  // The adapters where there are any, or else the weights.
  std::shared_ptr<Parameters> trained() const;
  // The same; throws ERR_CONFIG where there is neither: frozen weights without adapters.
  std::shared_ptr<Parameters> requireTrained() const;
  // A hash of the masters, the adapters' included or not.
  uint64_t fingerprint(bool withAdapters) const;
  const ModelConfig& config() const { return config_; }

 private:
  LoraPass pass(const Batch& batch, const AdapterUse& use);
  const ModelConfig config_;
  std::shared_ptr<Weights> weights_;
  std::shared_ptr<Adapters> adapters_;
  Workspace workspace_;
  Decoder decoder_;
  Head head_;
};

}  // namespace wrpo
