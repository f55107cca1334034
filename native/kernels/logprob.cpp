// The fused log-probability of the head: reads a row of logits twice (maximum, then sum of exponentials) and never
// writes a softmax; backward turns the logits into their gradient in place. Sums run in blocks of 1,024 so that a
// float32 row of 128k terms loses no more than a short one.
#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace wrpo {
namespace {

using namespace simd;

template <class T>
WRPO_INLINE void forwardRows(const T* z, int64_t V, const int32_t* targets, ScalarOf<T>* logp, ScalarOf<T>* lse,
                             uint8_t* argmax, int64_t begin, int64_t end) {
  using S = ScalarOf<T>;
  using Vec = VectorOf<T>;
  constexpr int64_t L = lanes<T>, block = 1024;
  const S lowest = -std::numeric_limits<S>::infinity();
  for (int64_t r = begin; r < end; ++r) {
    const T* row = z + r * V;
    Vec high = splat<Vec>(lowest);
    int64_t whole = V / L * L;
    for (int64_t i = 0; i < whole; i += L) high = max(high, load<T>(row + i));
    S top = lowest;
    for (int64_t i = 0; i < L; ++i) top = high[i] > top ? high[i] : top;
    for (int64_t i = whole; i < V; ++i) top = S(row[i]) > top ? S(row[i]) : top;
    double total = 0;
    for (int64_t b = 0; b < whole; b += block) {
      Vec part{};
      int64_t stop = b + block < whole ? b + block : whole;
      for (int64_t i = b; i < stop; i += L) part += exp(load<T>(row + i) - top);
      total += double(sum(part));
    }
    if (whole < V) {
      Vec last = exp(loadTail<T>(row + whole, V - whole, T(lowest)) - top);
      for (int64_t i = 0; i < V - whole; ++i) total += double(last[i]);
    }
    S target = S(row[targets[r]]);
    double logTotal = std::log(total);
    lse[r] = S(double(top) + logTotal);
    logp[r] = S(double(target) - double(top) - logTotal);
    if (argmax) argmax[r] = target >= top;
  }
}

template <class T>
WRPO_INLINE void backwardRows(T* z, int64_t V, const int32_t* targets, const ScalarOf<T>* lse, const ScalarOf<T>* g,
                              int64_t begin, int64_t end) {
  using S = ScalarOf<T>;
  constexpr int64_t L = lanes<T>;
  for (int64_t r = begin; r < end; ++r) {
    T* row = z + r * V;
    S l = lse[r], scale = -g[r];
    S atTarget = scale * (std::exp(S(row[targets[r]]) - l) - S(1));
    int64_t i = 0;
    for (; i + L <= V; i += L) store<T>(row + i, exp(load<T>(row + i) - l) * scale);
    if (i < V) storeTail<T>(row + i, V - i, exp(loadTail<T>(row + i, V - i, T(0)) - l) * scale);
    row[targets[r]] = T(atTarget);
  }
}

#define WRPO_LOGPROB(T)                                                                                            \
  WRPO_CLONES void forward(const T* z, int64_t V, const int32_t* targets, ScalarOf<T>* logp, ScalarOf<T>* lse,     \
                           uint8_t* argmax, int64_t begin, int64_t end) {                                          \
    forwardRows<T>(z, V, targets, logp, lse, argmax, begin, end);                                                  \
  }                                                                                                                \
  WRPO_CLONES void backward(T* z, int64_t V, const int32_t* targets, const ScalarOf<T>* lse, const ScalarOf<T>* g, \
                            int64_t begin, int64_t end) {                                                          \
    backwardRows<T>(z, V, targets, lse, g, begin, end);                                                            \
  }
WRPO_LOGPROB(float)
WRPO_LOGPROB(double)
WRPO_LOGPROB(c10::BFloat16)
#undef WRPO_LOGPROB

}  // namespace

void logprobForward(const at::Tensor& z, const int32_t* targets, const at::Tensor& logp, const at::Tensor& lse,
                    uint8_t* argmax) {
  byType(z.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using S = ScalarOf<T>;
    parallelRows(z.size(0), 1, [&](int64_t b, int64_t e) {
      forward(data<T>(z), z.size(1), targets, data<S>(logp), data<S>(lse), argmax, b, e);
    });
  });
}

void logprobBackward(const at::Tensor& z, const int32_t* targets, const at::Tensor& lse, const at::Tensor& g) {
  byType(z.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using S = ScalarOf<T>;
    parallelRows(z.size(0), 1, [&](int64_t b, int64_t e) {
      backward(data<T>(z), z.size(1), targets, data<S>(lse), data<S>(g), b, e);
    });
  });
}

}  // namespace wrpo
