// A device of ATen's (its PrivateUse1) for the engine of a CUDA core to compute on without a GPU: in the place of
// cuda/device.cpp. Its memory is the host's, filled with NaN when it is new; ATen's ops compute on it as on the CPU's,
// but for those that only a GPU has, attention among them, which are spelt out below. What a GPU does at its own pace
// it does as late as it may: a copy to the host that nothing waits for arrives when its event is waited for.
#include "device.h"

#include <ATen/ATen.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>

#include "memory.h"

namespace wrpo {
namespace {

const at::Device device(at::kPrivateUse1, 0);

// ---- memory

// As much as WRPO_EMULATED_MEMORY says, in bytes.
const int64_t total = [] {
  const char* given = std::getenv("WRPO_EMULATED_MEMORY");
  return given ? std::atoll(given) : int64_t(4) << 30;
}();
std::atomic<int64_t> current{0}, peak{0};

struct DeviceAllocator final : c10::Allocator {
  static constexpr size_t header = 64;  // with the block's size

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, raw_deleter(), device};
    TORCH_CHECK_WITH(OutOfMemoryError, current + int64_t(bytes) <= total, "no memory for ", bytes, " bytes");
    char* block = static_cast<char*>(c10::alloc_cpu(bytes + header));
    *reinterpret_cast<int64_t*>(block) = int64_t(bytes);
    current += int64_t(bytes);
    peak = std::max(peak.load(), current.load());
    std::memset(block + header, 0xff, bytes);
    return {block + header, block + header, raw_deleter(), device};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return [](void* memory) {
      if (!memory) return;
      char* block = static_cast<char*>(memory) - header;
      current -= *reinterpret_cast<int64_t*>(block);
      c10::free_cpu(block);
    };
  }
  void copy_data(void* to, const void* from, size_t n) const override { default_copy_data(to, from, n); }
};
DeviceAllocator allocator;
REGISTER_ALLOCATOR(c10::kPrivateUse1, &allocator)

// The same elements as a tensor of the CPU's.
at::Tensor host(const at::Tensor& t) {
  if (t.device() != device) return t;
  return at::for_blob(t.storage().mutable_data(), t.sizes())
      .strides(t.strides())
      .storage_offset(t.storage_offset())
      .deleter([t](void*) {})
      .options(t.options().device(at::kCPU))
      .make_tensor();
}
// What a view of host(t) is of t.
at::Tensor viewOf(const at::Tensor& t, const at::Tensor& view) {
  auto mine = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(t.storage()), t.key_set(),
                                                       view.dtype());
  mine.unsafeGetTensorImpl()->set_sizes_and_strides(view.sizes(), view.strides(), view.storage_offset());
  return mine;
}

// ---- what is under way

// Of copies to the host, which the JavaScript thread makes beside the engine's.
std::mutex mutex;
struct Copy {
  at::Tensor to, values;
};
std::deque<Copy> copies;
uintptr_t arrived = 0;  // copies before those

uintptr_t queued() {
  std::lock_guard one(mutex);
  return arrived + copies.size();
}
void arrive(uintptr_t until) {
  std::lock_guard one(mutex);
  for (; arrived < until; ++arrived, copies.pop_front()) copies.front().to.copy_(copies.front().values);
}

bool refused = false;
void hostWaits(const char* why) {
  TORCH_CHECK(!refused, "the host waits for ", why);
  arrive(queued());
}

// An event is how many copies were queued before it.
struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::PrivateUse1> {
  at::Device exchangeDevice(at::Device) const override { return device; }
  at::Device getDevice() const override { return device; }
  c10::Stream getStream(at::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, device); }
  void record(void** event, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {
    *event = reinterpret_cast<void*>(queued());
  }
  void synchronizeEvent(void* event) const override { arrive(reinterpret_cast<uintptr_t>(event)); }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
  void synchronizeStream(const c10::Stream&) const override { hostWaits("a stream"); }
  void synchronizeDevice(c10::DeviceIndex) const override { hostWaits("the device"); }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isAvailable() const override { return true; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
};
const bool registered = [] {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  c10::register_privateuse1_backend("emulated");
  return true;
}();

// ---- ops

at::Tensor emptyStrided(at::IntArrayRef sizes, at::IntArrayRef strides, std::optional<at::ScalarType> type,
                        std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(
      sizes, strides, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), type.value_or(at::kFloat));
}
at::Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat>) {
  return at::detail::empty_generic(sizes, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   type.value_or(at::kFloat), std::nullopt);
}

at::Tensor copy(const at::Tensor& from, const at::Tensor& to, bool nonBlocking) {
  const bool toHost = to.is_cpu(), fromHost = from.is_cpu();
  if ((toHost || fromHost) && !nonBlocking) hostWaits("a copy");
  if (!toHost || !nonBlocking) return host(to).copy_(host(from)), to;
  std::lock_guard one(mutex);
  copies.push_back({to, host(from).clone()});
  return to;
}

at::Scalar item(const at::Tensor& t) {
  hostWaits("a number");
  return host(t).item();
}

// Every other op, as the CPU computes it.
void asOnCpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  std::vector<at::Tensor> given, seen;
  auto see = [&](const at::Tensor& t) {
    TORCH_CHECK(t.device() == device || t.dim() == 0, op.schema().name(), " of tensors of the GPU and of the host");
    given.push_back(t), seen.push_back(host(t));
    return seen.back();
  };
  const size_t arguments = op.schema().arguments().size(), returns = op.schema().returns().size();
  for (size_t i = 0; i < arguments; ++i) {
    auto& value = torch::jit::peek(*stack, i, arguments);
    if (value.isTensor() && value.toTensor().defined()) value = see(value.toTensor());
    else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& t : value.toTensorVector()) list.push_back(see(t));
      value = list;
    }
  }
  op.callBoxed(stack);
  for (size_t i = 0; i < returns; ++i) {
    auto& value = torch::jit::peek(*stack, i, returns);
    if (!value.isTensor() || !value.toTensor().defined()) continue;
    const at::Tensor computed = value.toTensor();
    at::Tensor mine;
    for (size_t k = 0; k < seen.size() && !mine.defined(); ++k) {
      if (computed.is_same(seen[k])) mine = given[k];
      else if (computed.is_alias_of(seen[k])) mine = viewOf(given[k], computed);
    }
    if (!mine.defined()) {
      mine = at::empty_strided(computed.sizes(), computed.strides(), computed.options().device(device));
      host(mine).copy_(computed);
    }
    value = mine;
  }
}

at::Tensor& addmm(const at::Tensor& self, const at::Tensor& a, const at::Tensor& b, at::ScalarType type,
                  const at::Scalar& beta, const at::Scalar& alpha, at::Tensor& out) {
  host(out).copy_(at::addmm(host(self), host(a).to(type), host(b).to(type), beta, alpha));
  return out;
}

// ---- attention over segments, as flash attention does it: without the rows' padding, but for the log-sum-exps of what
// is not causal, so that both forms that releases of libtorch give are there

struct FlashCall {
  const c10::FunctionSchema& schema;
  torch::jit::Stack& stack;
  size_t n;

  FlashCall(const c10::OperatorHandle& op, torch::jit::Stack* stack)
      : schema(op.schema()), stack(*stack), n(op.schema().arguments().size()) {}
  const c10::IValue& argument(const char* name) const {
    return stack[stack.size() - n + size_t(*schema.argumentIndexWithName(name))];
  }
  at::Tensor tensor(const char* name) const {
    const auto& t = argument(name).toTensor();
    TORCH_CHECK(t.device() == device && t.stride(-1) == 1, name, ": expected a tensor of the GPU, its rows contiguous");
    return host(t);
  }
  // [heads, rows, d] of float32, a key's head once for every query's head that reads it.
  at::Tensor wide(const char* name, int64_t heads = 0) const {
    TORCH_CHECK(argument(name).toTensor().scalar_type() == at::kBFloat16, name, ": expected bfloat16");
    auto t = tensor(name).to(at::kFloat).transpose(0, 1);
    return heads > 0 ? t.repeat_interleave(heads / t.size(0), 0) : t.contiguous();
  }
  int64_t window(const char* name) const {
    const auto& w = argument(name);
    return w.isNone() ? -1 : w.toInt();
  }
  // Of every segment: its number, its first query and key, and its scores [heads, queries, keys], -inf where unseen.
  template <class Body>
  void segments(const at::Tensor& q, const at::Tensor& k, Body body) const {
    auto ends = tensor("cum_seq_q"), keyEnds = tensor("cum_seq_k");
    const int32_t *i = ends.data_ptr<int32_t>(), *j = keyEnds.data_ptr<int32_t>();
    const bool causal = argument("is_causal").toBool();
    int64_t left = window("window_size_left"), right = causal ? 0 : window("window_size_right");
    for (int64_t s = 0; s + 1 < ends.numel(); ++s) {
      int64_t rows = i[s + 1] - i[s], keys = j[s + 1] - j[s];
      TORCH_CHECK(rows <= argument("max_q").toInt() && keys <= argument("max_k").toInt(), "longer than said");
      auto scores = q.narrow(1, i[s], rows).matmul(k.narrow(1, j[s], keys).transpose(1, 2));
      scores.mul_(argument("scale").toDouble());
      // The last query stands at the last key.
      auto distance = at::arange(keys - rows, keys).unsqueeze(1) - at::arange(keys);
      if (right >= 0) scores.masked_fill_(distance.lt(-right), -INFINITY);
      if (left >= 0) scores.masked_fill_(distance.gt(left), -INFINITY);
      body(s, i[s], rows, j[s], keys, scores);
    }
  }
  void give(const std::vector<at::Tensor>& results) const {
    torch::jit::drop(stack, n);
    for (size_t r = 0; r < schema.returns().size(); ++r) {
      if (r >= results.size()) stack.emplace_back(at::Tensor());
      else stack.emplace_back(results[r].to(device, /*non_blocking=*/true));
    }
  }
};

void flashForward(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  FlashCall call(op, stack);
  auto q = call.wide("query");
  const int64_t heads = q.size(0), longest = call.argument("max_q").toInt();
  auto k = call.wide("key", heads), v = call.wide("value", heads);
  const bool padded = !call.argument("is_causal").toBool();
  auto out = at::zeros_like(q);
  auto lse = padded ? at::full({call.tensor("cum_seq_q").numel() - 1, heads, longest}, NAN)
                    : at::full({heads, q.size(1)}, NAN);
  call.segments(q, k, [&](int64_t s, int64_t i, int64_t rows, int64_t j, int64_t keys, const at::Tensor& scores) {
    auto sums = padded ? lse[s].narrow(1, 0, rows) : lse.narrow(1, i, rows);
    if (keys == 0) return void(sums.fill_(INFINITY));
    sums.copy_(scores.logsumexp(-1));
    out.narrow(1, i, rows).copy_((scores - sums.unsqueeze(-1)).exp().matmul(v.narrow(1, j, keys)));
  });
  call.give({out.transpose(0, 1).to(at::kBFloat16).contiguous(), lse});
}

void flashBackward(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  FlashCall call(op, stack);
  auto q = call.wide("query"), dOut = call.wide("grad_out"), out = call.wide("out");
  const int64_t heads = q.size(0), kvHeads = call.tensor("key").size(1), d = q.size(2);
  auto k = call.wide("key", heads), v = call.wide("value", heads), lse = call.tensor("logsumexp");
  auto dq = at::zeros_like(q), dk = at::zeros_like(k), dv = at::zeros_like(v);
  call.segments(q, k, [&](int64_t s, int64_t i, int64_t rows, int64_t j, int64_t keys, const at::Tensor& scores) {
    auto sums = lse.dim() == 3 ? lse[s].narrow(1, 0, rows) : lse.narrow(1, i, rows);
    auto p = (scores - sums.unsqueeze(-1)).exp();
    auto g = dOut.narrow(1, i, rows), o = out.narrow(1, i, rows);
    auto ds = p * (g.matmul(v.narrow(1, j, keys).transpose(1, 2)) - (g * o).sum(-1, true));
    ds.mul_(call.argument("scale").toDouble());
    dv.narrow(1, j, keys).copy_(p.transpose(1, 2).matmul(g));
    dq.narrow(1, i, rows).copy_(ds.matmul(k.narrow(1, j, keys)));
    dk.narrow(1, j, keys).copy_(ds.transpose(1, 2).matmul(q.narrow(1, i, rows)));
  });
  // What ATen's keeps meanwhile: the sum of dq, and dk and dv of every query's head.
  std::vector<at::Tensor> kept{at::empty({q.size(1), heads, d}, q.options().device(device))};
  for (int i = 0; i < 2 && kvHeads < heads; ++i)
    kept.push_back(at::empty({k.size(1), heads, d}, at::TensorOptions(at::kBFloat16).device(device)));
  // Summed over the queries' heads that read the same one of n.
  auto result = [&](const at::Tensor& t, int64_t n) {
    return t.view({n, heads / n, -1, d}).sum(1).transpose(0, 1).to(at::kBFloat16).contiguous();
  };
  call.give({result(dq, heads), result(dk, kvHeads), result(dv, kvHeads)});
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, ops) { ops.fallback(torch::CppFunction::makeFromBoxedFunction<&asOnCpu>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, ops) {
  ops.impl("empty.memory_format", &empty);
  ops.impl("empty_strided", &emptyStrided);
  ops.impl("_copy_from", &copy);
  ops.impl("_local_scalar_dense", &item);
  ops.impl("addmm.dtype_out", &addmm);
  ops.impl("_flash_attention_forward", torch::CppFunction::makeFromBoxedFunction<&flashForward>());
  ops.impl("_flash_attention_backward", torch::CppFunction::makeFromBoxedFunction<&flashBackward>());
}

}  // namespace

std::optional<Gpu> findGpu(std::string&) { return Gpu{"an emulated GPU", device, total, total - current}; }
void refuseWaits(bool refuse) { refused = refuse; }
MemoryStats gpuMemoryStats() { return {current, peak, 0}; }
void resetGpuMemoryPeaks() { peak = current.load(); }

}  // namespace wrpo
