// The ops of kernels.h on a GPU: from tensors to the launches of kernels/launch.h, on torch's current stream.
#include "kernels/kernels.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <numeric>

#include "device.h"
#include "error.h"
#include "kernels/dispatch.h"
#include "kernels/launch.h"
#include "kernels/row/adamw.h"
#include "model/decoder.h"
#include "train/objective.h"

namespace wrpo::cuda {
namespace {

using row::Bf16;

launch::Stream stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

// A kernel that was given the host's memory would take the GPU away from the whole process.
template <class T>
T* pointer(const at::Tensor& t) {
  if (t.is_cpu()) fail("ERR_INTERNAL", "a kernel of the GPU was given a tensor of the host");
  return data<T>(t);
}

// Storage is bfloat16 there, which Model sees to.
Bf16* bf16(const at::Tensor& t) {
  if (!t.defined()) return nullptr;
  if (t.scalar_type() != at::kBFloat16)
    fail("ERR_INTERNAL",
         std::string("the GPU's kernels compute in bfloat16, not in ") + c10::toString(t.scalar_type()));
  return pointer<Bf16>(t);
}
float* floats(const at::Tensor& t) { return t.defined() ? pointer<float>(t) : nullptr; }

// Scratch of one call; the allocator gives it to later work of the same stream only.
at::Tensor scratch(int64_t n, at::ScalarType type, const at::Tensor& like) {
  return at::empty({n}, like.options().dtype(type));
}

}  // namespace

void rmsNormForward(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& sum, const NormWeight& w,
                    double eps, const at::Tensor& y, const at::Tensor& rstd) {
  launch::rmsForward(stream(), bf16(x), bf16(residual), bf16(sum), bf16(w.weight), float(w.plus), float(eps), bf16(y),
                     floats(rstd), x.size(0), x.size(1));
}

void rmsNormBackward(const at::Tensor& dy, const at::Tensor& x, const NormWeight& w, const at::Tensor& rstd,
                     const at::Tensor& dx, const at::Tensor& dw) {
  auto partial = dw.defined() ? scratch(launch::normBlocks * x.size(1), at::kFloat, x) : at::Tensor();
  launch::rmsBackward(stream(), bf16(dy), bf16(x), bf16(w.weight), float(w.plus), floats(rstd), bf16(dx), floats(dw),
                      floats(partial), x.size(0), x.size(1));
}

void headNormForward(const at::Tensor& x, const NormWeight& w, double eps, const at::Tensor& y) {
  int64_t d = w.weight.size(0);
  launch::headNormForward(stream(), bf16(x), x.stride(0), bf16(w.weight), float(w.plus), float(eps), bf16(y),
                          y.stride(0), x.size(0), x.size(1) / d, d);
}

void headNormBackward(const at::Tensor& dy, const at::Tensor& x, const NormWeight& w, double eps,
                      const at::Tensor& dw) {
  int64_t d = w.weight.size(0);
  auto partial = dw.defined() ? scratch(launch::headNormWarps * d, at::kFloat, x) : at::Tensor();
  launch::headNormBackward(stream(), bf16(dy), dy.stride(0), bf16(x), x.stride(0), bf16(w.weight), float(w.plus),
                           float(eps), floats(dw), floats(partial), x.size(0), x.size(1) / d, d);
}

void rope(const at::Tensor& x, int64_t heads, int64_t headDim, const at::Tensor& table, const at::Tensor& rows,
          int sign) {
  launch::rope(stream(), bf16(x), x.stride(0), x.size(0), heads, headDim, 2 * table.size(2), floats(table),
               pointer<int32_t>(rows), sign);
}

void swigluForward(Activation activation, const at::Tensor& gateUp, const at::Tensor& h) {
  launch::swigluForward(stream(), activation == Activation::GeluTanh, bf16(gateUp), bf16(h), h.size(0), h.size(1));
}

void swigluBackward(Activation activation, const at::Tensor& dh, const at::Tensor& gateUp, const at::Tensor& h) {
  launch::swigluBackward(stream(), activation == Activation::GeluTanh, bf16(dh), bf16(gateUp), bf16(h), h.size(0),
                         h.size(1));
}

void softcap(const at::Tensor& z, double cap) { launch::softcap(stream(), bf16(z), z.size(0), z.size(1), float(cap)); }

void logprobForward(const at::Tensor& z, const at::Tensor& targets, const at::Tensor& logp, const at::Tensor& lse,
                    const at::Tensor& argmax) {
  launch::logprobForward(stream(), bf16(z), z.size(0), z.size(1), pointer<int32_t>(targets), floats(logp), floats(lse),
                         argmax.defined() ? pointer<uint8_t>(argmax) : nullptr);
}

void logprobBackward(const at::Tensor& z, const at::Tensor& targets, const at::Tensor& lse, const at::Tensor& g,
                     double cap) {
  launch::logprobBackward(stream(), bf16(z), z.size(0), z.size(1), pointer<int32_t>(targets), floats(lse), floats(g),
                          float(cap));
}

void mergeLse(const at::Tensor& out, const at::Tensor& lse, const at::Tensor& out2, const at::Tensor& lse2,
              int64_t heads) {
  launch::mergeLse(stream(), bf16(out), floats(lse), bf16(out2), floats(lse2), out.size(0), heads, out.size(1) / heads);
}

void dropout(const at::Tensor& x, const at::Tensor& keys, double p, const at::Tensor& y) {
  launch::dropout(stream(), bf16(x), pointer<uint32_t>(keys), uint32_t(p * 0x1p32), float(1 / (1 - p)), bf16(y),
                  x.size(0), x.size(1));
}

void embeddingBackward(const at::Tensor& dx, const std::vector<int32_t>& ids, const at::Tensor& dWeight) {
  if (!dWeight.defined()) return;
  std::vector<int32_t> order(ids.size()), unique, offsets{0};
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return ids[a] < ids[b]; });
  for (size_t i = 0; i < order.size(); ++i) {
    if (i == 0 || ids[order[i]] != unique.back()) {
      if (i > 0) offsets.push_back(int32_t(i));
      unique.push_back(ids[order[i]]);
    }
  }
  offsets.push_back(int32_t(order.size()));
  auto on = [&](const std::vector<int32_t>& values) { return place(values, dx.device()); };
  auto placedIds = on(unique), placedOffsets = on(offsets), placedOrder = on(order);
  launch::embeddingBackward(stream(), bf16(dx), pointer<int32_t>(placedIds), pointer<int32_t>(placedOffsets),
                            pointer<int32_t>(placedOrder), int64_t(unique.size()), floats(dWeight), dx.size(1));
}

void adamwUpdate(const at::Tensor& grad, const at::Tensor& m, const at::Tensor& v, const Stored& master,
                 const at::Tensor&, const at::Tensor& clip, const AdamWStep& s) {
  launch::adamwUpdate(stream(), bf16(master.tensor), pointer<int16_t>(master.low), floats(grad), floats(m), floats(v),
                      grad.numel(),
                      row::adamwCoefficients<float>(s.learningRate, s.beta1, s.beta2, s.eps, s.weightDecay, s.step),
                      pointer<double>(clip) + 1);
}

at::Tensor gradientNorm(const at::Tensor& grad, double maxNorm) {
  auto partial = scratch((grad.numel() + launch::normChunk - 1) / launch::normChunk, at::kDouble, grad);
  auto result = scratch(2, at::kDouble, grad);
  launch::gradientNorm(stream(), floats(grad), grad.numel(), maxNorm, pointer<double>(partial),
                       pointer<double>(result));
  return result;
}

void linearWeightGradient(const at::Tensor& dw, const at::Tensor& dy, const at::Tensor& x) {
  if (!dw.defined()) return;
  // bfloat16 products, summed and added in float32 by cuBLAS itself.
  at::Tensor out = dw;
  at::addmm_out(out, dw, dy.t(), x, at::kFloat);
}

void contests(const at::Tensor& logp, const at::Tensor& dLogp, const ContestTables& t, const Objective& objective,
              double normalizer, int64_t firstGroup, int64_t lastGroup) {
  auto ints = [](const at::Tensor& values) { return pointer<int32_t>(values); };
  launch::Contests on{ints(t.groupOffsets),
                      ints(t.rowOffsets),
                      ints(t.lengths),
                      ints(t.contestGroups),
                      ints(t.contestOffsets),
                      ints(t.contestResponses),
                      pointer<double>(t.coefficients),
                      pointer<double>(t.weights),
                      t.reference.numel() > 0 ? pointer<double>(t.reference) : nullptr};
  launch::contests(stream(), on, objective, normalizer, firstGroup, lastGroup, floats(logp), t.policy(), t.gradient(),
                   t.losses(), t.margins(), floats(dLogp));
}

}  // namespace wrpo::cuda
