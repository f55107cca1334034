// Settings of a sampler from bytes, good and bad.
#pragma once
#include <cmath>

#include "fuzz/fuzz.h"
#include "model/sampler.h"

namespace wrpo::fuzz {

inline double oddNumber(Input& in, double usual) {
  switch (in.ConsumeIntegralInRange(0, 9)) {
    case 0:
      return in.ConsumeFloatingPoint<double>();
    case 1:
      return in.PickValueInArray({0.0, -1.0, 1e-4, 1e4, 1.0, std::nan(""), HUGE_VAL});
    case 2:
    case 3:
      return in.ConsumeFloatingPointInRange(0.0, 2.0);
    default:
      return usual;
  }
}

inline Sampling someSampling(Input& in) {
  return {oddNumber(in, 0.8), oddNumber(in, 0.9), oddNumber(in, 0), oddNumber(in, 1),
          in.ConsumeIntegralInRange(-1, 20)};
}

}  // namespace wrpo::fuzz
