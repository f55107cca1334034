// RMSNorm of a row, with the residual's addition in front (kernels/rms_norm.cpp and head_norm.cpp are the definition).
#pragma once
#include "kernels/row/team.h"

namespace wrpo::row {

template <class T>
WRPO_HD ScalarOf<T> rstdOf(ScalarOf<T> squares, int64_t H, ScalarOf<T> eps) {
  return ScalarOf<T>(1) / std::sqrt(squares / ScalarOf<T>(H) + eps);
}

// summed <- x + residual where there is one; y <- (plus + w) * that / rms. Returns 1 / rms.
template <int W, class T, class Team>
WRPO_HD ScalarOf<T> rmsForward(const Team& team, const T* x, const T* residual, T* summed, const T* w, ScalarOf<T> plus,
                               ScalarOf<T> eps, T* y, int64_t H) {
  using S = ScalarOf<T>;
  const T* from = residual ? summed : x;
  S squares = team.reduce(
      H / W, S(0),
      [=](S total, int64_t i) {
        auto pack = load<W>(x, i);
        if (residual) {
          auto add = load<W>(residual, i);
          for (int k = 0; k < W; ++k) pack.v[k] = narrow<T>(widen(pack.v[k]) + widen(add.v[k]));
          store(summed, i, pack);
        }
        for (T v : pack.v) total += widen(v) * widen(v);
        return total;
      },
      Add{});
  S r = rstdOf<T>(squares, H, eps);
  team.each(H / W, [=](int64_t i) {
    auto pack = load<W>(from, i), weight = load<W>(w, i);
    for (int k = 0; k < W; ++k) {
      S n = widen(pack.v[k]) * r;
      // transformers rounds before the weight multiplies, but not in Gemma (plus = 1).
      pack.v[k] = narrow<T>((plus == 0 ? widen(narrow<T>(n)) : n) * (widen(weight.v[k]) + plus));
    }
    store(y, i, pack);
  });
  return r;
}

// With n = x * rstd and f = plus + w: out = base + rstd * (dy * f - n * mean(dy * f * n)), base the old value of out
// where `add`, else 0; dw += dy * n, by this team alone. out may be dy when not added to.
template <int W, class T, class Team>
WRPO_HD void rmsBackward(const Team& team, const T* dy, const T* x, const T* w, ScalarOf<T> plus, ScalarOf<T> rstd,
                         T* out, bool add, ScalarOf<T>* dw, int64_t H) {
  using S = ScalarOf<T>;
  S mean = team.reduce(
               H / W, S(0),
               [=](S total, int64_t i) {
                 auto g = load<W>(dy, i), from = load<W>(x, i), weight = load<W>(w, i);
                 for (int k = 0; k < W; ++k) {
                   S n = widen(from.v[k]) * rstd, d = widen(g.v[k]);
                   total += d * (widen(weight.v[k]) + plus) * n;
                   if (dw) dw[i * W + k] += d * n;
                 }
                 return total;
               },
               Add{}) /
           S(H);
  team.each(H / W, [=](int64_t i) {
    auto g = load<W>(dy, i), from = load<W>(x, i), weight = load<W>(w, i);
    Pack<T, W> to;
    if (add) to = load<W>(out, i);
    for (int k = 0; k < W; ++k) {
      S n = widen(from.v[k]) * rstd;
      S d = (widen(g.v[k]) * (widen(weight.v[k]) + plus) - n * mean) * rstd;
      to.v[k] = narrow<T>(add ? widen(to.v[k]) + d : d);
    }
    store(out, i, to);
  });
}

// A head's 1 / rms again, which backward does not keep.
template <int W, class T, class Team>
WRPO_HD ScalarOf<T> headRstd(const Team& team, const T* x, ScalarOf<T> eps, int64_t d) {
  using S = ScalarOf<T>;
  S squares = team.reduce(
      d / W, S(0),
      [=](S total, int64_t i) {
        auto pack = load<W>(x, i);
        for (T v : pack.v) total += widen(v) * widen(v);
        return total;
      },
      Add{});
  return rstdOf<T>(squares, d, eps);
}

}  // namespace wrpo::row
