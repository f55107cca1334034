// Where tensors are: on the CPU or, with a CUDA core, on a GPU. What depends on it is here, in kernels/op.h, which
// picks one of an op's two functions, and in cuda/; everything else is the same code for both.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace wrpo {

struct Gpu {
  std::string name;
  at::Device device;
  int64_t total, free;  // bytes
};
// The first GPU, or nothing and in `missing` the reason, as the rest of a sentence. cuda/device.cpp of a CUDA core.
std::optional<Gpu> findGpu(std::string& missing);

// Whether what makes the host wait for the GPU, and is no Readback, throws instead: for checks. cuda/device.cpp.
void refuseWaits(bool refuse);

// "cpu" or "cuda"; throws ERR_DEVICE, naming what is missing, where there is no usable GPU.
at::Device parseDevice(const std::string& name);

// Values of the host as a tensor [n]: on the CPU over their own memory, which must outlive it; on a GPU a copy by way
// of pinned memory that nothing waits for.
at::Tensor place(const void* values, int64_t n, at::ScalarType type, at::Device device);
template <class T>
at::Tensor place(const std::vector<T>& values, at::Device device) {
  constexpr auto type = std::is_same_v<T, double> ? at::kDouble : sizeof(T) == 8 ? at::kLong : at::kInt;
  return place(values.data(), int64_t(values.size()), type, device);
}

// What a device has computed so far of a tensor, on its way to the host: values() waits for this copy alone, while what
// was queued behind it goes on. On the CPU the tensor itself. A step on a GPU waits so, and only so, once all of it is
// queued: for the gradient norm, with the update behind it, and then for the losses, which are long there. What is no
// number cannot be left until a log: it must stop the run and name its rows. (Where another model is the reference, or
// the loss is the caller's own function, log-probs are needed here before a micro-batch, and logProbs waits for them.)
class Readback {
 public:
  explicit Readback(const at::Tensor& t);
  const at::Tensor& values() const;
  // How often the engine's thread has waited: for checks.
  static inline thread_local int64_t waits = 0;

 private:
  at::Tensor host_;
  std::shared_ptr<c10::Event> copied_;
};

// Values of a flat buffer as they are kept: a tensor, or float32 in two halves of 16 bits (kernels/row/adamw.h), the
// masters of a GPU, of which the tensor is the upper one.
struct Stored {
  at::Tensor tensor, low;

  Stored narrow(int64_t first, int64_t count) const;  // of the leading dimension
  // In the host's memory: the tensor itself where it is there, otherwise a copy, float32 where there are halves.
  at::Tensor host() const;
  // Takes values of the same shape and any dtype from the host's memory.
  void assign(const at::Tensor& values) const;
};

}  // namespace wrpo
