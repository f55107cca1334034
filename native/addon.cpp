// Registration of everything JavaScript sees (typed in lib/native/addon.ts), and the functions that belong to no
// handle.
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <napi.h>

#include "adamw_handle.h"
#include "arguments.h"
#include "generator_handle.h"
#include "io/tensor_file.h"
#include "kernels/gemm.h"
#include "memory.h"
#include "model/head.h"
#include "model_handle.h"
#include "tensor.h"
#include "train/objective.h"
#include "worker.h"

// Read from the file by lib/native/load.ts before it loads: which libtorch this core was compiled against.
extern "C" __attribute__((used, visibility("default"))) const char wrpoCoreTorch[] =
    "WRPO_CORE_TORCH=" WRPO_TORCH_VERSION ";";

namespace wrpo {
namespace {

Napi::Value info(const Napi::CallbackInfo& call) {
  Napi::Env env = call.Env();
  auto o = Napi::Object::New(env);
  o.Set("torchVersion", WRPO_TORCH_VERSION);
  o.Set("cpuCapability", at::get_cpu_capability());
  o.Set("bfloat16", hasBfloat16());
  o.Set("threads", at::get_num_threads());
  auto devices = Napi::Array::New(env);
  devices.Set(uint32_t(0), "cpu");
  std::string missing;
  if (auto gpu = findGpu(missing)) {
    devices.Set(uint32_t(1), "cuda");
    auto about = Napi::Object::New(env);
    about.Set("name", gpu->name);
    about.Set("total", double(gpu->total));
    about.Set("free", double(gpu->free));
    o.Set("gpu", about);
  } else {
    o.Set("noGpu", missing);
  }
  o.Set("devices", devices);
  return o;
}

Napi::Value memory(const Napi::CallbackInfo& call) {
  auto options = call[0].IsObject() ? call[0].As<Napi::Object>() : Napi::Object::New(call.Env());
  const bool onGpu = options.Get("device").IsString() && options.Get("device").ToString().Utf8Value() == "cuda";
  auto stats = onGpu ? gpuMemoryStats() : memoryStats();
  auto o = Napi::Object::New(call.Env());
  o.Set("current", double(stats.current));
  o.Set("peak", double(stats.peak));
  o.Set("largest", double(stats.largest));
  if (options.Get("resetPeak").ToBoolean()) onGpu ? resetGpuMemoryPeaks() : resetMemoryPeaks();
  return o;
}

struct HeadArguments {
  at::Tensor hidden, weight;
  std::vector<int32_t> targets;
};
HeadArguments headArguments(Napi::Object o) {
  HeadArguments a{TensorHandle::unwrap(o.Get("hidden"), "hidden"), TensorHandle::unwrap(o.Get("weight"), "weight"),
                  numbers<int32_t>(o, "targets")};
  if (a.hidden.dim() != 2 || a.weight.dim() != 2 || a.hidden.size(1) != a.weight.size(1) ||
      a.hidden.scalar_type() != a.weight.scalar_type() || a.hidden.device() != a.weight.device() ||
      (a.hidden.scalar_type() != at::kFloat && a.hidden.scalar_type() != at::kDouble &&
       a.hidden.scalar_type() != at::kBFloat16))
    fail("ERR_CONFIG",
         "expected hidden [R, H] and weight [V, H] on one device and of one dtype: float32, float64 or bfloat16");
  if (!a.hidden.is_cpu() && a.hidden.scalar_type() != at::kBFloat16)
    fail("ERR_DEVICE", "a GPU computes in bfloat16 only: expected hidden and weight of dtype bfloat16");
  if (int64_t(a.targets.size()) != a.hidden.size(0))
    fail("ERR_CONFIG", "targets: expected " + std::to_string(a.hidden.size(0)) + " ids, received " +
                           std::to_string(a.targets.size()));
  for (int32_t t : a.targets)
    if (t < 0 || t >= a.weight.size(0))
      fail("ERR_DATA",
           "target id " + std::to_string(t) + "; the vocabulary has " + std::to_string(a.weight.size(0)) + " tokens");
  return a;
}
int64_t chunkBytes(Napi::Object o) { return int64_t(number(o, "headChunkBytes")); }

Napi::Value selectedLogProbs(const Napi::CallbackInfo& call) {
  return guarded(call.Env(), [&] {
    auto o = call[0].As<Napi::Object>();
    return engine(call.Env())
        .run(
            call.Env(), o,
            [a = headArguments(o), bytes = chunkBytes(o)] {
              Workspace workspace(a.hidden.device());
              return Head(workspace, bytes).logProbs(a.hidden, a.weight, place(a.targets, a.hidden.device()), false);
            },
            [](Napi::Env env, const HeadOutput& r) -> Napi::Value {
              auto result = Napi::Object::New(env);
              result.Set("logps", TensorHandle::wrap(env, r.logp));
              result.Set("lse", TensorHandle::wrap(env, r.lse));
              return result;
            });
  });
}

Napi::Value selectedLogProbsBackward(const Napi::CallbackInfo& call) {
  return guarded(call.Env(), [&] {
    auto o = call[0].As<Napi::Object>();
    auto a = headArguments(o);
    auto lse = TensorHandle::unwrap(o.Get("lse"), "lse"), dLogps = TensorHandle::unwrap(o.Get("dLogps"), "dLogps");
    auto statistics = a.hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    for (const at::Tensor& t : {lse, dLogps})
      if (t.numel() != a.hidden.size(0) || t.scalar_type() != statistics || t.device() != a.hidden.device())
        fail("ERR_CONFIG", std::string("expected lse and dLogps [R] of dtype ") + dtypeName(statistics) +
                               ", on the device of hidden and weight");
    struct Gradients {
      at::Tensor hidden, weight;
    };
    return engine(call.Env())
        .run(
            call.Env(), o,
            [a, lse, dLogps, statistics, bytes = chunkBytes(o)] {
              Workspace workspace(a.hidden.device());
              Gradients g{at::empty(a.hidden.sizes(), a.hidden.options()),
                          at::zeros(a.weight.sizes(), a.weight.options().dtype(statistics))};
              Head(workspace, bytes)
                  .backward(a.hidden, a.weight, place(a.targets, a.hidden.device()), lse, dLogps, g.hidden, g.weight);
              return g;
            },
            [](Napi::Env env, const Gradients& g) -> Napi::Value {
              auto result = Napi::Object::New(env);
              result.Set("dHidden", TensorHandle::wrap(env, g.hidden));
              result.Set("dWeight", TensorHandle::wrap(env, g.weight));
              return result;
            });
  });
}

// One contest: a handful of numbers, so it runs where it is called.
Napi::Value contestLoss(const Napi::CallbackInfo& call) {
  return guarded(call.Env(), [&] {
    auto o = call[0].As<Napi::Object>();
    auto policy = numbers<double>(o, "policy"), reference = numbers<double>(o, "reference"),
         coefficients = numbers<double>(o, "coefficients");
    auto lengths = numbers<int32_t>(o, "lengths");
    auto objective = parseObjective(call[1].As<Napi::Object>());
    if (coefficients.size() != policy.size() || (!reference.empty() && reference.size() != policy.size()) ||
        ((objective.lengthNormalized || objective.sftWeight != 0) && lengths.size() != policy.size()))
      fail("ERR_CONFIG", "policy, reference, lengths and coefficients must be equally long");
    std::vector<double> gradient(policy.size());
    auto outcome = contest(objective, policy, reference, lengths, coefficients, 1, gradient);
    auto result = Napi::Object::New(call.Env());
    result.Set("loss", outcome.loss);
    result.Set("margin", outcome.margin);
    result.Set("gradient", toJs(call.Env(), gradient));
    return result;
  });
}

Napi::Value readTensorsFrom(const Napi::CallbackInfo& call) {
  return guarded(call.Env(), [&] {
    std::string path = call[0].ToString();
    auto list = call[1].As<Napi::Array>();
    std::vector<TensorRange> ranges;
    for (uint32_t i = 0; i < list.Length(); ++i) {
      auto o = list.Get(i).As<Napi::Object>();
      ranges.push_back({text(o, "name"), TensorHandle::stored(o.Get("tensor"), "tensor"), parseDtype(o.Get("dtype")),
                        int64_t(number(o, "offset")), int64_t(number(o, "bytes"))});
    }
    return engine(call.Env()).run(call.Env(), list, [path, ranges] { return readTensors(path, ranges), 0; }, nothing);
  });
}

Napi::Value writeTensorsTo(const Napi::CallbackInfo& call) {
  return guarded(call.Env(), [&] {
    std::string path = call[0].ToString();
    auto bytes = call[1].As<Napi::Uint8Array>();
    std::string header(reinterpret_cast<const char*>(bytes.Data()), bytes.ByteLength());
    auto list = call[2].As<Napi::Array>();
    std::vector<Stored> tensors;
    for (uint32_t i = 0; i < list.Length(); ++i) tensors.push_back(TensorHandle::stored(list.Get(i), "tensor"));
    auto dtype = parseDtype(call[3]);
    return engine(call.Env())
        .run(
            call.Env(), list, [path, header, tensors, dtype] { return writeTensors(path, header, tensors, dtype), 0; },
            nothing, Turn::Writing);
  });
}

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  countAllocations();
  auto* e = new Environment{new Engine(env), Napi::Persistent(exports.Get("WrpoError").As<Napi::Function>()),
                            Napi::Persistent(TensorHandle::define(env)), Napi::Persistent(ModelHandle::define(env)),
                            Napi::Persistent(AdamWHandle::define(env))};
  env.SetInstanceData(e);
  exports.Set("Tensor", e->tensor.Value());
  exports.Set("Model", e->model.Value());
  exports.Set("AdamW", e->adamw.Value());
  exports.Set("Generator", GeneratorHandle::define(env));
  auto function = [&](const char* name, Napi::Value (*body)(const Napi::CallbackInfo&)) {
    exports.Set(name, Napi::Function::New(env, body, name));
  };
  function("info", info);
  function("memory", memory);
  function("selectedLogProbs", selectedLogProbs);
  function("selectedLogProbsBackward", selectedLogProbsBackward);
  function("contestLoss", contestLoss);
  function("readTensors", readTensorsFrom);
  function("writeTensors", writeTensorsTo);
  return exports;
}

}  // namespace
}  // namespace wrpo

static Napi::Object initAddon(Napi::Env env, Napi::Object exports) { return wrpo::initialize(env, exports); }
NODE_API_MODULE(wrpo_core, initAddon)
