#include "model/blocked_attention.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/gemm.h"
#include "kernels/kernels.h"
#include "kernels/simd.h"
#include "kernels/softmax.h"

namespace wrpo {
namespace {

using namespace simd;

constexpr int64_t blockRows = 48;  // query rows at a time: few, since a block computes half of its square in vain

// scores and dP [rows, ld] -> P = exp(logit - lse) and dLoss/dscores. The mean of dP under P is taken over the very
// numbers it is subtracted from, so that a row of dLoss/dlogits sums to nothing: what all keys have in common (a key
// bias above all) has a gradient of almost nothing, and AdamW would make steps of its rounding errors.
template <class T>
WRPO_INLINE void softmaxBackward(T* scores, T* dP, int64_t ld, int64_t rows, Visible visible, Logits<T> logits,
                                 const T* lse, int64_t lseStride, T* slope) {
  constexpr int64_t L = lanes<T>;
  for (int64_t i = 0; i < rows; ++i) {
    T *s = scores + i * ld, *g = dP + i * ld, scale = logits.scale, l = lse[i * lseStride];
    int64_t low = visible.low(i), end = visible.end + i, whole = (end + L - 1) / L * L;
    if (logits.cap > 0) {
      for (int64_t j = 0; j < whole; j += L) {
        auto t = tanh(load(s + j) * (scale / logits.cap));
        store<T>(s + j, t * logits.cap);
        store<T>(slope + j, (T(1) - t * t) * scale);
      }
      scale = 1;
    }
    for (auto [from, to] : {std::pair{int64_t(0), low}, {end, whole}}) {
      std::fill(s + from, s + to, -std::numeric_limits<T>::infinity());
      std::fill(g + from, g + to, T(0));
    }
    VectorOf<T> total{}, mass{};
    for (int64_t j = 0; j < whole; j += L) {
      auto p = exp(load(s + j) * scale - l);
      store<T>(s + j, p);
      total += p * load(g + j);
      mass += p;
    }
    T mean = sum(total) / sum(mass);
    for (int64_t j = 0; j < whole; j += L) {
      auto d = load(s + j) * (load(g + j) - mean);
      store<T>(g + j, logits.cap > 0 ? d * load(slope + j) : d * scale);
    }
    std::fill(s + whole, s + ld, T(0));
    std::fill(g + whole, g + ld, T(0));
  }
}

template <class T>
WRPO_INLINE void divide(T* out, int64_t ld, int64_t rows, int64_t d, const T* sums) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < d; ++j) out[i * ld + j] /= sums[i];
}

#define WRPO_SOFTMAX(T)                                                                                               \
  WRPO_CLONES void softmaxRowsBackward(T* scores, T* dP, int64_t ld, int64_t rows, Visible visible, Logits<T> logits, \
                                       const T* lse, int64_t lseStride, T* slope) {                                   \
    softmaxBackward<T>(scores, dP, ld, rows, visible, logits, lse, lseStride, slope);                                 \
  }                                                                                                                   \
  WRPO_CLONES void divideRows(T* out, int64_t ld, int64_t rows, int64_t d, const T* sums) {                           \
    divide<T>(out, ld, rows, d, sums);                                                                                \
  }
WRPO_SOFTMAX(float)
WRPO_SOFTMAX(double)
#undef WRPO_SOFTMAX

// Element (i, j) is data[i * row + j * column].
template <class T>
struct Matrix {
  const T* data;
  int64_t row, column;
};

// c [m, n] = a [m, k] b [k, n] on the calling thread, or c += with `add`.
template <class T>
void multiply(int64_t m, int64_t n, int64_t k, Matrix<T> a, Matrix<T> b, T* c, int64_t ldc, bool add) {
  if constexpr (std::is_same_v<T, float>)
    if (sgemmPays()) return sgemmSerial(m, n, k, {a.data, a.row, a.column}, {b.data, b.row, b.column}, c, ldc, add);
  auto of = [](const T* p, int64_t rows, int64_t columns, int64_t row, int64_t column) {
    return at::from_blob(const_cast<T*>(p), {rows, columns}, {row, column}, c10::CppTypeToScalarType<T>::value);
  };
  auto to = of(c, m, n, ldc, 1), x = of(a.data, m, k, a.row, a.column), y = of(b.data, k, n, b.row, b.column);
  if (add) at::addmm_out(to, to, x, y);
  else at::mm_out(to, x, y);
}

// A sequence of queries in the batch, and the prompt rows that all of them see besides their own.
struct Segment {
  int64_t first, rows, promptFirst, promptRows;
};

// Calls body(segment) for every sequence of prompt g.
template <class Body>
void forSegments(const Batch& b, int64_t g, bool promptQueries, const Body& body) {
  int64_t first = b.promptOffsets[g], rows = b.promptOffsets[g + 1] - first;
  if (promptQueries) body(Segment{first, rows, 0, 0});
  for (int64_t k = b.groupOffsets[g]; k < b.groupOffsets[g + 1]; ++k)
    body(
        Segment{b.promptTokens() + b.responseOffsets[k], b.responseOffsets[k + 1] - b.responseOffsets[k], first, rows});
}

// One block of query rows of one head. Its keys are those of [prompt, own segment up to the block's end] from
// `firstKey` on, the first within the window of the block's first row.
struct Block {
  Segment segment;
  int64_t offset, rows;  // within the segment
  int64_t window;

  int64_t row() const { return segment.first + offset; }
  int64_t position() const { return segment.promptRows + offset; }  // of the first row, among all the keys
  int64_t firstKey() const { return std::max<int64_t>(0, position() - window + 1); }
  int64_t keys() const { return position() + rows - firstKey(); }
  Visible visible() const { return {position() - window + 1 - firstKey(), position() + 1 - firstKey()}; }
  int64_t ld() const { return (keys() + 15) / 16 * 16 + 16; }
  // Calls body(first key row in the batch, number, first column of the scores) for both ranges of keys.
  template <class Body>
  void forKeys(const Body& body) const {
    int64_t from = firstKey(), ofPrompt = std::max<int64_t>(0, segment.promptRows - from);
    if (ofPrompt > 0) body(segment.promptFirst + from, ofPrompt, int64_t(0));
    body(segment.first + std::max<int64_t>(0, from - segment.promptRows), keys() - ofPrompt, ofPrompt);
  }
};

template <class Body>
void forBlocks(const Segment& s, int64_t window, const Body& body) {
  // Without a window every row sees back to the first.
  if (window == 0) window = s.promptRows + s.rows;
  for (int64_t at = 0; at < s.rows; at += blockRows) body(Block{s, at, std::min(blockRows, s.rows - at), window});
}

// Heads of one key-value head of one prompt make up a task: no two tasks write the same rows and columns.
template <class Body>
void forTasks(const ModelConfig& c, const Batch& b, const Body& body) {
  parallelRows(c.kvHeads * b.groups(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) body(t % b.groups(), t / b.groups());
  });
}

template <class T>
T* atLeast(std::vector<T>& space, int64_t n) {
  if (int64_t(space.size()) < n) space.resize(n);
  return space.data();
}

template <class T>
void forward(const ModelConfig& c, int64_t window, const Batch& batch, const at::Tensor& qkv, const at::Tensor& out,
             const at::Tensor& lse, bool promptQueries) {
  const int64_t d = c.headDim, ld = qkv.stride(0), ldOut = out.stride(0), share = c.heads / c.kvHeads;
  const Logits<T> logits{T(c.queryScale), T(c.attentionSoftcap)};
  forTasks(c, batch, [&](int64_t g, int64_t kv) {
    thread_local std::vector<T> space;
    T sums[blockRows];
    const T *k = data<T>(qkv) + (c.heads + kv) * d, *v = k + c.kvHeads * d;
    auto head = [&](const Segment& s, int64_t h) {
      forBlocks(s, window, [&](const Block& block) {
        T* scores = atLeast(space, blockRows * block.ld());
        Matrix<T> q{data<T>(qkv) + block.row() * ld + h * d, ld, 1};
        block.forKeys([&](int64_t key, int64_t n, int64_t column) {
          multiply<T>(block.rows, n, d, q, {k + key * ld, 1, ld}, scores + column, block.ld(), false);
        });
        softmaxRows(scores, block.ld(), block.rows, block.visible(), logits, sums,
                    data<T>(lse) + block.row() * c.heads + h, c.heads);
        T* to = data<T>(out) + block.row() * ldOut + h * d;
        block.forKeys([&](int64_t key, int64_t n, int64_t column) {
          multiply<T>(block.rows, d, n, {scores + column, block.ld(), 1}, {v + key * ld, ld, 1}, to, ldOut, column > 0);
        });
        divideRows(to, ldOut, block.rows, d, sums);
      });
    };
    forSegments(batch, g, promptQueries, [&](const Segment& s) {
      for (int64_t h = kv * share; h < (kv + 1) * share; ++h) head(s, h);
    });
  });
}

template <class T>
void backward(const ModelConfig& c, int64_t window, const Batch& batch, const at::Tensor& dOut, const at::Tensor& qkv,
              const at::Tensor& lse, const at::Tensor& dQkv, bool promptQueries) {
  const int64_t d = c.headDim, ld = qkv.stride(0), ldOut = dOut.stride(0), share = c.heads / c.kvHeads;
  const Logits<T> logits{T(c.queryScale), T(c.attentionSoftcap)};
  dQkv.zero_();
  forTasks(c, batch, [&](int64_t g, int64_t kv) {
    thread_local std::vector<T> space;
    const T *k = data<T>(qkv) + (c.heads + kv) * d, *v = k + c.kvHeads * d;
    T *dK = data<T>(dQkv) + (c.heads + kv) * d, *dV = dK + c.kvHeads * d;
    auto head = [&](const Segment& s, int64_t h) {
      forBlocks(s, window, [&](const Block& block) {
        const int64_t ldS = block.ld(), n = block.rows, row = block.row();
        T *p = atLeast(space, (2 * blockRows + 1) * ldS), *dS = p + blockRows * ldS, *slope = dS + blockRows * ldS;
        const T *q = data<T>(qkv) + row * ld + h * d, *dO = data<T>(dOut) + row * ldOut + h * d;
        block.forKeys([&](int64_t key, int64_t m, int64_t column) {
          multiply<T>(n, m, d, {q, ld, 1}, {k + key * ld, 1, ld}, p + column, ldS, false);
          multiply<T>(n, m, d, {dO, ldOut, 1}, {v + key * ld, 1, ld}, dS + column, ldS, false);
        });
        softmaxRowsBackward(p, dS, ldS, n, block.visible(), logits, data<T>(lse) + row * c.heads + h, c.heads, slope);
        T* dQ = data<T>(dQkv) + row * ld + h * d;
        block.forKeys([&](int64_t key, int64_t m, int64_t column) {
          multiply<T>(n, d, m, {dS + column, ldS, 1}, {k + key * ld, ld, 1}, dQ, ld, column > 0);
          multiply<T>(m, d, n, {dS + column, 1, ldS}, {q, ld, 1}, dK + key * ld, ld, true);
          multiply<T>(m, d, n, {p + column, 1, ldS}, {dO, ldOut, 1}, dV + key * ld, ld, true);
        });
      });
    };
    forSegments(batch, g, promptQueries, [&](const Segment& s) {
      for (int64_t h = kv * share; h < (kv + 1) * share; ++h) head(s, h);
    });
  });
}

}  // namespace

void blockedAttentionForward(const ModelConfig& c, int64_t window, const Batch& batch, const at::Tensor& qkv,
                             const at::Tensor& out, const at::Tensor& lse, bool promptQueries) {
  if (qkv.scalar_type() == at::kDouble) return forward<double>(c, window, batch, qkv, out, lse, promptQueries);
  if (qkv.scalar_type() == at::kFloat) return forward<float>(c, window, batch, qkv, out, lse, promptQueries);
  auto wide = out.to(at::kFloat);
  forward<float>(c, window, batch, qkv.to(at::kFloat), wide, lse, promptQueries);
  out.copy_(wide);
}

void blockedAttentionBackward(const ModelConfig& c, int64_t window, const Batch& batch, const at::Tensor& dOut,
                              const at::Tensor& qkv, const at::Tensor& lse, const at::Tensor& dQkv,
                              bool promptQueries) {
  if (qkv.scalar_type() == at::kDouble) return backward<double>(c, window, batch, dOut, qkv, lse, dQkv, promptQueries);
  if (qkv.scalar_type() == at::kFloat) return backward<float>(c, window, batch, dOut, qkv, lse, dQkv, promptQueries);
  auto wide = at::empty(dQkv.sizes(), at::kFloat);
  backward<float>(c, window, batch, dOut.to(at::kFloat), qkv.to(at::kFloat), lse, wide, promptQueries);
  dQkv.copy_(wide);
}

}  // namespace wrpo
