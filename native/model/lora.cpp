#include "model/lora.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/mm.h>

#include <cmath>
#include <unordered_set>

#include "error.h"
#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "model/decoder.h"

namespace wrpo {
namespace {

// A finaliser with full avalanche: keys of neighbouring tokens and modules have nothing in common.
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}
uint64_t chain(uint64_t key, int64_t next) { return mix(key + 0x9e3779b97f4a7c15ull + uint64_t(next)); }

at::Tensor outputsOf(const at::Tensor& fused, const Adapters::Adapter& adapter) {
  return fused.narrow(1, adapter.firstOutput, adapter.b.size(0));
}

}  // namespace

Adapters::Adapters(const LoraShape& shape, const Weights& base) : shape_(shape) {
  std::unordered_set<std::string> wanted(shape.modules.begin(), shape.modules.end());
  auto add = [&](const std::string& name, int64_t rows, int64_t columns) {
    parameters_.push_back({name, {rows, columns}, size_, true});
    size_ = alignParameter(size_ + rows * columns);
  };
  for (const LayerWeights& layer : base.view.layers)
    for (const at::Tensor* fused : {&layer.qkv, &layer.o, &layer.gateUp, &layer.down}) {
      int64_t begin = fused->storage_offset(), end = begin + fused->numel(), in = fused->size(1);
      for (size_t i = 0; i < base.parameters().size(); ++i) {
        const Parameter& p = base.parameters()[i];
        if (p.offset < begin || p.offset >= end) continue;
        std::string module = p.name.substr(0, p.name.rfind('.'));
        if (wanted.erase(module) == 0) continue;
        byWeight_[fused->data_ptr()].push_back({{}, {}, parameters_.size(), i, (p.offset - begin) / in});
        add(module + ".lora_A.weight", shape.rank, in);
        add(module + ".lora_B.weight", p.shape[0], shape.rank);
      }
    }
  if (!wanted.empty()) fail("ERR_MODEL", "the model has no projection " + *wanted.begin() + " for an adapter");
  allocate(base.dtype(), base.device(), true);
  for (auto& [_, adapters] : byWeight_)
    for (Adapter& adapter : adapters) {
      adapter.a = slice(work, parameters_[adapter.parameter]);
      adapter.b = slice(work, parameters_[adapter.parameter + 1]);
    }
}

std::span<const Adapters::Adapter> Adapters::on(const at::Tensor& weight) const {
  auto found = byWeight_.find(weight.data_ptr());
  if (found == byWeight_.end()) return {};
  return found->second;
}

void Adapters::initialize(uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  for (size_t i = 0; i < parameters_.size(); i += 2) {
    double bound = 1 / std::sqrt(double(parameters_[i].shape[1]));
    auto a = slice(masters(), parameters_[i]), b = slice(masters(), parameters_[i + 1]);
    auto values = a.host();
    a.assign(values.uniform_(-bound, bound, generator));
    b.assign(b.host().zero_());
  }
  syncWork();
}

void Adapters::mergeInto(Weights& base) const {
  for (const auto& [_, adapters] : byWeight_)
    for (const Adapter& adapter : adapters) {
      poll();
      auto values = [&](size_t i) { return slice(masters(), parameters_[i]).host().to(at::kDouble); };
      auto stored = base.slice(base.masters(), base.parameters()[adapter.base]);
      auto weight = stored.host();
      auto product = at::mm(values(adapter.parameter + 1), values(adapter.parameter));
      stored.assign(product.mul_(shape_.scale).add_(weight));
    }
  base.syncWork();
}

LoraPass::LoraPass(Adapters& adapters, Workspace& workspace, const Batch& batch, const DropoutDraw& draw)
    : LoraPass(adapters, workspace) {
  if (adapters.shape().dropout == 0) return;
  tokenKeys_.resize(batch.size());
  uint64_t step = chain(mix(uint64_t(draw.seed)), draw.step);
  for (int64_t g = 0, P = batch.promptTokens(); g < batch.groups(); ++g) {
    uint64_t row = chain(step, draw.firstRow + g);
    auto set = [&](int64_t t, int64_t segment) { tokenKeys_[t] = chain(chain(row, segment), batch.positions[t]); };
    for (int64_t t = batch.promptOffsets[g]; t < batch.promptOffsets[g + 1]; ++t) set(t, 0);
    // What predicts nothing is a response's own copy of the prompt.
    for (int32_t first = batch.groupOffsets[g], k = first; k < batch.groupOffsets[g + 1]; ++k)
      for (int64_t r = batch.responseOffsets[k]; r < batch.responseOffsets[k + 1]; ++r)
        set(P + r, batch.targets[r] < 0 ? 0 : 1 + k - first);
  }
}

at::Tensor LoraPass::take(const at::Tensor& like, int64_t width) const {
  return workspace_->take({like.size(0), width}, like.scalar_type());
}

at::Tensor LoraPass::dropped(const at::Tensor& x, const Adapters::Adapter& adapter, const at::Tensor& to) const {
  if (tokenKeys_.empty()) return x;
  const uint64_t* tokens = tokenKeys_.data() + tokenKeys_.size() - x.size(0);
  std::vector<uint32_t> keys(x.size(0));
  for (size_t t = 0; t < keys.size(); ++t) keys[t] = uint32_t(chain(tokens[t], int64_t(adapter.parameter)));
  auto y = to.defined() ? to : take(x, x.size(1));
  dropout(x, place(keys, x.device()), adapters_->shape().dropout, y);
  return y;
}

void LoraPass::forward(const at::Tensor& y, const at::Tensor& x, const at::Tensor& w) const {
  if (!adapters_) return;
  for (const auto& adapter : adapters_->on(w)) {
    auto scratch = workspace_->mark();
    auto h = take(x, adapter.a.size(0));
    linear(h, dropped(x, adapter, {}), adapter.a);
    addLinear(outputsOf(y, adapter), h.mul_(adapters_->shape().scale), adapter.b);
    workspace_->release(scratch);
  }
}

void LoraPass::inputGradient(const at::Tensor& dx, const at::Tensor& dy, const at::Tensor& w) const {
  if (!adapters_) return;
  for (const auto& adapter : adapters_->on(w)) {
    auto scratch = workspace_->mark();
    auto dh = take(dx, adapter.a.size(0));
    linearInputGradient(dh, outputsOf(dy, adapter), adapter.b);
    dh.mul_(adapters_->shape().scale);
    if (tokenKeys_.empty()) {
      addLinearInputGradient(dx, dh, adapter.a);
    } else {
      auto masked = take(dx, dx.size(1));
      linearInputGradient(masked, dh, adapter.a);
      dx.add_(dropped(masked, adapter, masked));
    }
    workspace_->release(scratch);
  }
}

void LoraPass::weightGradient(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w) const {
  if (!adapters_) return;
  for (const auto& adapter : adapters_->on(w)) {
    auto gradient = [&](size_t i) { return adapters_->slice(adapters_->grad(), adapters_->parameters()[i]); };
    auto scratch = workspace_->mark();
    auto input = dropped(x, adapter, {});
    auto low = take(x, adapter.a.size(0));  // first dropout(x) A^T, then its gradient
    linear(low, input, adapter.a);
    linearWeightGradient(gradient(adapter.parameter + 1), outputsOf(dy, adapter), low.mul_(adapters_->shape().scale));
    linearInputGradient(low, outputsOf(dy, adapter), adapter.b);
    linearWeightGradient(gradient(adapter.parameter), low.mul_(adapters_->shape().scale), input);
    workspace_->release(scratch);
  }
}

}  // namespace wrpo
