// Dropout by a hash of row and column, so that no mask is stored: 4 bytes an element. The same zeros as on the CPU.
#include "kernels/launch.cuh"
#include "kernels/row/dropout.h"

namespace wrpo::launch {
namespace {

__global__ void __launch_bounds__(256)
    dropoutKernel(const Bf16* x, const uint32_t* keys, uint32_t threshold, float scale, Bf16* y, int64_t width) {
  int64_t at = blockIdx.x * width;
  row::drop(row::BlockTeam{}, x + at, keys[blockIdx.x], threshold, scale, y + at, width);
}

}  // namespace

void dropout(Stream stream, const Bf16* x, const uint32_t* keys, uint32_t threshold, float scale, Bf16* y, int64_t T,
             int64_t width) {
  start("dropout", dropoutKernel, T, 256, stream, x, keys, threshold, scale, y, width);
}

}  // namespace wrpo::launch
