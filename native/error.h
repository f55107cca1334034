// Errors and cancellation for everything below the JavaScript boundary. worker.h turns them into WrpoErrors.
#pragma once
#include <atomic>
#include <stdexcept>
#include <string>
#include <utility>

namespace wrpo {

// `code` is one of the codes in lib/errors.ts; the message is one sentence for a person.
struct Error : std::runtime_error {
  std::string code;
  Error(std::string code, const std::string& message) : std::runtime_error(message), code(std::move(code)) {}
};

[[noreturn]] inline void fail(const char* code, const std::string& message) { throw Error(code, message); }

struct Cancelled {};

// Set by the engine thread. Long work calls poll() at least once a layer, so that close() and exit never wait for a
// whole micro-batch.
inline thread_local const std::atomic<bool>* stopRequested = nullptr;
inline void poll() {
  if (stopRequested && stopRequested->load(std::memory_order_relaxed)) throw Cancelled{};
}

}  // namespace wrpo
