// Causal attention over a packed batch whose responses share their prompt's keys. Two parts, each without a mask
// matrix: every segment attends to itself causally, and every response row to its whole prompt; the two softmaxes are
// merged by log-sum-exp. Backward runs both parts with the merged output and log-sum-exp, which is exact, since an
// attention backward uses them only as P = exp(s - lse) and D = <dOut, out>.
#pragma once
#include <ATen/core/Tensor.h>

#include "kernels/op.h"
#include "memory.h"
#include "model/batch.h"
#include "model/config.h"

namespace wrpo {
namespace cpu {

// qkv [T, (heads + 2 kvHeads) headDim] after RoPE; out [T, heads headDim]; lse [T, heads] in the compute type.
// window: how many keys a row sees, itself included; 0 = all before it.
// Without promptQueries the prompts' own rows of out and lse are left untouched: the last layer needs only their keys.
void attentionForward(const ModelConfig& config, int64_t window, const Batch& batch, const at::Tensor& qkv,
                      const at::Tensor& out, const at::Tensor& lse, bool promptQueries);
// dQkv [T, ...] is written whole.
void attentionBackward(const ModelConfig& config, int64_t window, const Batch& batch, const at::Tensor& dOut,
                       const at::Tensor& qkv, const at::Tensor& out, const at::Tensor& lse, const at::Tensor& dQkv,
                       bool promptQueries);

}  // namespace cpu

WRPO_OP(attentionForward);
WRPO_OP(attentionBackward);

}  // namespace wrpo
