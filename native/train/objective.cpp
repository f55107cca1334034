#include "train/objective.h"

#include <ATen/ops/zeros.h>

#include "device.h"
#include "kernels/dispatch.h"

namespace wrpo {

Outcome contest(const Objective& objective, std::span<const double> policy, std::span<const double> reference,
                std::span<const int32_t> lengths, std::span<const double> coefficients, double scale,
                std::span<double> gradient) {
  return row::contest(
      objective, int64_t(policy.size()), [](int64_t e) { return e; }, policy.data(),
      reference.empty() ? nullptr : reference.data(), lengths.data(), coefficients.data(), scale, gradient.data());
}

ContestTables::ContestTables(const Batch& b, const std::vector<int32_t>& rowOffsets,
                             const std::vector<int32_t>& lengths, at::Device device)
    : groupOffsets(place(b.groupOffsets, device)),
      rowOffsets(place(rowOffsets, device)),
      lengths(place(lengths, device)),
      contestGroups(place(b.contestGroups, device)),
      contestOffsets(place(b.contestOffsets, device)),
      contestResponses(place(b.contestResponses, device)),
      coefficients(place(b.contestCoefficients, device)),
      weights(place(b.contestWeights, device)),
      reference(place(b.reference, device)),
      results(at::zeros({2 * int64_t(lengths.size()) + 2 * int64_t(b.contestWeights.size())},
                        at::TensorOptions(at::kDouble).device(device))) {}

void cpu::contests(const at::Tensor& logp, const at::Tensor& dLogp, const ContestTables& t, const Objective& objective,
                   double normalizer, int64_t firstGroup, int64_t lastGroup) {
  auto ints = [](const at::Tensor& values) { return data<int32_t>(values); };
  const int32_t *rows = ints(t.rowOffsets), *groups = ints(t.groupOffsets);
  const double* reference = t.reference.numel() > 0 ? data<double>(t.reference) : nullptr;
  double *policy = t.policy(), *gradient = t.gradient();
  byType(logp.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    for (int32_t k = groups[firstGroup]; k < groups[lastGroup]; ++k)
      for (int32_t r = rows[k]; r < rows[k + 1]; ++r) policy[k] += double(data<S>(logp)[r]);
    for (int32_t q = ints(t.contestGroups)[firstGroup]; q < ints(t.contestGroups)[lastGroup]; ++q) {
      int32_t first = ints(t.contestOffsets)[q], count = ints(t.contestOffsets)[q + 1] - first;
      auto outcome = row::contest(
          objective, count, [&](int64_t e) { return ints(t.contestResponses)[first + e]; }, policy, reference,
          ints(t.lengths), data<double>(t.coefficients) + first, data<double>(t.weights)[q] / normalizer, gradient);
      t.losses()[q] = outcome.loss;
      t.margins()[q] = outcome.margin;
    }
    for (int32_t k = groups[firstGroup]; k < groups[lastGroup]; ++k)
      for (int32_t r = rows[k]; r < rows[k + 1]; ++r) data<S>(dLogp)[r] = S(gradient[k]);
  });
}

}  // namespace wrpo
