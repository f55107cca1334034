// What the engine allocates: a counting CPU allocator, so that peaks are known and tests can forbid a single large
// buffer; and the workspace that micro-batches reuse.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

namespace wrpo {

struct MemoryStats {
  int64_t current = 0, peak = 0, largest = 0;  // bytes; `largest` is the largest single allocation since the last reset
};

// The same of the GPU, of tensors alone; zeros without one. cuda/device.cpp of a CUDA core.
MemoryStats gpuMemoryStats();
void resetGpuMemoryPeaks();

// Counts every CPU tensor of this process from now on. Idempotent.
void countAllocations();
MemoryStats memoryStats();
void resetMemoryPeaks();

// Scratch for activations: bump allocation in slabs that outlive the micro-batch, since fresh pages cost more than the
// arithmetic on them. No slab is larger than the largest tensor asked for (or slabBytes). Tensors taken from it are
// valid until the reset() or release() that covers them.
class Workspace {
 public:
  static constexpr int64_t slabBytes = int64_t(16) << 20;

  explicit Workspace(at::Device device = at::kCPU) : device_(device) {}
  at::Device device() const { return device_; }

  using Mark = std::vector<int64_t>;
  at::Tensor take(at::IntArrayRef sizes, at::ScalarType type);
  Mark mark() const;
  void release(const Mark& mark);
  void reset() { release({}); }

 private:
  struct Slab {
    at::Tensor memory;
    int64_t used;
  };
  at::Device device_;
  std::vector<Slab> slabs_;
};

}  // namespace wrpo
