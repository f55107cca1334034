// Model as JavaScript sees it (declared in lib/native/addon.ts).
#pragma once
#include <napi.h>

#include <functional>
#include <memory>

#include "model/model.h"

namespace wrpo {

class ModelHandle : public Napi::ObjectWrap<ModelHandle> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit ModelHandle(const Napi::CallbackInfo& info);
  std::shared_ptr<Model> model() const;  // throws ERR_CLOSED after close()
  static ModelHandle* of(Napi::Value value);

 private:
  Napi::Value initialize(const Napi::CallbackInfo& info);
  Napi::Value logProbs(const Napi::CallbackInfo& info);
  Napi::Value accumulate(const Napi::CallbackInfo& info);
  Napi::Value enqueue(const Napi::CallbackInfo& info);
  Napi::Value score(const Napi::CallbackInfo& info);
  Napi::Value addAdapters(const Napi::CallbackInfo& info);
  Napi::Value mergeAdapters(const Napi::CallbackInfo& info);
  Napi::Value parameters(const Napi::CallbackInfo& info);
  Napi::Value adapters(const Napi::CallbackInfo& info);
  Napi::Value gradients(const Napi::CallbackInfo& info);
  Napi::Value zeroGradients(const Napi::CallbackInfo& info);
  Napi::Value syncWork(const Napi::CallbackInfo& info);
  Napi::Value fingerprint(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info);

  // What `accumulate` and `enqueue` have the engine do: Model::accumulate of these arguments.
  std::function<std::function<Accumulated()>()> microbatch(const Napi::CallbackInfo& info);
  // Queues what changes the parts of the model; until it is done, model() throws.
  template <class Body>
  Napi::Value change(Napi::Env env, Body body);

  std::shared_ptr<Model> model_;
};

// A flat buffer as a list of {name, tensor}, of views.
Napi::Value namedViews(Napi::Env env, const Parameters& all, const Stored& flat);

}  // namespace wrpo
