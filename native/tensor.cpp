#include "tensor.h"

#include <ATen/ops/empty.h>

#include <atomic>
#include <map>
#include <utility>

#include "worker.h"

namespace wrpo {
namespace {

struct DtypeRow {
  const char* name;
  at::ScalarType type;
  napi_typedarray_type array;
};
// The 16-bit floats have no typed array: their bits are shown as Uint16Array.
constexpr DtypeRow dtypes[] = {
    {"float32", at::kFloat, napi_float32_array},    {"float64", at::kDouble, napi_float64_array},
    {"bfloat16", at::kBFloat16, napi_uint16_array}, {"int32", at::kInt, napi_int32_array},
    {"float16", at::kHalf, napi_uint16_array},      {"int64", at::kLong, napi_bigint64_array},
    {"uint8", at::kByte, napi_uint8_array},
};

const DtypeRow& row(at::ScalarType type) {
  for (const auto& r : dtypes)
    if (r.type == type) return r;
  fail("ERR_INTERNAL", std::string("dtype ") + c10::toString(type) + " has no JavaScript counterpart");
}

// V8 must never see two ArrayBuffers over the same memory: one per storage and environment, found again while it lives.
// Its finalizer may run after the memory was freed and given to another tensor, hence the ids.
struct LiveBuffer {
  Napi::Reference<Napi::ArrayBuffer> buffer;
  uint64_t id;
};
std::map<std::pair<napi_env, void*>, LiveBuffer>& liveBuffers() {
  static thread_local std::map<std::pair<napi_env, void*>, LiveBuffer> buffers;
  return buffers;
}

Napi::ArrayBuffer storageBuffer(Napi::Env env, const at::Tensor& t) {
  static std::atomic<uint64_t> nextId{0};
  void* memory = t.storage().mutable_data();
  auto key = std::make_pair(napi_env(env), memory);
  auto found = liveBuffers().find(key);
  if (found != liveBuffers().end()) {
    auto buffer = found->second.buffer.Value();
    if (!buffer.IsEmpty()) return buffer;
    found->second.buffer.Reset();
    liveBuffers().erase(found);
  }
  struct Owner {
    at::Tensor tensor;  // keeps the storage alive as long as JavaScript can see it
    std::pair<napi_env, void*> key;
    uint64_t id;
  };
  auto* owner = new Owner{t, key, ++nextId};
  auto buffer = Napi::ArrayBuffer::New(
      env, memory, t.storage().nbytes(),
      [](Napi::Env, void*, Owner* owner) {
        auto live = liveBuffers().find(owner->key);
        if (live != liveBuffers().end() && live->second.id == owner->id) {
          live->second.buffer.Reset();
          liveBuffers().erase(live);
        }
        delete owner;
      },
      owner);
  auto& live = liveBuffers()[key];
  live.buffer = Napi::Reference<Napi::ArrayBuffer>::New(buffer, 0);
  live.buffer.SuppressDestruct();
  live.id = owner->id;
  return buffer;
}

std::vector<int64_t> parseShape(Napi::Value value) {
  if (!value.IsArray()) fail("ERR_CONFIG", "a tensor's shape must be an array of whole numbers");
  auto array = value.As<Napi::Array>();
  std::vector<int64_t> shape;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    Napi::Value size = array.Get(i);
    double n = size.IsNumber() ? size.As<Napi::Number>().DoubleValue() : -1;
    if (!(n >= 0 && n <= 9e15 && n == std::floor(n)))
      fail("ERR_CONFIG", "a tensor's shape must be an array of whole numbers");
    shape.push_back(int64_t(n));
  }
  return shape;
}

at::Device deviceOf(Napi::Value options) {
  if (!options.IsObject()) return at::kCPU;
  Napi::Value device = options.As<Napi::Object>().Get("device");
  return device.IsString() ? parseDevice(device.As<Napi::String>().Utf8Value()) : at::kCPU;
}

at::Tensor fromTypedArray(Napi::TypedArray array, std::vector<int64_t> shape, std::optional<at::ScalarType> type) {
  if (!type)
    for (const auto& r : dtypes)
      if (r.array == array.TypedArrayType() && r.array != napi_uint16_array) type = r.type;
  if (!type)
    fail("ERR_CONFIG",
         "Tensor.from: expected a Float32Array, Float64Array, Int32Array, BigInt64Array, Uint8Array, or a "
         "Uint16Array with dtype \"bfloat16\"");
  if (row(*type).array != array.TypedArrayType())
    fail("ERR_CONFIG", std::string("Tensor.from: dtype ") + dtypeName(*type) + " does not match the typed array");
  auto tensor = at::empty(shape, *type);
  if (size_t(tensor.numel()) != array.ElementLength())
    fail("ERR_CONFIG", "Tensor.from: the shape holds " + std::to_string(tensor.numel()) + " values, the array has " +
                           std::to_string(array.ElementLength()));
  if (tensor.numel() > 0)
    std::memcpy(tensor.data_ptr(), static_cast<char*>(array.ArrayBuffer().Data()) + array.ByteOffset(),
                tensor.nbytes());
  return tensor;
}

}  // namespace

Napi::Function TensorHandle::define(Napi::Env env) {
  return DefineClass(env, "Tensor",
                     {
                         StaticMethod("empty", &TensorHandle::empty),
                         StaticMethod("from", &TensorHandle::from),
                         InstanceAccessor("shape", &TensorHandle::shape, nullptr),
                         InstanceAccessor("dtype", &TensorHandle::dtype, nullptr),
                         InstanceAccessor("device", &TensorHandle::device, nullptr),
                         InstanceMethod("view", &TensorHandle::view),
                         InstanceMethod("toHost", &TensorHandle::toHost),
                         InstanceMethod("to", &TensorHandle::to),
                         InstanceMethod("rows", &TensorHandle::rows),
                         InstanceMethod("dispose", &TensorHandle::dispose),
                     });
}

TensorHandle::TensorHandle(const Napi::CallbackInfo& info) : Napi::ObjectWrap<TensorHandle>(info) {
  if (!info[0].IsExternal())
    throw toJsError(info.Env(), {"ERR_CONFIG", "use Tensor.empty(shape) or Tensor.from(typedArray, shape)"});
  values_ = *info[0].As<Napi::External<Stored>>().Data();
  const at::Tensor& t = values_.tensor;
  if (t.is_cpu() && t.nbytes() == t.storage().nbytes()) reported_ = int64_t(t.nbytes());
  int64_t total;
  napi_adjust_external_memory(info.Env(), reported_, &total);
}

void TensorHandle::forget() {
  int64_t total;
  napi_adjust_external_memory(Env(), -std::exchange(reported_, 0), &total);
  values_ = {};
}

Napi::Object TensorHandle::wrap(Napi::Env env, const Stored& values) {
  return environment(env).tensor.New({Napi::External<Stored>::New(env, const_cast<Stored*>(&values))});
}

Stored TensorHandle::stored(Napi::Value value, const char* name) {
  Napi::Env env = value.Env();
  if (!value.IsObject() || !value.As<Napi::Object>().InstanceOf(environment(env).tensor.Value()))
    fail("ERR_CONFIG", std::string("expected a Tensor for ") + name);
  auto* handle = Unwrap(value.As<Napi::Object>());
  if (!handle->values_.tensor.defined()) fail("ERR_CLOSED", std::string(name) + " was disposed");
  return handle->values_;
}

Napi::Value TensorHandle::empty(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto device = deviceOf(info[1]);
    auto type = info[1].IsObject() ? parseDtype(info[1].As<Napi::Object>().Get("dtype")) : at::kFloat;
    return wrap(info.Env(), at::empty(parseShape(info[0]), at::TensorOptions(type).device(device)));
  });
}

Napi::Value TensorHandle::from(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    if (!info[0].IsTypedArray()) fail("ERR_CONFIG", "Tensor.from: expected a typed array");
    auto device = deviceOf(info[2]);
    std::optional<at::ScalarType> type;
    if (info[2].IsObject() && !info[2].As<Napi::Object>().Get("dtype").IsUndefined())
      type = parseDtype(info[2].As<Napi::Object>().Get("dtype"));
    return wrap(info.Env(), fromTypedArray(info[0].As<Napi::TypedArray>(), parseShape(info[1]), type).to(device));
  });
}

Napi::Value TensorHandle::shape(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto t = unwrap(info.This(), "this Tensor");
    auto array = Napi::Array::New(info.Env(), t.dim());
    for (int64_t i = 0; i < t.dim(); ++i) array.Set(uint32_t(i), Napi::Number::New(info.Env(), double(t.size(i))));
    return array;
  });
}

Napi::Value TensorHandle::dtype(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto t = stored(info.This(), "this Tensor");
    return Napi::String::New(info.Env(), dtypeName(t.low.defined() ? at::kFloat : t.tensor.scalar_type()));
  });
}

Napi::Value TensorHandle::device(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return Napi::String::New(info.Env(), unwrap(info.This(), "this Tensor").is_cpu() ? "cpu" : "cuda");
  });
}

Napi::Value TensorHandle::view(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    Napi::Env env = info.Env();
    auto t = unwrap(info.This(), "this Tensor");
    if (!t.is_cpu()) fail("ERR_DEVICE", "a tensor of a GPU has no view: toHost() copies its values");
    if (!t.is_contiguous()) fail("ERR_INTERNAL", "only a contiguous tensor has a view");
    auto buffer = t.numel() > 0 ? storageBuffer(env, t) : Napi::ArrayBuffer::New(env, 0);
    size_t offset = t.numel() > 0 ? t.storage_offset() * t.element_size() : 0;
    napi_value result;
    if (napi_create_typedarray(env, row(t.scalar_type()).array, t.numel(), buffer, offset, &result) != napi_ok)
      fail("ERR_INTERNAL", "this JavaScript runtime does not allow views of native memory; use toHost()");
    return Napi::Value(env, result);
  });
}

Napi::Value TensorHandle::toHost(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    Napi::Env env = info.Env();
    auto t = stored(info.This(), "this Tensor").host().contiguous();
    auto buffer = Napi::ArrayBuffer::New(env, t.nbytes());
    if (t.nbytes() > 0) std::memcpy(buffer.Data(), t.data_ptr(), t.nbytes());
    napi_value result;
    napi_create_typedarray(env, row(t.scalar_type()).array, t.numel(), buffer, 0, &result);
    return Napi::Value(env, result);
  });
}

Napi::Value TensorHandle::to(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    auto options = Napi::Object::New(info.Env());
    options.Set("device", info[0]);
    auto device = deviceOf(options);
    auto values = stored(info.This(), "this Tensor");
    if (values.tensor.device().type() == device.type()) return info.This();
    return Napi::Value(wrap(info.Env(), values.host().to(device)));
  });
}

Napi::Value TensorHandle::rows(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto values = stored(info.This(), "this Tensor");
    const at::Tensor& t = values.tensor;
    auto first = info[0].ToNumber().Int64Value(), count = info[1].ToNumber().Int64Value();
    if (t.dim() == 0 || first < 0 || count < 0 || first + count > t.size(0))
      fail("ERR_CONFIG", "rows: expected a range within the " + std::to_string(t.dim() == 0 ? 0 : t.size(0)) + " rows");
    return wrap(info.Env(), values.narrow(first, count));
  });
}

Napi::Value TensorHandle::dispose(const Napi::CallbackInfo& info) {
  forget();
  return info.Env().Undefined();
}

at::ScalarType parseDtype(Napi::Value value) {
  if (value.IsUndefined()) return at::kFloat;
  std::string name = value.IsString() ? value.As<Napi::String>().Utf8Value() : "";
  for (const auto& r : dtypes)
    if (name == r.name) return r.type;
  fail("ERR_CONFIG", "dtype \"" + name + "\": expected float32, float64, bfloat16, int32, int64 or uint8");
}

const char* dtypeName(at::ScalarType type) { return row(type).name; }

}  // namespace wrpo
