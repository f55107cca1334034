// The optimiser's passes over flat buffers. AdamW reads and writes every state once: 16 bytes read and 16 written a
// float32 parameter, the gradient's zeroing included.
#include "kernels/row/adamw.h"

#include <ATen/ops/empty.h>

#include <cmath>

#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace wrpo {
namespace {

using namespace simd;

constexpr int64_t chunk = 65536;

template <class S>
WRPO_INLINE void updateRange(S* p, S* grad, S* m, S* v, const AdamWStep& step, double clip, int64_t begin,
                             int64_t end) {
  const auto c =
      row::adamwCoefficients<S>(step.learningRate, step.beta1, step.beta2, step.eps, step.weightDecay, step.step);
  const S scale = S(clip);
  for (int64_t i = begin; i < end; ++i) {
    S g = grad[i] * scale;
    grad[i] = S(0);
    p[i] = row::adamwUpdate(c, p[i], g, m[i], v[i]);
  }
}

WRPO_CLONES void update(float* p, float* g, float* m, float* v, const AdamWStep& s, double clip, int64_t b, int64_t e) {
  updateRange<float>(p, g, m, v, s, clip, b, e);
}
WRPO_CLONES void update(double* p, double* g, double* m, double* v, const AdamWStep& s, double clip, int64_t b,
                        int64_t e) {
  updateRange<double>(p, g, m, v, s, clip, b, e);
}

WRPO_CLONES void roundTo(c10::BFloat16* to, const float* from, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store<c10::BFloat16>(to + i, load<float>(from + i));
  for (; i < n; ++i) to[i] = c10::BFloat16(from[i]);
}

WRPO_CLONES double squares(const float* g, int64_t n) {
  double total = 0;
  for (int64_t i = 0; i < n; i += 1024) {
    F32 part{};
    int64_t stop = i + 1024 < n ? i + 1024 : n, k = i;
    for (; k + 16 <= stop; k += 16) part += load<float>(g + k) * load<float>(g + k);
    total += double(sum(part));
    for (; k < stop; ++k) total += double(g[k]) * double(g[k]);
  }
  return total;
}
double squares(const double* g, int64_t n) {
  double total = 0;
  for (int64_t i = 0; i < n; i += 1024) {
    double part = 0;
    for (int64_t k = i; k < n && k < i + 1024; ++k) part += g[k] * g[k];
    total += part;
  }
  return total;
}

int64_t chunks(int64_t n) { return (n + chunk - 1) / chunk; }

}  // namespace

void cpu::adamwUpdate(const at::Tensor& grad, const at::Tensor& m, const at::Tensor& v, const Stored& stored,
                      const at::Tensor& work, const at::Tensor& clip, const AdamWStep& step) {
  const at::Tensor& master = stored.tensor;
  const double scale = data<double>(clip)[1];
  if (!std::isfinite(scale)) return;
  byType(master.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    if constexpr (!std::is_same_v<S, c10::BFloat16>) {
      bool copy = work.data_ptr() != master.data_ptr();
      parallelRows(chunks(master.numel()), 1, [&](int64_t first, int64_t last) {
        // A chunk at a time, so that the copy reads it from the cache.
        for (int64_t begin = first * chunk; begin < std::min(master.numel(), last * chunk); begin += chunk) {
          int64_t end = std::min(master.numel(), begin + chunk);
          update(data<S>(master), data<S>(grad), data<S>(m), data<S>(v), step, scale, begin, end);
          if constexpr (std::is_same_v<S, float>)
            if (copy) roundTo(data<c10::BFloat16>(work) + begin, data<float>(master) + begin, end - begin);
        }
      });
    }
  });
}

at::Tensor cpu::gradientNorm(const at::Tensor& grad, double maxNorm) {
  std::vector<double> partial(chunks(grad.numel()));
  byType(grad.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    if constexpr (!std::is_same_v<S, c10::BFloat16>)
      parallelRows(partial.size(), 4, [&](int64_t first, int64_t last) {
        for (int64_t c = first; c < last; ++c)
          partial[c] = squares(data<S>(grad) + c * chunk, std::min(chunk, grad.numel() - c * chunk));
      });
  });
  double total = 0;
  for (double p : partial) total += p;
  auto result = at::empty({2}, at::kDouble);
  double norm = std::sqrt(total), clip = maxNorm > 0 ? std::min(1.0, maxNorm / (norm + 1e-6)) : 1.0;
  data<double>(result)[0] = norm;
  data<double>(result)[1] = std::isfinite(norm) ? clip : NAN;
  return result;
}

uint64_t fingerprint(const at::Tensor& flat) {
  int64_t bytes = flat.nbytes(), block = chunk * 4;
  const char* p = static_cast<const char*>(flat.data_ptr());
  std::vector<uint64_t> partial((bytes + block - 1) / block);
  parallelRows(partial.size(), 4, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      uint64_t h[4] = {1, 2, 3, 4};
      int64_t n = std::min(block, bytes - c * block);
      for (int64_t i = 0; i < n; i += 8) {
        uint64_t word = 0;
        std::memcpy(&word, p + c * block + i, std::min<int64_t>(8, n - i));
        uint64_t& lane = h[(i >> 3) & 3];
        lane = (lane ^ word) * 0x9e3779b97f4a7c15ull;
        lane ^= lane >> 29;
      }
      partial[c] = h[0] ^ (h[1] * 3) ^ (h[2] * 5) ^ (h[3] * 7);
    }
  });
  uint64_t total = 0xcbf29ce484222325ull;
  for (uint64_t h : partial) {
    total = (total ^ h) * 0x9e3779b97f4a7c15ull;
    total ^= total >> 32;
  }
  return total;
}

}  // namespace wrpo
