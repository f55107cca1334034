// A GPU played on the CPU, as much of one as the kernels and gpu_check ask for: this header stands in for CUDA's, and
// .cu files compile as C++ (CMakeLists.txt beside it). It shows what SerialTeam cannot, each thread having a stack of
// its own: which elements a grid's blocks and threads take, what passes between them, and whether a barrier is missing,
// since whatever none separates runs in another order each time.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(threads)
#define __shared__ static  // one block runs at a time
using std::isfinite;

struct Dimensions {
  unsigned x = 0;
};
inline Dimensions threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

class Block {
 public:
  enum State { Ready, AtWarpBarrier, AtBlockBarrier, Returned };

  // Runs `body` as each of n threads. Between two barriers of the block its warps run one after the other, and between
  // two of a warp its threads: as far apart as they can be on a GPU.
  void run(unsigned n, const std::function<void()>& body) {
    body_ = &body;
    states_.assign(n, Ready);
    while (threads_.size() < n) threads_.push_back(std::make_unique<Thread>());
    std::vector<unsigned> warps(n / 32);
    std::iota(warps.begin(), warps.end(), 0u);
    while (count(Returned, 0, n) < n) {
      std::shuffle(warps.begin(), warps.end(), random);
      for (unsigned w : warps) runWarp(32 * w);
      unsigned waiting = count(AtBlockBarrier, 0, n);
      if (waiting > 0 && waiting < n) die("threads have returned whom others of their block wait for");
      std::replace(states_.begin(), states_.end(), AtBlockBarrier, Ready);
    }
  }
  // Of the running thread: until all have come here.
  [[gnu::noinline]] void wait(State at) {
    unsigned me = threadIdx.x;
    states_[me] = at;
    if (_setjmp(threads_[me]->at) == 0) _longjmp(scheduler_, 1);
  }
  // Of the running thread: what another of its warp calls this with.
  int exchange(int mine, unsigned from) {
    slots_[threadIdx.x] = mine;
    wait(AtWarpBarrier);
    int theirs = slots_[from];
    wait(AtWarpBarrier);
    return theirs;
  }
  static Block& current() {
    static Block block;
    return block;
  }
  [[noreturn]] static void die(const char* what) {
    std::fprintf(stderr, "emulated GPU, block %u: %s\n", blockIdx.x, what);
    std::exit(1);
  }
  std::mt19937 random{1};

 private:
  static constexpr size_t stackBytes = 64 << 10;

  struct Thread {
    char stack[stackBytes];
    jmp_buf at;
    bool begun = false;
  };

  // On its own stack, for one block after the other.
  static void live() {
    for (;;) {
      (*current().body_)();
      current().wait(Returned);
    }
  }
  // Until it waits. What ucontext_t would save and restore at every switch costs two calls of the system.
  [[gnu::noinline]] void resume(unsigned me) {
    threadIdx.x = me;
    Thread& thread = *threads_[me];
    if (_setjmp(scheduler_) != 0) return;
    if (thread.begun) _longjmp(thread.at, 1);
    thread.begun = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = thread.stack;
    context.uc_stack.ss_size = stackBytes;
    makecontext(&context, &Block::live, 0);
    setcontext(&context);
  }
  void runWarp(unsigned first) {
    while (count(Ready, first, 32) > 0) {
      unsigned order = random() % 32;
      for (unsigned i = 0; i < 32; ++i) {
        unsigned me = first + (i ^ order);
        if (states_[me] == Ready) resume(me);
      }
      unsigned waiting = count(AtWarpBarrier, first, 32);
      if (waiting > 0 && waiting < 32) die("threads are missing where their whole warp is called");
      if (waiting == 32) std::fill_n(states_.begin() + first, 32, Ready);
    }
  }
  unsigned count(State state, unsigned first, unsigned n) const {
    return unsigned(std::count(states_.begin() + first, states_.begin() + first + n, state));
  }

  const std::function<void()>* body_;
  std::vector<State> states_;
  std::vector<std::unique_ptr<Thread>> threads_;
  jmp_buf scheduler_;
  int slots_[1024];
};

// The blocks of a grid, in random order; one grid at a time.
inline void start(unsigned blocks, unsigned threads, const std::function<void()>& body) {
  static std::mutex mutex;
  std::lock_guard one(mutex);
  if (threads == 0 || threads > 1024 || threads % 32 != 0) Block::die("expected whole warps, at most 32 of them");
  blockDim.x = threads, gridDim.x = blocks;
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), Block::current().random);
  for (unsigned b : order) {
    blockIdx.x = b;
    Block::current().run(threads, body);
  }
}

}  // namespace emulated

inline void __syncthreads() { emulated::Block::current().wait(emulated::Block::AtBlockBarrier); }
inline void __syncwarp() { emulated::Block::current().wait(emulated::Block::AtWarpBarrier); }
inline int __shfl_sync(unsigned, int mine, int lane) {
  return emulated::Block::current().exchange(mine, threadIdx.x / 32 * 32 + unsigned(lane));
}
// A lane that has none so far above it receives its own.
inline int __shfl_down_sync(unsigned, int mine, int offset) {
  int lane = int(threadIdx.x % 32);
  return __shfl_sync(~0u, mine, lane + offset < 32 ? lane + offset : lane);
}

// Of the host's side what gpu_check calls to test; nothing can be timed.
enum cudaError_t { cudaSuccess, cudaErrorInsufficientDriver, cudaErrorNotSupported };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = void*;
struct cudaDeviceProp {
  const char* name = "an emulated GPU";
  int major = 8, minor = 0;
};
inline const char* cudaGetErrorString(cudaError_t) { return "not in an emulated GPU"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* n) { return *n = 1, cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp*, int) { return cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int*) { return cudaErrorNotSupported; }
template <class T>
cudaError_t cudaMalloc(T** memory, size_t bytes) {
  return *memory = static_cast<T*>(std::malloc(bytes)), cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpy(to, from, bytes, kind);
}
inline cudaError_t cudaEventCreate(cudaEvent_t*) { return cudaErrorNotSupported; }
inline cudaError_t cudaEventRecord(cudaEvent_t) { return cudaErrorNotSupported; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaErrorNotSupported; }
inline cudaError_t cudaEventElapsedTime(float*, cudaEvent_t, cudaEvent_t) { return cudaErrorNotSupported; }
