// A named stretch of work in a profile (NVTX), in the core for a CUDA libtorch; nothing elsewhere.
#pragma once
#ifdef WRPO_CUDA
#include <nvtx3/nvToolsExt.h>
#endif

namespace wrpo {

class [[maybe_unused]] Range {
 public:
#ifdef WRPO_CUDA
  explicit Range(const char* name) { nvtxRangePushA(name); }
  ~Range() { nvtxRangePop(); }
#else
  explicit Range(const char*) {}
#endif
  Range(const Range&) = delete;
};

}  // namespace wrpo
