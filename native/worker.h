// The engine thread: one per Node environment, a first-in-first-out queue of jobs shared by everything the addon does,
// so that all models share one OpenMP team; and a thread beside it that writes files. The one place where C++
// exceptions become JavaScript errors.
#pragma once
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>
#include <napi.h>
#include <omp.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "error.h"

namespace wrpo {

struct Failure {
  std::string code, message;
};

// Maps the exception in flight to a code and one sentence without a stack trace.
inline Failure currentFailure() {
  auto firstLine = [](std::string text) {
    text = text.substr(0, text.find("Exception raised from"));
    return text.substr(0, text.find('\n'));
  };
  try {
    throw;
  } catch (const Error& e) {
    return {e.code, e.what()};
  } catch (const Cancelled&) {
    return {"ERR_CLOSED", "the engine was stopped before this call finished"};
  } catch (const c10::OutOfMemoryError& e) {
    return {"ERR_OUT_OF_MEMORY", firstLine(e.what_without_backtrace())};
  } catch (const c10::Error& e) {
    std::string text = e.what_without_backtrace();
    size_t marker = text.find("DefaultCPUAllocator");
    if (marker != std::string::npos) return {"ERR_OUT_OF_MEMORY", firstLine(text.substr(marker))};
    return {"ERR_INTERNAL", firstLine(text)};
  } catch (const std::bad_alloc&) {
    return {"ERR_OUT_OF_MEMORY", "out of memory"};
  } catch (const std::exception& e) {
    return {"ERR_INTERNAL", firstLine(e.what())};
  } catch (...) {
    return {"ERR_INTERNAL", "unknown native error"};
  }
}

class Engine;

// What one Node environment (main thread or worker) has of this addon.
struct Environment {
  Engine* engine;  // freed by its own cleanup hook
  Napi::FunctionReference error, tensor, model, adamw;
};
inline Environment& environment(Napi::Env env) { return *env.GetInstanceData<Environment>(); }
inline Engine& engine(Napi::Env env) { return *environment(env).engine; }

inline Napi::Error toJsError(Napi::Env env, const Failure& failure) {
  auto text = [&](const std::string& value) { return Napi::String::New(env, value); };
  return Napi::Error(env, environment(env).error.New({text(failure.code), text(failure.message)}));
}

// Runs body on the JavaScript thread; whatever it throws arrives as a JavaScript exception.
template <class Body>
auto guarded(Napi::Env env, Body&& body) -> decltype(body()) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw toJsError(env, currentFailure());
  }
}

// When a job's turn is. A file takes as long as several steps, and what goes into it must not change meanwhile.
enum class Turn {
  Alone,    // once all before it is done, and written
  Reading,  // leaves weights and optimizer state as they are, and so need not wait for what is being written
  Writing,  // writes them to a file, while others are reading
};

class Engine {
 public:
  explicit Engine(Napi::Env env) : env_(env) {
    Napi::String name = Napi::String::New(env, "wrpo engine");
    napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this, &Engine::settle,
                                    &settled_);
    napi_unref_threadsafe_function(env, settled_);
    // Hooks run in reverse order of registration: added after the function it uses was created.
    napi_add_env_cleanup_hook(env, &Engine::cleanup, this);
    thread_ = std::thread([this] { compute(); });
    writer_ = std::thread([this] { write(); });
  }

  // work runs on the engine thread and returns a result; finish turns that into a JavaScript value on the JavaScript
  // thread. `keep` is held until then: an object whose job is queued must not be collected.
  template <class Work, class Finish>
  Napi::Promise run(Napi::Env env, Napi::Object keep, Work work, Finish finish, Turn turn = Turn::Alone) {
    auto job = std::make_unique<Job>(Napi::Promise::Deferred::New(env), turn);
    using Result = decltype(work());
    auto result = std::make_shared<std::optional<Result>>();
    job->work = [work = std::move(work), result]() mutable { result->emplace(work()); };
    job->finish = [finish = std::move(finish), result](Napi::Env e) -> Napi::Value { return finish(e, **result); };
    if (!keep.IsEmpty()) job->keep = Napi::Persistent(keep);
    auto promise = job->deferred.Promise();
    if (pending_++ == 0) napi_ref_threadsafe_function(env, settled_);
    {
      std::lock_guard lock(mutex_);
      queue_.push_back(std::move(job));
    }
    ready_.notify_all();
    return promise;
  }

  // Jobs queued or running (JavaScript thread).
  int pending() const { return pending_; }

 private:
  struct Job {
    Job(Napi::Promise::Deferred d, Turn t) : turn(t), deferred(d) {}
    Turn turn;
    std::function<void()> work;
    std::function<Napi::Value(Napi::Env)> finish;
    Napi::Promise::Deferred deferred;
    Napi::ObjectReference keep;
    std::optional<Failure> failure;
  };

  void compute() {
    c10::InferenceMode guard;
    at::set_num_threads(at::get_num_threads());
    stopRequested = &stop_;
    for (;;) {
      std::unique_lock lock(mutex_);
      ready_.wait(lock, [this] {
        return stop_ || (!queue_.empty() && (queue_.front()->turn != Turn::Alone || writing_.empty()));
      });
      if (stop_) return;
      auto job = std::move(queue_.front());
      queue_.pop_front();
      if (job->turn == Turn::Writing) {
        writing_.push_back(std::move(job));
        ready_.notify_all();
        continue;
      }
      lock.unlock();
      perform(*job);
      deliver(std::move(job));
    }
  }

  void write() {
    c10::InferenceMode guard;
    omp_set_num_threads(1);  // no second team beside the engine's
    stopRequested = &stop_;
    for (;;) {
      std::unique_lock lock(mutex_);
      ready_.wait(lock, [this] { return stop_ || !writing_.empty(); });
      if (stop_) return;
      auto& job = writing_.front();
      lock.unlock();
      perform(*job);
      deliver(std::move(job));
      lock.lock();
      writing_.pop_front();  // only now: what waits for it is settled after it
      ready_.notify_all();
    }
  }

  static void perform(Job& job) {
    try {
      job.work();
    } catch (...) {
      job.failure = currentFailure();
    }
    job.work = nullptr;
  }

  // The queue is unlimited, so this cannot block; it fails only while the environment is torn down.
  void deliver(std::unique_ptr<Job> job) {
    Job* raw = job.release();
    if (napi_call_threadsafe_function(settled_, raw, napi_tsfn_blocking) != napi_ok) leak(raw);
  }

  static void settle(napi_env rawEnv, napi_value, void* context, void* data) {
    auto* self = static_cast<Engine*>(context);
    std::unique_ptr<Job> job(static_cast<Job*>(data));
    if (!rawEnv) return leak(job.release());
    try {
      Napi::Env env(rawEnv);
      Napi::HandleScope scope(env);
      if (--self->pending_ == 0) napi_unref_threadsafe_function(env, self->settled_);
      if (job->failure) job->deferred.Reject(toJsError(env, *job->failure).Value());
      else job->deferred.Resolve(job->finish(env));
    } catch (const Napi::Error& e) {
      // finish failed, or the environment is going down, where every call throws: then there is nobody to tell.
      try {
        job->deferred.Reject(e.Value());
      } catch (const std::exception&) {
      }
    } catch (const std::exception&) {
    }
  }

  // During teardown references can no longer be released.
  static void leak(Job* job) {
    job->keep.SuppressDestruct();
    delete job;
  }

  static void cleanup(void* data) {
    auto* self = static_cast<Engine*>(data);
    {
      std::lock_guard lock(self->mutex_);
      self->stop_ = true;
    }
    self->ready_.notify_all();
    self->thread_.join();
    self->writer_.join();
    for (auto* jobs : {&self->queue_, &self->writing_})
      for (auto& job : *jobs) leak(job.release());
    napi_release_threadsafe_function(self->settled_, napi_tsfn_abort);
    delete self;
  }

  Napi::Env env_;
  napi_threadsafe_function settled_ = nullptr;
  std::thread thread_, writer_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::unique_ptr<Job>> queue_, writing_;
  std::atomic<bool> stop_{false};
  int pending_ = 0;
};

// The `finish` of work that returns nothing but that it is done.
constexpr auto nothing = [](Napi::Env env, int) -> Napi::Value { return env.Undefined(); };

}  // namespace wrpo
