// Rotary position embedding in place on the query and key heads of the fused qkv rows; every token's position comes
// from an array, since a packed batch restarts positions. Backward is the same rotation with the sine's sign flipped.
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/where.h>

#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace wrpo {
namespace {

using namespace simd;

template <class T>
WRPO_INLINE void rotateRows(T* x, int64_t ld, int64_t heads, int64_t d, const float* table, const int32_t* positions,
                            int sign, int64_t begin, int64_t end) {
  using S = ScalarOf<T>;
  int64_t half = d / 2;
  for (int64_t t = begin; t < end; ++t) {
    const float *c = table + int64_t(positions[t]) * d, *s = c + half;
    for (int64_t h = 0; h < heads; ++h) {
      T *a = x + t * ld + h * d, *b = a + half;
      for (int64_t i = 0; i < half; ++i) {
        S first = S(a[i]), second = S(b[i]), cosine = S(c[i]), sine = S(sign) * S(s[i]);
        a[i] = T(first * cosine - second * sine);
        b[i] = T(second * cosine + first * sine);
      }
    }
  }
}

#define WRPO_ROPE(T)                                                                                                \
  WRPO_CLONES void rotate(T* x, int64_t ld, int64_t heads, int64_t d, const float* table, const int32_t* positions, \
                          int sign, int64_t begin, int64_t end) {                                                   \
    rotateRows<T>(x, ld, heads, d, table, positions, sign, begin, end);                                             \
  }
WRPO_ROPE(float)
WRPO_ROPE(double)
WRPO_ROPE(c10::BFloat16)
#undef WRPO_ROPE

}  // namespace

at::Tensor ropeFrequencies(const RopeSettings& settings, int64_t headDim) {
  auto exponent = at::arange(0, headDim, 2, at::kLong).to(at::kFloat).div(headDim);
  auto frequencies = at::pow(settings.theta, exponent).reciprocal();
  if (settings.type == "linear") return frequencies.div(settings.factor);
  if (settings.type != "llama3") return frequencies;
  double low = settings.originalMaxPosition / settings.lowFrequencyFactor;
  double high = settings.originalMaxPosition / settings.highFrequencyFactor;
  auto wavelength = frequencies.reciprocal().mul(2 * M_PI);
  auto scaled = at::where(wavelength.gt(low), frequencies.div(settings.factor), frequencies);
  auto smooth = wavelength.reciprocal()
                    .mul(settings.originalMaxPosition)
                    .sub(settings.lowFrequencyFactor)
                    .div(settings.highFrequencyFactor - settings.lowFrequencyFactor);
  auto smoothed = smooth.neg().add(1).mul(scaled).div(settings.factor).add(smooth.mul(scaled));
  auto medium = wavelength.lt(high).logical_not().logical_and(wavelength.gt(low).logical_not());
  return at::where(medium, smoothed, scaled);
}

at::Tensor ropeTable(const at::Tensor& frequencies, int64_t positions) {
  auto angles = at::outer(at::arange(positions, at::kLong).to(at::kFloat), frequencies);
  auto table = at::empty({positions, 2, frequencies.size(0)}, at::kFloat);
  table.select(1, 0).copy_(angles.cos());
  table.select(1, 1).copy_(angles.sin());
  return table;
}

void rope(const at::Tensor& x, int64_t heads, int64_t headDim, const at::Tensor& table, const int32_t* positions,
          int sign) {
  byType(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    parallelRows(x.size(0), 64, [&](int64_t begin, int64_t end) {
      rotate(data<T>(x), x.stride(0), heads, headDim, data<float>(table), positions, sign, begin, end);
    });
  });
}

}  // namespace wrpo
