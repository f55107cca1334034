#include "model/reward.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/softmax.h>

#include <string>

#include "error.h"
#include "kernels/dispatch.h"

namespace wrpo {
namespace {

std::vector<double> values(const at::Tensor& t) {
  auto flat = t.contiguous();
  return {data<double>(flat), data<double>(flat) + flat.numel()};
}

}  // namespace

Scores rewardHead(const RewardShape& shape, const Weights& weights, const at::Tensor& gate, const at::Tensor& last) {
  auto weight = [&](const std::string& name) {
    for (const auto& p : weights.parameters())
      if (p.name == name) return weights.slice(weights.masters(), p).host().to(at::kDouble);
    fail("ERR_INTERNAL", "the reward head has no " + name);
  };
  auto x = gate;
  for (int64_t i = 0; i <= shape.gatingLayers; ++i) {
    std::string layer = "gating.layers." + std::to_string(i) + ".";
    x = at::addmm(weight(layer + "bias"), x, weight(layer + "weight").t());
    if (i < shape.gatingLayers) x = at::relu(x);
  }
  auto gates = at::softmax(x / shape.temperature, 1) * weight("gating.logit_scale");
  auto rewards = at::mm(last, weight("regression_layer.weight").t());
  auto scores = (gates * at::mm(rewards, weight("reward_transform_matrix"))).sum(1);
  return {values(scores), values(rewards), values(gates)};
}

}  // namespace wrpo
