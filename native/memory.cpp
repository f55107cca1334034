#include "memory.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <new>

namespace wrpo {
namespace {

constexpr size_t header = 64;  // keeps the alignment libtorch's kernels expect

std::atomic<int64_t> current{0}, peak{0}, largest{0};

void raise(std::atomic<int64_t>& maximum, int64_t value) {
  int64_t seen = maximum.load(std::memory_order_relaxed);
  while (seen < value && !maximum.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

// Large blocks on huge pages: a GEMM walks columns of matrices whose rows are pages apart, and misses of the address
// cache then cost as much as its arithmetic.
void* allocateBlock(size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr size_t hugePage = size_t(2) << 20;
  if (bytes >= 2 * hugePage) {
    size_t whole = (bytes + hugePage - 1) / hugePage * hugePage;
    void* block = std::aligned_alloc(hugePage, whole);
    if (!block) throw std::bad_alloc();
    madvise(block, whole, MADV_HUGEPAGE);
    return block;
  }
#endif
  return c10::alloc_cpu(bytes);
}

void deallocate(void* p) {
  if (!p) return;
  char* block = static_cast<char*>(p) - header;
  current.fetch_sub(*reinterpret_cast<int64_t*>(block), std::memory_order_relaxed);
  c10::free_cpu(block);
}

struct CountingAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &deallocate, at::kCPU};
    char* block = static_cast<char*>(allocateBlock(bytes + header));
    *reinterpret_cast<int64_t*>(block) = int64_t(bytes);
    raise(peak, current.fetch_add(int64_t(bytes), std::memory_order_relaxed) + int64_t(bytes));
    raise(largest, int64_t(bytes));
    return {block + header, block + header, &deallocate, at::kCPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &deallocate; }
  void copy_data(void* to, const void* from, std::size_t n) const override { default_copy_data(to, from, n); }
};

}  // namespace

void countAllocations() {
  static std::once_flag once;
  // Never destroyed: tensors may be freed while the process exits.
  std::call_once(once, [] { c10::SetCPUAllocator(new CountingAllocator, 1); });
}

MemoryStats memoryStats() { return {current.load(), peak.load(), largest.load()}; }

void resetMemoryPeaks() {
  peak = current.load();
  largest = 0;
}

#ifndef WRPO_CUDA
MemoryStats gpuMemoryStats() { return {}; }
void resetGpuMemoryPeaks() {}
#endif

at::Tensor Workspace::take(at::IntArrayRef sizes, at::ScalarType type) {
  int64_t bytes = int64_t(c10::elementSize(type));
  for (int64_t size : sizes) bytes *= size;
  bytes = (bytes + 63) / 64 * 64;
  auto slab =
      std::find_if(slabs_.begin(), slabs_.end(), [&](const Slab& s) { return s.used + bytes <= s.memory.numel(); });
  if (slab == slabs_.end()) {
    // An idle slab that is too small gives way to the larger one, so that growing batches do not pile slabs up.
    slab = std::find_if(slabs_.begin(), slabs_.end(), [](const Slab& s) { return s.used == 0; });
    if (slab == slabs_.end()) slab = slabs_.insert(slab, {at::Tensor(), 0});
    slab->memory = at::Tensor();
    slab->memory = at::empty({std::max(bytes, slabBytes)}, at::TensorOptions(at::kByte).device(device_));
  }
  char* p = static_cast<char*>(slab->memory.data_ptr()) + slab->used;
  slab->used += bytes;
  auto options = at::TensorOptions(type).device(device_);
  return at::for_blob(p, sizes).options(options).target_device(device_).make_tensor();
}

Workspace::Mark Workspace::mark() const {
  Mark mark;
  for (const auto& slab : slabs_) mark.push_back(slab.used);
  return mark;
}

void Workspace::release(const Mark& mark) {
  for (size_t i = 0; i < slabs_.size(); ++i) slabs_[i].used = i < mark.size() ? mark[i] : 0;
}

}  // namespace wrpo
