#include "model/attention.h"

#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>

#include "kernels/gemm.h"
#include "kernels/kernels.h"
#include "model/blocked_attention.h"

namespace wrpo {
namespace {

struct Range {
  int64_t start, length;
};

// The row ranges of a batch: prompt g, response k, and all responses of prompt g (adjacent by construction).
Range prompt(const Batch& b, int64_t g) { return {b.promptOffsets[g], b.promptOffsets[g + 1] - b.promptOffsets[g]}; }
Range response(const Batch& b, int64_t k) {
  return {b.promptTokens() + b.responseOffsets[k], b.responseOffsets[k + 1] - b.responseOffsets[k]};
}
Range responsesOf(const Batch& b, int64_t g) {
  int64_t first = b.responseOffsets[b.groupOffsets[g]];
  return {b.promptTokens() + first, b.responseOffsets[b.groupOffsets[g + 1]] - first};
}

// Rows [start, start + length) of the columns of `heads` heads, as ATen's [1, heads, length, headDim].
at::Tensor heads(const at::Tensor& rows, Range r, int64_t firstHead, int64_t count, int64_t headDim) {
  return rows.narrow(0, r.start, r.length)
      .narrow(1, firstHead * headDim, count * headDim)
      .view({1, r.length, count, headDim})
      .transpose(1, 2);
}
at::Tensor statistics(const at::Tensor& lse, Range r) {
  return lse.narrow(0, r.start, r.length).view({1, r.length, lse.size(1)}).transpose(1, 2);
}

struct Qkv {
  at::Tensor q, k, v;
};
Qkv split(const ModelConfig& c, const at::Tensor& qkv, Range queries, Range keys) {
  return {heads(qkv, queries, 0, c.heads, c.headDim), heads(qkv, keys, c.heads, c.kvHeads, c.headDim),
          heads(qkv, keys, c.heads + c.kvHeads, c.kvHeads, c.headDim)};
}

bool inBlocks(const ModelConfig& c, int64_t window, const Batch& batch, const at::Tensor& qkv) {
  // bfloat16 too: its flash kernels set up a matrix product anew for every small block.
  if (c.attentionSoftcap > 0 || (qkv.scalar_type() != at::kDouble && sgemmPays())) return true;
  return window > 0 && batch.longest() > window;
}

}  // namespace

void cpu::attentionForward(const ModelConfig& c, int64_t window, const Batch& batch, const at::Tensor& qkv,
                           const at::Tensor& out, const at::Tensor& lse, bool promptQueries) {
  if (inBlocks(c, window, batch, qkv)) return blockedAttentionForward(c, window, batch, qkv, out, lse, promptQueries);
  auto self = [&](Range r) {
    if (r.length == 0) return;
    auto [q, k, v] = split(c, qkv, r, r);
    auto [o, l] = at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, true, {}, c.queryScale);
    heads(out, r, 0, c.heads, c.headDim).copy_(o);
    statistics(lse, r).copy_(l);
  };
  for (int64_t g = 0; promptQueries && g < batch.groups(); ++g) self(prompt(batch, g));
  for (int64_t k = 0; k < batch.responses(); ++k) self(response(batch, k));
  for (int64_t g = 0; g < batch.groups(); ++g) {
    Range keys = prompt(batch, g), queries = responsesOf(batch, g);
    if (keys.length == 0 || queries.length == 0) continue;
    auto [q, k, v] = split(c, qkv, queries, keys);
    auto [o, l] = at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, false, {}, c.queryScale);
    mergeLse(out.narrow(0, queries.start, queries.length), lse.narrow(0, queries.start, queries.length),
             o.transpose(1, 2).contiguous(), l.transpose(1, 2).contiguous(), c.heads);
  }
}

void cpu::attentionBackward(const ModelConfig& c, int64_t window, const Batch& batch, const at::Tensor& dOut,
                            const at::Tensor& qkv, const at::Tensor& out, const at::Tensor& lse, const at::Tensor& dQkv,
                            bool promptQueries) {
  if (inBlocks(c, window, batch, qkv))
    return blockedAttentionBackward(c, window, batch, dOut, qkv, lse, dQkv, promptQueries);
  auto part = [&](Range queries, Range keys, bool causal) {
    auto [q, k, v] = split(c, qkv, queries, keys);
    return at::_scaled_dot_product_flash_attention_for_cpu_backward(
        heads(dOut, queries, 0, c.heads, c.headDim), q, k, v, heads(out, queries, 0, c.heads, c.headDim),
        statistics(lse, queries), 0.0, causal, {}, c.queryScale);
  };
  auto self = [&](Range r) {
    if (r.length == 0) return;
    auto [dq, dk, dv] = part(r, r, true);
    auto to = split(c, dQkv, r, r);
    to.q.copy_(dq);
    to.k.copy_(dk);
    to.v.copy_(dv);
  };
  if (promptQueries)
    for (int64_t g = 0; g < batch.groups(); ++g) self(prompt(batch, g));
  else dQkv.narrow(0, 0, batch.promptTokens()).zero_();
  for (int64_t k = 0; k < batch.responses(); ++k) self(response(batch, k));
  for (int64_t g = 0; g < batch.groups(); ++g) {
    Range keys = prompt(batch, g), queries = responsesOf(batch, g);
    if (keys.length == 0 || queries.length == 0) continue;
    auto [dq, dk, dv] = part(queries, keys, false);
    auto to = split(c, dQkv, queries, keys);
    to.q.add_(dq);
    to.k.add_(dk);
    to.v.add_(dv);
  }
}

}  // namespace wrpo
