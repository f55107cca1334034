// The same attention as attention.h in blocks: a block of query rows at a time holds its scores against all its keys,
// the prompt's and its own segment's in one softmax, and nothing above the diagonal or before the window is computed.
// The only one that knows windows and soft-caps; in float32 on sgemm the faster one for everything.
#pragma once
#include <ATen/core/Tensor.h>

#include "model/batch.h"
#include "model/config.h"

namespace wrpo {

// Arguments as those of attentionForward and attentionBackward; contiguous. bfloat16 is computed in float32.
void blockedAttentionForward(const ModelConfig& config, int64_t window, const Batch& batch, const at::Tensor& qkv,
                             const at::Tensor& out, const at::Tensor& lse, bool promptQueries);
// What it needs of the forward's result is the log-sum-exp alone.
void blockedAttentionBackward(const ModelConfig& config, int64_t window, const Batch& batch, const at::Tensor& dOut,
                              const at::Tensor& qkv, const at::Tensor& lse, const at::Tensor& dQkv, bool promptQueries);

}  // namespace wrpo
