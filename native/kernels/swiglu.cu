// SwiGLU and GeGLU on rows gate | up of 2F. Forward reads both halves and writes h: 6 bytes an element of h.
// Backward reads dh, gate and up, writes their gradients in place and h again, for the weight gradient of down_proj: 12
// bytes, and F values a token less to keep. Elementwise: deterministic.
#include "kernels/launch.cuh"
#include "kernels/row/swiglu.h"

namespace wrpo::launch {
namespace {

constexpr int threads = 512;

template <int W>
__global__ void __launch_bounds__(threads) swigluForwardKernel(bool gelu, const Bf16* gateUp, Bf16* h, int64_t F) {
  row::swigluForward<W>(row::BlockTeam{}, gelu, gateUp + blockIdx.x * 2 * F, h + blockIdx.x * F, F);
}

template <int W>
__global__ void __launch_bounds__(threads)
    swigluBackwardKernel(bool gelu, const Bf16* dh, Bf16* gateUp, Bf16* h, int64_t F) {
  row::swigluBackward<W>(row::BlockTeam{}, gelu, dh + blockIdx.x * F, gateUp + blockIdx.x * 2 * F, h + blockIdx.x * F,
                         F);
}

}  // namespace

void swigluForward(Stream stream, bool gelu, const Bf16* gateUp, Bf16* h, int64_t T, int64_t F) {
  auto kernel = packs(F, gateUp, h) ? swigluForwardKernel<packed> : swigluForwardKernel<1>;
  start("swigluForward", kernel, T, threads, stream, gelu, gateUp, h, F);
}

void swigluBackward(Stream stream, bool gelu, const Bf16* dh, Bf16* gateUp, Bf16* h, int64_t T, int64_t F) {
  auto kernel = packs(F, dh, gateUp, h) ? swigluBackwardKernel<packed> : swigluBackwardKernel<1>;
  start("swigluBackward", kernel, T, threads, stream, gelu, dh, gateUp, h, F);
}

}  // namespace wrpo::launch
