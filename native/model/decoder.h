// The decoder's forward and backward, written out: no graph, every saved tensor named. Rows are packed tokens.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "memory.h"
#include "model/batch.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/lora.h"
#include "model/rotary.h"
#include "model/weights.h"

namespace wrpo {

// y [T, out] = x [T, in] w [out, in]^T
void linear(const at::Tensor& y, const at::Tensor& x, const at::Tensor& w);
// dx [T, in] = dy [T, out] w [out, in]
void linearInputGradient(const at::Tensor& dx, const at::Tensor& dy, const at::Tensor& w);
namespace cpu {
// dw [out, in] += dy [T, out]^T x [T, in], accumulated in dw's own (float32) type; an undefined one is frozen
void linearWeightGradient(const at::Tensor& dw, const at::Tensor& dy, const at::Tensor& x);
}  // namespace cpu
WRPO_OP(linearWeightGradient);
// The first two, added to what is there.
void addLinear(const at::Tensor& y, const at::Tensor& x, const at::Tensor& w);
void addLinearInputGradient(const at::Tensor& dx, const at::Tensor& dy, const at::Tensor& w);

class Decoder {
 public:
  Decoder(const ModelConfig& config, Weights& weights, Workspace& workspace);

  // Final-norm hidden states of the response rows [R, H], valid until the workspace is reset. Where `kept` is positive,
  // what backward() needs is kept in the workspace: of the last `kept` layers all that it reads, of those below their
  // input, from which it computes them again to the same bits.
  at::Tensor forward(const Batch& batch, const LoraPass& lora, int64_t kept);
  // The same of rows that continue sequences (model/cached_attention.h); nothing is kept for backward().
  at::Tensor forward(const Batch& batch, const LoraPass& lora, std::span<KeyValueCache* const> caches);
  // dHidden [R, H] of the last forward(batch, lora, kept): adds to the gradients of every parameter that is trained,
  // but for the head's.
  void backward(const Batch& batch, const LoraPass& lora, const at::Tensor& dHidden);

  // Whether sequences of these lengths rotate alike. Where they do not, the keys of the one are of no use to the other:
  // not even unrotated, for those above the first layer are made of rotated ones below.
  bool rotatesAlike(int64_t length, int64_t other) const;

 private:
  // What attends, of layer l: qkv after the rotation, and whether the prompts' own rows are wanted.
  using Attend = std::function<void(int64_t l, const at::Tensor& qkv, const at::Tensor& out, const at::Tensor& lse,
                                    bool promptQueries)>;
  at::Tensor forward(const Batch& batch, const LoraPass& lora, int64_t kept, const Attend& attend);
  Attend attention(const Batch& batch) const;
  // What backward reads, per layer. The norms' outputs, silu(gate) * up and everything else are cheaper to recompute.
  struct Saved {
    at::Tensor x, rstd1;           // input of the layer [T, H] and its norm's statistics [T]
    at::Tensor qkv, out, lse;      // after RoPE [T, qkv], before it and the norm where heads have one; attention's
                                   // result [T, heads * d] and [T, heads]
    at::Tensor x2, rstd2, gateUp;  // after attention [T', H]; before the activation [T', 2F]
    at::Tensor attention, mlp;     // with norms of branches: what those normalise [T', H]
  };
  // What a layer's forward writes for itself and the next one.
  struct Scratch {
    at::Tensor normed, branch, h, rstd, rotated;  // branch: the MLP's output, when it is done
  };
  // From the normed input to branch, or where `again` only as far as backward reads.
  void layerForward(int64_t l, const Batch& batch, const LoraPass& lora, const Attend& attend, const Scratch& scratch,
                    bool again) const;
  // Rows that still matter after the attention of a layer: in the last one, only the responses'.
  int64_t firstRow(const Batch& batch, int64_t layer) const {
    return layer + 1 == config_.layers ? batch.promptTokens() : 0;
  }
  bool keeps(int64_t layer) const { return layer >= config_.layers - kept_; }
  const Rotary& rotary(int64_t layer) const { return local_ && config_.windows[layer] > 0 ? *local_ : global_; }
  NormWeight norm(const at::Tensor& weight) const { return {weight, config_.normPlus}; }
  // Biases, norms of heads and rotation: qkv, as the projection left it, to `to`, which may be the same.
  void finishQkv(int64_t layer, const at::Tensor& qkv, const at::Tensor& to) const;

  const ModelConfig config_;
  Weights& weights_;
  Workspace& workspace_;
  Rotary global_;
  std::optional<Rotary> local_;
  std::vector<Saved> saved_;  // below the kept layers they share their memory with the last one, but for the input
  int64_t kept_ = 0;
  at::Tensor finalX_, finalRstd_;
};

}  // namespace wrpo
