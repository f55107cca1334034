// The head's log-probabilities and their gradient. A block of 512 threads owns a row of V logits. Forward finds
// maximum and sum of exponentials in one reading (2 bytes a logit) and writes no softmax; backward turns the row into
// its gradient in place (4 bytes a logit). Fused because the row is up to 256 KiB: every further pass over R x V logits
// costs what the whole forward does. Deterministic: a fixed tree per row.
#include "kernels/launch.cuh"
#include "kernels/row/logprob.h"

namespace wrpo::launch {
namespace {

constexpr int threads = 512;

template <int W>
__global__ void __launch_bounds__(threads) capKernel(Bf16* z, int64_t V, float cap) {
  row::softcap<W>(row::BlockTeam{}, z + blockIdx.x * V, V, cap);
}

template <int W>
__global__ void __launch_bounds__(threads)
    logprobForwardKernel(const Bf16* z, int64_t V, const int32_t* targets, float* logp, float* lse, uint8_t* argmax) {
  int64_t r = blockIdx.x;
  auto result = row::logprobForward<W>(row::BlockTeam{}, z + r * V, V, targets[r]);
  if (threadIdx.x != 0) return;
  logp[r] = result.logp;
  lse[r] = result.lse;
  if (argmax) argmax[r] = result.top;
}

template <int W>
__global__ void __launch_bounds__(threads)
    logprobBackwardKernel(Bf16* z, int64_t V, const int32_t* targets, const float* lse, const float* g, float cap) {
  int64_t r = blockIdx.x;
  row::logprobBackward<W>(row::BlockTeam{}, z + r * V, V, targets[r], lse[r], g[r], cap);
}

}  // namespace

void softcap(Stream stream, Bf16* z, int64_t R, int64_t V, float cap) {
  auto kernel = packs(V, z) ? capKernel<packed> : capKernel<1>;
  start("softcap", kernel, R, threads, stream, z, V, cap);
}

void logprobForward(Stream stream, const Bf16* z, int64_t R, int64_t V, const int32_t* targets, float* logp, float* lse,
                    uint8_t* argmax) {
  auto kernel = packs(V, z) ? logprobForwardKernel<packed> : logprobForwardKernel<1>;
  start("logprobForward", kernel, R, threads, stream, z, V, targets, logp, lse, argmax);
}

void logprobBackward(Stream stream, Bf16* z, int64_t R, int64_t V, const int32_t* targets, const float* lse,
                     const float* g, float cap) {
  auto kernel = packs(V, z) ? logprobBackwardKernel<packed> : logprobBackwardKernel<1>;
  start("logprobBackward", kernel, R, threads, stream, z, V, targets, lse, g, cap);
}

}  // namespace wrpo::launch
