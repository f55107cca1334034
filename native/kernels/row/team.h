// The arithmetic of a kernel's row is written once, for a team of threads, and runs wherever the team does: a block or
// a warp of a GPU, or SerialTeam, which plays a block's threads one after the other and combines their parts in the
// block's own order. So that CPU tests run what the GPU runs. No torch header here, nor in what includes this.
//
// The CPU's kernels call what is one element's (adamwUpdate, draw, contest), and keep loops of their own beside what is
// a team's: their sums and their exp and tanh are those of simd.h's vectors, which are the same on every instruction
// set, and a lambda, as a team takes it, would not be compiled for the one that is there.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__) || defined(WRPO_EMULATED)
#define WRPO_HD __host__ __device__ __forceinline__
#else
#define WRPO_HD inline __attribute__((always_inline))
#endif

namespace wrpo::row {

// bfloat16 as it is stored; arithmetic is float32.
struct Bf16 {
  uint16_t bits;
};
template <class T>
using ScalarOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

WRPO_HD float widen(float x) { return x; }
WRPO_HD double widen(double x) { return x; }
WRPO_HD float widen(Bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float wide;
  memcpy(&wide, &bits, sizeof(wide));
  return wide;
}
// Rounds to nearest even.
template <class T>
WRPO_HD T narrow(ScalarOf<T> x) {
  if constexpr (std::is_same_v<T, Bf16>) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    if (x != x) return {uint16_t(0x7fc0)};
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
  } else {
    return x;
  }
}

// W neighbouring elements, in one load: of 16 bytes where a row's length and place allow it, else W is 1.
template <class T, int W>
struct alignas(sizeof(T) * W) Pack {
  T v[W];
};
template <int W, class T>
WRPO_HD Pack<T, W> load(const T* p, int64_t i) {
  return reinterpret_cast<const Pack<T, W>*>(p)[i];
}
template <int W, class T>
WRPO_HD void store(T* p, int64_t i, const Pack<T, W>& pack) {
  reinterpret_cast<Pack<T, W>*>(p)[i] = pack;
}

template <class S>
WRPO_HD S infinity() {
  return S(INFINITY);
}
WRPO_HD float larger(float a, float b) { return a > b ? a : b; }
WRPO_HD double larger(double a, double b) { return a > b ? a : b; }
struct Add {
  template <class S>
  WRPO_HD S operator()(S a, S b) const {
    return a + b;
  }
};

// A team shares out the indices [0, n) with stride `size()`; every member owns the same indices in every call over the
// same n, so what it wrote it may read again. reduce folds a member's indices in order, then combines the members: in
// each warp member l with l + 16, then 8, 4, 2, 1, then the warps alike. All members receive the result.
class SerialTeam {
 public:
  explicit SerialTeam(int size) : size_(size) {}
  int size() const { return size_; }

  template <class Body>
  void each(int64_t n, Body body) const {
    for (int64_t i = 0; i < n; ++i) body(i);
  }
  template <class Body>
  void once(Body body) const {
    body();
  }
  void sync() const {}
  template <class S, class Fold, class Combine>
  S reduce(int64_t n, S identity, Fold fold, Combine combine) const {
    S part[1024];
    for (int t = 0; t < size_; ++t) {
      part[t] = identity;
      for (int64_t i = t; i < n; i += size_) part[t] = fold(part[t], i);
    }
    for (int w = 0; w < size_ / 32; ++w) part[w] = tree(part + 32 * w, combine);
    if (size_ == 32) return part[0];
    for (int w = size_ / 32; w < 32; ++w) part[w] = identity;
    return tree(part, combine);
  }

 private:
  template <class S, class Combine>
  static S tree(S* lanes, Combine combine) {
    for (int offset = 16; offset > 0; offset /= 2)
      for (int l = 0; l < offset; ++l) lanes[l] = combine(lanes[l], lanes[l + offset]);
    return lanes[0];
  }
  int size_;
};

#if defined(__CUDACC__) || defined(WRPO_EMULATED)

template <class S>
__device__ __forceinline__ S lower(S mine, int offset) {
  static_assert(sizeof(S) % 4 == 0);
  int words[sizeof(S) / 4];
  memcpy(words, &mine, sizeof(S));
  for (int& word : words) word = __shfl_down_sync(0xffffffffu, word, offset);
  memcpy(&mine, words, sizeof(S));
  return mine;
}
template <class S>
__device__ __forceinline__ S first(S mine) {
  int words[sizeof(S) / 4];
  memcpy(words, &mine, sizeof(S));
  for (int& word : words) word = __shfl_sync(0xffffffffu, word, 0);
  memcpy(&mine, words, sizeof(S));
  return mine;
}
// Member 0 of the warp receives the result.
template <class S, class Combine>
__device__ __forceinline__ S tree(S mine, Combine combine) {
  for (int offset = 16; offset > 0; offset /= 2) mine = combine(mine, lower(mine, offset));
  return mine;
}

// The threads of one warp of a one-dimensional block.
class WarpTeam {
 public:
  __device__ int size() const { return 32; }
  template <class Body>
  __device__ void each(int64_t n, Body body) const {
    for (int64_t i = threadIdx.x % 32; i < n; i += 32) body(i);
  }
  template <class Body>
  __device__ void once(Body body) const {
    if (threadIdx.x % 32 == 0) body();
  }
  __device__ void sync() const { __syncwarp(); }
  template <class S, class Fold, class Combine>
  __device__ S reduce(int64_t n, S identity, Fold fold, Combine combine) const {
    S mine = identity;
    for (int64_t i = threadIdx.x % 32; i < n; i += 32) mine = fold(mine, i);
    return first(tree(mine, combine));
  }
};

// All threads of a one-dimensional block, a multiple of 32 and at most 1024 of them.
class BlockTeam {
 public:
  __device__ int size() const { return int(blockDim.x); }
  template <class Body>
  __device__ void each(int64_t n, Body body) const {
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) body(i);
  }
  template <class Body>
  __device__ void once(Body body) const {
    if (threadIdx.x == 0) body();
  }
  __device__ void sync() const { __syncthreads(); }
  template <class S, class Fold, class Combine>
  __device__ S reduce(int64_t n, S identity, Fold fold, Combine combine) const {
    __shared__ S warps[32];
    S mine = identity;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) mine = fold(mine, i);
    mine = tree(mine, combine);
    __syncthreads();  // the last call's result has been read
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x < 32) {
      mine = tree(threadIdx.x < blockDim.x / 32 ? warps[threadIdx.x] : identity, combine);
      if (threadIdx.x == 0) warps[0] = mine;
    }
    __syncthreads();
    return warps[0];
  }
};

#endif

}  // namespace wrpo::row
