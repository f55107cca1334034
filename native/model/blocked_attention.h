// The same attention as attention.h, in float32 on sgemm: a block of query rows at a time holds its scores against all
// its keys, the prompt's and its own segment's in one softmax, and nothing above the diagonal is computed.
#pragma once
#include <ATen/core/Tensor.h>

#include "model/batch.h"
#include "model/config.h"

namespace wrpo {

// Arguments as those of attentionForward and attentionBackward; contiguous float32.
void blockedAttentionForward(const ModelConfig& config, const Batch& batch, const at::Tensor& qkv,
                             const at::Tensor& out, const at::Tensor& lse, bool promptQueries);
void blockedAttentionBackward(const ModelConfig& config, const Batch& batch, const at::Tensor& dOut,
                              const at::Tensor& qkv, const at::Tensor& out, const at::Tensor& lse,
                              const at::Tensor& dQkv, bool promptQueries);

}  // namespace wrpo
