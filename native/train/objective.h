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
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/op.h"
#include "kernels/row/objective.h"
#include "model/batch.h"

namespace wrpo {

using row::Objective;
using row::Outcome;

// One contest: log-probs P and reference (empty = none), lengths and coefficients of the responses that meet. Returns
// the loss and margin, and adds scale * dLoss/dP_k to gradient[k].
Outcome contest(const Objective& objective, std::span<const double> policy, std::span<const double> reference,
                std::span<const int32_t> lengths, std::span<const double> coefficients, double scale,
                std::span<double> gradient);

// The contests of a batch on the device of its log-probs: what Batch says of them, and what comes out.
struct ContestTables {
  // rowOffsets [K + 1]: of each response's rows among those that predict; lengths [K]: how many they are. On the CPU
  // all is read where it lies.
  ContestTables(const Batch& batch, const std::vector<int32_t>& rowOffsets, const std::vector<int32_t>& lengths,
                at::Device device);

  at::Tensor groupOffsets, rowOffsets, lengths, contestGroups, contestOffsets, contestResponses;  // int32
  at::Tensor coefficients, weights, reference;                                                    // float64
  at::Tensor results;  // float64: of K responses the summed log-probs and dLoss/dP, of Q contests losses and margins

  int64_t K() const { return lengths.numel(); }
  int64_t Q() const { return weights.numel(); }
  double* policy() const { return results.mutable_data_ptr<double>(); }
  double* gradient() const { return policy() + K(); }
  double* losses() const { return policy() + 2 * K(); }
  double* margins() const { return policy() + 2 * K() + Q(); }
};

namespace cpu {
// All contests of the prompts [firstGroup, lastGroup), once: from the log-probs of the rows that predict to their
// derivatives, both in the compute type. The gradient is of sum(weight * loss) / normalizer.
void contests(const at::Tensor& logp, const at::Tensor& dLogp, const ContestTables& tables, const Objective& objective,
              double normalizer, int64_t firstGroup, int64_t lastGroup);
}  // namespace cpu
WRPO_OP(contests);

}  // namespace wrpo
