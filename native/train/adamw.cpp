#include "train/adamw.h"

#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>

#include "error.h"
#include "kernels/kernels.h"

namespace wrpo {

AdamW::AdamW(std::shared_ptr<Parameters> trained, const AdamWOptions& o) : options(o), trained_(std::move(trained)) {
  m = at::zeros_like(trained_->master);
  v = at::zeros_like(trained_->master);
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
  double norm = gradientNorm(grad);
  if (!std::isfinite(norm)) fail("ERR_NON_FINITE", "the gradient norm is " + std::to_string(norm));
  double scale = options.maxGradNorm > 0 ? std::min(1.0, options.maxGradNorm / (norm + 1e-6)) : 1.0;
  double learningRate = learningRateAt(options, completed);
  AdamWStep update{learningRate, options.beta1, options.beta2, options.eps, options.weightDecay, scale, ++completed};

  // Runs of neighbouring parameters with the same decay, each in one pass.
  const auto& all = trained_->parameters();
  for (size_t i = 0; i < all.size();) {
    size_t j = i + 1;
    while (j < all.size() && (options.weightDecay == 0 || all[j].decay == all[i].decay)) ++j;
    int64_t begin = all[i].offset, end = j < all.size() ? all[j].offset : grad.numel();
    AdamWStep run = update;
    if (!all[i].decay) run.weightDecay = 0;
    auto part = [&](const at::Tensor& t) { return t.narrow(0, begin, end - begin); };
    adamwUpdate(part(trained_->master), part(trained_->work), part(grad), part(m), part(v), run);
    i = j;
  }
  return {norm, learningRate};
}

}  // namespace wrpo
