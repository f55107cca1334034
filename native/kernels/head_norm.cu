// The norm of every query and key head (Qwen3, Gemma 3): a warp a head, 4 bytes an element forward, 6 backward. A fixed
// number of warps walks all heads backward and keeps a partial dw each, added in order in float64 by a second kernel.
#include "kernels/partials.cuh"
#include "kernels/row/rms_norm.h"

namespace wrpo::launch {
namespace {

constexpr int threads = 256, warps = threads / 32;

__global__ void __launch_bounds__(threads)
    headNormForwardKernel(const Bf16* x, int64_t ldX, const Bf16* w, float plus, float eps, Bf16* y, int64_t ldY,
                          int64_t T, int64_t heads, int64_t d) {
  int64_t i = int64_t(blockIdx.x) * warps + threadIdx.x / 32;
  if (i >= T * heads) return;
  int64_t t = i / heads, h = i % heads;
  row::rmsForward<1>(row::WarpTeam{}, x + t * ldX + h * d, static_cast<const Bf16*>(nullptr),
                     static_cast<Bf16*>(nullptr), w, plus, eps, y + t * ldY + h * d, d);
}

__global__ void __launch_bounds__(threads)
    headNormBackwardKernel(Bf16* dy, int64_t ldY, const Bf16* x, int64_t ldX, const Bf16* w, float plus, float eps,
                           float* partial, int64_t T, int64_t heads, int64_t d) {
  row::WarpTeam team;
  int64_t warp = int64_t(blockIdx.x) * warps + threadIdx.x / 32, all = T * heads;
  int64_t each = (all + headNormWarps - 1) / headNormWarps, begin = warp * each;
  int64_t end = begin + each < all ? begin + each : all;
  float* dw = partial ? partial + warp * d : nullptr;
  if (dw) team.each(d, [=](int64_t i) { dw[i] = 0; });
  for (int64_t i = begin; i < end; ++i) {
    int64_t t = i / heads, h = i % heads;
    Bf16* g = dy + t * ldY + h * d;
    const Bf16* from = x + t * ldX + h * d;
    row::rmsBackward<1>(team, g, from, w, plus, row::headRstd<1>(team, from, eps, d), g, false, dw, d);
  }
}

}  // namespace

void headNormForward(Stream stream, const Bf16* x, int64_t ldX, const Bf16* w, float plus, float eps, Bf16* y,
                     int64_t ldY, int64_t T, int64_t heads, int64_t d) {
  start("headNormForward", headNormForwardKernel, blocksFor(T * heads, warps), threads, stream, x, ldX, w, plus, eps, y,
        ldY, T, heads, d);
}

void headNormBackward(Stream stream, Bf16* dy, int64_t ldY, const Bf16* x, int64_t ldX, const Bf16* w, float plus,
                      float eps, float* dw, float* partial, int64_t T, int64_t heads, int64_t d) {
  if (T == 0) return;
  start("headNormBackward", headNormBackwardKernel, headNormWarps / warps, threads, stream, dy, ldY, x, ldX, w, plus,
        eps, dw ? partial : nullptr, T, heads, d);
  if (!dw) return;
  start("headNormBackward's sum", sumPartials, blocksFor(d, 128), 128, stream, partial, headNormWarps, d, dw);
}

}  // namespace wrpo::launch
