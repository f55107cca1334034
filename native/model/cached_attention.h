// Causal attention of rows that continue sequences whose earlier keys and values are in a cache.
#pragma once
#include <ATen/core/Tensor.h>

#include <span>

#include "model/batch.h"
#include "model/config.h"
#include "model/kv_cache.h"

namespace wrpo {

// Prompt g of the batch and its one response, of one row, are the tokens that caches[g] was last extended by; responses
// beyond the caches only fill the batch up, and their rows of out are left as they are. Writes the keys and values into
// the caches, then out as attentionForward does. qkv [T, (heads + 2 kvHeads) headDim] after RoPE; out [T, heads
// headDim]. A row's result depends on its own sequence alone, to the bit.
void cachedAttention(const ModelConfig& config, int64_t layer, const Batch& batch,
                     std::span<KeyValueCache* const> caches, const at::Tensor& qkv, const at::Tensor& out,
                     bool promptQueries);

}  // namespace wrpo
