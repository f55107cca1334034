// What the fuzzers share (test/fuzz.mjs builds and runs them).
#pragma once
#include <c10/core/InferenceMode.h>
#include <fuzzer/FuzzedDataProvider.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "error.h"

namespace wrpo::fuzz {

using Input = FuzzedDataProvider;

// A finding where `good` does not hold.
inline void require(bool good, const std::string& what) {
  if (good) return;
  std::fprintf(stderr, "not so: %s\n", what.c_str());
  std::abort();
}

// Refusals are for people.
inline void requireSentence(const Error& error) {
  const std::string text = error.what();
  require(error.code.starts_with("ERR_") && error.code != "ERR_INTERNAL", "a refusal has a code: " + error.code);
  require(!text.empty() && text.find('\n') == text.npos, "a refusal is one line: " + text);
}

}  // namespace wrpo::fuzz

// `once` runs on each input; whatever it throws is a finding.
#define WRPO_FUZZ(once)                                                      \
  extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) { \
    c10::InferenceMode guard;                                                \
    FuzzedDataProvider in(bytes, size);                                      \
    once(in);                                                                \
    return 0;                                                                \
  }
