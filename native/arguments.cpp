#include "arguments.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.h"

namespace wrpo {

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
  auto activation = [](const std::string& name) {
    if (name == "silu") return Activation::Silu;
    if (name == "gelu_tanh") return Activation::GeluTanh;
    fail("ERR_MODEL", "activation \"" + name + "\": expected silu or gelu_tanh");
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
                .activation = activation(text(o, "activation")),
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

double number(Napi::Object object, const char* key) {
  Napi::Value value = object.Get(key);
  if (!value.IsNumber()) fail("ERR_CONFIG", std::string("expected a number for ") + key);
  return value.As<Napi::Number>().DoubleValue();
}

std::string text(Napi::Object object, const char* key) {
  Napi::Value value = object.Get(key);
  if (!value.IsString()) fail("ERR_CONFIG", std::string("expected a string for ") + key);
  return value.As<Napi::String>().Utf8Value();
}

namespace {
template <class T>
constexpr napi_typedarray_type arrayOf = std::is_same_v<T, double> ? napi_float64_array : napi_int32_array;
}

template <class T>
std::vector<T> numbers(Napi::Object object, const char* key) {
  Napi::Value value = object.Get(key);
  if (value.IsUndefined()) return {};
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != arrayOf<T>)
    fail("ERR_CONFIG",
         std::string("expected ") + (std::is_same_v<T, double> ? "a Float64Array" : "an Int32Array") + " for " + key);
  auto array = value.As<Napi::TypedArrayOf<T>>();
  return std::vector<T>(array.Data(), array.Data() + array.ElementLength());
}
template std::vector<double> numbers<double>(Napi::Object, const char*);
template std::vector<int32_t> numbers<int32_t>(Napi::Object, const char*);

namespace {
template <class Array, class T>
Array copyToJs(Napi::Env env, const std::vector<T>& values) {
  auto array = Array::New(env, values.size());
  if (!values.empty()) std::memcpy(array.Data(), values.data(), values.size() * sizeof(T));
  return array;
}
}  // namespace

Napi::Float64Array toJs(Napi::Env env, const std::vector<double>& v) { return copyToJs<Napi::Float64Array>(env, v); }
Napi::Int32Array toJs(Napi::Env env, const std::vector<int32_t>& v) { return copyToJs<Napi::Int32Array>(env, v); }
Napi::Uint8Array toJs(Napi::Env env, const std::vector<uint8_t>& v) { return copyToJs<Napi::Uint8Array>(env, v); }

}  // namespace wrpo
