#include "model_handle.h"

#include <cmath>
#include <cstdio>
#include <optional>

#include "arguments.h"
#include "tensor.h"
#include "worker.h"

namespace wrpo {
namespace {

void requireIdle(Napi::Env env, const char* what) {
  if (engine(env).pending() > 0)
    fail("ERR_CLOSED", std::string(what) + " is not available while calls are queued: await them first");
}

}  // namespace

Napi::Value namedViews(Napi::Env env, const Parameters& all, const Stored& flat) {
  auto list = Napi::Array::New(env);
  for (const auto& p : all.parameters()) {
    auto entry = Napi::Object::New(env);
    entry.Set("name", p.name);
    entry.Set("tensor", TensorHandle::wrap(env, all.slice(flat, p)));
    list.Set(list.Length(), entry);
  }
  return list;
}

Napi::Function ModelHandle::define(Napi::Env env) {
  return DefineClass(env, "Model",
                     {
                         InstanceMethod("initialize", &ModelHandle::initialize),
                         InstanceMethod("logProbs", &ModelHandle::logProbs),
                         InstanceMethod("accumulate", &ModelHandle::accumulate),
                         InstanceMethod("enqueue", &ModelHandle::enqueue),
                         InstanceMethod("score", &ModelHandle::score),
                         InstanceMethod("addAdapters", &ModelHandle::addAdapters),
                         InstanceMethod("mergeAdapters", &ModelHandle::mergeAdapters),
                         InstanceMethod("parameters", &ModelHandle::parameters),
                         InstanceMethod("adapters", &ModelHandle::adapters),
                         InstanceMethod("gradients", &ModelHandle::gradients),
                         InstanceMethod("zeroGradients", &ModelHandle::zeroGradients),
                         InstanceMethod("syncWork", &ModelHandle::syncWork),
                         InstanceMethod("fingerprint", &ModelHandle::fingerprint),
                         InstanceMethod("close", &ModelHandle::close),
                     });
}

ModelHandle::ModelHandle(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ModelHandle>(info) {
  guarded(info.Env(), [&] {
    if (!info[0].IsObject() || !info[1].IsObject()) fail("ERR_CONFIG", "Model: expected (config, options)");
    auto options = info[1].As<Napi::Object>();
    auto dtype = parseDtype(options.Get("dtype"));
    if (dtype != at::kFloat && dtype != at::kDouble && dtype != at::kBFloat16)
      fail("ERR_CONFIG", "dtype: expected float32, float64 or bfloat16");
    c10::InferenceMode guard;
    auto use = flag(options, "frozen") ? Weights::Use::Frozen : Weights::Use::Trained;
    model_ = std::make_shared<Model>(parseConfig(info[0].As<Napi::Object>()), dtype, use,
                                     int64_t(number(options, "headChunkBytes")),
                                     parseDevice(options.Has("device") ? text(options, "device") : "cpu"));
  });
}

std::shared_ptr<Model> ModelHandle::model() const {
  if (!model_) fail("ERR_CLOSED", "the model was closed");
  if (model_->changing) fail("ERR_CLOSED", "the model's adapters are being added or merged: await that first");
  return model_;
}

ModelHandle* ModelHandle::of(Napi::Value value) {
  if (!value.IsObject() || !value.As<Napi::Object>().InstanceOf(environment(value.Env()).model.Value()))
    fail("ERR_CONFIG", "expected a Model");
  return Unwrap(value.As<Napi::Object>());
}

Napi::Value ModelHandle::initialize(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto seed = uint64_t(info[0].ToNumber().DoubleValue());
    return engine(info.Env())
        .run(info.Env(), Value(), [m = model(), seed] { return m->weights().initialize(seed), 0; }, nothing);
  });
}

Napi::Value ModelHandle::logProbs(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto batch = std::make_shared<Batch>(parseBatch(info[0]));
    bool perToken = flag(info[1], "perToken"), greedy = flag(info[1], "greedy");
    auto use = parseAdapterUse(info[1]);
    return engine(info.Env())
        .run(
            info.Env(), Value(),
            [m = model(), batch, use, perToken, greedy] { return m->logProbs(*batch, use, perToken, greedy); },
            [perToken, greedy](Napi::Env env, const LogProbs& r) -> Napi::Value {
              auto o = Napi::Object::New(env);
              o.Set("sums", toJs(env, r.sums));
              o.Set("counts", toJs(env, r.counts));
              if (perToken) o.Set("perToken", toJs(env, r.perToken));
              if (greedy) o.Set("greedy", toJs(env, r.argmax));
              return o;
            },
            Turn::Reading);
  });
}

namespace {

Napi::Value accumulatedToJs(Napi::Env env, const Accumulated& r) {
  auto o = Napi::Object::New(env);
  o.Set("loss", r.loss);
  o.Set("logps", toJs(env, r.logps));
  o.Set("counts", toJs(env, r.counts));
  o.Set("losses", toJs(env, r.losses));
  o.Set("margins", toJs(env, r.margins));
  return o;
}

}  // namespace

std::function<std::function<Accumulated()>()> ModelHandle::microbatch(const Napi::CallbackInfo& info) {
  auto batch = std::make_shared<Batch>(parseBatch(info[0]));
  if (!info[1].IsObject()) fail("ERR_CONFIG", "accumulate: expected {objective, normalizer}");
  auto options = info[1].As<Napi::Object>();
  Objective objective = parseObjective(options.Get("objective").As<Napi::Object>());
  auto use = parseAdapterUse(options);
  double normalizer = number(options, "normalizer");
  if (!(normalizer > 0)) fail("ERR_CONFIG", "accumulate: normalizer must be positive");
  double kept = options.Has("keptLayers") ? number(options, "keptLayers") : 1e9;
  if (!(kept >= 1 && kept <= 1e9 && kept == std::floor(kept)))
    fail("ERR_CONFIG", "accumulate: keptLayers must be a positive whole number");
  return [m = model(), batch, use, objective, normalizer, kept] {
    return m->accumulate(*batch, use, objective, normalizer, int64_t(kept));
  };
}

Napi::Value ModelHandle::accumulate(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto work = [begin = microbatch(info)] { return begin()(); };
    return engine(info.Env()).run(info.Env(), Value(), work, accumulatedToJs, Turn::Reading);
  });
}

Napi::Value ModelHandle::enqueue(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto readLater = [](Napi::Env env, const std::function<Accumulated()>& read) -> Napi::Value {
      auto queueRead = [read](const Napi::CallbackInfo& call) -> Napi::Value {
        return engine(call.Env()).run(call.Env(), {}, read, accumulatedToJs, Turn::Reading);
      };
      return Napi::Function::New(env, queueRead, "read");
    };
    return engine(info.Env()).run(info.Env(), Value(), microbatch(info), readLater, Turn::Reading);
  });
}

Napi::Value ModelHandle::score(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto batch = std::make_shared<Batch>(parseBatch(info[0]));
    return engine(info.Env())
        .run(
            info.Env(), Value(), [m = model(), batch] { return m->score(*batch); },
            [](Napi::Env env, const Scores& r) -> Napi::Value {
              auto o = Napi::Object::New(env);
              o.Set("scores", toJs(env, r.scores));
              o.Set("rewards", toJs(env, r.rewards));
              o.Set("gates", toJs(env, r.gates));
              return o;
            },
            Turn::Reading);
  });
}

template <class Body>
Napi::Value ModelHandle::change(Napi::Env env, Body body) {
  auto m = model();
  m->changing = true;
  return engine(env).run(
      env, Value(),
      [m, body = std::move(body)]() -> std::optional<Failure> {
        try {
          body(*m);
        } catch (...) {
          return currentFailure();
        }
        return std::nullopt;
      },
      [m](Napi::Env env, const std::optional<Failure>& failure) -> Napi::Value {
        m->changing = false;
        if (failure) throw toJsError(env, *failure);
        return env.Undefined();
      });
}

Napi::Value ModelHandle::addAdapters(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    if (!info[0].IsObject()) fail("ERR_CONFIG", "addAdapters: expected (shape, seed)");
    auto shape = parseLora(info[0].As<Napi::Object>());
    auto seed = uint64_t(info[1].ToNumber().Int64Value());
    return change(info.Env(), [shape, seed](Model& m) { m.addAdapters(shape, seed); });
  });
}

Napi::Value ModelHandle::mergeAdapters(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return change(info.Env(), [](Model& m) { m.mergeAdapters(); }); });
}

Napi::Value ModelHandle::parameters(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    // `queued`: only to be handed back to the addon, which takes its turn.
    if (!flag(info[0], "queued")) requireIdle(info.Env(), "parameters()");
    auto m = model();
    return namedViews(info.Env(), m->weights(),
                      flag(info[0], "master") ? m->weights().masters() : Stored{m->weights().work, {}});
  });
}

Napi::Value ModelHandle::adapters(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    if (!flag(info[0], "queued")) requireIdle(info.Env(), "adapters()");
    auto m = model();
    if (!m->adapters()) return Napi::Array::New(info.Env());
    return namedViews(info.Env(), *m->adapters(),
                      flag(info[0], "master") ? m->adapters()->masters() : Stored{m->adapters()->work, {}});
  });
}

Napi::Value ModelHandle::gradients(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    requireIdle(info.Env(), "gradients()");
    c10::InferenceMode guard;
    auto trained = model()->requireTrained();
    return namedViews(info.Env(), *trained, {trained->grad(), {}});
  });
}

Napi::Value ModelHandle::zeroGradients(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return engine(info.Env())
        .run(
            info.Env(), Value(),
            [m = model()] {
              if (m->trained()->hasGrad()) m->trained()->grad().zero_();
              return 0;
            },
            nothing);
  });
}

Napi::Value ModelHandle::syncWork(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return engine(info.Env()).run(info.Env(), Value(), [m = model()] { return m->trained()->syncWork(), 0; }, nothing);
  });
}

Napi::Value ModelHandle::fingerprint(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return engine(info.Env())
        .run(
            info.Env(), Value(), [m = model(), use = parseAdapterUse(info[0])] { return m->fingerprint(use.enabled); },
            [](Napi::Env env, uint64_t hash) -> Napi::Value {
              char hex[17];
              std::snprintf(hex, sizeof(hex), "%016llx", static_cast<unsigned long long>(hash));
              return Napi::String::New(env, hex);
            });
  });
}

Napi::Value ModelHandle::close(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    // Behind everything that is queued; the memory goes with the last job that uses it.
    auto m = std::move(model_);
    return engine(info.Env()).run(info.Env(), Value(), [m = std::move(m)]() mutable { return m.reset(), 0; }, nothing);
  });
}

}  // namespace wrpo
