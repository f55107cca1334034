// Float32 matrix products where libtorch's own are slow: MKL runs its AVX2 kernel on every CPU that is not Intel's, so
// wide vectors are left unused there. Elsewhere, and for other types, ATen multiplies.
#pragma once
#include <cstdint>

namespace wrpo {

// Element (i, j) is data[i * row + j * column]; one of the two strides is 1.
struct Strided {
  const float* data;
  int64_t row, column;
};

// Whether this CPU is one on which sgemm is the faster.
bool sgemmPays();
// Whether this CPU multiplies bfloat16 (libtorch does, through oneDNN).
bool hasBfloat16();

// c [m, n] (rows ldc apart) = a [m, k] b [k, n], or c += with `add`. Every element is summed in the same order however
// the work is split: any number of threads gives the same bits.
void sgemm(int64_t m, int64_t n, int64_t k, Strided a, Strided b, float* c, int64_t ldc, bool add);

// The same on the calling thread, for kernels that are parallel themselves.
void sgemmSerial(int64_t m, int64_t n, int64_t k, Strided a, Strided b, float* c, int64_t ldc, bool add);

}  // namespace wrpo
