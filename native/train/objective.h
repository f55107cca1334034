// Every preference objective in one form. A contest between responses of one prompt has the margin
//   z = beta * sum_k c_k (u_k P_k - B_k) - gamma,
// P_k the summed policy log-prob, c_k the response's coefficient, u_k = 1 or 1 / length, B_k the reference's log-prob
// in the same unit (0 without a reference); its loss is phi(z) + w sum_k max(c_k, 0) (-P_k / length_k), phi one of
//
//   sigmoid: (1 - e) softplus(-z) + e softplus(z), e = labelSmoothing: DPO, WRPO (Eq. 6, 7, 9), SimPO, WRPO-SimPO.
//
//   ipo: (z / beta - 1 / (2 beta))^2 with gamma 0, beta the paper's tau: IPO, WRPO-IPO.
//
//   linear: -sum_k c_k (u_k P_k - B_k): SFT; c_k = -dLoss/dP_k makes it the gradient of any other function.
//
// and w = sftWeight the share of the chosen responses' mean token NLL (Iterative RPO, arXiv 2404.19733). So
// dLoss/dP_k = beta u_k c_k phi'(z) - w max(c_k, 0) / length_k. Which coefficients make which method is a table in
// lib/train/objective.ts.
#pragma once
#include <cstdint>
#include <span>

#include "model/batch.h"

namespace wrpo {

struct Objective {
  enum class Form { Sigmoid, Ipo, Linear } form = Form::Sigmoid;
  double beta = 0, gamma = 0, labelSmoothing = 0;
  bool lengthNormalized = false;
  double sftWeight = 0;
};

// One contest: log-probs P and reference (empty = none), lengths and coefficients of the responses that meet. Returns
// the loss and margin, and adds scale * dLoss/dP_k to gradient[k].
struct Outcome {
  double loss, margin;
};
Outcome contest(const Objective& objective, std::span<const double> policy, std::span<const double> reference,
                std::span<const int32_t> lengths, std::span<const double> coefficients, double scale,
                std::span<double> gradient);

// All contests of the prompts [firstGroup, lastGroup) of a batch. policy, lengths and gradient are per response of the
// whole batch; losses and margins per contest of the whole batch. The gradient is of sum(weight * loss) / normalizer.
void evaluateContests(const Objective& objective, const Batch& batch, int64_t firstGroup, int64_t lastGroup,
                      std::span<const double> policy, std::span<const int32_t> lengths, double normalizer,
                      std::span<double> gradient, std::span<double> losses, std::span<double> margins);

}  // namespace wrpo
