// Rotary position embedding in place on the query and key heads of the fused qkv rows; every token's row of the table
// comes from an array, since a packed batch restarts positions. Backward is the same rotation with the sine's sign
// flipped.
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>

#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace wrpo {
namespace {

using namespace simd;

template <class T>
WRPO_INLINE void rotateRows(T* x, int64_t ld, int64_t heads, int64_t headDim, int64_t d, const float* table,
                            const int32_t* rows, int sign, int64_t begin, int64_t end) {
  using S = ScalarOf<T>;
  int64_t half = d / 2;
  for (int64_t t = begin; t < end; ++t) {
    const float *c = table + int64_t(rows[t]) * d, *s = c + half;
    for (int64_t h = 0; h < heads; ++h) {
      T *a = x + t * ld + h * headDim, *b = a + half;
      for (int64_t i = 0; i < half; ++i) {
        S first = S(a[i]), second = S(b[i]), cosine = S(c[i]), sine = S(sign) * S(s[i]);
        a[i] = T(first * cosine - second * sine);
        b[i] = T(second * cosine + first * sine);
      }
    }
  }
}

#define WRPO_ROPE(T)                                                                                       \
  WRPO_CLONES void rotate(T* x, int64_t ld, int64_t heads, int64_t headDim, int64_t d, const float* table, \
                          const int32_t* rows, int sign, int64_t begin, int64_t end) {                     \
    rotateRows<T>(x, ld, heads, headDim, d, table, rows, sign, begin, end);                                \
  }
WRPO_ROPE(float)
WRPO_ROPE(double)
WRPO_ROPE(c10::BFloat16)
#undef WRPO_ROPE

// Llama 3.1: long wavelengths are stretched by the factor, short ones kept, those between blended.
at::Tensor llama3(const RopeSettings& s, const at::Tensor& frequencies) {
  double low = s.originalMaxPosition / s.lowFrequencyFactor, high = s.originalMaxPosition / s.highFrequencyFactor;
  auto wavelength = frequencies.reciprocal().mul(2 * M_PI);
  auto scaled = at::where(wavelength.gt(low), frequencies.div(s.factor), frequencies);
  auto smooth = wavelength.reciprocal()
                    .mul(s.originalMaxPosition)
                    .sub(s.lowFrequencyFactor)
                    .div(s.highFrequencyFactor - s.lowFrequencyFactor);
  auto smoothed = smooth.neg().add(1).mul(scaled).div(s.factor).add(smooth.mul(scaled));
  auto medium = wavelength.lt(high).logical_not().logical_and(wavelength.gt(low).logical_not());
  return at::where(medium, smoothed, scaled);
}

}  // namespace

at::Tensor ropeFrequencies(const RopeSettings& s, int64_t length) {
  auto exponent = at::arange(0, s.dim, 2, at::kLong).to(at::kFloat).div(double(s.dim));
  double theta = s.theta;
  if (s.type == "dynamic" && double(length) > s.originalMaxPosition)
    theta *= std::pow(s.factor * double(length) / s.originalMaxPosition - (s.factor - 1), double(s.dim) / (s.dim - 2));
  auto periods = at::pow(theta, exponent);  // of a turn, over 2 pi
  if (s.type == "longrope") {
    const auto& factors = double(length) > s.originalMaxPosition ? s.longFactors : s.shortFactors;
    return periods.mul(at::tensor(factors, at::kFloat)).reciprocal();
  }
  auto frequencies = periods.reciprocal();
  if (s.type == "linear") return frequencies.div(s.factor);
  if (s.type == "llama3") return llama3(s, frequencies);
  if (s.type == "yarn") {
    auto ramp = at::arange(s.dim / 2, at::kLong).to(at::kFloat).sub(s.rampLow).div(s.rampHigh - s.rampLow).clamp(0, 1);
    auto keep = ramp.neg().add(1);
    auto divided = periods.mul(s.factor).reciprocal();
    return divided.mul(keep.neg().add(1)).add(frequencies.mul(keep));
  }
  return frequencies;
}

at::Tensor ropeTable(const at::Tensor& frequencies, int64_t positions, double attentionFactor) {
  auto angles = at::outer(at::arange(positions, at::kLong).to(at::kFloat), frequencies);
  auto table = at::empty({positions, 2, frequencies.size(0)}, at::kFloat);
  table.select(1, 0).copy_(angles.cos().mul(attentionFactor));
  table.select(1, 1).copy_(angles.sin().mul(attentionFactor));
  return table;
}

void cpu::rope(const at::Tensor& x, int64_t heads, int64_t headDim, const at::Tensor& table, const at::Tensor& rows,
               int sign) {
  byType(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    parallelRows(x.size(0), 64, [&](int64_t begin, int64_t end) {
      rotate(data<T>(x), x.stride(0), heads, headDim, 2 * table.size(2), data<float>(table), data<int32_t>(rows), sign,
             begin, end);
    });
  });
}

}  // namespace wrpo
