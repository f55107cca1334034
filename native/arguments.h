// What JavaScript passes (declared in lib/native/addon.ts), read and checked, and what goes back as typed arrays.
#pragma once
#include <napi.h>

#include <string>
#include <vector>

#include "model/model.h"

namespace wrpo {

ModelConfig parseConfig(Napi::Object object);
// The batch of lib/data/pack.ts.
Batch parseBatch(Napi::Value value);
// The objective of lib/train/objective.ts.
Objective parseObjective(Napi::Object object);
LoraShape parseLora(Napi::Object object);
// The adapters' part in a call, of its options.
AdapterUse parseAdapterUse(Napi::Value options);

// Whether an option is there and true.
bool flag(Napi::Value options, const char* key);
// A number option with a name for the error message.
double number(Napi::Object object, const char* key);
std::string text(Napi::Object object, const char* key);
// Copies a typed array (Int32Array, Float64Array, ...) out of JavaScript; missing or undefined = empty.
template <class T>
std::vector<T> numbers(Napi::Object object, const char* key);

Napi::Float64Array toJs(Napi::Env env, const std::vector<double>& values);
Napi::Int32Array toJs(Napi::Env env, const std::vector<int32_t>& values);
Napi::Uint8Array toJs(Napi::Env env, const std::vector<uint8_t>& values);

}  // namespace wrpo
