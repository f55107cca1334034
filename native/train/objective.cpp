#include "train/objective.h"

#include <cmath>
#include <vector>

namespace wrpo {
namespace {

double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }
double sigmoid(double x) { return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x)); }

}  // namespace

Outcome contest(const Objective& o, std::span<const double> policy, std::span<const double> reference,
                std::span<const int32_t> lengths, std::span<const double> coefficients, double scale,
                std::span<double> gradient) {
  auto unit = [&](size_t k) { return o.lengthNormalized ? 1.0 / lengths[k] : 1.0; };
  double sum = 0;
  for (size_t k = 0; k < policy.size(); ++k)
    sum += coefficients[k] * unit(k) * (policy[k] - (reference.empty() ? 0 : reference[k]));

  double z = o.beta * sum - o.gamma, loss = 0, slope = 0;  // slope = dLoss/dsum
  switch (o.form) {
    case Objective::Form::Sigmoid:
      loss = (1 - o.labelSmoothing) * softplus(-z) + o.labelSmoothing * softplus(z);
      slope = o.beta * (o.labelSmoothing * sigmoid(z) - (1 - o.labelSmoothing) * sigmoid(-z));
      break;
    case Objective::Form::Ipo: {
      double distance = sum - 1 / (2 * o.beta);
      loss = distance * distance;
      slope = 2 * distance;
      break;
    }
    case Objective::Form::Linear:
      z = sum;
      loss = -sum;
      slope = -1;
      break;
  }
  for (size_t k = 0; k < policy.size(); ++k) {
    gradient[k] += scale * slope * unit(k) * coefficients[k];
    if (o.sftWeight == 0 || coefficients[k] <= 0) continue;
    double share = o.sftWeight * coefficients[k] / lengths[k];
    loss -= share * policy[k];
    gradient[k] -= scale * share;
  }
  return {loss, z};
}

void evaluateContests(const Objective& objective, const Batch& batch, int64_t firstGroup, int64_t lastGroup,
                      std::span<const double> policy, std::span<const int32_t> lengths, double normalizer,
                      std::span<double> gradient, std::span<double> losses, std::span<double> margins) {
  std::vector<double> p, ref, g;
  std::vector<int32_t> n;
  for (int32_t q = batch.contestGroups[firstGroup]; q < batch.contestGroups[lastGroup]; ++q) {
    size_t first = batch.contestOffsets[q], count = batch.contestOffsets[q + 1] - first;
    p.clear(), ref.clear(), n.clear(), g.assign(count, 0);
    for (size_t e = first; e < first + count; ++e) {
      int32_t k = batch.contestResponses[e];
      p.push_back(policy[k]);
      n.push_back(lengths[k]);
      if (!batch.reference.empty()) ref.push_back(batch.reference[k]);
    }
    auto outcome = contest(objective, p, ref, n, std::span(batch.contestCoefficients).subspan(first, count),
                           batch.contestWeights[q] / normalizer, g);
    losses[q] = outcome.loss;
    margins[q] = outcome.margin;
    for (size_t e = 0; e < count; ++e) gradient[batch.contestResponses[first + e]] += g[e];
  }
}

}  // namespace wrpo
