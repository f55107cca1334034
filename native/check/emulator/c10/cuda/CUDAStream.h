// In the place of libtorch's: there is one stream, and nothing is ever under way on it.
#pragma once

struct CUstream_st;

namespace c10::cuda {

struct CUDAStream {
  CUstream_st* stream() const { return nullptr; }
};
inline CUDAStream getCurrentCUDAStream() { return {}; }

}  // namespace c10::cuda
