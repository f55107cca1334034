#include "model/decoder.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/mm.h>

#include <algorithm>

#include "error.h"
#include "kernels/dispatch.h"
#include "kernels/gemm.h"
#include "kernels/kernels.h"
#include "model/attention.h"

namespace wrpo {

namespace {

bool useSgemm(const at::Tensor& t) { return t.scalar_type() == at::kFloat && sgemmPays(); }
Strided plain(const at::Tensor& t) { return {data<float>(t), t.stride(0), 1}; }
Strided transposed(const at::Tensor& t) { return {data<float>(t), 1, t.stride(0)}; }

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

void linearWeightGradient(const at::Tensor& dw, const at::Tensor& dy, const at::Tensor& x) {
  if (!dw.defined()) return;
  if (useSgemm(dy))
    return sgemm(dy.size(1), x.size(1), dy.size(0), transposed(dy), plain(x), data<float>(dw), dw.stride(0), true);
  at::Tensor out = dw;
  if (dy.scalar_type() == dw.scalar_type()) at::addmm_out(out, dw, dy.t(), x);
  else out.add_(at::mm(dy.t(), x));
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

const at::Tensor& Decoder::ropeTableFor(const Batch& batch) {
  int64_t needed = 1 + *std::max_element(batch.positions.begin(), batch.positions.end());
  if (!frequencies_.defined()) frequencies_ = ropeFrequencies(config_.rope, config_.headDim);
  if (!ropeTable_.defined() || ropeTable_.size(0) < needed)
    ropeTable_ = ropeTable(frequencies_, (needed + 255) / 256 * 256);
  return ropeTable_;
}

at::Tensor Decoder::forward(const Batch& batch, const LoraPass& lora, bool keep) {
  const ModelConfig& c = config_;
  const int64_t T = batch.size(), H = c.hiddenSize, F = c.intermediateSize, P = batch.promptTokens();
  const auto dtype = weights_.dtype(), stats = computeType(dtype);
  const auto& table = ropeTableFor(batch);
  auto take = [&](at::IntArrayRef sizes, at::ScalarType type) { return workspace_.take(sizes, type); };
  auto rows = [](const at::Tensor& t, int64_t from) { return t.narrow(0, from, t.size(0) - from); };

  // Without `keep` one set of layer buffers serves every layer.
  auto buffers = [&]() -> Saved {
    return {take({T, H}, dtype),
            take({T}, stats),
            take({T, c.qkvSize()}, dtype),
            take({T, c.heads * c.headDim}, dtype),
            take({T, c.heads}, stats),
            take({T, H}, dtype),
            take({T}, stats),
            take({T, 2 * F}, dtype)};
  };
  saved_.clear();
  for (int64_t l = 0; l < (keep ? c.layers : 1); ++l) saved_.push_back(buffers());
  finalX_ = take({T - P, H}, dtype);
  finalRstd_ = take({T - P}, stats);
  auto hidden = take({T - P, H}, dtype);
  auto scratch = workspace_.mark();
  auto normed = take({T, H}, dtype), branch = take({T, H}, dtype), h = take({T, F}, dtype);

  auto ids = at::from_blob(const_cast<int32_t*>(batch.tokens.data()), {T}, at::kInt);
  at::index_select_out(saved_[0].x, weights_.view.embed, 0, ids);
  at::Tensor none, pending;  // pending: the MLP's output, added to the stream by the next norm
  for (int64_t l = 0; l < c.layers; ++l) {
    poll();
    const LayerWeights& w = weights_.view.layers[l];
    Saved& s = saved_[keep ? l : 0];
    int64_t from = firstRow(batch, l);
    const at::Tensor& before = l == 0 ? s.x : saved_[keep ? l - 1 : 0].x2;
    rmsNormForward(before, pending, s.x, w.inputNorm, c.rmsNormEps, normed, s.rstd1);
    linear(s.qkv, normed, w.qkv);
    lora.forward(s.qkv, normed, w.qkv);
    rope(s.qkv, c.heads + c.kvHeads, c.headDim, table, batch.positions.data(), 1);
    attentionForward(c, batch, s.qkv, s.out, s.lse, from == 0);
    linear(rows(branch, from), rows(s.out, from), w.o);
    lora.forward(rows(branch, from), rows(s.out, from), w.o);
    rmsNormForward(rows(s.x, from), rows(branch, from), rows(s.x2, from), w.postNorm, c.rmsNormEps, rows(normed, from),
                   rows(s.rstd2, from));
    linear(rows(s.gateUp, from), rows(normed, from), w.gateUp);
    lora.forward(rows(s.gateUp, from), rows(normed, from), w.gateUp);
    swigluForward(rows(s.gateUp, from), rows(h, from));
    linear(rows(branch, from), rows(h, from), w.down);
    lora.forward(rows(branch, from), rows(h, from), w.down);
    pending = branch;
  }
  rmsNormForward(rows(saved_.back().x2, P), rows(pending, P), finalX_, weights_.view.norm, c.rmsNormEps, hidden,
                 finalRstd_);
  workspace_.release(scratch);
  return hidden;
}

void Decoder::backward(const Batch& batch, const LoraPass& lora, const at::Tensor& dHidden) {
  const ModelConfig& c = config_;
  const int64_t T = batch.size(), H = c.hiddenSize, F = c.intermediateSize, P = batch.promptTokens();
  const auto dtype = weights_.dtype();
  const WeightViews& grads = weights_.gradView();
  auto rows = [](const at::Tensor& t, int64_t from) { return t.narrow(0, from, t.size(0) - from); };

  auto scratch = workspace_.mark();
  auto dx = workspace_.take({T, H}, dtype), normed = workspace_.take({T, H}, dtype),
       dNormed = workspace_.take({T, H}, dtype);
  auto dh = workspace_.take({T, F}, dtype), h = workspace_.take({T, F}, dtype);
  auto dOut = workspace_.take({T, c.heads * c.headDim}, dtype), dQkv = workspace_.take({T, c.qkvSize()}, dtype);
  auto rstd = workspace_.take({T}, computeType(dtype));
  at::Tensor none;

  dx.zero_();
  rmsNormBackward(dHidden, finalX_, weights_.view.norm, finalRstd_, rows(dx, P), grads.norm);
  for (int64_t l = c.layers - 1; l >= 0; --l) {
    poll();
    const LayerWeights &w = weights_.view.layers[l], &g = grads.layers[l];
    Saved& s = saved_[l];
    int64_t from = firstRow(batch, l);
    auto live = [&](const at::Tensor& t) { return rows(t, from); };

    // MLP: x' = x2 + down(swiglu(gateUp(norm(x2)))); gateUp is overwritten by its gradient.
    linearInputGradient(live(dh), live(dx), w.down);
    lora.inputGradient(live(dh), live(dx), w.down);
    swigluBackward(live(dh), live(s.gateUp), live(h));
    linearWeightGradient(g.down, live(dx), live(h));
    lora.weightGradient(live(dx), live(h), w.down);
    rmsNormForward(live(s.x2), none, none, w.postNorm, c.rmsNormEps, live(normed), live(rstd));
    linearWeightGradient(g.gateUp, live(s.gateUp), live(normed));
    lora.weightGradient(live(s.gateUp), live(normed), w.gateUp);
    linearInputGradient(live(dNormed), live(s.gateUp), w.gateUp);
    lora.inputGradient(live(dNormed), live(s.gateUp), w.gateUp);
    rmsNormBackward(live(dNormed), live(s.x2), w.postNorm, live(s.rstd2), live(dx), g.postNorm);

    // Attention: x2 = x + o(attention(rope(qkv(norm(x)))))
    linearInputGradient(live(dOut), live(dx), w.o);
    lora.inputGradient(live(dOut), live(dx), w.o);
    linearWeightGradient(g.o, live(dx), live(s.out));
    lora.weightGradient(live(dx), live(s.out), w.o);
    attentionBackward(c, batch, dOut, s.qkv, s.out, s.lse, dQkv, from == 0);
    rope(dQkv, c.heads + c.kvHeads, c.headDim, ropeTable_, batch.positions.data(), -1);
    rmsNormForward(s.x, none, none, w.inputNorm, c.rmsNormEps, normed, rstd);
    linearWeightGradient(g.qkv, dQkv, normed);
    lora.weightGradient(dQkv, normed, w.qkv);
    if (l == 0 && !grads.embed.defined()) break;  // nothing below is trained
    linearInputGradient(dNormed, dQkv, w.qkv);
    lora.inputGradient(dNormed, dQkv, w.qkv);
    rmsNormBackward(dNormed, s.x, w.inputNorm, s.rstd1, dx, g.inputNorm);
  }
  embeddingBackward(dx, batch.tokens.data(), grads.embed);
  workspace_.release(scratch);
}

}  // namespace wrpo
