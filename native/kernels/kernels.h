// Every custom op, one declaration each; one file per op. All tensors are contiguous rows unless a leading dimension is
// said to vary; T = packed tokens, R = response rows, H = hidden size, F = feed-forward size, V = vocabulary. Storage
// may be float32, float64 or bfloat16; arithmetic is float32 (float64 for float64). Every op gives the same bits for
// the same input, thread count and machine. An op runs on the device of its tensors (op.h); on a GPU (cuda/kernels.cpp)
// storage is bfloat16.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "device.h"
#include "kernels/op.h"

namespace wrpo {

// Splits [0, n) over the OpenMP team in blocks of at least `grain` (a thin wrapper of at::parallel_for).
void parallelRows(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

// The weight [H] of a norm as it is stored; plus is 0, or 1 in Gemma.
struct NormWeight {
  at::Tensor weight;
  double plus = 0;
};
struct RopeSettings {
  std::string type = "default";  // default | linear | llama3 | yarn | dynamic | longrope
  int64_t dim = 0;               // of each head, this many rotate
  double theta = 10000, factor = 1, attentionFactor = 1;
  double originalMaxPosition = 8192;                       // llama3; where dynamic and longrope change
  double lowFrequencyFactor = 1, highFrequencyFactor = 4;  // llama3
  double rampLow = 0, rampHigh = 1;                        // yarn: between these pairs, from given to divided frequency
  std::vector<double> shortFactors, longFactors;           // longrope [dim / 2]
  bool byLength() const { return type == "dynamic" || type == "longrope"; }
};
enum class Activation { Silu, GeluTanh };
struct AdamWStep {
  double learningRate, beta1, beta2, eps, weightDecay;
  int64_t step;  // 1 for the first update
};

// ---- rope.cpp, on the CPU: inverse frequencies [dim / 2] float32 for a sequence of `length` tokens (of interest only
// byLength), with transformers' own float32 operations (modeling_rope_utils.py), so that tables agree to the bit.
at::Tensor ropeFrequencies(const RopeSettings& settings, int64_t length = 0);
// [positions, 2, dim / 2] float32: cosines, then sines, times the attention factor.
at::Tensor ropeTable(const at::Tensor& frequencies, int64_t positions, double attentionFactor = 1);
// ---- adamw.cpp, on the CPU: a 64-bit hash of a flat buffer's bytes (fixed chunks, in order).
uint64_t fingerprint(const at::Tensor& flat);

namespace cpu {

// ---- rms_norm.cpp: y = (plus + w) * x / sqrt(mean(x^2) + eps)
// If `residual` is defined, sum = x + residual is written first (sum may be x) and normalised instead of x.
// rstd [T] keeps 1/sqrt(...) in the compute type.
void rmsNormForward(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& sum, const NormWeight& w,
                    double eps, const at::Tensor& y, const at::Tensor& rstd);
// dx += the gradient through the norm; dw [H] += in the gradient type, unless it is undefined: of a frozen norm. `x` is
// the (summed) input of the forward.
void rmsNormBackward(const at::Tensor& dy, const at::Tensor& x, const NormWeight& w, const at::Tensor& rstd,
                     const at::Tensor& dx, const at::Tensor& dw);

// ---- head_norm.cpp: the same norm of each head of some rows, w [d]
// x and y [T, heads * d], a range of columns of wider rows; y may be x.
void headNormForward(const at::Tensor& x, const NormWeight& w, double eps, const at::Tensor& y);
// dy is replaced by the gradient of x [T, heads * d]; dw [d] += in the gradient type, unless it is undefined.
void headNormBackward(const at::Tensor& dy, const at::Tensor& x, const NormWeight& w, double eps, const at::Tensor& dw);

// ---- rope.cpp: rotary embedding, half-split as in Hugging Face's rotate_half
// Rotates the first `heads` heads of each row of x [T, ld] in place, row t by row rows[t] (int32 [T]) of the table;
// sign -1 is the backward rotation (the transpose).
void rope(const at::Tensor& x, int64_t heads, int64_t headDim, const at::Tensor& table, const at::Tensor& rows,
          int sign);

// ---- swiglu.cpp: h = activation(gate) * up, gateUp [T, 2F] = gate | up
void swigluForward(Activation activation, const at::Tensor& gateUp, const at::Tensor& h);
// Writes h again (for the weight gradient of down_proj) and replaces gateUp by its gradient.
void swigluBackward(Activation activation, const at::Tensor& dh, const at::Tensor& gateUp, const at::Tensor& h);

// ---- logprob.cpp: log-softmax at the target, fused
// In place z <- cap * tanh(z / cap), before the two below.
void softcap(const at::Tensor& z, double cap);
// z [R, V] logits; targets int32 [R]; logp, lse [R] in the compute type; argmax uint8 [R], 1 when no logit is above the
// target's (may be undefined).
void logprobForward(const at::Tensor& z, const at::Tensor& targets, const at::Tensor& logp, const at::Tensor& lse,
                    const at::Tensor& argmax);
// In place z <- dLoss/dz = g_r * (onehot(target_r) - softmax(z_r)), g [R] = dLoss/dlogp in the compute type. With a
// cap (0: none), z is what softcap() left and receives the gradient of what that was given.
void logprobBackward(const at::Tensor& z, const at::Tensor& targets, const at::Tensor& lse, const at::Tensor& g,
                     double cap);

// ---- merge_lse.cpp: one softmax over two disjoint key sets from the two halves
// out [R, heads * d] and lse [R, heads] hold the first half and receive the merged result; R rows of each.
void mergeLse(const at::Tensor& out, const at::Tensor& lse, const at::Tensor& out2, const at::Tensor& lse2,
              int64_t heads);

// ---- dropout.cpp: y[t, i] = x[t, i] / (1 - p), or 0 with probability p
// keys [T], 32 bits a row, and i decide which; the same key, the same zeros. 0 <= p < 1; y may be x.
void dropout(const at::Tensor& x, const at::Tensor& keys, double p, const at::Tensor& y);

// ---- embedding.cpp: dWeight[id] += dx rows, in row order whatever the number of threads; an undefined one is frozen
void embeddingBackward(const at::Tensor& dx, const std::vector<int32_t>& ids, const at::Tensor& dWeight);

// ---- adamw.cpp: one pass over flat buffers (torch.optim.AdamW's formulas)
// float64 [2]: sqrt(sum g^2) over a flat buffer, fixed chunks of 65,536 elements summed in float64, then in order; and
// what clipping multiplies the gradient by, min(1, maxNorm / (norm + 1e-6)), 1 with maxNorm 0, no number where the norm
// is none or infinite.
at::Tensor gradientNorm(const at::Tensor& grad, double maxNorm);
// grad, m, v [n] and the masters in the gradient type; `work` [n] receives the rounded working copy when it is another
// tensor. grad is zeroed in the same pass. clip: of gradientNorm(); without a finite factor nothing changes.
void adamwUpdate(const at::Tensor& grad, const at::Tensor& m, const at::Tensor& v, const Stored& master,
                 const at::Tensor& work, const at::Tensor& clip, const AdamWStep& step);

}  // namespace cpu

WRPO_OP(rmsNormForward);
WRPO_OP(rmsNormBackward);
WRPO_OP(headNormForward);
WRPO_OP(headNormBackward);
WRPO_OP(rope);
WRPO_OP(swigluForward);
WRPO_OP(swigluBackward);
WRPO_OP(softcap);
WRPO_OP(logprobForward);
WRPO_OP(logprobBackward);
WRPO_OP(mergeLse);
WRPO_OP(dropout);
WRPO_OP(embeddingBackward);
WRPO_OP(gradientNorm);
WRPO_OP(adamwUpdate);

}  // namespace wrpo
