// What the engine allocates: a counting CPU allocator, so that peaks are known and tests can forbid a single large
// buffer; and the workspace that micro-batches reuse.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

namespace wrpo {

struct MemoryStats {
  int64_t current = 0, peak = 0, largest = 0;  // bytes; `largest` is the largest single allocation since the last reset
};

// Counts every CPU tensor of this process from now on. Idempotent.
void countAllocations();
MemoryStats memoryStats();
void resetMemoryPeaks();

// Scratch for activations: a bump allocator over slabs that outlive the micro-batch, since fresh pages cost more than
// the arithmetic on them. Tensors taken from it are valid until the reset() or release() that covers them.
class Workspace {
 public:
  struct Mark {
    size_t slab, offset;
  };
  at::Tensor take(at::IntArrayRef sizes, at::ScalarType type);
  Mark mark() const { return {slab_, offset_}; }
  void release(Mark mark) { slab_ = mark.slab, offset_ = mark.offset; }
  // Starts over; several slabs become one of their total size at the next take().
  void reset();

 private:
  std::vector<at::Tensor> slabs_;
  size_t slab_ = 0, offset_ = 0, wanted_ = 0;
};

}  // namespace wrpo
