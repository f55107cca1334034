// The softmax over a row's scores that the attentions of this engine share.
#pragma once
#include <algorithm>
#include <cstdint>

namespace wrpo {

// The columns of the scores that row i of a block sees: [max(0, first + i), end + i).
struct Visible {
  int64_t first, end;

  int64_t low(int64_t i) const { return std::max<int64_t>(0, first + i); }
};

// How scores become logits: scale * score, or, with a cap, cap * tanh(scale * score / cap).
template <class T>
struct Logits {
  T scale, cap;
};

// scores [rows, ld] -> exp(logit - max), zero where row i sees nothing; sums and log-sum-exps. ld is a multiple of the
// lanes, and what a row sees ends within it.
void softmaxRows(float* scores, int64_t ld, int64_t rows, Visible visible, Logits<float> logits, float* sums,
                 float* lse, int64_t lseStride);
void softmaxRows(double* scores, int64_t ld, int64_t rows, Visible visible, Logits<double> logits, double* sums,
                 double* lse, int64_t lseStride);

}  // namespace wrpo
