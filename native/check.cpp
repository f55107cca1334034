// kernel_check test|grad|perf [op]: every custom op by itself, without Node, from the objects that ship. [op] is the
// beginning of an op's name. Each op is stated in native/check/; here are the sizes and what is asked of every case.
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "check/case.h"
#include "check/packed.h"

using namespace wrpo;
using namespace wrpo::check;

namespace {

// ---- the table

using Make = std::function<Case()>;

// Widths that no vector divides, single rows, and sizes that reach every block and thread boundary.
std::vector<Make> testCases() {
  std::vector<Make> all;
  auto add = [&](auto function, auto... arguments) { all.push_back([=] { return function(arguments...); }); };
  for (bool residual : {false, true}) {
    add(rmsNorm, 1, 1, residual, 0), add(rmsNorm, 1, 37, residual, 0), add(rmsNorm, 5, 64, residual, 0);
    add(rmsNorm, 150, 1030, residual, 0), add(rmsNorm, 1000, 67, residual, 0), add(rmsNorm, 150, 70, residual, 1);
  }
  add(headNorm, 3, 2, 6, 0), add(headNorm, 40, 3, 64, 0), add(headNorm, 90, 2, 24, 1), add(headNorm, 25, 4, 130, 1);
  RopeSettings usual{.dim = 128}, linear{.type = "linear", .dim = 80, .factor = 4};
  RopeSettings llama3{.type = "llama3", .dim = 128, .theta = 500000, .factor = 8, .originalMaxPosition = 8192};
  RopeSettings yarn{.type = "yarn", .dim = 64, .factor = 4, .attentionFactor = 1.14, .rampLow = 8, .rampHigh = 21};
  RopeSettings dynamic{.type = "dynamic", .dim = 32, .factor = 2, .originalMaxPosition = 100};
  RopeSettings longrope{.type = "longrope", .dim = 8, .attentionFactor = 1.1, .originalMaxPosition = 100};
  longrope.shortFactors = {1, 1.1, 1.3, 2}, longrope.longFactors = {1.2, 2, 5, 9};
  add(ropeTables, usual, 0, 300), add(ropeTables, linear, 0, 300), add(ropeTables, llama3, 0, 300);
  add(ropeTables, yarn, 0, 300);
  for (const auto& s : {dynamic, longrope}) add(ropeTables, s, 90, 100), add(ropeTables, s, 250, 300);
  add(ropeRotation, 1, 1, 2, 2), add(ropeRotation, 5, 3, 10, 10), add(ropeRotation, 333, 6, 64, 64);
  add(ropeRotation, 7, 3, 24, 18);
  for (auto a : {Activation::Silu, Activation::GeluTanh})
    add(swiglu, 1, 1, a), add(swiglu, 3, 37, a), add(swiglu, 8, 64, a), add(swiglu, 150, 1021, a);
  add(logprob, 1, 1, 1, 0), add(logprob, 1, 37, 1, 0), add(logprob, 7, 129, 30, 0), add(logprob, 5, 128257, 1, 0);
  add(logprob, 7, 129, 1, 6);
  add(merge, 1, 1, 1), add(merge, 3, 2, 13), add(merge, 100, 7, 64);

  // Sizes around the edges of a tile (12 x 32) and of the blocks (96, 256, 512) of gemm.cpp.
  add(linearLayer, 1, 1, 1), add(linearLayer, 5, 37, 3), add(linearLayer, 13, 32, 33), add(linearLayer, 97, 48, 64);
  add(linearLayer, 300, 70, 530), add(linearLayer, 25, 530, 260);

  add(loraLayer, 1, 1, 1, 1), add(loraLayer, 7, 13, 5, 3), add(loraLayer, 130, 70, 90, 8);

  auto one = packed({3}, {{1}}), shared = packed({9, 4}, {{5, 7, 1}, {3, 6}});
  auto unshared = packed({0, 0}, {{8}, {5}}), mixed = packed({1, 0, 6}, {{4, 0}, {7}, {}});
  auto large = packed({90, 50}, {{70, 33, 24}, {17, 80}});
  for (bool promptQueries : {true, false}) {
    add(attention, "one", one, 1, 1, 8, promptQueries, 0, 0),
        add(attention, "shared", shared, 4, 2, 6, promptQueries, 0, 0);
    add(attention, "mixed", mixed, 2, 1, 5, promptQueries, 0, 0),
        add(attention, "large", large, 4, 2, 64, promptQueries, 0, 0);
    for (int64_t window : {1, 4, 60, 1000})
      add(attention, "shared", shared, 4, 2, 6, promptQueries, window, 0),
          add(attention, "large", large, 4, 2, 24, promptQueries, window, 0);
    add(attention, "shared", shared, 4, 2, 6, promptQueries, 0, 0.7);
    add(attention, "mixed", mixed, 2, 1, 5, promptQueries, 3, 0.7);
    add(attention, "large", large, 4, 2, 24, promptQueries, 50, 0.7);
  }
  add(attention, "unshared", unshared, 3, 3, 16, true, 0, 0);

  add(head, 1, 5, 7, 1, HeadPass::Together, 0);
  add(head, 20, 13, 37, 1000, HeadPass::Together, 0), add(head, 20, 13, 37, 6, HeadPass::Together, 0);
  add(head, 20, 13, 37, 8, HeadPass::BackwardAlone, 0);
  add(head, 70, 96, 2003, 1000, HeadPass::Together, 0), add(head, 70, 96, 2003, 9, HeadPass::Together, 0);
  add(head, 70, 96, 2003, 32, HeadPass::BackwardAlone, 0);

  for (auto pass : {HeadPass::Together, HeadPass::BackwardAlone}) add(head, 20, 13, 37, 6, pass, 3);

  add(dropoutMask, 1, 1, 0.4), add(dropoutMask, 9, 37, 0.05), add(dropoutMask, 150, 1021, 0.5);
  add(embedding, 1, 1, 1), add(embedding, 9, 13, 5), add(embedding, 300, 1030, 40);
  add(adamw, 1, 1), add(adamw, 37, 1), add(adamw, 200003, 1000);
  add(norm, 1), add(norm, 37), add(norm, 600011);
  add(hash, 1), add(hash, 37), add(hash, 1100003);

  for (bool residual : {false, true})
    add(gpuRmsNorm, 1, 37, residual, 0), add(gpuRmsNorm, 300, 1032, residual, 0), add(gpuRmsNorm, 5, 64, residual, 1);
  add(gpuHeadNorm, 40, 3, 64, 0), add(gpuHeadNorm, 25, 4, 130, 1);
  add(gpuRope, 33, 6, 64, 64), add(gpuRope, 7, 3, 24, 18);
  for (auto a : {Activation::Silu, Activation::GeluTanh}) add(gpuSwiglu, 3, 37, a), add(gpuSwiglu, 8, 5000, a);
  add(gpuLogprob, 1, 1, 1, 0), add(gpuLogprob, 7, 129, 30, 0), add(gpuLogprob, 5, 128256, 1, 0);
  add(gpuLogprob, 7, 136, 1, 6);
  add(gpuMerge, 3, 2, 13), add(gpuMerge, 20, 7, 64);
  add(gpuDropout, 9, 37, 0.05);
  add(gpuAdamw, 37, 1), add(gpuAdamw, 20003, 1000);
  add(gpuNorm, 37), add(gpuNorm, 600011);
  add(gpuMasterHalves, 997), add(gpuStored, 1), add(gpuStored, 70001);

  using Form = Objective::Form;
  for (double spread : {1.0, 5000.0}) {
    add(gpuPreference, "wrpo with sft", Objective{Form::Sigmoid, 0.1, 0, 0.1, false, 0.2}, std::vector{0.3, 0.7, -1.0},
        true, spread);
    add(gpuPreference, "simpo", Objective{Form::Sigmoid, 10, 3, 0, true}, std::vector{1.0, -1.0}, false, spread);
    add(gpuPreference, "ipo", Objective{Form::Ipo, 0.01}, std::vector{0.3, 0.7, -1.0}, true, spread);
    add(gpuPreference, "sft", Objective{Form::Linear, 1, 0, 0, true}, std::vector{1.0}, false, spread);
    add(preference, "dpo", Objective{Form::Sigmoid, 0.1}, std::vector{1.0, -1.0}, true, spread);
    add(preference, "wrpo", Objective{Form::Sigmoid, 0.1, 0, 0.1}, std::vector{0.3, 0.7, -1.0}, true, spread);
    add(preference, "simpo", Objective{Form::Sigmoid, 10, 3, 0, true}, std::vector{1.0, -1.0}, false, spread);
    add(preference, "ipo", Objective{Form::Ipo, 0.01}, std::vector{0.3, 0.7, -1.0}, true, spread);
    add(preference, "wrpo with sft", Objective{Form::Sigmoid, 0.1, 0, 0.1, false, 0.2}, std::vector{0.3, 0.7, -1.0},
        true, spread);
    add(preference, "sft", Objective{Form::Linear, 1, 0, 0, true}, std::vector{1.0}, false, spread);
  }
  return all;
}

// Rows of a 1B model, so many that the traffic does not fit the caches and the whole list takes about a minute.
std::vector<Make> perfCases() {
  return {
      [] { return rmsNorm(4096, 2048, false, 0); },
      [] { return rmsNorm(4096, 2048, true, 0); },
      [] { return headNorm(4096, 40, 64, 0); },
      [] { return ropeRotation(4096, 40, 64, 64); },
      [] { return swiglu(1024, 8192, Activation::Silu); },
      [] { return swiglu(1024, 8192, Activation::GeluTanh); },
      [] { return logprob(256, 128256, 1, 0); },
      [] { return linearLayer(1024, 2048, 2048); },
      [] { return loraLayer(1024, 2048, 2048, 16); },
      [] { return dropoutMask(4096, 2048, 0.05); },
      [] { return merge(4096, 32, 64); },
      [] { return attention("shared", packed({300, 300}, {{250, 250, 250}, {250, 250, 250}}), 32, 8, 64, true, 0, 0); },
      [] { return head(256, 1024, 32768, 256, HeadPass::Together, 0); },
      [] { return head(256, 1024, 32768, 64, HeadPass::BackwardAlone, 0); },
      [] { return embedding(4096, 2048, 16384); },
      [] { return adamw(1 << 24, 1000); },
      [] { return norm(1 << 26); },
  };
}

// ---- running a case

const char* nameOf(at::ScalarType type) {
  return type == at::kFloat ? "float32" : type == at::kDouble ? "float64" : "bfloat16";
}

constexpr int64_t smallCase = 4000;
int64_t elements(const Case& c) {
  int64_t n = 0;
  for (const auto& in : c.inputs) n += in.value.numel();
  return n;
}

// The same case whether it runs alone or after others.
Case draw(const Make& make, int64_t seed) {
  at::manual_seed(seed);
  return make();
}

Tensors prepare(const Case& c, at::ScalarType dtype) {
  Tensors t;
  for (const auto& in : c.inputs) t[in.name] = in.value.to(in.wide ? computeType(dtype) : dtype, false, true);
  return t;
}

Tensors run(const Case& c, const Side& side, at::ScalarType dtype, int threads) {
  at::set_num_threads(threads);
  auto t = prepare(c, dtype);
  side.forward(t);
  if (side.backward) side.backward(t);
  return t;
}

std::vector<Real> reals(const at::Tensor& t) {
  auto wide = t.to(at::kDouble).contiguous();
  return {data<double>(wide), data<double>(wide) + wide.numel()};
}

const at::Tensor* inputNamed(const Case& c, const std::string& name) {
  auto in = std::find_if(c.inputs.begin(), c.inputs.end(), [&](const Input& i) { return i.name == name; });
  return in == c.inputs.end() ? nullptr : &in->value;
}

Real meanSize(const std::vector<Real>& values) {
  Real mean = 0;
  for (Real value : values) mean += std::abs(value) / values.size();
  return mean;
}

// The largest error, each relative to its element's size plus the mean size: small elements count, zeros do not
// explode. A NaN is an infinite error.
double worst(const std::vector<Real>& got, const std::vector<Real>& want) {
  if (got.size() != want.size()) return INFINITY;
  Real mean = meanSize(want), error = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    Real distance = std::abs(got[i] - want[i]);
    if (distance == 0) continue;
    Real relative = distance / (std::abs(want[i]) + mean);
    error = std::isnan(relative) ? INFINITY : std::max(error, relative);
  }
  return double(error);
}

// ---- test

// One rounding to nearest: half the spacing of the numbers just above 1.
double roundingStep(at::ScalarType type) {
  return type == at::kFloat ? 0x1p-24 : type == at::kDouble ? 0x1p-53 : type == at::kBFloat16 ? 0x1p-8 : 0;
}

bool sameBits(const Tensors& a, const Tensors& b) {
  return std::all_of(a.begin(), a.end(), [&](const auto& entry) {
    if (!entry.second.defined()) return true;
    auto x = entry.second.contiguous(), y = b.at(entry.first).contiguous();
    return x.nbytes() == y.nbytes() && std::memcmp(x.data_ptr(), y.data_ptr(), x.nbytes()) == 0;
  });
}

// The tolerance law: at most twice plain ATen's error, and a rounding step. A small case is drawn many times and judged
// as one, since a few elements' errors are luck. The line shows the output nearest to the law.
bool test(const Make& make, at::ScalarType dtype) {
  Reals want, got, alone, composed;  // got with two threads, alone with one
  std::map<std::string, double> step;
  bool repeats = true, threads = true;
  Case c = draw(make, 1);
  int64_t draws = c.inputs.empty() ? 1 : std::clamp<int64_t>(16 * smallCase / elements(c), 2, 64);
  for (int64_t seed = 1; seed <= draws; c = draw(make, ++seed)) {
    Reals oracle;
    for (const auto& [name, value] : prepare(c, dtype)) oracle[name] = reals(value);
    c.oracle(oracle);
    auto ours = run(c, c.ours, dtype, 2), single = run(c, c.ours, dtype, 1), plain = run(c, c.plain, dtype, 2);
    auto pool = [](std::vector<Real>& all, const std::vector<Real>& part) {
      all.insert(all.end(), part.begin(), part.end());
    };
    for (const auto& name : c.outputs) {
      pool(want[name], oracle[name]), pool(composed[name], reals(plain[name]));
      pool(got[name], reals(ours[name])), pool(alone[name], reals(single[name]));
      step[name] = roundingStep(ours[name].scalar_type());
    }
    repeats = repeats && sameBits(ours, run(c, c.ours, dtype, 2));
    threads = threads && (c.gemms || sameBits(ours, single));
  }
  std::string output;
  double share = -1, error = 0, plainError = 0;
  for (const auto& name : c.outputs) {
    double e = std::max(worst(got[name], want[name]), worst(alone[name], want[name])),
           p = worst(composed[name], want[name]);
    double s = e == 0 ? 0 : e / (2 * p + step[name]);
    if (p > 0.5 && step[name] > 0) s = INFINITY;  // the composition is not this op: the law would say nothing
    if (!(s <= share)) share = s, output = name, error = e, plainError = p;
  }
  bool ok = share <= 1 && repeats && threads;
  std::printf("%-18s %-8s %-32s %-11s ours %.1e  ATen %.1e  %s%s%s\n", c.op.c_str(), nameOf(dtype), c.shape.c_str(),
              output.c_str(), error, plainError, ok ? "ok" : "FAIL", repeats ? "" : " (other bits the second time)",
              threads ? "" : " (other bits with one thread)");
  return ok;
}

// ---- grad

// Central differences with step h err by h^2 f''' / 6 and eps |f| / h: at h = eps^(1/3) = 6e-6 both are near 1e-11 for
// functions of size and curvature 1. 1e-6 leaves room for third derivatives of 1e4 and is far from any wrong formula.
// Where a saturated loss has almost no gradient, eps |f| / h itself is the larger limit.
constexpr double step = 6.06e-6, gradientTolerance = 1e-6;

// The scalar whose gradient backward computes, the sum of <y, dy>; `size` receives the sum of its terms' sizes.
Real pairing(const Case& c, const Tensors& t, Real& size) {
  Real total = size = 0;
  for (const auto& name : c.outputs) {
    const at::Tensor* cotangent = inputNamed(c, "d" + name);
    if (!cotangent || !t.contains(name)) continue;
    auto y = reals(t.at(name)), dy = reals(*cotangent);
    for (size_t i = 0; i < y.size(); ++i) total += y[i] * dy[i], size += std::abs(y[i] * dy[i]);
  }
  return total;
}

bool grad(const Case& c, const std::string& name) {
  const at::Tensor &x = *inputNamed(c, name), *before = inputNamed(c, "d" + name);
  auto result = run(c, c.ours, at::kDouble, 1)["d" + name];
  auto analytic = reals(before ? result - *before : result), numeric = analytic;
  Real size = 0, noise = 0;
  for (int64_t i = 0; i < x.numel(); ++i) {
    double middle = data<double>(x)[i], h = step * std::max(1.0, std::abs(middle));
    auto at = [&](double value) {
      auto t = prepare(c, at::kDouble);
      data<double>(t[name])[i] = value;
      c.ours.forward(t);
      return pairing(c, t, size);
    };
    double up = middle + h, down = middle - h;
    numeric[i] = (at(up) - at(down)) / (Real(up) - down);
    noise = std::max(noise, size * 0x1p-52L / h);
  }
  double error = worst(analytic, numeric), limit = std::max(gradientTolerance, double(noise / meanSize(numeric)));
  bool ok = error <= limit;
  std::printf("%-18s %-32s d%-10s error %.1e  limit %.1e  %s\n", c.op.c_str(), c.shape.c_str(), name.c_str(), error,
              limit, ok ? "ok" : "FAIL");
  return ok;
}

// ---- perf

double seconds(const std::function<void()>& body) {
  auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Copies bytes / 2, that is, reads and writes `bytes` in all.
std::function<void()> copyOf(int64_t bytes) {
  constexpr int64_t block = 1 << 18;
  auto from = at::ones({bytes / 2}, at::kByte), to = at::zeros({bytes / 2}, at::kByte);
  return [=] {
    parallelRows(bytes / 2 / block, 1, [&](int64_t first, int64_t last) {
      std::memcpy(data<char>(to) + first * block, data<char>(from) + first * block, (last - first) * block);
    });
  };
}

// Interleaved rounds, so that a busy machine slows all three alike; medians of seven, after one to warm up. An op in
// place can pass the copy, which also fetches the lines it is about to overwrite.
void perf(const Case& c, at::ScalarType dtype, bool backward) {
  constexpr int rounds = 7;
  const Traffic& traffic = backward ? c.backward : c.forward;
  int64_t bytes = traffic.storage * c10::elementSize(dtype) + traffic.wide * c10::elementSize(computeType(dtype));
  Tensors ours = prepare(c, dtype), plain = prepare(c, dtype);
  if (backward) c.ours.forward(ours), c.plain.forward(plain);
  auto part = [&](const Side& side) { return backward ? side.backward : side.forward; };
  const std::function<void()> bodies[] = {[&, f = part(c.ours)] { f(ours); }, [&, f = part(c.plain)] { f(plain); },
                                          copyOf(bytes)};
  std::vector<double> times[3];
  for (int round = -1; round < rounds; ++round)
    for (int i = 0; i < 3; ++i)
      if (double t = seconds(bodies[i]); round >= 0) times[i].push_back(t);
  for (auto& t : times) std::sort(t.begin(), t.end());
  double mine = times[0][rounds / 2], aten = times[1][rounds / 2], copy = times[2][rounds / 2];
  // A line of JSON, as the other benchmarks print.
  std::printf(
      "{\"bench\": \"kernel\", \"what\": \"%s %s\", \"dtype\": \"%s\", \"shape\": \"%s\", \"value\": %.4g, \"unit\": "
      "\"ms\", "
      "\"gbps\": %.4g, \"copyGbps\": %.4g, \"timesAsFastAsATen\": %.3g}\n",
      c.op.c_str(), backward ? "backward" : "forward", nameOf(dtype), c.shape.c_str(), mine * 1e3,
      double(bytes) / mine / 1e9, double(bytes) / copy / 1e9, aten / mine);
}

// ---- modes: each calls tally(ok) once a check

using Tally = std::function<void(bool)>;

void testAll(const Make& make, const Case& c, const Tally& tally) {
  for (auto dtype : c.dtypes) tally(test(make, dtype));
}
// Small cases only: every element costs two forwards.
void gradAll(const Make&, const Case& c, const Tally& tally) {
  for (const auto& output : c.outputs)
    if (elements(c) <= smallCase && output[0] == 'd' && inputNamed(c, output.substr(1)))
      tally(grad(c, output.substr(1)));
}
void perfAll(const Make&, const Case& c, const Tally& tally) {
  for (auto dtype : c.dtypes) {
    if (dtype == at::kDouble) continue;
    perf(c, dtype, false), tally(true);
    if (c.ours.backward) perf(c, dtype, true), tally(true);
  }
}

int usage() {
  std::fprintf(stderr, "usage: kernel_check test|grad|perf [op]\n");
  return 2;
}

}  // namespace

int main(int count, char** arguments) {
  std::string mode = count > 1 ? arguments[1] : "", op = count > 2 ? arguments[2] : "";
  auto body = mode == "test" ? testAll : mode == "grad" ? gradAll : mode == "perf" ? perfAll : nullptr;
  if (!body || count > 3) return usage();
  // OpenMP reads its settings when it loads, before main: set them and start again. Spinning threads would take turns
  // with whoever else uses these cores.
  if (!std::getenv("OMP_WAIT_POLICY")) {
    setenv("OMP_WAIT_POLICY", "passive", 1);
    execv("/proc/self/exe", arguments);
  }
  // Freed pages are kept, so that plain ATen's temporaries are not timed as page faults.
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
  c10::InferenceMode inference;
  at::set_num_threads(2);

  int passed = 0, failed = 0;
  for (const auto& make : mode == "perf" ? perfCases() : testCases()) {
    Case c = draw(make, 1);
    if (c.op.starts_with(op)) body(make, c, [&](bool ok) { ++(ok ? passed : failed); });
  }
  if (passed + failed == 0) return std::fprintf(stderr, "no op is called %s\n", op.c_str()), usage();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}
