// What the .cu files share: the choice of pack width, and the launch.
#pragma once
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "kernels/launch.h"
#include "kernels/row/team.h"

namespace wrpo::launch {

constexpr int packed = 8;  // bfloat16 values in 16 bytes

// Whether rows of `length` elements at these places can be read in whole packs.
template <class... Pointers>
bool packs(int64_t length, Pointers... pointers) {
  return length % packed == 0 && ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// Starts one-dimensional blocks, unless there are none.
template <class... Parameters, class... Arguments>
void start(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads, Stream stream,
           Arguments... arguments) {
  if (blocks == 0) return;
#ifdef WRPO_EMULATED
  emulated::start(unsigned(blocks), unsigned(threads), [=] { kernel(arguments...); });
#else
  // clang-format off
  kernel<<<unsigned(blocks), threads, 0, stream>>>(arguments...);
  // clang-format on
#endif
  cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("the CUDA kernel ") + name +
                             " could not be started: " + cudaGetErrorString(error));
}

// Blocks of a grid over n elements, `each` of them a block.
inline int64_t blocksFor(int64_t n, int64_t each) { return (n + each - 1) / each; }

}  // namespace wrpo::launch
