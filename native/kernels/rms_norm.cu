// RMSNorm with the residual's addition in front. Forward, a block a row: reads x and residual, writes sum and y
// (8 bytes an element; 4 without a residual); the second reading of the row comes from the cache. Backward reads dy, x
// and dx, writes dx (8 bytes an element); its blocks, always 128, walk neighbouring rows and keep a partial dw each,
// which a second kernel adds in order in float64: the same bits on every GPU. Fused since each of the 7 passes that
// this is in plain ATen costs about as much as the whole.
#include "kernels/partials.cuh"
#include "kernels/row/rms_norm.h"

namespace wrpo::launch {
namespace {

constexpr int threads = 512;

template <int W>
__global__ void __launch_bounds__(threads)
    rmsForwardKernel(const Bf16* x, const Bf16* residual, Bf16* sum, const Bf16* w, float plus, float eps, Bf16* y,
                     float* rstd, int64_t H) {
  int64_t at = blockIdx.x * H;
  float r = row::rmsForward<W>(row::BlockTeam{}, x + at, residual ? residual + at : nullptr,
                               residual ? sum + at : nullptr, w, plus, eps, y + at, H);
  if (threadIdx.x == 0) rstd[blockIdx.x] = r;
}

template <int W>
__global__ void __launch_bounds__(threads)
    rmsBackwardKernel(const Bf16* dy, const Bf16* x, const Bf16* w, float plus, const float* rstd, Bf16* dx,
                      float* partial, int64_t T, int64_t H) {
  int64_t each = (T + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * each, end = begin + each < T ? begin + each : T;
  float* dw = partial ? partial + blockIdx.x * H : nullptr;
  row::BlockTeam team;
  if (dw)
    team.each(H / W, [=](int64_t i) {
      for (int k = 0; k < W; ++k) dw[i * W + k] = 0;
    });
  for (int64_t t = begin; t < end; ++t)
    row::rmsBackward<W>(team, dy + t * H, x + t * H, w, plus, rstd[t], dx + t * H, true, dw, H);
}

}  // namespace

void rmsForward(Stream stream, const Bf16* x, const Bf16* residual, Bf16* sum, const Bf16* w, float plus, float eps,
                Bf16* y, float* rstd, int64_t T, int64_t H) {
  auto kernel = packs(H, x, residual, sum, w, y) ? rmsForwardKernel<packed> : rmsForwardKernel<1>;
  start("rmsForward", kernel, T, threads, stream, x, residual, sum, w, plus, eps, y, rstd, H);
}

void rmsBackward(Stream stream, const Bf16* dy, const Bf16* x, const Bf16* w, float plus, const float* rstd, Bf16* dx,
                 float* dw, float* partial, int64_t T, int64_t H) {
  if (T == 0) return;
  auto kernel = packs(H, dy, x, w, dx) ? rmsBackwardKernel<packed> : rmsBackwardKernel<1>;
  start("rmsBackward", kernel, normBlocks, threads, stream, dy, x, w, plus, rstd, dx, dw ? partial : nullptr, T, H);
  if (!dw) return;
  start("rmsBackward's sum", sumPartials, blocksFor(H, 256), 256, stream, partial, normBlocks, H, dw);
}

}  // namespace wrpo::launch
