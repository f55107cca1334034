#include "model/blocked_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/gemm.h"
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace wrpo {
namespace {

using simd::F32;

constexpr int64_t blockRows = 48;  // query rows at a time: few, since a block computes half of its square in vain

// scores [rows, ld] -> exp(scale * score - max), zero from the first key that row i may not see; sums and log-sum-exps.
WRPO_CLONES void softmaxRows(float* scores, int64_t ld, int64_t rows, int64_t firstVisible, float scale, float* sums,
                             float* lse, int64_t lseStride) {
  for (int64_t i = 0; i < rows; ++i) {
    float* s = scores + i * ld;
    int64_t visible = firstVisible + i, whole = visible / 16 * 16;
    const float lowest = -std::numeric_limits<float>::infinity();
    F32 high = simd::splat<F32>(lowest);
    for (int64_t j = 0; j < whole; j += 16) high = simd::max(high, simd::load(s + j));
    if (whole < visible) high = simd::max(high, simd::loadTail(s + whole, visible - whole, lowest));
    float top = high[0];
    for (int j = 1; j < 16; ++j) top = std::max(top, high[j]);
    F32 total{};
    for (int64_t j = 0; j < whole; j += 16) {
      F32 e = simd::exp((simd::load(s + j) - top) * scale);
      simd::store(s + j, e);
      total += e;
    }
    if (whole < visible) {
      F32 e = simd::exp((simd::loadTail(s + whole, visible - whole, lowest) - top) * scale);
      simd::storeTail(s + whole, visible - whole, e);
      for (int64_t j = 0; j < visible - whole; ++j) total[j] += e[j];
    }
    std::memset(s + visible, 0, (ld - visible) * sizeof(float));
    sums[i] = simd::sum(total);
    lse[i * lseStride] = top * scale + std::log(sums[i]);
  }
}

// scores and dP [rows, ld] -> P = exp(scale * score - lse) and dScores = scale * P * (dP - D), D = <dOut, out>.
WRPO_CLONES void softmaxRowsBackward(float* scores, float* dP, int64_t ld, int64_t rows, int64_t firstVisible,
                                     float scale, const float* lse, int64_t lseStride, const float* dOut,
                                     const float* out, int64_t ldOut, int64_t d) {
  for (int64_t i = 0; i < rows; ++i) {
    float *s = scores + i * ld, *g = dP + i * ld, D = 0, l = lse[i * lseStride];
    for (int64_t j = 0; j < d; ++j) D += dOut[i * ldOut + j] * out[i * ldOut + j];
    int64_t visible = firstVisible + i, whole = (visible + 15) / 16 * 16;
    for (int64_t j = 0; j < whole; j += 16) {
      F32 p = simd::exp(simd::load(s + j) * scale - l);
      simd::store(s + j, p);
      simd::store(g + j, p * (simd::load(g + j) - D) * scale);
    }
    std::memset(s + visible, 0, (ld - visible) * sizeof(float));
    std::memset(g + visible, 0, (ld - visible) * sizeof(float));
  }
}

WRPO_CLONES void divideRows(float* out, int64_t ld, int64_t rows, int64_t d, const float* sums) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < d; ++j) out[i * ld + j] /= sums[i];
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

// One block of query rows of one head against the keys of [prompt, own segment up to the block's end].
struct Block {
  Segment segment;
  int64_t offset, rows;  // within the segment

  int64_t row() const { return segment.first + offset; }
  int64_t ownKeys() const { return offset + rows; }
  int64_t keys() const { return segment.promptRows + ownKeys(); }
  int64_t firstVisible() const { return segment.promptRows + offset + 1; }  // keys that row 0 of the block sees
  int64_t ld() const { return (keys() + 15) / 16 * 16 + 16; }
  // Calls body(first key row in the batch, number, first column of the scores) for both ranges of keys.
  template <class Body>
  void forKeys(const Body& body) const {
    if (segment.promptRows > 0) body(segment.promptFirst, segment.promptRows, int64_t(0));
    body(segment.first, ownKeys(), segment.promptRows);
  }
};

template <class Body>
void forBlocks(const Segment& s, const Body& body) {
  for (int64_t at = 0; at < s.rows; at += blockRows) body(Block{s, at, std::min(blockRows, s.rows - at)});
}

// Heads of one key-value head of one prompt make up a task: no two tasks write the same rows and columns.
template <class Body>
void forTasks(const ModelConfig& c, const Batch& b, const Body& body) {
  parallelRows(c.kvHeads * b.groups(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) body(t % b.groups(), t / b.groups());
  });
}

float* atLeast(std::vector<float>& space, int64_t n) {
  if (int64_t(space.size()) < n) space.resize(n);
  return space.data();
}

}  // namespace

void blockedAttentionForward(const ModelConfig& c, const Batch& batch, const at::Tensor& qkv, const at::Tensor& out,
                             const at::Tensor& lse, bool promptQueries) {
  const int64_t d = c.headDim, ld = qkv.stride(0), ldOut = out.stride(0), share = c.heads / c.kvHeads;
  const float scale = float(1 / std::sqrt(double(d)));
  forTasks(c, batch, [&](int64_t g, int64_t kv) {
    thread_local std::vector<float> space;
    float sums[blockRows];
    const float *k = data<float>(qkv) + (c.heads + kv) * d, *v = k + c.kvHeads * d;
    auto head = [&](const Segment& s, int64_t h) {
      forBlocks(s, [&](const Block& block) {
        float* scores = atLeast(space, blockRows * block.ld());
        Strided q{data<float>(qkv) + block.row() * ld + h * d, ld, 1};
        block.forKeys([&](int64_t key, int64_t n, int64_t column) {
          sgemmSerial(block.rows, n, d, q, {k + key * ld, 1, ld}, scores + column, block.ld(), false);
        });
        softmaxRows(scores, block.ld(), block.rows, block.firstVisible(), scale, sums,
                    data<float>(lse) + block.row() * c.heads + h, c.heads);
        float* to = data<float>(out) + block.row() * ldOut + h * d;
        block.forKeys([&](int64_t key, int64_t n, int64_t column) {
          sgemmSerial(block.rows, d, n, {scores + column, block.ld(), 1}, {v + key * ld, ld, 1}, to, ldOut, column > 0);
        });
        divideRows(to, ldOut, block.rows, d, sums);
      });
    };
    forSegments(batch, g, promptQueries, [&](const Segment& s) {
      for (int64_t h = kv * share; h < (kv + 1) * share; ++h) head(s, h);
    });
  });
}

void blockedAttentionBackward(const ModelConfig& c, const Batch& batch, const at::Tensor& dOut, const at::Tensor& qkv,
                              const at::Tensor& out, const at::Tensor& lse, const at::Tensor& dQkv,
                              bool promptQueries) {
  const int64_t d = c.headDim, ld = qkv.stride(0), ldOut = out.stride(0), share = c.heads / c.kvHeads;
  const float scale = float(1 / std::sqrt(double(d)));
  dQkv.zero_();
  forTasks(c, batch, [&](int64_t g, int64_t kv) {
    thread_local std::vector<float> space;
    const float *k = data<float>(qkv) + (c.heads + kv) * d, *v = k + c.kvHeads * d;
    float *dK = data<float>(dQkv) + (c.heads + kv) * d, *dV = dK + c.kvHeads * d;
    auto head = [&](const Segment& s, int64_t h) {
      forBlocks(s, [&](const Block& block) {
        const int64_t ldS = block.ld(), n = block.rows, row = block.row();
        float *p = atLeast(space, 2 * blockRows * ldS), *dS = p + blockRows * ldS;
        const float *q = data<float>(qkv) + row * ld + h * d, *o = data<float>(out) + row * ldOut + h * d,
                    *dO = data<float>(dOut) + row * ldOut + h * d;
        block.forKeys([&](int64_t key, int64_t m, int64_t column) {
          sgemmSerial(n, m, d, {q, ld, 1}, {k + key * ld, 1, ld}, p + column, ldS, false);
          sgemmSerial(n, m, d, {dO, ldOut, 1}, {v + key * ld, 1, ld}, dS + column, ldS, false);
        });
        softmaxRowsBackward(p, dS, ldS, n, block.firstVisible(), scale, data<float>(lse) + row * c.heads + h, c.heads,
                            dO, o, ldOut, d);
        float* dQ = data<float>(dQkv) + row * ld + h * d;
        block.forKeys([&](int64_t key, int64_t m, int64_t column) {
          sgemmSerial(n, d, m, {dS + column, ldS, 1}, {k + key * ld, ld, 1}, dQ, ld, column > 0);
          sgemmSerial(m, d, n, {dS + column, 1, ldS}, {q, ld, 1}, dK + key * ld, ld, true);
          sgemmSerial(m, d, n, {p + column, 1, ldS}, {dO, ldOut, 1}, dV + key * ld, ld, true);
        });
      });
    };
    forSegments(batch, g, promptQueries, [&](const Segment& s) {
      for (int64_t h = kv * share; h < (kv + 1) * share; ++h) head(s, h);
    });
  });
}

}  // namespace wrpo
