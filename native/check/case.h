// What kernel_check knows about an op: a case states it three times, as the engine calls it, composed of plain ATen
// ops, and as loops in extended precision, the oracle. Each function below makes one op's case at one size.
#pragma once
#include <ATen/ATen.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "model/batch.h"
#include "train/objective.h"

namespace wrpo::check {

using Real = long double;
using Tensors = std::map<std::string, at::Tensor>;
using Reals = std::map<std::string, std::vector<Real>>;
using Shape = std::vector<int64_t>;

// Drawn in float64, then rounded to the dtype under test, or to its compute type where `wide`.
struct Input {
  std::string name;
  at::Tensor value;
  bool wide = false;
};
// Elements that must be read or written at least once: of the storage type, of the compute type.
struct Traffic {
  int64_t storage = 0, wide = 0;
};
// Reads its inputs from the map and writes its outputs into it, sometimes in place. Names carry the calculus: an input
// dy beside an output y is a cotangent, an output dx the gradient of the input x (an input dx is what it is added to).
struct Side {
  std::function<void(Tensors&)> forward, backward;
};
struct Case {
  std::string op, shape;
  std::vector<Input> inputs;
  std::vector<std::string> outputs;
  Side ours, plain;
  std::function<void(Reals&)> oracle;
  Traffic forward, backward;
  std::vector<at::ScalarType> dtypes{at::kFloat, at::kDouble, at::kBFloat16};
  bool gemms = false;  // of a library, whose bits may depend on the number of threads
};

// ---- kernels.cpp
Case rmsNorm(int64_t rows, int64_t width, bool residual, double plus);
// Heads of rows that hold one more, which must stay as it is.
Case headNorm(int64_t rows, int64_t heads, int64_t headDim, double plus);
// length: of the sequence that is rotated.
Case ropeTables(const RopeSettings& settings, int64_t length, int64_t positions);
Case ropeRotation(int64_t rows, int64_t heads, int64_t headDim, int64_t rotated);
Case swiglu(int64_t rows, int64_t width, Activation activation);
// scale: the logits' standard deviation
Case logprob(int64_t rows, int64_t vocabulary, double scale, double cap);
Case merge(int64_t rows, int64_t heads, int64_t headDim);
Case embedding(int64_t rows, int64_t width, int64_t vocabulary);
Case dropoutMask(int64_t rows, int64_t width, double p);
Case adamw(int64_t n, int64_t step);
Case norm(int64_t n);
Case hash(int64_t bytes);

// ---- model.cpp
Case linearLayer(int64_t rows, int64_t in, int64_t out);
Case loraLayer(int64_t rows, int64_t in, int64_t out, int64_t rank);
Case attention(const char* layout, const Batch& batch, int64_t heads, int64_t kvHeads, int64_t headDim,
               bool promptQueries, int64_t window, double cap);
// chunkRows: rows of logits that the head may hold at once.
enum class HeadPass { Together, BackwardAlone };
Case head(int64_t rows, int64_t width, int64_t vocabulary, int64_t chunkRows, HeadPass pass, double cap);
// spread: the log-probs' standard deviation, and with it the margin's.
Case preference(const char* form, const Objective& objective, const std::vector<double>& coefficients, bool reference,
                double spread);

// ---- rows.cpp: of the same ops what the GPU's kernels compute
Case gpuRmsNorm(int64_t rows, int64_t width, bool residual, double plus);
Case gpuHeadNorm(int64_t rows, int64_t heads, int64_t headDim, double plus);
Case gpuRope(int64_t rows, int64_t heads, int64_t headDim, int64_t rotated);
Case gpuSwiglu(int64_t rows, int64_t width, Activation activation);
Case gpuLogprob(int64_t rows, int64_t vocabulary, double scale, double cap);
Case gpuMerge(int64_t rows, int64_t heads, int64_t headDim);
Case gpuDropout(int64_t rows, int64_t width, double p);
Case gpuAdamw(int64_t n, int64_t step);
Case gpuNorm(int64_t n);
Case gpuPreference(const char* form, const Objective& objective, const std::vector<double>& coefficients,
                   bool reference, double spread);
Case gpuMasterHalves(int64_t stride);
// Masters in halves, written from the host's memory and read into it: of flat buffers, and of a range of one.
Case gpuStored(int64_t n);

// ---- for the cases themselves
inline std::string text(const Shape& sizes) {
  std::string s;
  for (int64_t n : sizes) s += (s.empty() ? "" : "x") + std::to_string(n);
  return s;
}
inline Input normal(const char* name, const Shape& sizes, double scale = 1) {
  return {name, at::randn(sizes, at::kDouble).mul(scale)};
}
inline Input wide(const char* name, const Shape& sizes) { return {name, at::randn(sizes, at::kDouble), true}; }
inline std::vector<int32_t> randomIds(int64_t n, int64_t below) {
  auto t = at::randint(below, {n}, at::kInt);
  return {data<int32_t>(t), data<int32_t>(t) + n};
}
inline at::Tensor indices(const std::vector<int32_t>& ids) { return at::tensor(ids).to(at::kLong); }
inline at::ScalarType statsOf(const at::Tensor& t) { return computeType(t.scalar_type()); }
inline std::vector<Real>& make(Reals& v, const char* name, int64_t n) { return v[name] = std::vector<Real>(n, 0); }
inline Real dot(const Real* a, const Real* b, int64_t n) {
  Real total = 0;
  for (int64_t i = 0; i < n; ++i) total += a[i] * b[i];
  return total;
}
// z [R, V] and dlogp to logp, lse, argmax and dz (from lse, as in the kernel): the head's second half, too. With a cap
// they begin by capping z.
void plainLogprob(Tensors& t, const at::Tensor& targets, double cap);
void plainLogprobBackward(Tensors& t, const at::Tensor& targets, double cap);
void oracleLogprob(Reals& v, const std::vector<int32_t>& targets, int64_t V, double cap);

}  // namespace wrpo::check
