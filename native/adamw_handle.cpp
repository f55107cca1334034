#include "adamw_handle.h"

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>

#include "arguments.h"
#include "model_handle.h"
#include "worker.h"

namespace wrpo {

Napi::Function AdamWHandle::define(Napi::Env env) {
  return DefineClass(env, "AdamW",
                     {
                         InstanceMethod("step", &AdamWHandle::step),
                         InstanceMethod("learningRateAt", &AdamWHandle::learningRateAt),
                         InstanceMethod("state", &AdamWHandle::state),
                         InstanceAccessor("completed", &AdamWHandle::completed, &AdamWHandle::setCompleted),
                         InstanceMethod("close", &AdamWHandle::close),
                     });
}

AdamWHandle::AdamWHandle(const Napi::CallbackInfo& info) : Napi::ObjectWrap<AdamWHandle>(info) {
  guarded(info.Env(), [&] {
    model_ = ModelHandle::of(info[0])->model();
    if (!info[1].IsObject()) fail("ERR_CONFIG", "AdamW: expected (model, options)");
    auto o = info[1].As<Napi::Object>();
    AdamWOptions options{number(o, "learningRate"),
                         number(o, "beta1"),
                         number(o, "beta2"),
                         number(o, "eps"),
                         number(o, "weightDecay"),
                         number(o, "maxGradNorm"),
                         int64_t(number(o, "warmupSteps")),
                         int64_t(number(o, "totalSteps")),
                         text(o, "schedule")};
    constexpr std::string_view known[] = {"cosine", "linear", "constant", "constant_with_warmup"};
    if (std::find(std::begin(known), std::end(known), options.schedule) == std::end(known))
      fail("ERR_CONFIG",
           "schedule \"" + options.schedule + "\": expected cosine, linear, constant or constant_with_warmup");
    c10::InferenceMode guard;
    adamw_ = std::make_shared<AdamW>(model_->requireTrained(), options);
  });
}

std::shared_ptr<AdamW> AdamWHandle::adamw() const {
  if (!adamw_) fail("ERR_CLOSED", "the optimizer was closed");
  return adamw_;
}

Napi::Value AdamWHandle::step(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return engine(info.Env())
        .run(
            info.Env(), Value(),
            [a = adamw(), m = model_] {
              if (m->trained() != a->trained())
                fail("ERR_CONFIG", "adapters came or went after this optimizer was made: make another");
              return a->step();
            },
            [](Napi::Env env, const AdamW::Step& s) -> Napi::Value {
              auto o = Napi::Object::New(env);
              o.Set("gradNorm", s.gradNorm);
              o.Set("learningRate", s.learningRate);
              return o;
            });
  });
}

Napi::Value AdamWHandle::learningRateAt(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return Napi::Number::New(info.Env(), AdamW::learningRateAt(adamw()->options, info[0].ToNumber().Int64Value()));
  });
}

Napi::Value AdamWHandle::state(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto a = adamw();
    auto o = Napi::Object::New(info.Env());
    o.Set("m", namedViews(info.Env(), *a->trained(), {a->m, {}}));
    o.Set("v", namedViews(info.Env(), *a->trained(), {a->v, {}}));
    return o;
  });
}

Napi::Value AdamWHandle::completed(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return Napi::Number::New(info.Env(), double(adamw()->completed)); });
}

void AdamWHandle::setCompleted(const Napi::CallbackInfo& info, const Napi::Value& value) {
  guarded(info.Env(), [&] { adamw()->completed = value.ToNumber().Int64Value(); });
}

Napi::Value AdamWHandle::close(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    // The model as well: closed, it must not live on for an optimizer that JavaScript has not collected yet.
    auto held = std::make_pair(std::move(adamw_), std::move(model_));
    return engine(info.Env())
        .run(info.Env(), Value(), [held = std::move(held)]() mutable { return held = {}, 0; }, nothing);
  });
}

}  // namespace wrpo
