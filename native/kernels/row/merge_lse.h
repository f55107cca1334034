// One head of one row of two attentions over disjoint keys, merged (kernels/merge_lse.cpp is the definition).
#pragma once
#include "kernels/row/team.h"

namespace wrpo::row {

// A half without keys has a log-sum-exp of -inf, or, as flash attention says it, +inf: it changes nothing.
template <class T, class Team>
WRPO_HD void mergeHead(const Team& team, T* out, ScalarOf<T>* lse, const T* out2, ScalarOf<T> l2, int64_t d) {
  using S = ScalarOf<T>;
  if (l2 == infinity<S>() || l2 == -infinity<S>()) return;
  S l1 = *lse, top = larger(l1, l2), l = top + std::log1p(std::exp(-std::fabs(l1 - l2)));
  S a = std::exp(l1 - l), b = std::exp(l2 - l);
  team.sync();  // all have read lse
  team.once([=] { *lse = l; });
  team.each(d, [=](int64_t i) { out[i] = narrow<T>(a * widen(out[i]) + b * widen(out2[i])); });
}

}  // namespace wrpo::row
