#include "model/head.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "error.h"
#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "model/decoder.h"
#include "range.h"

namespace wrpo {
namespace {

// The rows [first, last) of everything the head's steps read and write.
struct Chunk {
  const at::Tensor &hidden, &weight, &targets;
  HeadOutput& output;
  int64_t first, last;
  at::Tensor logits;  // [last - first, V]
  double cap;

  at::Tensor rows(const at::Tensor& t) const { return t.narrow(0, first, last - first); }
  void forward() const {
    poll();
    Range range("head forward");
    recompute();
    logprobForward(logits, rows(targets), rows(output.logp), rows(output.lse),
                   output.argmax.defined() ? rows(output.argmax) : output.argmax);
  }
  void recompute() const {
    linear(logits, rows(hidden), weight);
    if (cap > 0) softcap(logits, cap);
  }
  void backward(const at::Tensor& dLogp, const at::Tensor& dHidden, const at::Tensor& dWeight) const {
    poll();
    Range range("head backward");
    logprobBackward(logits, rows(targets), rows(output.lse), rows(dLogp), cap);
    linearInputGradient(rows(dHidden), logits, weight);
    linearWeightGradient(dWeight, logits, rows(hidden));
  }
};

}  // namespace

int64_t Head::chunkRows(const at::Tensor& weight) const {
  return std::max<int64_t>(1, chunkBytes_ / (weight.size(0) * weight.element_size()));
}

at::Tensor Head::logits(const at::Tensor& hidden, const at::Tensor& weight) {
  auto logits = workspace_.take({hidden.size(0), weight.size(0)}, hidden.scalar_type());
  linear(logits, hidden, weight);
  if (softcap_ > 0) softcap(logits, softcap_);
  return logits;
}

HeadOutput Head::logProbs(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets, bool argmax) {
  int64_t R = hidden.size(0), step = std::min(R, chunkRows(weight));
  Range range("head");
  auto stats = hidden.options().dtype(computeType(hidden.scalar_type()));
  HeadOutput output{at::empty({R}, stats), at::empty({R}, stats), {}};
  if (argmax) output.argmax = at::empty({R}, hidden.options().dtype(at::kByte));
  auto scratch = workspace_.mark();
  auto logits = workspace_.take({step, weight.size(0)}, hidden.scalar_type());
  for (int64_t first = 0; first < R; first += step) {
    int64_t last = std::min(R, first + step);
    Chunk{hidden, weight, targets, output, first, last, logits.narrow(0, 0, last - first), softcap_}.forward();
  }
  workspace_.release(scratch);
  return output;
}

HeadOutput Head::forwardBackward(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
                                 const std::vector<int64_t>& unitOffsets, const Gradient& gradient,
                                 const at::Tensor& dHidden, const at::Tensor& dWeight) {
  int64_t R = hidden.size(0), limit = std::min(R, chunkRows(weight));
  Range range("head");
  auto stats = hidden.options().dtype(computeType(hidden.scalar_type()));
  HeadOutput output{at::empty({R}, stats), at::empty({R}, stats), {}};
  auto dLogp = at::empty({R}, stats);
  auto scratch = workspace_.mark();
  auto logits = workspace_.take({limit, weight.size(0)}, hidden.scalar_type());
  auto chunk = [&](int64_t first, int64_t last) {
    return Chunk{hidden, weight, targets, output, first, last, logits.narrow(0, 0, last - first), softcap_};
  };
  for (size_t unit = 0; unit + 1 < unitOffsets.size();) {
    int64_t first = unitOffsets[unit];
    size_t end = unit + 1;
    while (end + 1 < unitOffsets.size() && unitOffsets[end + 1] - first <= limit) ++end;
    int64_t last = unitOffsets[end];
    unit = end;
    if (first == last) continue;
    if (last - first <= limit) {
      auto whole = chunk(first, last);
      whole.forward();
      gradient(output, first, last, dLogp);
      whole.backward(dLogp, dHidden, dWeight);
      continue;
    }
    for (int64_t at = first; at < last; at += limit) chunk(at, std::min(last, at + limit)).forward();
    gradient(output, first, last, dLogp);
    for (int64_t at = first; at < last; at += limit) {
      auto part = chunk(at, std::min(last, at + limit));
      part.recompute();
      part.backward(dLogp, dHidden, dWeight);
    }
  }
  workspace_.release(scratch);
  return output;
}

void Head::backward(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
                    const at::Tensor& lse, const at::Tensor& dLogp, const at::Tensor& dHidden,
                    const at::Tensor& dWeight) {
  int64_t R = hidden.size(0), step = std::min(R, chunkRows(weight));
  HeadOutput output{lse, lse, {}};
  auto scratch = workspace_.mark();
  auto logits = workspace_.take({step, weight.size(0)}, hidden.scalar_type());
  for (int64_t first = 0; first < R; first += step) {
    int64_t last = std::min(R, first + step);
    Chunk part{hidden, weight, targets, output, first, last, logits.narrow(0, 0, last - first), softcap_};
    part.recompute();
    part.backward(dLogp, dHidden, dWeight);
  }
  workspace_.release(scratch);
}

}  // namespace wrpo
