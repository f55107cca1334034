// LoRA (arXiv 2106.09685): beside a frozen projection y = x W^T a trained one of low rank,
//   y += scale * dropout(x) A^T B^T,   A [r, in], B [out, r].
#pragma once
#include <ATen/core/Tensor.h>

#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "memory.h"
#include "model/batch.h"
#include "model/weights.h"

namespace wrpo {

struct LoraShape {
  int64_t rank;
  double scale, dropout;             // alpha / r, or alpha / sqrt(r); the share of inputs that is dropped, in [0, 1)
  std::vector<std::string> modules;  // such as model.layers.0.self_attn.q_proj
};

// What draws the masks of a batch, whose prompts are the rows firstRow, firstRow + 1, ... of a step.
struct DropoutDraw {
  int64_t seed, step, firstRow;
};

class Adapters : public Parameters {
 public:
  // Zeros, in the dtype of the base. Throws ERR_MODEL naming a module that it does not have.
  Adapters(const LoraShape& shape, const Weights& base);

  struct Adapter {
    at::Tensor a, b;      // [r, in], [out, r], of work
    size_t parameter;     // A's place in parameters(); B is the next
    size_t base;          // its projection's place in the base's parameters()
    int64_t firstOutput;  // where its outputs begin in those of the fused projection
  };
  // Those of a projection of the base, as it is stored: fused.
  std::span<const Adapter> on(const at::Tensor& weight) const;
  const LoraShape& shape() const { return shape_; }

  // A uniform in +-1 / sqrt(in), which is PEFT's Kaiming rule, B zero: at first adapters change nothing.
  void initialize(uint64_t seed);
  // W += scale * B A for every adapter, in the masters of the base, rounded once.
  void mergeInto(Weights& base) const;

 private:
  const LoraShape shape_;
  std::unordered_map<const void*, std::vector<Adapter>> byWeight_;
};

// The adapters in one forward and backward over a batch; without any it does nothing. Every call goes beside one of
// model/decoder.h's, with the same arguments.
class LoraPass {
 public:
  LoraPass() = default;
  LoraPass(Adapters& adapters, Workspace& workspace) : adapters_(&adapters), workspace_(&workspace) {}
  // With dropout. A mask belongs to a token of a row's prompt or of one of its responses, not to a place in a batch:
  // neither packing nor sharing the prompt, whose tokens have one mask for all its responses, changes it.
  LoraPass(Adapters& adapters, Workspace& workspace, const Batch& batch, const DropoutDraw& draw);

  // y += scale * dropout(x) A^T B^T. Rows may be the last ones of the batch only, here and below.
  void forward(const at::Tensor& y, const at::Tensor& x, const at::Tensor& w) const;
  // dx += scale * dropout(dy B A)
  void inputGradient(const at::Tensor& dx, const at::Tensor& dy, const at::Tensor& w) const;
  // dA += scale * (dy B)^T dropout(x),   dB += scale * dy^T (dropout(x) A^T)
  void weightGradient(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w) const;

 private:
  // x [T, in] as this adapter's mask leaves it, in `to` if there is one.
  at::Tensor dropped(const at::Tensor& x, const Adapters::Adapter& adapter, const at::Tensor& to) const;
  at::Tensor take(const at::Tensor& like, int64_t width) const;

  Adapters* adapters_ = nullptr;
  Workspace* workspace_ = nullptr;
  std::vector<uint64_t> tokenKeys_;  // [T], or empty without dropout
};

}  // namespace wrpo
