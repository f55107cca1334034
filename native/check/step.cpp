// step_check test|perf [shape] [tokens]: the engine's whole training step without Node, from the objects that ship,
// with random weights at the shapes of known models. `test` holds a step in bfloat16, on the CPU and, where there is
// one, on a GPU, against the same step in float32 on the CPU, and has a GPU refuse waits that no step may have. `perf`
// times steps, on the GPU where there is one: one JSON line a number.
#include <ATen/Version.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "check/case.h"
#include "error.h"
#include "memory.h"
#include "model/model.h"
#include "train/adamw.h"

using namespace wrpo;

namespace {

struct Shape {
  const char* name;
  int64_t vocabulary, hidden, layers, heads, kvHeads, headDim, feedForward;
  bool tied;
};
constexpr Shape shapes[] = {{"tiny", 512, 64, 2, 4, 2, 16, 176, true},
                            {"small", 8192, 512, 8, 8, 4, 64, 1408, true},
                            {"llama-3.2-1b", 128256, 2048, 16, 32, 8, 64, 8192, true},
                            {"llama-3.2-3b", 128256, 3072, 28, 24, 8, 128, 8192, true},
                            {"llama-3-8b", 128256, 4096, 32, 32, 8, 128, 14336, false}};

const Shape& shapeOf(const std::string& name) {
  for (const Shape& s : shapes)
    if (name == s.name) return s;
  fail("ERR_CONFIG", "no shape \"" + name + "\": expected tiny, small, llama-3.2-1b, llama-3.2-3b or llama-3-8b");
}

ModelConfig configOf(const Shape& s) {
  ModelConfig c{.vocabSize = s.vocabulary,
                .hiddenSize = s.hidden,
                .layers = s.layers,
                .heads = s.heads,
                .kvHeads = s.kvHeads,
                .headDim = s.headDim,
                .intermediateSize = s.feedForward,
                .maxPositions = 8192,
                .rmsNormEps = 1e-5,
                .initializerRange = 0.02,
                .tieWordEmbeddings = s.tied,
                .qkvBias = false,
                .headNorm = false,
                .branchNorms = false,
                .fusedProjections = false,
                .normPlus = 0,
                .activation = Activation::Silu,
                .embeddingScale = 1,
                .queryScale = 1 / std::sqrt(double(s.headDim)),
                .attentionSoftcap = 0,
                .finalSoftcap = 0,
                .windows = std::vector<int64_t>(s.layers, 0),
                .rope = {.dim = s.headDim, .theta = 500000},
                .localRope = {}};
  return c;
}

// Quadruples whose prompts are shared, each with one contest of WRPO (alpha 0.1) and a reference near what a random
// model gives. Prompts and responses have the lengths of performance figures elsewhere, 190 and 420, where they fit.
Batch quadruples(int64_t tokens, int64_t vocabulary) {
  std::mt19937 random(1);
  std::vector<int32_t> prompts;
  std::vector<std::vector<int32_t>> responses;
  for (int64_t used = 0; used == 0 || used + 1450 <= tokens;) {
    bool fits = tokens >= 1450;
    int32_t prompt = fits ? 190 : 9, response = fits ? 420 : 17;
    prompts.push_back(prompt);
    responses.push_back({response, response - 3, response + 2});
    used += fits ? 1450 : tokens;
  }
  Batch b = check::packed(prompts, responses);
  for (auto& t : b.tokens) t = int32_t(random() % vocabulary);
  for (int64_t r = 0; r < b.responseRows(); ++r) b.targets.push_back(int32_t(random() % vocabulary));
  for (int64_t g = 0; g < b.groups(); ++g)
    for (int32_t t = b.promptOffsets[g]; t < b.promptOffsets[g + 1]; ++t) b.positions.push_back(t - b.promptOffsets[g]);
  for (int64_t k = 0; k < b.responses(); ++k)
    for (int32_t r = b.responseOffsets[k]; r < b.responseOffsets[k + 1]; ++r)
      b.positions.push_back(prompts[k / 3] + r - b.responseOffsets[k]);
  b.contestGroups = {0}, b.contestOffsets = {0};
  for (int64_t g = 0; g < b.groups(); ++g) {
    for (int32_t k = 0; k < 3; ++k) b.contestResponses.push_back(b.groupOffsets[g] + k);
    for (double c : {0.1, 0.9, -1.0}) b.contestCoefficients.push_back(c);
    b.contestWeights.push_back(1);
    b.contestOffsets.push_back(int32_t(b.contestResponses.size()));
    b.contestGroups.push_back(int32_t(b.contestWeights.size()));
  }
  for (int64_t k = 0; k < b.responses(); ++k)
    b.reference.push_back(-std::log(double(vocabulary)) * (b.responseOffsets[k + 1] - b.responseOffsets[k]) + k % 3);
  return b;
}

const Objective objective{.beta = 0.1};

struct Trained {
  std::shared_ptr<Model> model;
  AdamW optimizer;

  Trained(const ModelConfig& config, at::ScalarType type, at::Device device)
      : model(std::make_shared<Model>(config, type, Weights::Use::Trained, int64_t(512) << 20, device)),
        optimizer((model->weights().initialize(7), model->trained()),
                  {1e-3, 0.9, 0.999, 1e-8, 0, 1, 0, 0, "constant"}) {
    // Weights that bfloat16 holds exactly, so that every dtype begins with the same ones.
    const auto& weights = model->weights();
    for (const auto& p : weights.parameters()) {
      auto stored = weights.slice(weights.masters(), p);
      stored.assign(stored.host().to(at::kBFloat16).to(at::kFloat));
    }
    model->weights().syncWork();
  }
  Accumulated accumulate(const Batch& batch) { return model->accumulate(batch, {}, objective, double(batch.groups())); }
  void wait() const { model->weights().work.narrow(0, 0, 1).to(at::kCPU); }
};

// ---- test

double cosine(const at::Tensor& a, const at::Tensor& b) {
  auto x = a.to(at::kCPU).to(at::kDouble), y = b.to(at::kCPU).to(at::kDouble);
  return (x.mul(y).sum() / (x.norm() * y.norm())).item<double>();
}

int failures = 0;
void expect(bool good, const std::string& what, double value) {
  std::printf("%s %s: %.6g\n", good ? "ok  " : "FAIL", what.c_str(), value);
  failures += !good;
}

void compare(const std::string& name, Trained& mine, Trained& exact, const Batch& batch) {
  auto got = mine.accumulate(batch), wanted = exact.accumulate(batch);
  double worst = 0;
  for (size_t k = 0; k < got.logps.size(); ++k)
    worst = std::max(worst, std::abs(got.logps[k] - wanted.logps[k]) / std::abs(wanted.logps[k]));
  expect(worst < 2e-3, name + ", largest relative error of a log-prob", worst);
  expect(std::abs(got.loss - wanted.loss) < 0.05, name + ", error of the loss", std::abs(got.loss - wanted.loss));
  const auto& weights = mine.model->weights();
  double least = 1;
  for (const auto& p : weights.parameters())
    least = std::min(least, cosine(weights.slice(mine.model->trained()->grad(), p),
                                   exact.model->weights().slice(exact.model->trained()->grad(), p)));
  double all = cosine(mine.model->trained()->grad(), exact.model->trained()->grad());
  expect(all > 0.999, name + ", cosine of the gradient", all);
  expect(least > 0.99, name + ", least cosine of a parameter's gradient", least);
  double exactNorm = exact.optimizer.step().gradNorm, norm = 0, before = wanted.loss, after = 0;
  // Not of the first micro-batch: libraries may set themselves up in it.
  refuseWaits(true);
  try {
    norm = mine.optimizer.step().gradNorm;
    after = mine.accumulate(batch).loss;
  } catch (const c10::Error& error) {
    expect(false, name + ", " + error.what_without_backtrace(), 1);
  }
  refuseWaits(false);
  expect(std::abs(norm / exactNorm - 1) < 0.02, name + ", relative error of the gradient norm", norm / exactNorm - 1);
  expect(after < before, name + ", loss after the step, less than " + std::to_string(before), after);
  mine.model->trained()->grad().zero_();
}

void test() {
  std::string missing;
  auto gpu = findGpu(missing);
  for (const char* name : {"tiny", "small"}) {
    ModelConfig config = configOf(shapeOf(name));
    for (bool variant : {false, true}) {
      // What other families have and Llama has not.
      if (variant) config.headNorm = config.qkvBias = true;
      Batch batch = quadruples(std::string(name) == "tiny" ? 100 : 3000, config.vocabSize);
      std::vector<at::Device> devices{at::kCPU};
      if (gpu) devices.push_back({at::kCUDA, 0});
      for (at::Device device : devices) {
        Trained exact(config, at::kFloat, at::kCPU), mine(config, at::kBFloat16, device);
        compare(std::string(name) + (variant ? " with head norms and biases" : "") + " on " + device.str(), mine, exact,
                batch);
      }
    }
  }
  if (!gpu) std::printf("no GPU: %s\n", missing.c_str());
}

// ---- perf

double seconds(const std::function<void()>& body) {
  auto began = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

void perf(const std::string& name, int64_t tokens) {
  const Shape& shape = shapeOf(name);
  ModelConfig config = configOf(shape);
  std::string missing, where = at::get_cpu_capability();
  auto gpu = findGpu(missing);
  at::Device device = gpu ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  if (gpu) where = gpu->name;
  Batch batch = quadruples(tokens, shape.vocabulary);
  auto line = [&](const char* what, double value, const char* unit) {
    std::printf(
        "{\"bench\": \"step\", \"shape\": \"%s\", \"tokens\": %ld, \"device\": \"%s\", \"what\": \"%s\", "
        "\"value\": %.6g, \"unit\": \"%s\"}\n",
        name.c_str(), long(batch.size()), where.c_str(), what, value, unit);
    std::fflush(stdout);
  };
  gpu ? resetGpuMemoryPeaks() : resetMemoryPeaks();
  Trained trained(config, at::kBFloat16, device);
  // The rate of the MLP's product alone, in the same call: what a step could reach.
  auto x = at::randn({batch.size(), shape.hidden}, at::kFloat).to(at::kBFloat16).to(device);
  auto w = at::randn({2 * shape.feedForward, shape.hidden}, at::kFloat).to(at::kBFloat16).to(device);
  auto product = [&] { at::mm(x, w.t()).narrow(0, 0, 1).narrow(1, 0, 1).to(at::kCPU); };
  std::vector<double> steps, hosts, products;
  for (int round = 0; round < 7; ++round) {
    double host = 0;
    double step = seconds([&] {
      host = seconds([&] { trained.accumulate(batch); });
      trained.optimizer.step();
      trained.wait();
    });
    product();
    double one = seconds([&] {
      for (int i = 0; i < 5; ++i) product();
    });
    if (round < 2) continue;  // the first ones allocate and choose algorithms
    steps.push_back(step), hosts.push_back(host), products.push_back(one / 5);
  }
  auto median = [](std::vector<double> v) { return std::sort(v.begin(), v.end()), v[v.size() / 2]; };
  double H = double(shape.hidden), F = double(shape.feedForward);
  double layer = double(config.qkvSize()) * H + H * double(shape.heads * shape.headDim) + 3 * H * F;
  // Of the matrix products alone, forward and backward; attention's own are left out.
  double operations =
      6 * (layer * double(shape.layers * batch.size()) + H * double(shape.vocabulary * batch.responseRows()));
  double rate = 2 * double(batch.size()) * H * 2 * F / median(products);
  double slowest = *std::max_element(steps.begin(), steps.end()),
         fastest = *std::min_element(steps.begin(), steps.end());
  line("step", 1e3 * median(steps), "ms");
  line("step_spread", (slowest - fastest) / median(steps), "of the median, over 5");
  line(gpu ? "host_until_log_probs" : "forward_backward", 1e3 * median(hosts), "ms");
  line("tokens_per_second", double(batch.size()) / median(steps), "packed tokens / s");
  line("model_rate", operations / median(steps) / 1e12, "TFLOP/s");
  line("product_rate", rate / 1e12, "TFLOP/s");
  line("of_product_rate", operations / median(steps) / rate, "1");
  line("peak_memory", double((gpu ? gpuMemoryStats() : memoryStats()).peak) / double(1 << 30), "GiB");
}

}  // namespace

int main(int count, char** arguments) {
  std::string mode = count > 1 ? arguments[1] : "";
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);  // as shim.c does
  c10::InferenceMode guard;
  countAllocations();
  try {
    if (mode == "test") test();
    else if (mode == "perf") perf(count > 2 ? arguments[2] : "tiny", count > 3 ? std::atol(arguments[3]) : 4096);
    else return std::fprintf(stderr, "usage: step_check test|perf [shape] [tokens]\n"), 2;
  } catch (const Error& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
  }
  if (mode == "test") std::printf("%d failed\n", failures);
  return failures > 0;
}
