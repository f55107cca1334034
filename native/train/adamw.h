// AdamW over the flat buffers of what is trained, with the learning-rate schedule and clipping of the Hugging Face
// Trainer.
#pragma once
#include <ATen/core/Tensor.h>

#include <atomic>
#include <memory>
#include <string>

#include "model/parameters.h"

namespace wrpo {

struct AdamWOptions {
  double learningRate, beta1, beta2, eps, weightDecay, maxGradNorm;  // maxGradNorm 0 = no clipping
  int64_t warmupSteps, totalSteps;
  std::string schedule;  // cosine | linear | constant | constant_with_warmup
};

class AdamW {
 public:
  AdamW(std::shared_ptr<Parameters> trained, const AdamWOptions& options);

  // The learning rate of the update that follows `step` completed ones: rising linearly from 0 over the warm-up (which
  // "constant" has not), then the schedule (transformers' get_cosine_schedule_with_warmup and its siblings).
  static double learningRateAt(const AdamWOptions& options, int64_t step);

  struct Step {
    double gradNorm, learningRate;
  };
  // Clips, updates masters and working weights, zeroes the gradients. Throws ERR_NON_FINITE before anything is changed
  // when the gradient norm is not finite.
  Step step();

  std::atomic<int64_t> completed{0};  // updates so far; JavaScript may ask while a step is under way
  at::Tensor m, v;                    // first and second moments, flat like the masters
  const AdamWOptions options;
  const std::shared_ptr<Parameters>& trained() const { return trained_; }

 private:
  std::shared_ptr<Parameters> trained_;
};

}  // namespace wrpo
