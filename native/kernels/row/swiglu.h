// SwiGLU and GeGLU of a row gate | up (kernels/swiglu.cpp is the definition).
#pragma once
#include "kernels/row/team.h"

namespace wrpo::row {

// The activation and its derivative.
template <class S>
struct Activated {
  S value, slope;
};
template <class S>
WRPO_HD Activated<S> activate(bool gelu, S g) {
  if (!gelu) {
    S sigmoid = S(1) / (std::exp(-g) + S(1));
    return {g * sigmoid, sigmoid * (S(1) + g * (S(1) - sigmoid))};
  }
  const S k = S(0.79788456080286535588), c = S(0.044715);  // std::sqrt(2 / pi)
  S t = std::tanh(k * (g + c * g * g * g));
  return {S(0.5) * g * (S(1) + t), S(0.5) * (S(1) + t) + S(0.5) * g * (S(1) - t * t) * k * (S(1) + S(3) * c * g * g)};
}

template <int W, class T, class Team>
WRPO_HD void swigluForward(const Team& team, bool gelu, const T* gateUp, T* h, int64_t F) {
  team.each(F / W, [=](int64_t i) {
    auto gate = load<W>(gateUp, i), up = load<W>(gateUp + F, i);
    for (int k = 0; k < W; ++k) gate.v[k] = narrow<T>(activate(gelu, widen(gate.v[k])).value * widen(up.v[k]));
    store(h, i, gate);
  });
}

// gateUp <- its gradient; h is written again.
template <int W, class T, class Team>
WRPO_HD void swigluBackward(const Team& team, bool gelu, const T* dh, T* gateUp, T* h, int64_t F) {
  using S = ScalarOf<T>;
  team.each(F / W, [=](int64_t i) {
    auto gate = load<W>(gateUp, i), up = load<W>(gateUp + F, i), d = load<W>(dh, i);
    Pack<T, W> value;
    for (int k = 0; k < W; ++k) {
      S u = widen(up.v[k]), grad = widen(d.v[k]);
      auto a = activate(gelu, S(widen(gate.v[k])));
      value.v[k] = narrow<T>(a.value * u);
      up.v[k] = narrow<T>(grad * a.value);
      gate.v[k] = narrow<T>(grad * u * a.slope);
    }
    store(h, i, value);
    store(gateUp + F, i, up);
    store(gateUp, i, gate);
  });
}

}  // namespace wrpo::row
