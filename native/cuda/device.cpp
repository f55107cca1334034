#include "device.h"

#include <ATen/Context.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime_api.h>

#include <mutex>

#include "memory.h"

namespace wrpo {
namespace {

// Of torch's own kernels: the same bits for the same input, and sums of bfloat16 products in float32 throughout.
void prepare() {
  auto& context = at::globalContext();
  // Only a warning where an op has no deterministic kernel: none is used. cuBLAS asks for CUBLAS_WORKSPACE_CONFIG,
  // which shim.c sets. The filling of new memory would cost a pass over every buffer.
  context.setDeterministicAlgorithms(true, /*warn_only=*/true);
  context.setDeterministicFillUninitializedMemory(false);
  context.setAllowBF16ReductionCuBLAS(false);
}

}  // namespace

std::optional<Gpu> findGpu(std::string& missing) {
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    // Also what the runtime says where there is no driver at all.
    std::string reason = error == cudaErrorInsufficientDriver
                             ? "no NVIDIA driver, or one too old for CUDA " + std::to_string(CUDART_VERSION / 1000)
                         : error == cudaSuccess ? "CUDA counts none"
                                                : cudaGetErrorString(error);
    missing = "no usable GPU (" + reason + "): check `nvidia-smi` and CUDA_VISIBLE_DEVICES";
    return std::nullopt;
  }
  cudaDeviceProp properties;
  size_t free = 0, total = 0;
  error = cudaGetDeviceProperties(&properties, 0);
  if (error == cudaSuccess) error = cudaMemGetInfo(&free, &total);
  if (error != cudaSuccess) {
    missing = std::string("the GPU does not answer (") + cudaGetErrorString(error) + "): check `nvidia-smi`";
    return std::nullopt;
  }
  if (properties.major < 8) {
    missing = std::string(properties.name) + " has compute capability " + std::to_string(properties.major) + "." +
              std::to_string(properties.minor) + ": expected 8.0 or newer (A100, H100 and later)";
    return std::nullopt;
  }
  static std::once_flag once;
  std::call_once(once, prepare);
  return Gpu{properties.name, {at::kCUDA, 0}, int64_t(total), int64_t(free)};
}

void refuseWaits(bool refuse) {
  using c10::cuda::SyncDebugMode;
  c10::cuda::warning_state().set_sync_debug_mode(refuse ? SyncDebugMode::L_ERROR : SyncDebugMode::L_DISABLED);
}

MemoryStats gpuMemoryStats() {
  if (!c10::cuda::CUDACachingAllocator::get()->initialized()) return {};
  auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(0);
  const auto& all = stats.allocated_bytes[size_t(c10::CachingAllocator::StatType::AGGREGATE)];
  return {all.current, all.peak, 0};
}

void resetGpuMemoryPeaks() {
  if (c10::cuda::CUDACachingAllocator::get()->initialized()) c10::cuda::CUDACachingAllocator::resetPeakStats(0);
}

}  // namespace wrpo
