#include "generator_handle.h"

#include "arguments.h"
#include "model_handle.h"
#include "tensor.h"
#include "worker.h"

namespace wrpo {
namespace {

// A whole number that fits; another is out of every range that the generator checks.
int64_t whole(Napi::Object o, const char* key) {
  double n = number(o, key);
  return n == std::floor(n) && std::abs(n) < 0x1p53 ? int64_t(n) : -1;
}

}  // namespace

Napi::Function GeneratorHandle::define(Napi::Env env) {
  return DefineClass(env, "Generator",
                     {
                         InstanceMethod("add", &GeneratorHandle::add),
                         InstanceMethod("advance", &GeneratorHandle::advance),
                         InstanceMethod("cancel", &GeneratorHandle::cancel),
                         InstanceMethod("close", &GeneratorHandle::close),
                     });
}

GeneratorHandle::GeneratorHandle(const Napi::CallbackInfo& info) : Napi::ObjectWrap<GeneratorHandle>(info) {
  guarded(info.Env(), [&] {
    model_ = ModelHandle::of(info[0])->model();
    if (!info[1].IsObject()) fail("ERR_CONFIG", "Generator: expected (model, options)");
    auto o = info[1].As<Napi::Object>();
    GeneratorOptions options{{number(o, "temperature"), number(o, "topP"), number(o, "minP"),
                              number(o, "repetitionPenalty"), whole(o, "topK")},
                             whole(o, "maxTokens"),
                             numbers<int32_t>(o, "stopIds"),
                             o.Get("logProbs").ToBoolean(),
                             whole(o, "maxSequences")};
    generator_ = std::make_shared<Generator>(model_, options);
  });
}

std::shared_ptr<Generator> GeneratorHandle::generator() const {
  if (!generator_) fail("ERR_CLOSED", "the generator was closed");
  if (model_->changing) fail("ERR_CLOSED", "the model's adapters are being added or merged: await that first");
  return generator_;
}

Napi::Value GeneratorHandle::add(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto o = info[0].As<Napi::Object>();
    auto request = std::make_shared<GenerationRequest>();
    request->prompt = numbers<int32_t>(o, "prompt");
    request->ids = numbers<int32_t>(o, "ids");
    for (double seed : numbers<double>(o, "seeds")) request->seeds.push_back(uint64_t(seed));
    return engine(info.Env())
        .run(
            info.Env(), Value(), [g = generator(), request] { return g->add(std::move(*request)), 0; }, nothing,
            Turn::Reading);
  });
}

Napi::Value GeneratorHandle::advance(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto rows = info[0].ToNumber().Int64Value();
    return engine(info.Env())
        .run(
            info.Env(), Value(), [g = generator(), rows] { return g->advance(rows); },
            [](Napi::Env env, const Generated& r) -> Napi::Value {
              auto o = Napi::Object::New(env);
              o.Set("ids", toJs(env, r.ids));
              o.Set("tokens", toJs(env, r.tokens));
              o.Set("finishes", toJs(env, r.finishes));
              if (!r.logProbs.empty()) o.Set("logProbs", toJs(env, r.logProbs));
              o.Set("rows", double(r.rows));
              return o;
            },
            Turn::Reading);
  });
}

Napi::Value GeneratorHandle::cancel(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto ids = numbers<int32_t>(info[0].As<Napi::Object>(), "ids");
    return engine(info.Env()).run(info.Env(), Value(), [g = generator(), ids] { return g->cancel(ids), 0; }, nothing);
  });
}

Napi::Value GeneratorHandle::close(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    // The model as well, which must not live on for a generator that JavaScript has not collected yet.
    auto held = std::make_pair(std::move(generator_), std::move(model_));
    return engine(info.Env())
        .run(info.Env(), Value(), [held = std::move(held)]() mutable { return held = {}, 0; }, nothing);
  });
}

}  // namespace wrpo
