// step_check test [shape] | perf [shape] [tokens]: the engine's whole training step without Node, from the objects that
// ship, with random weights at the shapes of known models. `test` holds a step in bfloat16, on the CPU and, where there
// is one, on a GPU, against the same step in float32 on the CPU, and has a GPU refuse waits that no step may have; of
// tiny and small where no shape is given. `perf` times steps, on the GPU where there is one: one JSON line a number.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <optional>
#include <random>

#include "check/packed.h"
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

// Quadruples, each with one contest of WRPO (alpha 0.1) and a reference near what a random model gives. Prompts and
// responses have the lengths of performance figures elsewhere, 190 and 420, where they fit. Unshared, each response
// brings its prompt along, of which nothing is predicted.
Batch quadruples(int64_t tokens, int64_t vocabulary, bool shared = true) {
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
  std::vector<int32_t> own(prompts.size(), 0);  // tokens of a prompt that its responses begin with
  if (!shared) {
    std::swap(own, prompts);
    for (size_t g = 0; g < own.size(); ++g)
      for (auto& n : responses[g]) n += own[g];
  }
  Batch b = check::packed(prompts, responses);
  for (auto& t : b.tokens) t = int32_t(random() % vocabulary);
  for (int64_t g = 0; g < b.groups(); ++g)
    for (int32_t t = b.promptOffsets[g]; t < b.promptOffsets[g + 1]; ++t) b.positions.push_back(t - b.promptOffsets[g]);
  for (int64_t k = 0; k < b.responses(); ++k) {
    const int32_t rows = b.responseOffsets[k + 1] - b.responseOffsets[k];
    for (int32_t r = 0; r < rows; ++r) {
      b.positions.push_back(prompts[k / 3] + r);
      b.targets.push_back(r < own[k / 3] ? -1 : int32_t(random() % vocabulary));
    }
    b.reference.push_back(-std::log(double(vocabulary)) * (rows - own[k / 3]) + k % 3);
  }
  b.contestGroups = {0}, b.contestOffsets = {0};
  for (int64_t g = 0; g < b.groups(); ++g) {
    for (int32_t k = 0; k < 3; ++k) b.contestResponses.push_back(b.groupOffsets[g] + k);
    for (double c : {0.1, 0.9, -1.0}) b.contestCoefficients.push_back(c);
    b.contestWeights.push_back(1);
    b.contestOffsets.push_back(int32_t(b.contestResponses.size()));
    b.contestGroups.push_back(int32_t(b.contestWeights.size()));
  }
  return b;
}

const Objective objective{.beta = 0.1};

// Weights that bfloat16 holds exactly, so that every dtype begins with the same ones.
void roundToBfloat16(Parameters& parameters) {
  for (const auto& p : parameters.parameters()) {
    auto stored = parameters.slice(parameters.masters(), p);
    stored.assign(stored.host().to(at::kBFloat16).to(at::kFloat));
  }
  parameters.syncWork();
}

struct Trained {
  std::shared_ptr<Model> model;
  std::optional<AdamW> optimizer;
  AdapterUse use;
  int64_t keptLayers = std::numeric_limits<int64_t>::max();

  Trained(const ModelConfig& config, at::ScalarType type, at::Device device)
      : model(std::make_shared<Model>(config, type, Weights::Use::Trained, int64_t(512) << 20, device)) {
    model->weights().initialize(7);
    roundToBfloat16(model->weights());
  }
  // With dropout, and already trained: fresh ones pass no gradient on.
  void addAdapters() {
    LoraShape shape{.rank = 4, .scale = 2, .dropout = 0.3, .modules = {}};
    for (int64_t l = 0; l < model->config().layers; ++l)
      for (const char* of :
           {"self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"})
        shape.modules.push_back("model.layers." + std::to_string(l) + "." + of);
    model->addAdapters(shape, 7);
    auto& adapters = *model->adapters();
    auto generator = at::detail::createCPUGenerator(5);
    for (const auto& p : adapters.parameters())
      adapters.slice(adapters.masters(), p).assign(at::randn(p.shape, generator, at::kFloat).mul_(0.1));
    roundToBfloat16(adapters);
    use.dropout = DropoutDraw{.seed = 3, .step = 2, .firstRow = 0};
  }
  std::function<Accumulated()> accumulate(const Batch& batch) {
    return model->accumulate(batch, use, objective, double(batch.groups()), keptLayers);
  }
  AdamW::Step step() {
    if (!optimizer) optimizer.emplace(model->trained(), AdamWOptions{1e-3, 0.9, 0.999, 1e-8, 0, 1, 0, 0, "constant"});
    return optimizer->step();
  }
  void wait() const { model->trained()->work.narrow(0, 0, 1).to(at::kCPU); }
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

template <class Body>
bool isRefused(Body body) {
  try {
    body();
    return false;
  } catch (const Error& error) {
    return error.code == "ERR_NON_FINITE";
  }
}

// A loss that is no number, though its gradient is one: nothing changes, even if the update is queued unseen.
void refuses(const std::string& name, Trained& mine, Batch batch) {
  batch.reference[2] = -std::numeric_limits<double>::infinity();
  auto trained = mine.model->trained();
  auto before = trained->masters().host().clone();
  std::function<Accumulated()> read;
  const bool atOnce = isRefused([&] { read = mine.accumulate(batch); });
  const bool updated = !isRefused([&] { mine.step(); });
  const bool told = atOnce || isRefused(read);
  expect(told, name + ", a loss that is no number is told", told);
  expect(!updated && trained->masters().host().equal(before), name + ", and no update made of it", updated);
  trained->grad().zero_();
}

void compare(const std::string& name, Trained& mine, Trained& exact, const Batch& batch) {
  auto got = mine.accumulate(batch)(), wanted = exact.accumulate(batch)();
  double worst = 0;
  for (size_t k = 0; k < got.logps.size(); ++k)
    worst = std::max(worst, std::abs(got.logps[k] - wanted.logps[k]) / std::abs(wanted.logps[k]));
  expect(worst < 2e-3, name + ", largest relative error of a log-prob", worst);
  expect(std::abs(got.loss - wanted.loss) < 0.05, name + ", error of the loss", std::abs(got.loss - wanted.loss));
  auto trained = mine.model->trained(), exactly = exact.model->trained();
  double least = 1;
  for (const auto& p : trained->parameters())
    least = std::min(least, cosine(trained->slice(trained->grad(), p), exactly->slice(exactly->grad(), p)));
  double all = cosine(trained->grad(), exactly->grad());
  expect(all > 0.999, name + ", cosine of the gradient", all);
  expect(least > 0.99, name + ", least cosine of a parameter's gradient", least);
  double exactNorm = exact.step().gradNorm, norm = 0, before = wanted.loss, after = 0;
  // Not of the first micro-batch: libraries may set themselves up in it.
  refuseWaits(true);
  int64_t waits = Readback::waits;
  try {
    norm = mine.step().gradNorm;
    auto first = mine.accumulate(batch), second = mine.accumulate(batch);
    waits = Readback::waits - waits;
    after = first().loss;
    second();
  } catch (const c10::Error& error) {
    expect(false, name + ", " + error.what_without_backtrace(), 1);
  }
  refuseWaits(false);
  expect(waits <= 1, name + ", waits of the host until another step's micro-batches are queued", double(waits));
  expect(std::abs(norm / exactNorm - 1) < 0.02, name + ", relative error of the gradient norm", norm / exactNorm - 1);
  expect(after < before, name + ", loss after the step, less than " + std::to_string(before), after);
  mine.model->trained()->grad().zero_();
  refuses(name, mine, batch);
}

// What the models of some family, or the ways to train one, have and plain Llama has not.
struct Variant {
  const char* name;
  std::function<void(ModelConfig&)> config = [](ModelConfig&) {};
  std::function<void(Trained&)> training = [](Trained&) {};
  bool shared = true;
};
const Variant variants[] = {
    {.name = "plain"},
    {.name = "head norms and biases", .config = [](ModelConfig& c) { c.headNorm = c.qkvBias = true; }},
    {.name = "Gemma's parts, a window in layer 1",
     .config =
         [](ModelConfig& c) {
           c.headNorm = c.branchNorms = true;
           c.normPlus = 1, c.activation = Activation::GeluTanh, c.finalSoftcap = 4;
           c.embeddingScale = std::sqrt(double(c.hiddenSize));
           c.windows[1] = 11, c.localRope = {.dim = c.headDim, .theta = 10000};
         },
     .shared = false},
    {.name = "adapters with dropout", .training = [](Trained& t) { t.addAdapters(); }},
    {.name = "layers computed again", .training = [](Trained& t) { t.keptLayers = 1; }}};

void test(const std::vector<const char*>& names) {
  std::string missing;
  auto gpu = findGpu(missing);
  for (const char* name : names) {
    for (const Variant& variant : variants) {
      ModelConfig config = configOf(shapeOf(name));
      variant.config(config);
      Batch batch = quadruples(std::string(name) == "tiny" ? 100 : 3000, config.vocabSize, variant.shared);
      std::vector<std::pair<at::Device, std::string>> devices{{at::kCPU, "the CPU"}};
      if (gpu) devices.push_back({gpu->device, gpu->name});
      for (const auto& [device, where] : devices) {
        Trained exact(config, at::kFloat, at::kCPU), mine(config, at::kBFloat16, device);
        variant.training(exact), variant.training(mine);
        compare(std::string(name) + ", " + variant.name + ", on " + where, mine, exact, batch);
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
  at::Device device = gpu ? gpu->device : at::kCPU;
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
      trained.step();
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
  line(gpu ? "host_until_queued" : "forward_backward", 1e3 * median(hosts), "ms");
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
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  c10::InferenceMode guard;
  countAllocations();
  try {
    if (mode == "test") test(count > 2 ? std::vector<const char*>{arguments[2]} : std::vector{"tiny", "small"});
    else if (mode == "perf") perf(count > 2 ? arguments[2] : "tiny", count > 3 ? std::atol(arguments[3]) : 4096);
    else return std::fprintf(stderr, "usage: step_check test [shape] | perf [shape] [tokens]\n"), 2;
  } catch (const Error& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
  } catch (const c10::Error& error) {
    return std::fprintf(stderr, "%s\n", error.what_without_backtrace()), 1;
  }
  if (mode == "test") std::printf("%d failed\n", failures);
  return failures > 0;
}
