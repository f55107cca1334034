// The head: hidden states to log-probs of the targets, and back, holding the logits of one chunk at a time.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "memory.h"

namespace wrpo {

// Results per row, in the compute type of the hidden states.
struct HeadOutput {
  at::Tensor logp, lse;  // [R]
  at::Tensor argmax;     // uint8 [R] when asked for, else undefined
};

class Head {
 public:
  // A chunk's logits take at most chunkBytes (but never less than one row). softcap: of the logits; 0 = none.
  Head(Workspace& workspace, int64_t chunkBytes, double softcap = 0)
      : workspace_(workspace), chunkBytes_(chunkBytes), softcap_(softcap) {}

  // Logits [R, V] of hidden [R, H], weight [V, H], valid until the workspace is reset.
  at::Tensor logits(const at::Tensor& hidden, const at::Tensor& weight);

  // hidden [R, H], weight [V, H], targets int32 [R], every one in [0, V), all on one device.
  HeadOutput logProbs(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets, bool argmax);

  // dLogp: rows [first, last) of the output are known; fill in their dLoss/dlogp. Called once for each unit of rows, in
  // order, as soon as its log-probs exist.
  using Gradient = std::function<void(const HeadOutput& output, int64_t first, int64_t last, at::Tensor& dLogp)>;
  // Forward and backward in one pass. unitOffsets cut the rows into units (a prompt's responses) that the gradient
  // needs whole: units are gathered into chunks, their logits kept until the gradient is known and turned into it in
  // place. A unit larger than a chunk has its logits computed twice instead (the same GEMMs in the same shapes).
  // Returns the log-probs; writes dHidden [R, H], adds to dWeight [V, H].
  HeadOutput forwardBackward(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
                             const std::vector<int64_t>& unitOffsets, const Gradient& gradient,
                             const at::Tensor& dHidden, const at::Tensor& dWeight);

  // Backward alone, from a given lse and dLoss/dlogp [R].
  void backward(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets, const at::Tensor& lse,
                const at::Tensor& dLogp, const at::Tensor& dHidden, const at::Tensor& dWeight);

 private:
  int64_t chunkRows(const at::Tensor& weight) const;
  Workspace& workspace_;
  int64_t chunkBytes_;
  double softcap_;
};

}  // namespace wrpo
