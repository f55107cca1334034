// AdamW as JavaScript sees it (declared in lib/native/addon.ts).
#pragma once
#include <napi.h>

#include <memory>

#include "model/model.h"
#include "train/adamw.h"

namespace wrpo {

class AdamWHandle : public Napi::ObjectWrap<AdamWHandle> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit AdamWHandle(const Napi::CallbackInfo& info);

 private:
  Napi::Value step(const Napi::CallbackInfo& info);
  Napi::Value learningRateAt(const Napi::CallbackInfo& info);
  Napi::Value state(const Napi::CallbackInfo& info);
  Napi::Value completed(const Napi::CallbackInfo& info);
  void setCompleted(const Napi::CallbackInfo& info, const Napi::Value& value);
  Napi::Value close(const Napi::CallbackInfo& info);

  std::shared_ptr<AdamW> adamw() const;
  std::shared_ptr<Model> model_;  // owns the weights the optimiser points into
  std::shared_ptr<AdamW> adamw_;
};

}  // namespace wrpo
