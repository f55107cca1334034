// The embedding's gradient without atomics: a block a distinct token, whose rows it adds in their order, in
// float32, from 2 bytes an element of dx to 8 of every embedding that occurs. The host sorts the ids, which it has.
#include "kernels/launch.cuh"

namespace wrpo::launch {
namespace {

__global__ void __launch_bounds__(256)
    embeddingBackwardKernel(const Bf16* dx, const int32_t* ids, const int32_t* offsets, const int32_t* order,
                            float* dWeight, int64_t H) {
  float* to = dWeight + int64_t(ids[blockIdx.x]) * H;
  int32_t begin = offsets[blockIdx.x], end = offsets[blockIdx.x + 1];
  row::BlockTeam{}.each(H, [=](int64_t i) {
    float sum = to[i];
    for (int32_t r = begin; r < end; ++r) sum += row::widen(dx[int64_t(order[r]) * H + i]);
    to[i] = sum;
  });
}

}  // namespace

void embeddingBackward(Stream stream, const Bf16* dx, const int32_t* ids, const int32_t* offsets, const int32_t* order,
                       int64_t unique, float* dWeight, int64_t H) {
  start("embeddingBackward", embeddingBackwardKernel, unique, 256, stream, dx, ids, offsets, order, dWeight, H);
}

}  // namespace wrpo::launch
