// The Tensor that JavaScript sees (declared in lib/native/addon.ts). libtorch owns the memory; view() is a typed array
// over it.
#pragma once
#include <ATen/core/Tensor.h>
#include <napi.h>

#include <utility>

#include "device.h"

namespace wrpo {

class TensorHandle : public Napi::ObjectWrap<TensorHandle> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Object wrap(Napi::Env env, const Stored& values);
  static Napi::Object wrap(Napi::Env env, at::Tensor tensor) { return wrap(env, Stored{std::move(tensor), {}}); }
  // The tensor of a Tensor object; `name` is used in the error when the value is something else or was disposed.
  static at::Tensor unwrap(Napi::Value value, const char* name) { return stored(value, name).tensor; }
  // The same for values that may be in halves.
  static Stored stored(Napi::Value value, const char* name);

  explicit TensorHandle(const Napi::CallbackInfo& info);
  ~TensorHandle() override { forget(); }

 private:
  static Napi::Value empty(const Napi::CallbackInfo& info);
  static Napi::Value from(const Napi::CallbackInfo& info);
  Napi::Value shape(const Napi::CallbackInfo& info);
  Napi::Value dtype(const Napi::CallbackInfo& info);
  Napi::Value device(const Napi::CallbackInfo& info);
  Napi::Value view(const Napi::CallbackInfo& info);
  Napi::Value toHost(const Napi::CallbackInfo& info);
  Napi::Value to(const Napi::CallbackInfo& info);
  Napi::Value rows(const Napi::CallbackInfo& info);
  Napi::Value dispose(const Napi::CallbackInfo& info);

  void forget();

  Stored values_;
  // What V8 was told of: a tensor of its own, not a view of a model's. Without it gigabytes would wait for a collector
  // that sees only small objects.
  int64_t reported_ = 0;
};

at::ScalarType parseDtype(Napi::Value value);
const char* dtypeName(at::ScalarType type);

}  // namespace wrpo
