#include "device.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "error.h"
#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "kernels/row/adamw.h"
#include "range.h"

namespace wrpo {

#ifndef WRPO_CUDA
std::optional<Gpu> findGpu(std::string& missing) {
  missing = "this core was built without CUDA: run `wrpo setup --cuda`, and in a source tree `npm run build`";
  return std::nullopt;
}

void refuseWaits(bool) {}
#endif

at::Device parseDevice(const std::string& name) {
  if (name == "cpu") return at::kCPU;
  if (name != "cuda") fail("ERR_DEVICE", "device \"" + name + "\": expected \"cpu\" or \"cuda\"");
  std::string missing;
  auto gpu = findGpu(missing);
  if (!gpu) fail("ERR_DEVICE", "device \"cuda\": " + missing);
  return gpu->device;
}

at::Tensor place(const void* values, int64_t n, at::ScalarType type, at::Device device) {
  auto host = at::from_blob(const_cast<void*>(values), {n}, type);
  if (device.is_cpu()) return host;
  Range range("copy to the GPU");
  // The allocator of pinned memory gives it to nobody else before the copy is done.
  auto pinned = at::empty({n}, at::TensorOptions(type).pinned_memory(true));
  pinned.copy_(host);
  return pinned.to(device, /*non_blocking=*/true);
}

Readback::Readback(const at::Tensor& t) : host_(t) {
  if (t.is_cpu()) return;
  Range range("copy to the host");
  host_ = at::empty(t.sizes(), at::TensorOptions(t.scalar_type()).pinned_memory(true));
  host_.copy_(t, /*non_blocking=*/true);
  copied_ = std::make_shared<c10::Event>(t.device().type());
  copied_->record(c10::impl::VirtualGuardImpl(t.device().type()).getStream(t.device()));
}

const at::Tensor& Readback::values() const {
  if (!copied_) return host_;
  Range range("wait for the GPU");
  ++waits;
  copied_->synchronize();
  return host_;
}

Stored Stored::narrow(int64_t first, int64_t count) const {
  return {tensor.narrow(0, first, count), low.defined() ? low.narrow(0, first, count) : low};
}

at::Tensor Stored::host() const {
  auto high = tensor.to(at::kCPU);
  if (!low.defined()) return high;
  high = high.contiguous();
  auto rest = low.to(at::kCPU).contiguous();
  auto values = at::empty(high.sizes(), at::kFloat);
  parallelRows(values.numel(), 1 << 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      data<float>(values)[i] = row::join({data<row::Bf16>(high)[i], data<int16_t>(rest)[i]});
  });
  return values;
}

void Stored::assign(const at::Tensor& values) const {
  if (!low.defined()) {
    if (!tensor.is_same(values)) tensor.copy_(values);
    return;
  }
  auto wide = values.to(at::kFloat).contiguous();
  auto high = at::empty(wide.sizes(), at::kBFloat16), rest = at::empty(wide.sizes(), at::kShort);
  parallelRows(wide.numel(), 1 << 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      auto halves = row::split(data<float>(wide)[i]);
      data<row::Bf16>(high)[i] = halves.high;
      data<int16_t>(rest)[i] = halves.low;
    }
  });
  tensor.copy_(high);
  low.copy_(rest);
}

}  // namespace wrpo
