// A row of logits to the log-probability of its target, and back (kernels/logprob.cpp is the definition).
#pragma once
#include "kernels/row/team.h"

namespace wrpo::row {

// The largest of some logits, and the sum of e^(z - max) over them.
template <class S>
struct MaxSum {
  S max, sum;
};

struct MergeMaxSum {
  template <class S>
  WRPO_HD MaxSum<S> operator()(MaxSum<S> a, MaxSum<S> b) const {
    S max = larger(a.max, b.max);
    if (max == -infinity<S>()) return a;
    return {max, a.sum * std::exp(a.max - max) + b.sum * std::exp(b.max - max)};
  }
};

template <class S>
struct LogProb {
  S logp, lse;
  bool top;  // no logit is above the target's
};

// Reads the row once: the maximum and the sum are found together.
template <int W, class T, class Team>
WRPO_HD LogProb<ScalarOf<T>> logprobForward(const Team& team, const T* z, int64_t V, int32_t target) {
  using S = ScalarOf<T>;
  MaxSum<S> none{-infinity<S>(), 0};
  auto total = team.reduce(
      V / W, none,
      [=](MaxSum<S> seen, int64_t i) {
        auto pack = load<W>(z, i);
        S max = seen.max;
        for (T x : pack.v) max = larger(max, widen(x));
        if (max == -infinity<S>()) return seen;
        S sum = seen.max == max ? seen.sum : seen.sum * std::exp(seen.max - max);
        for (T x : pack.v) sum += std::exp(widen(x) - max);
        return MaxSum<S>{max, sum};
      },
      MergeMaxSum{});
  S at = widen(z[target]), logSum = std::log(total.sum);
  return {at - total.max - logSum, total.max + logSum, at >= total.max};
}

// z <- g * (onehot(target) - softmax(z)), times the slope of the cap where there is one.
template <int W, class T, class Team>
WRPO_HD void logprobBackward(const Team& team, T* z, int64_t V, int32_t target, ScalarOf<T> lse, ScalarOf<T> g,
                             ScalarOf<T> cap) {
  using S = ScalarOf<T>;
  team.each(V / W, [=](int64_t i) {
    auto pack = load<W>(z, i);
    for (int w = 0; w < W; ++w) {
      S x = widen(pack.v[w]), p = std::exp(x - lse);
      if (i * W + w == target) p -= S(1);
      p *= -g;
      if (cap > 0) p *= S(1) - x / cap * (x / cap);
      pack.v[w] = narrow<T>(p);
    }
    store(z, i, pack);
  });
}

template <int W, class T, class Team>
WRPO_HD void softcap(const Team& team, T* z, int64_t V, ScalarOf<T> cap) {
  team.each(V / W, [=](int64_t i) {
    auto pack = load<W>(z, i);
    for (T& x : pack.v) x = narrow<T>(std::tanh(widen(x) / cap) * cap);
    store(z, i, pack);
  });
}

}  // namespace wrpo::row
