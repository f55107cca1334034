#include "train/adamw.h"

#include <algorithm>
#include <cmath>

#include "error.h"
#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "range.h"

namespace wrpo {

AdamW::AdamW(std::shared_ptr<Parameters> trained, const AdamWOptions& o) : options(o), trained_(std::move(trained)) {
  m = trained_->states();
  v = trained_->states();
}

double AdamW::learningRateAt(const AdamWOptions& o, int64_t step) {
  if (o.schedule == "constant") return o.learningRate;
  if (step < o.warmupSteps) return o.learningRate * double(step) / double(std::max<int64_t>(1, o.warmupSteps));
  if (o.schedule == "constant_with_warmup") return o.learningRate;
  double progress = double(step - o.warmupSteps) / double(std::max<int64_t>(1, o.totalSteps - o.warmupSteps));
  if (o.schedule == "linear") return o.learningRate * std::max(0.0, 1 - progress);
  return o.learningRate * std::max(0.0, 0.5 * (1 + std::cos(M_PI * progress)));
}

AdamW::Step AdamW::step() {
  const at::Tensor& grad = trained_->grad();
  Range range("optimizer");
  at::Tensor clip;
  {
    Range norm("gradient norm");
    clip = gradientNorm(grad, options.maxGradNorm);
  }
  Readback read(clip);
  double learningRate = learningRateAt(options, completed);
  AdamWStep update{learningRate, options.beta1, options.beta2, options.eps, options.weightDecay, completed + 1};

  // Runs of neighbouring parameters with the same decay, each in one pass.
  const auto& all = trained_->parameters();
  for (size_t i = 0; i < all.size();) {
    size_t j = i + 1;
    while (j < all.size() && (options.weightDecay == 0 || all[j].decay == all[i].decay)) ++j;
    int64_t begin = all[i].offset, end = j < all.size() ? all[j].offset : grad.numel();
    AdamWStep run = update;
    if (!all[i].decay) run.weightDecay = 0;
    auto part = [&](const at::Tensor& t) { return t.narrow(0, begin, end - begin); };
    adamwUpdate(part(grad), part(m), part(v), trained_->masters().narrow(begin, end - begin), part(trained_->work),
                clip, run);
    i = j;
  }
  double norm = data<double>(read.values())[0];
  if (!std::isfinite(norm)) fail("ERR_NON_FINITE", "the gradient norm is " + std::to_string(norm));
  ++completed;
  return {norm, learningRate};
}

}  // namespace wrpo
