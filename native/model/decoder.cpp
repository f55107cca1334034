#include "model/decoder.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/scalar_tensor.h>

#include <algorithm>

#include "error.h"
#include "kernels/dispatch.h"
#include "kernels/gemm.h"
#include "kernels/kernels.h"
#include "model/attention.h"
#include "model/cached_attention.h"
#include "range.h"

namespace wrpo {

namespace {

bool useSgemm(const at::Tensor& t) { return t.scalar_type() == at::kFloat && sgemmPays(); }
Strided plain(const at::Tensor& t) { return {data<float>(t), t.stride(0), 1}; }
Strided transposed(const at::Tensor& t) { return {data<float>(t), 1, t.stride(0)}; }
at::Tensor rows(const at::Tensor& t, int64_t from) { return from == 0 ? t : t.narrow(0, from, t.size(0) - from); }

}  // namespace

// The *_out ops resize a destination of another shape instead of refusing it; the shapes here are ours by construction.
void linear(const at::Tensor& y, const at::Tensor& x, const at::Tensor& w) {
  if (useSgemm(x))
    return sgemm(x.size(0), w.size(0), x.size(1), plain(x), transposed(w), data<float>(y), y.stride(0), false);
  at::Tensor out = y;
  at::mm_out(out, x, w.t());
}

void linearInputGradient(const at::Tensor& dx, const at::Tensor& dy, const at::Tensor& w) {
  if (useSgemm(dy))
    return sgemm(dy.size(0), w.size(1), dy.size(1), plain(dy), plain(w), data<float>(dx), dx.stride(0), false);
  at::Tensor out = dx;
  at::mm_out(out, dy, w);
}

void cpu::linearWeightGradient(const at::Tensor& dw, const at::Tensor& dy, const at::Tensor& x) {
  if (!dw.defined()) return;
  if (useSgemm(dy))
    return sgemm(dy.size(1), x.size(1), dy.size(0), transposed(dy), plain(x), data<float>(dw), dw.stride(0), true);
  at::Tensor out = dw;
  if (dy.scalar_type() == dw.scalar_type()) {
    at::addmm_out(out, dw, dy.t(), x);
    return;
  }
  // Some rows at a time, whose products stay in the cache until they are added.
  thread_local at::Tensor space = at::empty({int64_t(1) << 20}, dy.scalar_type());
  int64_t width = x.size(1), step = std::max<int64_t>(1, space.numel() / width);
  for (int64_t first = 0; first < dw.size(0); first += step) {
    int64_t rows = std::min(step, dw.size(0) - first);
    at::Tensor part = rows * width <= space.numel() ? space.narrow(0, 0, rows * width).view({rows, width})
                                                    : at::empty({rows, width}, dy.scalar_type());
    at::mm_out(part, dy.narrow(1, first, rows).t(), x);
    dw.narrow(0, first, rows).add_(part);
  }
}

void addLinear(const at::Tensor& y, const at::Tensor& x, const at::Tensor& w) {
  if (useSgemm(x))
    return sgemm(x.size(0), w.size(0), x.size(1), plain(x), transposed(w), data<float>(y), y.stride(0), true);
  at::Tensor out = y;
  at::addmm_out(out, y, x, w.t());
}

void addLinearInputGradient(const at::Tensor& dx, const at::Tensor& dy, const at::Tensor& w) {
  if (useSgemm(dy))
    return sgemm(dy.size(0), w.size(1), dy.size(1), plain(dy), plain(w), data<float>(dx), dx.stride(0), true);
  at::Tensor out = dx;
  at::addmm_out(out, dx, dy, w);
}

Decoder::Decoder(const ModelConfig& config, Weights& weights, Workspace& workspace)
    : config_(config), weights_(weights), workspace_(workspace), global_(config.rope, workspace.device()) {
  if (config.localRope.dim > 0) local_.emplace(config.localRope, workspace.device());
}

void Decoder::finishQkv(int64_t layer, const at::Tensor& qkv, const at::Tensor& to) const {
  const ModelConfig& c = config_;
  const LayerWeights& w = weights_.view.layers[layer];
  if (c.headNorm) {
    int64_t q = c.heads * c.headDim, k = c.kvHeads * c.headDim;
    headNormForward(qkv.narrow(1, 0, q), norm(w.qNorm), c.rmsNormEps, to.narrow(1, 0, q));
    headNormForward(qkv.narrow(1, q, k), norm(w.kNorm), c.rmsNormEps, to.narrow(1, q, k));
    to.narrow(1, q + k, k).copy_(qkv.narrow(1, q + k, k));
  }
  rotary(layer).rotate(to, c.heads + c.kvHeads, c.headDim, 1);
}

bool Decoder::rotatesAlike(int64_t length, int64_t other) const {
  auto alike = [&](const Rotary& rotary) { return rotary.variantOf(length) == rotary.variantOf(other); };
  return alike(global_) && (!local_ || alike(*local_));
}

Decoder::Attend Decoder::attention(const Batch& batch) const {
  return [&](int64_t l, const auto& qkv, const auto& out, const auto& lse, bool queries) {
    attentionForward(config_, config_.windows[l], batch, qkv, out, lse, queries);
  };
}

at::Tensor Decoder::forward(const Batch& batch, const LoraPass& lora, int64_t kept) {
  return forward(batch, lora, kept, attention(batch));
}

at::Tensor Decoder::forward(const Batch& batch, const LoraPass& lora, std::span<KeyValueCache* const> caches) {
  return forward(batch, lora, 0, [&](int64_t l, const auto& qkv, const auto& out, const auto&, bool queries) {
    cachedAttention(config_, l, batch, caches, qkv, out, queries);
  });
}

at::Tensor Decoder::forward(const Batch& batch, const LoraPass& lora, int64_t kept, const Attend& attend) {
  Range range("decoder forward");
  const ModelConfig& c = config_;
  const int64_t T = batch.size(), H = c.hiddenSize, F = c.intermediateSize, P = batch.promptTokens();
  const auto dtype = weights_.dtype(), stats = computeType(dtype);
  global_.prepare(batch);
  if (local_) local_->prepare(batch);
  auto take = [&](at::IntArrayRef sizes, at::ScalarType type) { return workspace_.take(sizes, type); };
  auto takeIf = [&](bool needed, at::IntArrayRef sizes) { return needed ? take(sizes, dtype) : at::Tensor(); };

  auto buffers = [&]() -> Saved {
    return {take({T, H}, dtype),
            take({T}, stats),
            take({T, c.qkvSize()}, dtype),
            take({T, c.heads * c.headDim}, dtype),
            take({T, c.heads}, stats),
            take({T, H}, dtype),
            take({T}, stats),
            take({T, 2 * F}, dtype),
            takeIf(c.branchNorms, {T, H}),
            takeIf(c.branchNorms, {T, H})};
  };
  // The last layer's place is free until that layer is reached, and again after its backward: every layer that is
  // computed again does it there.
  saved_.assign(c.layers, buffers());
  kept_ = std::min(kept, c.layers);
  for (int64_t l = 0; kept > 0 && l + 1 < c.layers; ++l) {
    if (keeps(l)) saved_[l] = buffers();
    else saved_[l].x = take({T, H}, dtype);
  }
  finalX_ = take({T - P, H}, dtype);
  finalRstd_ = take({T - P}, stats);
  auto hidden = take({T - P, H}, dtype);
  auto mark = workspace_.mark();
  Scratch scratch{take({T, H}, dtype), take({T, H}, dtype), take({T, F}, dtype), take({T}, stats),
                  takeIf(c.headNorm, {T, c.qkvSize()})};
  at::Tensor pending;  // the MLP's output, added to the stream by the next norm

  auto ids = place(batch.tokens, workspace_.device());
  at::index_select_out(saved_[0].x, weights_.view.embed, 0, ids);
  if (c.embeddingScale != 1) saved_[0].x.mul_(at::scalar_tensor(c.embeddingScale, dtype));
  for (int64_t l = 0; l < c.layers; ++l) {
    poll();
    Range range("layer forward");
    const Saved& s = saved_[l];
    const at::Tensor& before = l == 0 ? s.x : saved_[l - 1].x2;
    rmsNormForward(before, pending, s.x, norm(weights_.view.layers[l].inputNorm), c.rmsNormEps, scratch.normed,
                   s.rstd1);
    layerForward(l, batch, lora, attend, scratch, false);
    pending = scratch.branch;
  }
  rmsNormForward(rows(saved_.back().x2, P), rows(pending, P), finalX_, norm(weights_.view.norm), c.rmsNormEps, hidden,
                 finalRstd_);
  workspace_.release(mark);
  return hidden;
}

void Decoder::layerForward(int64_t l, const Batch& batch, const LoraPass& lora, const Attend& attend,
                           const Scratch& scratch, bool again) const {
  const ModelConfig& c = config_;
  const LayerWeights& w = weights_.view.layers[l];
  const Saved& s = saved_[l];
  const auto& [normed, branch, h, rstd, rotated] = scratch;
  const int64_t from = firstRow(batch, l);
  auto live = [&](const at::Tensor& t) { return rows(t, from); };
  at::Tensor none;
  // y [T, H] = x w^T, through a norm of its own where branches have one; `raw` is what that normalises.
  auto project = [&](const at::Tensor& x, const at::Tensor& weight, const at::Tensor& after, const at::Tensor& raw,
                     const at::Tensor& y) {
    auto to = live(c.branchNorms ? raw : y);
    linear(to, live(x), weight);
    lora.forward(to, live(x), weight);
    if (c.branchNorms) rmsNormForward(to, none, none, norm(after), c.rmsNormEps, live(y), live(rstd));
  };

  linear(s.qkv, normed, w.qkv);
  lora.forward(s.qkv, normed, w.qkv);
  if (c.qkvBias) s.qkv.add_(w.qkvBias);
  const at::Tensor& qkv = c.headNorm ? rotated : s.qkv;
  finishQkv(l, s.qkv, qkv);
  {
    Range range("attention forward");
    attend(l, qkv, s.out, s.lse, from == 0);
  }
  project(s.out, w.o, w.attentionNorm, s.attention, branch);
  rmsNormForward(live(s.x), live(branch), live(s.x2), norm(w.mlpNorm), c.rmsNormEps, live(normed), live(s.rstd2));
  linear(live(s.gateUp), live(normed), w.gateUp);
  lora.forward(live(s.gateUp), live(normed), w.gateUp);
  if (again && !c.branchNorms) return;
  swigluForward(c.activation, live(s.gateUp), live(h));
  project(h, w.down, w.mlpOutNorm, s.mlp, branch);
}

void Decoder::backward(const Batch& batch, const LoraPass& lora, const at::Tensor& dHidden) {
  Range range("decoder backward");
  const ModelConfig& c = config_;
  const int64_t T = batch.size(), H = c.hiddenSize, F = c.intermediateSize, P = batch.promptTokens();
  const int64_t q = c.heads * c.headDim, k = c.kvHeads * c.headDim;
  const auto dtype = weights_.dtype(), stats = computeType(dtype);
  const WeightViews& grads = weights_.gradView();
  const Attend attend = attention(batch);

  auto scratch = workspace_.mark();
  auto take = [&](bool needed, at::IntArrayRef sizes) { return needed ? workspace_.take(sizes, dtype) : at::Tensor(); };
  auto dx = take(true, {T, H}), normed = take(true, {T, H}), dNormed = take(true, {T, H});
  auto dh = take(true, {T, F}), h = take(true, {T, F});
  auto dOut = take(true, {T, q}), dQkv = take(true, {T, c.qkvSize()});
  auto rotated = take(c.headNorm, {T, c.qkvSize()}), dRaw = take(c.branchNorms, {T, H});
  auto rstd = workspace_.take({T}, stats);
  at::Tensor none;
  // The gradient of a projection's output: that of the stream, or what a norm of the branch makes of it.
  auto throughNorm = [&](const at::Tensor& raw, const at::Tensor& after, const at::Tensor& dAfter, int64_t from) {
    if (!c.branchNorms) return rows(dx, from);
    auto to = rows(dRaw, from), y = rows(normed, from), r = rows(rstd, from);
    rmsNormForward(rows(raw, from), none, none, norm(after), c.rmsNormEps, y, r);
    rmsNormBackward(rows(dx, from), rows(raw, from), norm(after), r, to.zero_(), dAfter);
    return to;
  };

  dx.zero_();
  rmsNormBackward(dHidden, finalX_, norm(weights_.view.norm), finalRstd_, rows(dx, P), grads.norm);
  for (int64_t l = c.layers - 1; l >= 0; --l) {
    poll();
    Range range("layer backward");
    const LayerWeights &w = weights_.view.layers[l], &g = grads.layers[l];
    const Saved& s = saved_[l];
    const int64_t from = firstRow(batch, l);
    auto live = [&](const at::Tensor& t) { return rows(t, from); };
    if (!keeps(l)) {
      Range range("layer forward, again");
      rmsNormForward(s.x, none, none, norm(w.inputNorm), c.rmsNormEps, normed, s.rstd1);
      layerForward(l, batch, lora, attend, {normed, dNormed, h, rstd, rotated}, true);
    }

    // MLP: x' = x2 + down(swiglu(gateUp(norm(x2)))); gateUp is overwritten by its gradient.
    auto dMlp = throughNorm(s.mlp, w.mlpOutNorm, g.mlpOutNorm, from);
    linearInputGradient(live(dh), dMlp, w.down);
    lora.inputGradient(live(dh), dMlp, w.down);
    swigluBackward(c.activation, live(dh), live(s.gateUp), live(h));
    linearWeightGradient(g.down, dMlp, live(h));
    lora.weightGradient(dMlp, live(h), w.down);
    rmsNormForward(live(s.x2), none, none, norm(w.mlpNorm), c.rmsNormEps, live(normed), live(rstd));
    linearWeightGradient(g.gateUp, live(s.gateUp), live(normed));
    lora.weightGradient(live(s.gateUp), live(normed), w.gateUp);
    linearInputGradient(live(dNormed), live(s.gateUp), w.gateUp);
    lora.inputGradient(live(dNormed), live(s.gateUp), w.gateUp);
    rmsNormBackward(live(dNormed), live(s.x2), norm(w.mlpNorm), live(s.rstd2), live(dx), g.mlpNorm);

    // Attention: x2 = x + o(attention(rope(qkv(norm(x)))))
    auto dAttention = throughNorm(s.attention, w.attentionNorm, g.attentionNorm, from);
    linearInputGradient(live(dOut), dAttention, w.o);
    lora.inputGradient(live(dOut), dAttention, w.o);
    linearWeightGradient(g.o, dAttention, live(s.out));
    lora.weightGradient(dAttention, live(s.out), w.o);
    if (c.headNorm) finishQkv(l, s.qkv, rotated);
    {
      Range range("attention backward");
      attentionBackward(c, c.windows[l], batch, dOut, c.headNorm ? rotated : s.qkv, s.out, s.lse, dQkv, from == 0);
    }
    rotary(l).rotate(dQkv, c.heads + c.kvHeads, c.headDim, -1);
    if (c.headNorm) {
      headNormBackward(dQkv.narrow(1, 0, q), s.qkv.narrow(1, 0, q), norm(w.qNorm), c.rmsNormEps, g.qNorm);
      headNormBackward(dQkv.narrow(1, q, k), s.qkv.narrow(1, q, k), norm(w.kNorm), c.rmsNormEps, g.kNorm);
    }
    if (g.qkvBias.defined()) g.qkvBias.add_(dQkv.sum(0, false, stats));
    rmsNormForward(s.x, none, none, norm(w.inputNorm), c.rmsNormEps, normed, rstd);
    linearWeightGradient(g.qkv, dQkv, normed);
    lora.weightGradient(dQkv, normed, w.qkv);
    if (l == 0 && !grads.embed.defined()) break;  // nothing below is trained
    linearInputGradient(dNormed, dQkv, w.qkv);
    lora.inputGradient(dNormed, dQkv, w.qkv);
    rmsNormBackward(dNormed, s.x, norm(w.inputNorm), s.rstd1, dx, g.inputNorm);
  }
  if (c.embeddingScale != 1) dx.mul_(at::scalar_tensor(c.embeddingScale, dtype));
  Range embedding("embedding backward");
  embeddingBackward(dx, batch.tokens, grads.embed);
  workspace_.release(scratch);
}

}  // namespace wrpo
