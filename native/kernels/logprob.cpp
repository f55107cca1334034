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
WRPO_INLINE void capRows(T* z, int64_t V, ScalarOf<T> cap, int64_t begin, int64_t end) {
  constexpr int64_t L = lanes<T>;
  int64_t i = begin * V, last = end * V;
  for (; i + L <= last; i += L) store<T>(z + i, tanh(load<T>(z + i) / cap) * cap);
  if (i < last) storeTail<T>(z + i, last - i, tanh(loadTail<T>(z + i, last - i, T(0)) / cap) * cap);
}

template <class T>
WRPO_INLINE void backwardRows(T* z, int64_t V, const int32_t* targets, const ScalarOf<T>* lse, const ScalarOf<T>* g,
                              ScalarOf<T> cap, int64_t begin, int64_t end) {
  using S = ScalarOf<T>;
  constexpr int64_t L = lanes<T>;
  for (int64_t r = begin; r < end; ++r) {
    T* row = z + r * V;
    S l = lse[r], scale = -g[r];
    auto slope = [=](const auto& z) __attribute__((always_inline)) { return S(1) - z / cap * (z / cap); };
    S target = S(row[targets[r]]), atTarget = scale * (std::exp(target - l) - S(1)) * (cap > 0 ? slope(target) : S(1));
    int64_t i = 0;
    if (cap > 0) {
      for (; i + L <= V; i += L) store<T>(row + i, exp(load<T>(row + i) - l) * scale * slope(load<T>(row + i)));
      auto z = loadTail<T>(row + i, V - i, T(0));
      storeTail<T>(row + i, V - i, exp(z - l) * scale * slope(z));
    } else {
      for (; i + L <= V; i += L) store<T>(row + i, exp(load<T>(row + i) - l) * scale);
      if (i < V) storeTail<T>(row + i, V - i, exp(loadTail<T>(row + i, V - i, T(0)) - l) * scale);
    }
    row[targets[r]] = T(atTarget);
  }
}

#define WRPO_LOGPROB(T)                                                                                            \
  WRPO_CLONES void forward(const T* z, int64_t V, const int32_t* targets, ScalarOf<T>* logp, ScalarOf<T>* lse,     \
                           uint8_t* argmax, int64_t begin, int64_t end) {                                          \
    forwardRows<T>(z, V, targets, logp, lse, argmax, begin, end);                                                  \
  }                                                                                                                \
  WRPO_CLONES void cap(T* z, int64_t V, ScalarOf<T> limit, int64_t begin, int64_t end) {                           \
    capRows<T>(z, V, limit, begin, end);                                                                           \
  }                                                                                                                \
  WRPO_CLONES void backward(T* z, int64_t V, const int32_t* targets, const ScalarOf<T>* lse, const ScalarOf<T>* g, \
                            ScalarOf<T> cap, int64_t begin, int64_t end) {                                         \
    backwardRows<T>(z, V, targets, lse, g, cap, begin, end);                                                       \
  }
WRPO_LOGPROB(float)
WRPO_LOGPROB(double)
WRPO_LOGPROB(c10::BFloat16)
#undef WRPO_LOGPROB

}  // namespace

void cpu::softcap(const at::Tensor& z, double limit) {
  byType(z.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    parallelRows(z.size(0), 1, [&](int64_t b, int64_t e) { cap(data<T>(z), z.size(1), ScalarOf<T>(limit), b, e); });
  });
}

void cpu::logprobForward(const at::Tensor& z, const at::Tensor& targets, const at::Tensor& logp, const at::Tensor& lse,
                         const at::Tensor& argmax) {
  byType(z.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using S = ScalarOf<T>;
    parallelRows(z.size(0), 1, [&](int64_t b, int64_t e) {
      forward(data<T>(z), z.size(1), data<int32_t>(targets), data<S>(logp), data<S>(lse),
              argmax.defined() ? data<uint8_t>(argmax) : nullptr, b, e);
    });
  });
}

void cpu::logprobBackward(const at::Tensor& z, const at::Tensor& targets, const at::Tensor& lse, const at::Tensor& g,
                          double cap) {
  byType(z.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using S = ScalarOf<T>;
    parallelRows(z.size(0), 1, [&](int64_t b, int64_t e) {
      backward(data<T>(z), z.size(1), data<int32_t>(targets), data<S>(lse), data<S>(g), S(cap), b, e);
    });
  });
}

}  // namespace wrpo
