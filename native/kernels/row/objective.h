// One contest's loss and gradient, as train/objective.h defines it: the arithmetic of both devices.
#pragma once
#include "kernels/row/team.h"

namespace wrpo::row {

struct Objective {
  enum class Form : int { Sigmoid, Ipo, Linear } form = Form::Sigmoid;
  double beta = 0, gamma = 0, labelSmoothing = 0;
  bool lengthNormalized = false;
  double sftWeight = 0;
};
struct Outcome {
  double loss, margin;
};

WRPO_HD double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }
WRPO_HD double sigmoid(double x) { return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x)); }

// Entry e of `count` is response at(e); policy, reference (null = none), lengths and gradient are indexed by that,
// coefficients by e. Adds scale * dLoss/dP to gradient.
template <class At>
WRPO_HD Outcome contest(const Objective& o, int64_t count, At at, const double* policy, const double* reference,
                        const int32_t* lengths, const double* coefficients, double scale, double* gradient) {
  auto unit = [&](int64_t k) { return o.lengthNormalized ? 1.0 / lengths[k] : 1.0; };
  double sum = 0;
  for (int64_t e = 0; e < count; ++e)
    sum += coefficients[e] * unit(at(e)) * (policy[at(e)] - (reference ? reference[at(e)] : 0));

  double z = o.beta * sum - o.gamma, loss = 0, slope = 0;  // slope = dLoss/dsum
  if (o.form == Objective::Form::Sigmoid) {
    loss = (1 - o.labelSmoothing) * softplus(-z) + o.labelSmoothing * softplus(z);
    slope = o.beta * (o.labelSmoothing * sigmoid(z) - (1 - o.labelSmoothing) * sigmoid(-z));
  } else if (o.form == Objective::Form::Ipo) {
    double distance = sum - 1 / (2 * o.beta);
    loss = distance * distance;
    slope = 2 * distance;
  } else {
    z = sum;
    loss = -sum;
    slope = -1;
  }
  for (int64_t e = 0; e < count; ++e) {
    int64_t k = at(e);
    double d = scale * slope * unit(k) * coefficients[e];
    if (o.sftWeight != 0 && coefficients[e] > 0) {
      double share = o.sftWeight * coefficients[e] / lengths[k];
      loss -= share * policy[k];
      d -= scale * share;
    }
    gradient[k] += d;
  }
  return {loss, z};
}

}  // namespace wrpo::row
