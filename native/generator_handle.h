// Generator as JavaScript sees it (declared in lib/native/addon.ts).
#pragma once
#include <napi.h>

#include <memory>

#include "model/generator.h"

namespace wrpo {

class GeneratorHandle : public Napi::ObjectWrap<GeneratorHandle> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit GeneratorHandle(const Napi::CallbackInfo& info);

 private:
  Napi::Value add(const Napi::CallbackInfo& info);
  Napi::Value advance(const Napi::CallbackInfo& info);
  Napi::Value cancel(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info);

  // Throws ERR_CLOSED after close(), and while the model's adapters come or go.
  std::shared_ptr<Generator> generator() const;
  std::shared_ptr<Model> model_;
  std::shared_ptr<Generator> generator_;
};

}  // namespace wrpo
