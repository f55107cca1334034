// The optimiser's passes over flat buffers. AdamW reads and writes each state once, the gradient's zeroing
// included: 32 bytes a parameter, of which 8 are the master's two halves, read and written (row/adamw.h; a float32
// master beside a bfloat16 weight would be 10). The clip factor is read where the norm left it, so that nothing waits
// for the host. The norm reads 4 bytes a parameter: float64 sums of fixed chunks, then of those in a fixed tree, so the
// same bits on every GPU, however many share the work.
#include "kernels/launch.cuh"
#include "kernels/row/adamw.h"

namespace wrpo::launch {
namespace {

constexpr int threads = 256, each = 4;  // parameters of a thread: 16 bytes of each float32 state

template <int W>
__global__ void __launch_bounds__(threads)
    adamwKernel(Bf16* high, int16_t* low, float* grad, float* m, float* v, int64_t packs,
                row::AdamWCoefficients<float> coefficients, const double* clip) {
  int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x;
  const float scale = float(*clip);
  if (i >= packs || !isfinite(scale)) return;
  auto hi = row::load<W>(high, i);
  auto lo = row::load<W>(low, i);
  auto g = row::load<W>(grad, i), mean = row::load<W>(m, i), square = row::load<W>(v, i);
  for (int k = 0; k < W; ++k) {
    float p = row::adamwUpdate(coefficients, row::join({hi.v[k], lo.v[k]}), g.v[k] * scale, mean.v[k], square.v[k]);
    auto halves = row::split(p);
    hi.v[k] = halves.high;
    lo.v[k] = halves.low;
    g.v[k] = 0;
  }
  row::store(high, i, hi);
  row::store(low, i, lo);
  row::store(m, i, mean);
  row::store(v, i, square);
  row::store(grad, i, g);
}

template <int W>
__global__ void __launch_bounds__(512) squaresKernel(const float* grad, int64_t n, double* partial) {
  int64_t begin = blockIdx.x * normChunk, count = n - begin < normChunk ? n - begin : normChunk;
  double total = row::squares<W>(row::BlockTeam{}, grad + begin, count);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

__global__ void __launch_bounds__(1024)
    normKernel(const double* partial, int64_t chunks, double maxNorm, double* result) {
  double total =
      row::BlockTeam{}.reduce(chunks, 0.0, [=](double sum, int64_t i) { return sum + partial[i]; }, row::Add{});
  if (threadIdx.x != 0) return;
  double norm = sqrt(total), clip = maxNorm > 0 ? fmin(1.0, maxNorm / (norm + 1e-6)) : 1.0;
  result[0] = norm;
  result[1] = isfinite(norm) ? clip : nan("");
}

__global__ void splitKernel(const float* master, Bf16* high, int16_t* low, int64_t n) {
  int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x;
  if (i >= n) return;
  auto halves = row::split(master[i]);
  high[i] = halves.high;
  low[i] = halves.low;
}
__global__ void joinKernel(const Bf16* high, const int16_t* low, float* master, int64_t n) {
  int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x;
  if (i < n) master[i] = row::join({high[i], low[i]});
}

template <class... Pointers>
bool aligned(Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

}  // namespace

void adamwUpdate(Stream stream, Bf16* high, int16_t* low, float* grad, float* m, float* v, int64_t n,
                 const row::AdamWCoefficients<float>& coefficients, const double* clip) {
  bool wide = n % each == 0 && aligned(grad, m, v) && reinterpret_cast<uintptr_t>(high) % 8 == 0 &&
              reinterpret_cast<uintptr_t>(low) % 8 == 0;
  int64_t packs = wide ? n / each : n;
  auto kernel = wide ? adamwKernel<each> : adamwKernel<1>;
  start("adamwUpdate", kernel, blocksFor(packs, threads), threads, stream, high, low, grad, m, v, packs, coefficients,
        clip);
}

void gradientNorm(Stream stream, const float* grad, int64_t n, double maxNorm, double* partial, double* result) {
  int64_t chunks = (n + normChunk - 1) / normChunk;
  auto kernel = aligned(grad) ? squaresKernel<4> : squaresKernel<1>;
  start("gradientNorm", kernel, chunks, 512, stream, grad, n, partial);
  start("gradientNorm's sum", normKernel, 1, 1024, stream, partial, chunks, maxNorm, result);
}

void splitMaster(Stream stream, const float* master, Bf16* high, int16_t* low, int64_t n) {
  start("splitMaster", splitKernel, blocksFor(n, threads), threads, stream, master, high, low, n);
}

void joinMaster(Stream stream, const Bf16* high, const int16_t* low, float* master, int64_t n) {
  start("joinMaster", joinKernel, blocksFor(n, threads), threads, stream, high, low, master, n);
}

}  // namespace wrpo::launch
