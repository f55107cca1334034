// The one place that decides where an op computes: on the device of the first tensor it is given. An op is declared in
// namespace cpu; the core for a CUDA libtorch has another function of the same type in namespace cuda.
#pragma once
#include <ATen/core/Tensor.h>

#include <type_traits>
#include <utility>

namespace wrpo {

template <class Function>
struct Op {
  Function *cpu, *cuda;

  template <class... Arguments>
  auto operator()(Arguments&&... arguments) const {
    bool found = false, onGpu = false;
    auto look = [&](const auto& argument) {
      if constexpr (std::is_same_v<std::remove_cvref_t<decltype(argument)>, at::Tensor>)
        if (argument.defined() && !std::exchange(found, true)) onGpu = !argument.is_cpu();
    };
    (look(arguments), ...);
    return (onGpu ? cuda : cpu)(std::forward<Arguments>(arguments)...);
  }
};

}  // namespace wrpo

#ifdef WRPO_CUDA
#define WRPO_OP(name)             \
  namespace cuda {                \
  decltype(wrpo::cpu::name) name; \
  }                               \
  inline constexpr Op<decltype(cpu::name)> name { cpu::name, cuda::name }
#else
#define WRPO_OP(name) \
  inline constexpr Op<decltype(cpu::name)> name { cpu::name, nullptr }
#endif
