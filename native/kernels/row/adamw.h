// One parameter's AdamW update, and float32 masters in two halves of 16 bits (kernels/adamw.cpp calls the
// update, too; the halves exist on the GPU alone, where the working bfloat16 weights are the upper one).
#pragma once
#include "kernels/row/team.h"

namespace wrpo::row {

// What an update needs beside the states. The rest of a step's constants are computed once, in float64.
template <class S>
struct AdamWCoefficients {
  S mean1, square2, new2, eps, keep, stepSize, rootCorrection;
};
// beta1, beta2 ... as in kernels.h; `step` is 1 for the first update.
template <class S>
AdamWCoefficients<S> adamwCoefficients(double learningRate, double beta1, double beta2, double eps, double weightDecay,
                                       int64_t step) {
  // 1 - beta is taken in double: from a float32 0.999 it would be wrong by 1e-5.
  return {S(1 - beta1),
          S(beta2),
          S(1 - beta2),
          S(eps),
          S(1 - learningRate * weightDecay),
          S(learningRate / (1 - std::pow(beta1, double(step)))),
          S(std::sqrt(1 - std::pow(beta2, double(step))))};
}

// g is the scaled gradient.
template <class S>
WRPO_HD S adamwUpdate(const AdamWCoefficients<S>& c, S p, S g, S& m, S& v) {
  m = m + (g - m) * c.mean1;
  v = v * c.square2 + g * g * c.new2;
  return p * c.keep - c.stepSize * (m / (std::sqrt(v) / c.rootCorrection + c.eps));
}

// master = high << 16 plus low, as integers: exact for every bit pattern. high rounds the master to the nearest
// bfloat16, ties away from zero: with ties to even the difference of a tie would be +32768, which 16 bits do not hold.
struct Halves {
  Bf16 high;
  int16_t low;
};
WRPO_HD Halves split(float master) {
  uint32_t bits;
  memcpy(&bits, &master, sizeof(bits));
  uint32_t high = (bits + 0x8000u) >> 16;
  return {{uint16_t(high)}, int16_t(uint16_t(bits - (high << 16)))};
}
WRPO_HD float join(Halves h) {
  uint32_t bits = (uint32_t(h.high.bits) << 16) + uint32_t(int32_t(h.low));
  float master;
  memcpy(&master, &bits, sizeof(master));
  return master;
}

// Sum of squares of a chunk, in float64.
template <int W, class Team>
WRPO_HD double squares(const Team& team, const float* g, int64_t n) {
  int64_t packs = n / W;
  double total = team.reduce(
      packs, 0.0,
      [=](double sum, int64_t i) {
        auto pack = load<W>(g, i);
        for (float x : pack.v) sum += double(x) * double(x);
        return sum;
      },
      Add{});
  for (int64_t i = packs * W; i < n; ++i) total += double(g[i]) * double(g[i]);
  return total;
}

}  // namespace wrpo::row
