// The rotation in place, a warp a head, 4 bytes a rotated element; the table's row comes from the cache. Not fused
// into a neighbour: the projection before it and attention behind it are the libraries'. Elementwise: deterministic.
#include "kernels/launch.cuh"
#include "kernels/row/rope.h"

namespace wrpo::launch {
namespace {

constexpr int threads = 256, warps = threads / 32;

__global__ void __launch_bounds__(threads) ropeKernel(Bf16* x, int64_t ld, int64_t T, int64_t heads, int64_t headDim,
                                                      int64_t d, const float* table, const int32_t* rows, int sign) {
  int64_t i = int64_t(blockIdx.x) * warps + threadIdx.x / 32;
  if (i >= T * heads) return;
  int64_t t = i / heads, h = i % heads;
  row::rotateHead(row::WarpTeam{}, x + t * ld + h * headDim, d, table + int64_t(rows[t]) * d, sign);
}

}  // namespace

void rope(Stream stream, Bf16* x, int64_t ld, int64_t T, int64_t heads, int64_t headDim, int64_t d, const float* table,
          const int32_t* rows, int sign) {
  start("rope", ropeKernel, blocksFor(T * heads, warps), threads, stream, x, ld, T, heads, headDim, d, table, rows,
        sign);
}

}  // namespace wrpo::launch
