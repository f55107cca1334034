// Blocks of b [256, 512] and of a [96, 256] are copied into the order in which the inner loop reads them and stay in
// the level-2 cache; the inner loop keeps a 12 x 32 tile of c in 24 of the 32 vector registers.
#include "kernels/gemm.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "error.h"

#if defined(WRPO_HAVE_CLONES) && !defined(__clang__)
#define WRPO_SGEMM
#endif

namespace wrpo {

bool hasBfloat16() {
#if defined(__x86_64__) && !defined(__clang__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

#ifdef WRPO_SGEMM
namespace {

constexpr int64_t tileM = 12, tileN = 32, blockK = 256, blockM = 8 * tileM, blockN = 512;
constexpr int64_t rowOfA = blockK + 16;  // not a power of two: twelve rows would meet in the same cache sets

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")

typedef float Vec __attribute__((vector_size(64)));
typedef float Unaligned __attribute__((vector_size(64), aligned(4)));
typedef int32_t Lanes __attribute__((vector_size(64)));

inline __attribute__((always_inline)) Vec load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
inline __attribute__((always_inline)) void store(float* p, Vec v) { *reinterpret_cast<Unaligned*>(p) = v; }

// One tile. a is [12][rowOfA] copied from rows, or [k][12] copied from columns; b is [k][32].
template <bool aByColumns>
void tile(int64_t k, const float* a, const float* b, float* c, int64_t ldc, int64_t m, int64_t n, bool add) {
  Vec sum[tileM][2];
#pragma GCC unroll 12
  for (int i = 0; i < tileM; ++i) {
    __builtin_prefetch(c + i * ldc, 1);
    __builtin_prefetch(c + i * ldc + 16, 1);
    sum[i][0] = sum[i][1] = Vec{};
  }
  for (int64_t p = 0; p < k; ++p) {
    Vec b0 = load(b), b1 = load(b + 16);
    b += tileN;
#pragma GCC unroll 12
    for (int i = 0; i < tileM; ++i) {
      float s = aByColumns ? a[i] : a[i * rowOfA];
      Vec x = {s, s, s, s, s, s, s, s, s, s, s, s, s, s, s, s};
      sum[i][0] += x * b0;
      sum[i][1] += x * b1;
    }
    a += aByColumns ? tileM : 1;
  }
  if (m == tileM && n == tileN) {
#pragma GCC unroll 12
    for (int i = 0; i < tileM; ++i)
      for (int j = 0; j < 2; ++j) {
        float* to = c + i * ldc + 16 * j;
        store(to, add ? load(to) + sum[i][j] : sum[i][j]);
      }
    return;
  }
  float whole[tileM * tileN];
#pragma GCC unroll 12
  for (int i = 0; i < tileM; ++i) {
    store(whole + i * tileN, sum[i][0]);
    store(whole + i * tileN + 16, sum[i][1]);
  }
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) c[i * ldc + j] = whole[i * tileN + j] + (add ? c[i * ldc + j] : 0.f);
}

// 16 x 16 in registers: exchanges halves, quarters, eighths, single lanes.
inline __attribute__((always_inline)) void transpose(Vec (&r)[16]) {
  auto exchange = [&](const int distance, const Lanes low) __attribute__((always_inline)) {
    Vec t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      if (i & distance) continue;
      t[i] = __builtin_shuffle(r[i], r[i + distance], low);
      t[i + distance] = __builtin_shuffle(r[i], r[i + distance], low + distance);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = t[i];
  };
  exchange(1, Lanes{0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30});
  exchange(2, Lanes{0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29});
  exchange(4, Lanes{0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27});
  exchange(8, Lanes{0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23});
}

// b [k, n] into panels [k][32], the last one filled up with zeros; its rows, or its columns, are contiguous.
void packRowsOfB(const float* b, int64_t ld, int64_t k, int64_t n, float* to) {
  for (int64_t j = 0; j < n; j += tileN) {
    int64_t width = std::min(tileN, n - j);
    for (int64_t p = 0; p < k; ++p, to += tileN) {
      const float* from = b + p * ld + j;
      if (width == tileN) {
        Vec x = load(from), y = load(from + 16);
        store(to, x);
        store(to + 16, y);
      } else {
        for (int64_t i = 0; i < tileN; ++i) to[i] = i < width ? from[i] : 0.f;
      }
    }
  }
}
void packColumnsOfB(const float* b, int64_t ld, int64_t k, int64_t n, float* to) {
  for (int64_t j = 0; j < n; j += tileN, to += tileN * k) {
    int64_t width = std::min(tileN, n - j), p = 0;
    for (; width == tileN && p + 16 <= k; p += 16)
      for (int half = 0; half < 2; ++half) {
        Vec r[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) r[i] = load(b + (j + 16 * half + i) * ld + p);
        transpose(r);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) store(to + (p + i) * tileN + 16 * half, r[i]);
      }
    for (; p < k; ++p)
      for (int64_t i = 0; i < tileN; ++i) to[p * tileN + i] = i < width ? b[(j + i) * ld + p] : 0.f;
  }
}

// a [m, k] into tiles, [12][rowOfA] from contiguous rows and [k][12] from contiguous columns, filled up with zeros.
void packRowsOfA(const float* a, int64_t ld, int64_t m, int64_t k, float* to) {
  for (int64_t i = 0; i < m; i += tileM, to += tileM * rowOfA)
    for (int64_t r = 0; r < tileM; ++r) {
      if (i + r < m) std::memcpy(to + r * rowOfA, a + (i + r) * ld, k * sizeof(float));
      else std::memset(to + r * rowOfA, 0, k * sizeof(float));
    }
}
void packColumnsOfA(const float* a, int64_t ld, int64_t m, int64_t k, float* to) {
  for (int64_t i = 0; i < m; i += tileM, to += tileM * rowOfA) {
    int64_t height = std::min(tileM, m - i);
    for (int64_t p = 0; p < k; ++p) {
      if (height == tileM) std::memcpy(to + p * tileM, a + p * ld + i, tileM * sizeof(float));
      else
        for (int64_t r = 0; r < tileM; ++r) to[p * tileM + r] = r < height ? a[p * ld + i + r] : 0.f;
    }
  }
}

#pragma GCC pop_options

float* alignedTo64(float* p) { return p + (64 - (reinterpret_cast<uintptr_t>(p) & 63)) % 64 / sizeof(float); }

}  // namespace

bool sgemmPays() {
  static const bool pays = __builtin_cpu_supports("x86-64-v4") && !__builtin_cpu_is("intel");
  return pays;
}

void sgemmSerial(int64_t m, int64_t n, int64_t k, Strided a, Strided b, float* c, int64_t ldc, bool add) {
  thread_local std::vector<float> space(blockK * blockN + blockM * rowOfA + 16);
  float* packedB = alignedTo64(space.data());
  float* packedA = packedB + blockK * blockN;
  for (int64_t j0 = 0; j0 < n; j0 += blockN) {
    int64_t nb = std::min(blockN, n - j0);
    for (int64_t p0 = 0; p0 < k; p0 += blockK) {
      int64_t kb = std::min(blockK, k - p0);
      const float* blockOfB = b.data + p0 * b.row + j0 * b.column;
      if (b.column == 1) packRowsOfB(blockOfB, b.row, kb, nb, packedB);
      else packColumnsOfB(blockOfB, b.column, kb, nb, packedB);
      for (int64_t i0 = 0; i0 < m; i0 += blockM) {
        int64_t mb = std::min(blockM, m - i0);
        const float* blockOfA = a.data + i0 * a.row + p0 * a.column;
        if (a.column == 1) packRowsOfA(blockOfA, a.row, mb, kb, packedA);
        else packColumnsOfA(blockOfA, a.column, mb, kb, packedA);
        auto multiply = a.column == 1 ? tile<false> : tile<true>;
        for (int64_t j = 0; j < nb; j += tileN)
          for (int64_t i = 0; i < mb; i += tileM)
            multiply(kb, packedA + i * rowOfA, packedB + j * kb, c + (i0 + i) * ldc + j0 + j, ldc,
                     std::min(tileM, mb - i), std::min(tileN, nb - j), add || p0 > 0);
      }
    }
  }
}

void sgemm(int64_t m, int64_t n, int64_t k, Strided a, Strided b, float* c, int64_t ldc, bool add) {
  // A grid of about square parts, one a thread.
  int64_t threads = at::get_num_threads(), across = 1;
  for (int64_t d = 2; d <= threads; ++d)
    if (threads % d == 0 && n / d >= m / (threads / d) && n / d >= tileN) across = d;
  int64_t down = threads / across;
  auto edge = [](int64_t length, int64_t parts, int64_t i, int64_t unit) {
    return std::min(length, (length + unit * parts - 1) / (unit * parts) * unit * i);
  };
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      int64_t i = edge(m, down, t / across, tileM), j = edge(n, across, t % across, tileN);
      int64_t rows = edge(m, down, t / across + 1, tileM) - i, columns = edge(n, across, t % across + 1, tileN) - j;
      if (rows <= 0 || columns <= 0) continue;
      sgemmSerial(rows, columns, k, {a.data + i * a.row, a.row, a.column}, {b.data + j * b.column, b.row, b.column},
                  c + i * ldc + j, ldc, add);
    }
  });
}

#else

bool sgemmPays() { return false; }
void sgemm(int64_t, int64_t, int64_t, Strided, Strided, float*, int64_t, bool) {
  fail("ERR_INTERNAL", "sgemm is not compiled for this machine");
}
void sgemmSerial(int64_t m, int64_t n, int64_t k, Strided a, Strided b, float* c, int64_t ldc, bool add) {
  sgemm(m, n, k, a, b, c, ldc, add);
}

#endif

}  // namespace wrpo
