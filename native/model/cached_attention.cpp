#include "model/cached_attention.h"

#include <algorithm>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "kernels/simd.h"
#include "kernels/softmax.h"

namespace wrpo {
namespace {

using namespace simd;

constexpr int64_t blockTokens = BlockPool::tokens;

// to [R, N vectors] (+)= a [R, k] b [k, N vectors]: for every element the same sums in the same order, whatever R.
template <class T, int R, int N>
WRPO_INLINE void tile(int64_t k, const ScalarOf<T>* a, int64_t lda, const T* b, int64_t ldb, ScalarOf<T>* to,
                      int64_t ldTo, bool add) {
  using S = ScalarOf<T>;
  constexpr int64_t L = lanes<T>;
  VectorOf<T> sums[R][N];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) sums[r][n] = add ? load<S>(to + r * ldTo + n * L) : VectorOf<T>{};
  for (int64_t p = 0; p < k; ++p) {
    VectorOf<T> row[N];
    for (int n = 0; n < N; ++n) row[n] = load<T>(b + p * ldb + n * L);
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) sums[r][n] += row[n] * a[r * lda + p];
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) store<S>(to + r * ldTo + n * L, sums[r][n]);
}

// The same of any number of columns, a multiple of 16.
template <class T, int R>
WRPO_INLINE void product(int64_t columns, int64_t k, const ScalarOf<T>* a, int64_t lda, const T* b, int64_t ldb,
                         ScalarOf<T>* to, int64_t ldTo, bool add) {
  constexpr int N = 16 / lanes<T>;
  int64_t j = 0;
  for (; j + 32 <= columns; j += 32) tile<T, R, 2 * N>(k, a, lda, b + j, ldb, to + j, ldTo, add);
  if (j < columns) tile<T, R, N>(k, a, lda, b + j, ldb, to + j, ldTo, add);
}

#define WRPO_PRODUCT(T)                                                                                              \
  WRPO_CLONES void multiply(int64_t rows, int64_t columns, int64_t k, const ScalarOf<T>* a, int64_t lda, const T* b, \
                            int64_t ldb, ScalarOf<T>* to, int64_t ldTo, bool add) {                                  \
    if (rows == 4) product<T, 4>(columns, k, a, lda, b, ldb, to, ldTo, add);                                         \
    else                                                                                                             \
      for (int64_t r = 0; r < rows; ++r)                                                                             \
        product<T, 1>(columns, k, a + r * lda, lda, b, ldb, to + r * ldTo, ldTo, add);                               \
  }
WRPO_PRODUCT(float)
WRPO_PRODUCT(double)
WRPO_PRODUCT(c10::BFloat16)
#undef WRPO_PRODUCT

// The new rows of one sequence: where in the batch they are and after how many tokens they come.
struct Rows {
  int64_t promptFirst, promptRows, response, past;

  int64_t count() const { return promptRows + 1; }
  int64_t operator[](int64_t i) const { return i < promptRows ? promptFirst + i : response; }
};

// One key-value head of one sequence. Queries go by fours: heads that share the keys, then the next row's.
template <class T>
void attend(const ModelConfig& c, int64_t layer, int64_t kv, const Rows& rows, const KeyValueCache& cache,
            const at::Tensor& qkv, const at::Tensor& out, bool promptQueries) {
  using S = ScalarOf<T>;
  const int64_t d = c.headDim, share = c.heads / c.kvHeads, width = cache.pool().valueWidth();
  const int64_t window = c.windows[layer] > 0 ? c.windows[layer] : cache.length();
  const Logits<S> logits{S(c.queryScale), S(c.attentionSoftcap)};
  auto keys = [&](int64_t block) { return cache.head<T>(layer, kv, c.kvHeads, block); };
  auto values = [&](int64_t block) { return keys(block) + d * blockTokens; };

  for (int64_t i = 0; i < rows.count(); ++i) {
    const int64_t at = rows.past + i, column = at % blockTokens;
    const T *k = data<T>(qkv) + rows[i] * qkv.stride(0) + (c.heads + kv) * d, *v = k + c.kvHeads * d;
    T *toKeys = keys(at / blockTokens), *toValues = values(at / blockTokens) + column * width;
    for (int64_t j = 0; j < d; ++j) toKeys[j * blockTokens + column] = k[j];
    std::copy(v, v + d, toValues);
    std::fill(toValues + d, toValues + width, T(0));
  }

  // Query t is that of head t % share, of row t / share.
  const int64_t first = (promptQueries ? 0 : rows.promptRows) * share, last = rows.count() * share;
  constexpr int64_t together = 4;
  thread_local std::vector<S> space;
  const int64_t ld = (cache.length() + blockTokens - 1) / blockTokens * blockTokens;
  if (int64_t(space.size()) < together * (d + ld + width)) space.resize(together * (d + ld + width));
  S *q = space.data(), *scores = q + together * d, *result = scores + together * ld;
  for (int64_t t = first; t < last; t += together) {
    const int64_t n = std::min(together, last - t);
    auto row = [&](int64_t r) { return (t + r) / share; };
    auto head = [&](int64_t r) { return kv * share + (t + r) % share; };
    for (int64_t r = 0; r < n; ++r) {
      const T* from = data<T>(qkv) + rows[row(r)] * qkv.stride(0) + head(r) * d;
      for (int64_t j = 0; j < d; ++j) q[r * d + j] = S(from[j]);
    }
    // The blocks that any of these sees.
    const int64_t lowest = std::max<int64_t>(0, rows.past + row(0) - window + 1) / blockTokens;
    const int64_t end = (rows.past + row(n - 1)) / blockTokens + 1, base = lowest * blockTokens;
    for (int64_t b = lowest; b < end; ++b)
      multiply(n, blockTokens, d, q, d, keys(b), blockTokens, scores + b * blockTokens - base, ld, false);
    S sums[together], lse;
    for (int64_t r = 0; r < n; ++r) {
      const int64_t position = rows.past + row(r);
      softmaxRows(scores + r * ld, end * blockTokens - base, 1, {position - window + 1 - base, position + 1 - base},
                  logits, sums + r, &lse, 1);
    }
    for (int64_t b = lowest; b < end; ++b) {
      // A query's weights are zero where it sees nothing, but what is not written yet may be no number.
      const int64_t written = std::min(blockTokens, cache.length() - b * blockTokens);
      multiply(n, width, written, scores + b * blockTokens - base, ld, values(b), width, result, width, b > lowest);
    }
    for (int64_t r = 0; r < n; ++r) {
      T* to = data<T>(out) + rows[row(r)] * out.stride(0) + head(r) * d;
      for (int64_t j = 0; j < d; ++j) to[j] = T(result[r * width + j] / sums[r]);
    }
  }
}

}  // namespace

void cachedAttention(const ModelConfig& c, int64_t layer, const Batch& batch, std::span<KeyValueCache* const> caches,
                     const at::Tensor& qkv, const at::Tensor& out, bool promptQueries) {
  byType(qkv.scalar_type(), [&](auto zero) {
    parallelRows(int64_t(caches.size()) * c.kvHeads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t g = task / c.kvHeads, promptRows = batch.promptOffsets[g + 1] - batch.promptOffsets[g];
        const Rows rows{batch.promptOffsets[g], promptRows, batch.promptTokens() + g,
                        caches[g]->length() - promptRows - 1};
        attend<decltype(zero)>(c, layer, task % c.kvHeads, rows, *caches[g], qkv, out, promptQueries);
      }
    });
  });
}

}  // namespace wrpo
