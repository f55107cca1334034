// Two attentions over disjoint keys, merged; a warp a head. Reads both results and writes one: 6 bytes an element,
// and 12 a head for the log-sum-exps. Elementwise: deterministic.
#include "kernels/launch.cuh"
#include "kernels/row/merge_lse.h"

namespace wrpo::launch {
namespace {

constexpr int threads = 256, warps = threads / 32;

__global__ void __launch_bounds__(threads)
    mergeLseKernel(Bf16* out, float* lse, const Bf16* out2, const float* lse2, int64_t all, int64_t d) {
  int64_t i = int64_t(blockIdx.x) * warps + threadIdx.x / 32;
  if (i < all) row::mergeHead(row::WarpTeam{}, out + i * d, lse + i, out2 + i * d, lse2[i], d);
}

}  // namespace

void mergeLse(Stream stream, Bf16* out, float* lse, const Bf16* out2, const float* lse2, int64_t R, int64_t heads,
              int64_t d) {
  start("mergeLse", mergeLseKernel, blocksFor(R * heads, warps), threads, stream, out, lse, out2, lse2, R * heads, d);
}

}  // namespace wrpo::launch
