#include "handles.h"

#include <algorithm>
#include <string_view>

#include "kernels/kernels.h"
#include "tensor.h"
#include "worker.h"

namespace wrpo {
namespace {

ModelConfig parseConfig(Napi::Object o) {
  auto wholeOf = [](Napi::Object from, const char* key) {
    double n = number(from, key);
    if (!(n >= 1 && n <= 1e12 && n == std::floor(n)))
      fail("ERR_MODEL", std::string(key) + " must be a positive whole number");
    return int64_t(n);
  };
  auto whole = [&](const char* key) { return wholeOf(o, key); };
  auto yes = [&](const char* key) { return bool(o.Get(key).ToBoolean()); };
  auto rope = [](Napi::Object r) -> RopeSettings {
    return {text(r, "type"),
            int64_t(number(r, "dim")),
            number(r, "theta"),
            number(r, "factor"),
            number(r, "attentionFactor"),
            number(r, "originalMaxPosition"),
            number(r, "lowFrequencyFactor"),
            number(r, "highFrequencyFactor"),
            number(r, "rampLow"),
            number(r, "rampHigh"),
            numbers<double>(r, "shortFactors"),
            numbers<double>(r, "longFactors")};
  };
  ModelConfig c{.vocabSize = whole("vocabSize"),
                .hiddenSize = whole("hiddenSize"),
                .layers = whole("layers"),
                .heads = whole("heads"),
                .kvHeads = whole("kvHeads"),
                .headDim = whole("headDim"),
                .intermediateSize = whole("intermediateSize"),
                .maxPositions = whole("maxPositions"),
                .rmsNormEps = number(o, "rmsNormEps"),
                .initializerRange = number(o, "initializerRange"),
                .tieWordEmbeddings = yes("tieWordEmbeddings"),
                .qkvBias = yes("qkvBias"),
                .headNorm = yes("headNorm"),
                .branchNorms = yes("branchNorms"),
                .fusedProjections = yes("fusedProjections"),
                .normPlus = number(o, "normPlus"),
                .activation = text(o, "activation") == "silu" ? Activation::Silu : Activation::GeluTanh,
                .embeddingScale = number(o, "embeddingScale"),
                .queryScale = number(o, "queryScale"),
                .attentionSoftcap = number(o, "attentionSoftcap"),
                .finalSoftcap = number(o, "finalSoftcap"),
                .windows = {},
                .rope = rope(o.Get("rope").As<Napi::Object>()),
                .localRope = {}};
  if (o.Get("localRope").IsObject()) c.localRope = rope(o.Get("localRope").As<Napi::Object>());
  for (int32_t w : numbers<int32_t>(o, "windows")) c.windows.push_back(w);
  if (int64_t(c.windows.size()) != c.layers || *std::min_element(c.windows.begin(), c.windows.end()) < 0)
    fail("ERR_MODEL", "windows must hold a number for every layer, 0 for none");
  if (c.heads % c.kvHeads != 0) fail("ERR_MODEL", "heads must be a multiple of kvHeads");
  for (const RopeSettings& r : {c.rope, c.localRope}) {
    if (r.dim < 0 || r.dim % 2 != 0 || r.dim > c.headDim)
      fail("ERR_MODEL", "a rope dim must be even and within headDim");
    for (const auto& factors : {r.shortFactors, r.longFactors})
      if (r.type == "longrope" && int64_t(factors.size()) != r.dim / 2)
        fail("ERR_MODEL", "longrope needs a factor for every pair of its dim");
  }
  if (c.rope.dim == 0) fail("ERR_MODEL", "a rope dim must be positive");
  if (o.Get("rewardHead").IsObject()) {
    auto head = o.Get("rewardHead").As<Napi::Object>();
    c.reward = {wholeOf(head, "objectives"), wholeOf(head, "gatingHidden"), wholeOf(head, "gatingLayers"),
                number(head, "temperature")};
  }
  return c;
}

Batch parseBatch(Napi::Value value) {
  if (!value.IsObject()) fail("ERR_CONFIG", "expected a packed batch");
  auto o = value.As<Napi::Object>();
  auto ints = [&](const char* key) { return numbers<int32_t>(o, key); };
  auto doubles = [&](const char* key) { return numbers<double>(o, key); };
  return {ints("tokens"),
          ints("positions"),
          ints("targets"),
          ints("promptOffsets"),
          ints("responseOffsets"),
          ints("groupOffsets"),
          ints("contestGroups"),
          ints("contestOffsets"),
          ints("contestResponses"),
          doubles("contestCoefficients"),
          doubles("contestWeights"),
          doubles("reference"),
          nullptr};
}

bool flag(Napi::Value options, const char* key) {
  return options.IsObject() && options.As<Napi::Object>().Get(key).ToBoolean();
}

Engine& engine(Napi::Env env) { return *environment(env).engine; }

void requireIdle(Napi::Env env, const char* what) {
  if (engine(env).pending() > 0)
    fail("ERR_CLOSED", std::string(what) + " is not available while calls are queued: await them first");
}

// The adapters' part in a call, of its options.
AdapterUse parseAdapterUse(Napi::Value value) {
  AdapterUse use;
  if (!value.IsObject()) return use;
  auto options = value.As<Napi::Object>();
  if (options.Get("adapters").IsBoolean()) use.enabled = options.Get("adapters").ToBoolean();
  if (options.Get("dropout").IsObject()) {
    auto o = options.Get("dropout").As<Napi::Object>();
    use.dropout = DropoutDraw{int64_t(number(o, "seed")), int64_t(number(o, "step")), int64_t(number(o, "firstRow"))};
  }
  return use;
}

LoraShape parseLora(Napi::Object o) {
  LoraShape shape{int64_t(number(o, "rank")), number(o, "scale"), number(o, "dropout"), {}};
  if (shape.rank < 1 || shape.rank > (1 << 20)) fail("ERR_CONFIG", "rank must be a positive whole number");
  if (!(shape.dropout >= 0 && shape.dropout < 1)) fail("ERR_CONFIG", "dropout must be at least 0 and below 1");
  auto modules = o.Get("modules").As<Napi::Array>();
  for (uint32_t i = 0; i < modules.Length(); ++i) shape.modules.push_back(modules.Get(i).ToString());
  return shape;
}

// Named views of a flat buffer.
template <class Flat>
Napi::Value namedViews(Napi::Env env, const Parameters& all, const Flat& flat) {
  auto list = Napi::Array::New(env);
  for (const auto& p : all.parameters()) {
    auto entry = Napi::Object::New(env);
    entry.Set("name", p.name);
    entry.Set("tensor", TensorHandle::wrap(env, all.slice(flat, p)));
    list.Set(list.Length(), entry);
  }
  return list;
}

constexpr auto nothing = [](Napi::Env env, int) -> Napi::Value { return env.Undefined(); };

}  // namespace

Objective parseObjective(Napi::Object o) {
  Objective objective;
  std::string form = text(o, "form");
  if (form == "sigmoid") objective.form = Objective::Form::Sigmoid;
  else if (form == "ipo") objective.form = Objective::Form::Ipo;
  else if (form == "linear") objective.form = Objective::Form::Linear;
  else fail("ERR_CONFIG", "objective form \"" + form + "\": expected sigmoid, ipo or linear");
  objective.beta = number(o, "beta");
  objective.gamma = number(o, "gamma");
  objective.labelSmoothing = number(o, "labelSmoothing");
  objective.lengthNormalized = o.Get("lengthNormalized").ToBoolean();
  if (o.Has("sftWeight")) objective.sftWeight = number(o, "sftWeight");
  if (objective.form == Objective::Form::Ipo && objective.beta == 0)
    fail("ERR_CONFIG", "beta (tau) of the IPO loss must not be 0");
  return objective;
}

Napi::Function ModelHandle::define(Napi::Env env) {
  return DefineClass(env, "Model",
                     {
                         InstanceMethod("initialize", &ModelHandle::initialize),
                         InstanceMethod("logProbs", &ModelHandle::logProbs),
                         InstanceMethod("accumulate", &ModelHandle::accumulate),
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

Napi::Value ModelHandle::accumulate(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
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
    return engine(info.Env())
        .run(
            info.Env(), Value(),
            [m = model(), batch, use, objective, normalizer, kept] {
              return m->accumulate(*batch, use, objective, normalizer, int64_t(kept));
            },
            [](Napi::Env env, const Accumulated& r) -> Napi::Value {
              auto o = Napi::Object::New(env);
              o.Set("loss", r.loss);
              o.Set("logps", toJs(env, r.logps));
              o.Set("counts", toJs(env, r.counts));
              o.Set("losses", toJs(env, r.losses));
              o.Set("margins", toJs(env, r.margins));
              return o;
            },
            Turn::Reading);
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
    return namedViews(info.Env(), *trained, trained->grad());
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
    o.Set("m", namedViews(info.Env(), *a->trained(), a->m));
    o.Set("v", namedViews(info.Env(), *a->trained(), a->v));
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
