// From log-probs to their gradient in one launch: a block a prompt sums its responses (fixed tree, float64), holds
// their contests, and spreads dLoss/dlogp over their rows; 8 bytes a row. The host would cost a round trip per chunk of
// logits, in the middle of the head. Deterministic: a response meets its contests in order, in one thread.
#include "kernels/launch.cuh"
#include "kernels/row/objective.h"

namespace wrpo::launch {
namespace {

__global__ void __launch_bounds__(256)
    contestsKernel(Contests c, row::Objective objective, double normalizer, int64_t firstGroup, const float* logp,
                   double* policy, double* gradient, double* losses, double* margins, float* dLogp) {
  row::BlockTeam team;
  int64_t g = firstGroup + blockIdx.x;
  int32_t first = c.groupOffsets[g], last = c.groupOffsets[g + 1];
  for (int32_t k = first; k < last; ++k) {
    int64_t begin = c.rowOffsets[k];
    double sum = team.reduce(
        c.rowOffsets[k + 1] - begin, 0.0, [=](double total, int64_t i) { return total + double(logp[begin + i]); },
        row::Add{});
    team.once([=] {
      policy[k] = sum;
      gradient[k] = 0;
    });
  }
  team.once([&] {
    for (int32_t q = c.contestGroups[g]; q < c.contestGroups[g + 1]; ++q) {
      int32_t entry = c.contestOffsets[q];
      auto outcome = row::contest(
          objective, c.contestOffsets[q + 1] - entry, [&](int64_t e) { return c.contestResponses[entry + e]; }, policy,
          c.reference, c.lengths, c.coefficients + entry, c.weights[q] / normalizer, gradient);
      losses[q] = outcome.loss;
      margins[q] = outcome.margin;
    }
  });
  team.sync();
  for (int32_t k = first; k < last; ++k) {
    int64_t begin = c.rowOffsets[k];
    float d = float(gradient[k]);
    team.each(c.rowOffsets[k + 1] - begin, [=](int64_t i) { dLogp[begin + i] = d; });
  }
}

}  // namespace

void contests(Stream stream, const Contests& contests, const row::Objective& objective, double normalizer,
              int64_t firstGroup, int64_t lastGroup, const float* logp, double* policy, double* gradient,
              double* losses, double* margins, float* dLogp) {
  start("contests", contestsKernel, lastGroup - firstGroup, 256, stream, contests, objective, normalizer, firstGroup,
        logp, policy, gradient, losses, margins, dLogp);
}

}  // namespace wrpo::launch
