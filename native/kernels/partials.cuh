// The second half of a norm's weight gradient: the sum of what blocks or warps kept apart, for rms_norm.cu and
// head_norm.cu.
#pragma once
#include "kernels/launch.cuh"

namespace wrpo::launch {
namespace {

// dw [width] += the rows of partial, in order and in float64.
__global__ void sumPartials(const float* partial, int64_t rows, int64_t width, float* dw) {
  int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= width) return;
  double total = 0;
  for (int64_t r = 0; r < rows; ++r) total += double(partial[r * width + i]);
  dw[i] += float(total);
}

}  // namespace
}  // namespace wrpo::launch
