// The GPU kernels' launches, on raw device pointers: no torch header and none of CUDA's, so that both sides compile
// apart. bfloat16 storage (as uint16_t) and float32 statistics; sizes as in kernels.h, whose ops these are. Every
// launch is asynchronous on `stream`, reads and writes each element once unless its file says more, and gives the same
// bits for the same input on every GPU of one architecture: no atomics, and no grid that depends on the machine.
#pragma once
#include <cstdint>

struct CUstream_st;

namespace wrpo::row {
struct Bf16;
struct Objective;
template <class S>
struct AdamWCoefficients;
}  // namespace wrpo::row

namespace wrpo::launch {

using Stream = CUstream_st*;
using row::Bf16;

// Of both backward norms' partial sums: so many rows of floats are needed as scratch, whatever the size of the input.
constexpr int64_t normBlocks = 128;
constexpr int64_t headNormWarps = 1024;
constexpr int64_t normChunk = 65536;  // elements of a partial sum of gradientNorm

// ---- logprob.cu
void softcap(Stream stream, Bf16* z, int64_t R, int64_t V, float cap);
void logprobForward(Stream stream, const Bf16* z, int64_t R, int64_t V, const int32_t* targets, float* logp, float* lse,
                    uint8_t* argmax);
void logprobBackward(Stream stream, Bf16* z, int64_t R, int64_t V, const int32_t* targets, const float* lse,
                     const float* g, float cap);

// ---- rms_norm.cu; residual null: none. partial [normBlocks, H], null where dw is.
void rmsForward(Stream stream, const Bf16* x, const Bf16* residual, Bf16* sum, const Bf16* w, float plus, float eps,
                Bf16* y, float* rstd, int64_t T, int64_t H);
void rmsBackward(Stream stream, const Bf16* dy, const Bf16* x, const Bf16* w, float plus, const float* rstd, Bf16* dx,
                 float* dw, float* partial, int64_t T, int64_t H);

// ---- head_norm.cu; ld: elements between rows. partial [headNormWarps, d], null where dw is.
void headNormForward(Stream stream, const Bf16* x, int64_t ldX, const Bf16* w, float plus, float eps, Bf16* y,
                     int64_t ldY, int64_t T, int64_t heads, int64_t d);
void headNormBackward(Stream stream, Bf16* dy, int64_t ldY, const Bf16* x, int64_t ldX, const Bf16* w, float plus,
                      float eps, float* dw, float* partial, int64_t T, int64_t heads, int64_t d);

// ---- rope.cu
void rope(Stream stream, Bf16* x, int64_t ld, int64_t T, int64_t heads, int64_t headDim, int64_t d, const float* table,
          const int32_t* rows, int sign);

// ---- swiglu.cu
void swigluForward(Stream stream, bool gelu, const Bf16* gateUp, Bf16* h, int64_t T, int64_t F);
void swigluBackward(Stream stream, bool gelu, const Bf16* dh, Bf16* gateUp, Bf16* h, int64_t T, int64_t F);

// ---- adamw.cu; clip: a device scalar, what the gradient is multiplied by. Nothing changes where it is not
// finite. The masters are high and low (row/adamw.h).
void adamwUpdate(Stream stream, Bf16* high, int16_t* low, float* grad, float* m, float* v, int64_t n,
                 const row::AdamWCoefficients<float>& coefficients, const double* clip);
// partial [ceil(n / normChunk)]; result: norm, clip = min(1, maxNorm / (norm + 1e-6)), or 1 with maxNorm 0; NaN where
// the norm is not finite.
void gradientNorm(Stream stream, const float* grad, int64_t n, double maxNorm, double* partial, double* result);
// master <-> its halves
void splitMaster(Stream stream, const float* master, Bf16* high, int16_t* low, int64_t n);
void joinMaster(Stream stream, const Bf16* high, const int16_t* low, float* master, int64_t n);

// ---- merge_lse.cu
void mergeLse(Stream stream, Bf16* out, float* lse, const Bf16* out2, const float* lse2, int64_t R, int64_t heads,
              int64_t d);

// ---- objective.cu: the contests of the prompts [firstGroup, lastGroup), device pointers to what Batch holds
struct Contests {
  const int32_t *groupOffsets, *rowOffsets, *lengths, *contestGroups, *contestOffsets, *contestResponses;
  const double *coefficients, *weights, *reference;  // reference null: none
};
// Sums logp into policy [K], writes losses and margins [Q] and the gradient [K], and dLogp of the groups' rows.
void contests(Stream stream, const Contests& contests, const row::Objective& objective, double normalizer,
              int64_t firstGroup, int64_t lastGroup, const float* logp, double* policy, double* gradient,
              double* losses, double* margins, float* dLogp);

// ---- embedding.cu: rows sorted by id; those of ids[u] are order[offsets[u]] .. order[offsets[u + 1] - 1]
void embeddingBackward(Stream stream, const Bf16* dx, const int32_t* ids, const int32_t* offsets, const int32_t* order,
                       int64_t unique, float* dWeight, int64_t H);

// ---- dropout.cu
void dropout(Stream stream, const Bf16* x, const uint32_t* keys, uint32_t threshold, float scale, Bf16* y, int64_t T,
             int64_t width);

}  // namespace wrpo::launch
