// gpu_check test|perf: every CUDA kernel on a GPU, without torch. `test` compares what it leaves in memory with the
// same arithmetic of native/kernels/row/ played on the CPU, which kernel_check holds against the oracles; `perf` gives
// its bandwidth beside that of a copy of the same bytes. test/gpu.mjs builds and runs it.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/launch.h"
#include "kernels/row/adamw.h"
#include "kernels/row/dropout.h"
#include "kernels/row/logprob.h"
#include "kernels/row/merge_lse.h"
#include "kernels/row/objective.h"
#include "kernels/row/rms_norm.h"
#include "kernels/row/rope.h"
#include "kernels/row/swiglu.h"

namespace {

using namespace wrpo;
using row::Bf16;

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// The same values on both sides: the host's are worked on by the emulation, the device's by the kernel.
template <class T>
struct Both {
  std::vector<T> host;
  T* device = nullptr;

  explicit Both(std::vector<T> values) : host(std::move(values)) {
    require(cudaMalloc(&device, host.size() * sizeof(T)), "cudaMalloc");
    require(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  Both(const Both&) = delete;
  ~Both() { cudaFree(device); }
  std::vector<T> fetch() const {
    std::vector<T> values(host.size());
    require(cudaMemcpy(values.data(), device, host.size() * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return values;
  }
};
template <class T>
using Shared = std::shared_ptr<Both<T>>;

std::mt19937_64 randomness(1);
double normal() { return std::normal_distribution<double>()(randomness); }
Shared<Bf16> halves(int64_t n, double scale = 1) {
  std::vector<Bf16> values(n);
  for (auto& v : values) v = row::narrow<Bf16>(float(normal() * scale));
  return std::make_shared<Both<Bf16>>(std::move(values));
}
Shared<float> floats(int64_t n, bool positive = false) {
  std::vector<float> values(n);
  for (auto& v : values) v = positive ? std::abs(float(normal())) : float(normal());
  return std::make_shared<Both<float>>(std::move(values));
}
template <class T>
Shared<T> all(int64_t n, T value) {
  return std::make_shared<Both<T>>(std::vector<T>(n, value));
}
Shared<int32_t> below(int64_t n, int64_t limit) {
  std::vector<int32_t> values(n);
  for (auto& v : values) v = int32_t(randomness() % uint64_t(limit));
  return std::make_shared<Both<int32_t>>(std::move(values));
}

double value(Bf16 x) { return row::widen(x); }
template <class T>
double value(T x) {
  return double(x);
}
// Of a result: float32 that is summed in the same order differs by the last bits of exp and of fused multiplications;
// a bfloat16 may then round to its neighbour.
template <class T>
constexpr double tolerance = std::is_same_v<T, Bf16> ? 0x1p-7 : 2e-5;

struct Kernel {
  std::string name;
  int64_t bytes;  // read and written at least
  std::function<void(cudaStream_t)> launch;
  std::function<void()> emulate;
  std::function<double()> error = [] { return 0.0; };  // in tolerances

  template <class T>
  void compare(Shared<T> result) {
    error = [before = error, result] {
      auto got = result->fetch();
      double mean = 0, worst = before();
      for (auto v : result->host) mean += std::abs(value(v)) / double(got.size());
      for (size_t i = 0; i < got.size(); ++i) {
        double want = value(result->host[i]), distance = std::abs(value(got[i]) - want);
        if (distance == 0) continue;
        double relative = distance / (std::abs(want) + mean) / tolerance<T>;
        worst = std::isnan(relative) ? INFINITY : std::max(worst, relative);
      }
      return worst;
    };
  }
};

const row::SerialTeam warp(32);

std::vector<Kernel> kernels(int64_t T, int64_t H, int64_t V, int64_t n) {
  std::vector<Kernel> list;
  auto add = [&](std::string name, int64_t bytes, auto launch, auto emulate, auto... results) {
    list.push_back({std::move(name), bytes, launch, emulate});
    (list.back().compare(results), ...);
  };
  const int64_t heads = H / 64, R = std::max<int64_t>(1, T / 8);
  {
    auto z = halves(R * V, 4);
    auto targets = below(R, V);
    auto logp = all<float>(R, 0), lse = all<float>(R, 0), g = floats(R);
    auto top = all<uint8_t>(R, 9);
    add(
        "logprobForward", 2 * R * V,
        [=](cudaStream_t s) {
          launch::logprobForward(s, z->device, R, V, targets->device, logp->device, lse->device, top->device);
        },
        [=] {
          for (int64_t r = 0; r < R; ++r) {
            auto result = row::logprobForward<1>(row::SerialTeam(512), z->host.data() + r * V, V, targets->host[r]);
            logp->host[r] = result.logp, lse->host[r] = result.lse, top->host[r] = result.top;
          }
        },
        logp, lse, top);
    add(
        "logprobBackward", 4 * R * V,
        [=](cudaStream_t s) {
          launch::logprobBackward(s, z->device, R, V, targets->device, lse->device, g->device, 0);
        },
        [=] {
          for (int64_t r = 0; r < R; ++r)
            row::logprobBackward<1>(warp, z->host.data() + r * V, V, targets->host[r], lse->host[r], g->host[r], 0.f);
        },
        z);
    auto capped = halves(R * V, 4);
    add(
        "softcap", 4 * R * V, [=](cudaStream_t s) { launch::softcap(s, capped->device, R, V, 6); },
        [=] { row::softcap<1>(warp, capped->host.data(), R * V, 6.f); }, capped);
  }
  {
    auto x = halves(T * H), residual = halves(T * H), sum = halves(T * H), w = halves(H), y = halves(T * H);
    auto dy = halves(T * H), dx = halves(T * H);
    auto rstd = all<float>(T, 0), dw = floats(H), partial = all<float>(launch::normBlocks * H, 0);
    add(
        "rmsForward", 8 * T * H,
        [=](cudaStream_t s) {
          launch::rmsForward(s, x->device, residual->device, sum->device, w->device, 0, 1e-5f, y->device, rstd->device,
                             T, H);
        },
        [=] {
          for (int64_t t = 0, at = 0; t < T; ++t, at += H)
            rstd->host[t] =
                row::rmsForward<1>(row::SerialTeam(512), x->host.data() + at, residual->host.data() + at,
                                   sum->host.data() + at, w->host.data(), 0.f, 1e-5f, y->host.data() + at, H);
        },
        sum, y, rstd);
    add(
        "rmsBackward", 8 * T * H,
        [=](cudaStream_t s) {
          launch::rmsBackward(s, dy->device, sum->device, w->device, 0, rstd->device, dx->device, dw->device,
                              partial->device, T, H);
        },
        [=] {
          for (int64_t t = 0, at = 0; t < T; ++t, at += H)
            row::rmsBackward<1>(row::SerialTeam(512), dy->host.data() + at, sum->host.data() + at, w->host.data(), 0.f,
                                rstd->host[t], dx->host.data() + at, true, dw->host.data(), H);
        },
        dx, dw);
  }
  {
    const int64_t d = 64;
    auto x = halves(T * H), w = halves(d), y = halves(T * H), dy = halves(T * H);
    auto dw = floats(d), partial = all<float>(launch::headNormWarps * d, 0);
    add(
        "headNormForward", 4 * T * H,
        [=](cudaStream_t s) {
          launch::headNormForward(s, x->device, H, w->device, 0, 1e-5f, y->device, H, T, heads, d);
        },
        [=] {
          const Bf16* none = nullptr;
          for (int64_t at = 0; at < T * H; at += d)
            row::rmsForward<1>(warp, x->host.data() + at, none, static_cast<Bf16*>(nullptr), w->host.data(), 0.f, 1e-5f,
                               y->host.data() + at, d);
        },
        y);
    add(
        "headNormBackward", 6 * T * H,
        [=](cudaStream_t s) {
          launch::headNormBackward(s, dy->device, H, x->device, H, w->device, 0, 1e-5f, dw->device, partial->device, T,
                                   heads, d);
        },
        [=] {
          for (int64_t at = 0; at < T * H; at += d) {
            Bf16 *from = x->host.data() + at, *g = dy->host.data() + at;
            row::rmsBackward<1>(warp, g, from, w->host.data(), 0.f, row::headRstd<1>(warp, from, 1e-5f, d), g, false,
                                dw->host.data(), d);
          }
        },
        dy, dw);
    auto table = floats(512 * d);
    auto rows = below(T, 512);
    add(
        "rope", 4 * T * H,
        [=](cudaStream_t s) { launch::rope(s, y->device, H, T, heads, d, d, table->device, rows->device, -1); },
        [=] {
          for (int64_t t = 0; t < T; ++t)
            for (int64_t h = 0; h < heads; ++h)
              row::rotateHead(warp, y->host.data() + t * H + h * d, d, table->host.data() + rows->host[t] * d, -1);
        },
        y);
    auto out = halves(T * H), out2 = halves(T * H);
    auto lse = floats(T * heads), lse2 = floats(T * heads);
    add(
        "mergeLse", 6 * T * H,
        [=](cudaStream_t s) { launch::mergeLse(s, out->device, lse->device, out2->device, lse2->device, T, heads, d); },
        [=] {
          for (int64_t i = 0; i < T * heads; ++i)
            row::mergeHead(warp, out->host.data() + i * d, &lse->host[i], out2->host.data() + i * d, lse2->host[i], d);
        },
        out, lse);
  }
  for (bool gelu : {false, true}) {
    auto gateUp = halves(T * 2 * H), h = halves(T * H), dh = halves(T * H), again = halves(T * H);
    add(
        gelu ? "gegluForward" : "swigluForward", 6 * T * H,
        [=](cudaStream_t s) { launch::swigluForward(s, gelu, gateUp->device, h->device, T, H); },
        [=] {
          for (int64_t t = 0; t < T; ++t)
            row::swigluForward<1>(warp, gelu, gateUp->host.data() + 2 * t * H, h->host.data() + t * H, H);
        },
        h);
    add(
        gelu ? "gegluBackward" : "swigluBackward", 12 * T * H,
        [=](cudaStream_t s) { launch::swigluBackward(s, gelu, dh->device, gateUp->device, again->device, T, H); },
        [=] {
          for (int64_t t = 0; t < T; ++t)
            row::swigluBackward<1>(warp, gelu, dh->host.data() + t * H, gateUp->host.data() + 2 * t * H,
                                   again->host.data() + t * H, H);
        },
        gateUp, again);
  }
  {
    auto master = floats(n), grad = floats(n), m = floats(n), v = floats(n, true), back = all<float>(n, 0);
    auto high = all<Bf16>(n, {0});
    auto low = all<int16_t>(n, 0);
    auto partial = all<double>((n + launch::normChunk - 1) / launch::normChunk, 0), result = all<double>(2, 0);
    auto coefficients = row::adamwCoefficients<float>(3e-4, 0.9, 0.999, 1e-8, 0.1, 10);
    add(
        "splitMaster", 8 * n,
        [=](cudaStream_t s) { launch::splitMaster(s, master->device, high->device, low->device, n); },
        [=] {
          for (int64_t i = 0; i < n; ++i) {
            auto parts = row::split(master->host[i]);
            high->host[i] = parts.high, low->host[i] = parts.low;
          }
        },
        high, low);
    add(
        "gradientNorm", 4 * n,
        [=](cudaStream_t s) { launch::gradientNorm(s, grad->device, n, 1, partial->device, result->device); },
        [=] {
          double total = 0;
          for (float g : grad->host) total += double(g) * double(g);
          result->host = {std::sqrt(total), std::min(1.0, 1 / (std::sqrt(total) + 1e-6))};
        },
        result);
    add(
        "adamwUpdate", 32 * n,
        [=](cudaStream_t s) {
          launch::adamwUpdate(s, high->device, low->device, grad->device, m->device, v->device, n, coefficients,
                              result->device + 1);
        },
        [=] {
          for (int64_t i = 0; i < n; ++i) {
            float p = row::join({high->host[i], low->host[i]});
            float g = grad->host[i] * float(result->host[1]);
            auto parts = row::split(row::adamwUpdate(coefficients, p, g, m->host[i], v->host[i]));
            high->host[i] = parts.high, low->host[i] = parts.low, grad->host[i] = 0;
          }
        },
        high, m, v, grad);
    add(
        "joinMaster", 8 * n, [=](cudaStream_t s) { launch::joinMaster(s, high->device, low->device, back->device, n); },
        [=] {
          for (int64_t i = 0; i < n; ++i) back->host[i] = row::join({high->host[i], low->host[i]});
        },
        back);
  }
  {
    // Three prompts of 3, 1 and 2 responses, of T, T + 1, ... rows: with two contests, none, and one. What becomes
    // known of them arrives in two launches. Form by form, with a reference where the objective has one.
    using Form = row::Objective::Form;
    const row::Objective objectives[] = {
        {Form::Sigmoid, 0.1, 0, 0.1, false, 0.2}, {Form::Ipo, 0.1, 0, 0, true, 0}, {Form::Linear, 1, 0, 0, true, 0.5}};
    const std::vector<int32_t> groups{0, 3, 4, 6}, contests{0, 2, 2, 3}, entries{0, 3, 5, 7}, meet{0, 1, 2, 2, 1, 5, 4};
    std::vector<int32_t> rows{0}, counts;
    for (int32_t k = 0; k < groups.back(); ++k) {
      counts.push_back(int32_t(T) + k);
      rows.push_back(rows.back() + counts.back());
    }
    const int64_t K = groups.back(), Q = contests.back(), N = rows.back();
    auto ints = [](std::vector<int32_t> values) { return std::make_shared<Both<int32_t>>(std::move(values)); };
    auto groupOffsets = ints(groups), rowOffsets = ints(rows), lengths = ints(counts), contestGroups = ints(contests),
         contestOffsets = ints(entries), responses = ints(meet);
    auto doubles = [](std::vector<double> values) { return std::make_shared<Both<double>>(std::move(values)); };
    auto coefficients = doubles({0.1, 0.9, -1, 1, -1, 1, -1}), weights = doubles({2, 0.5, 1}),
         reference = doubles({3, -2, 1, 0, 5, -4});
    for (const auto& objective : objectives) {
      const bool referenced = objective.form != Form::Linear;
      auto logp = floats(N), dLogp = all<float>(N, 0);
      auto policy = all<double>(K, 0), gradient = all<double>(K, 0), loss = all<double>(Q, 0),
           margin = all<double>(Q, 0);
      add(
          "contests", 8 * N,
          [=](cudaStream_t s) {
            launch::Contests c{groupOffsets->device,  rowOffsets->device,     lengths->device,
                               contestGroups->device, contestOffsets->device, responses->device,
                               coefficients->device,  weights->device,        referenced ? reference->device : nullptr};
            for (auto [first, last] : {std::pair(0, 1), std::pair(1, 3)})
              launch::contests(s, c, objective, 4, first, last, logp->device, policy->device, gradient->device,
                               loss->device, margin->device, dLogp->device);
          },
          [=] {
            for (int64_t k = 0; k < K; ++k)
              for (int32_t i = rows[k]; i < rows[k + 1]; ++i) policy->host[k] += double(logp->host[i]);
            for (int64_t q = 0; q < Q; ++q) {
              auto outcome = row::contest(
                  objective, entries[q + 1] - entries[q], [&](int64_t e) { return meet[entries[q] + e]; },
                  policy->host.data(), referenced ? reference->host.data() : nullptr, counts.data(),
                  coefficients->host.data() + entries[q], weights->host[q] / 4, gradient->host.data());
              loss->host[q] = outcome.loss, margin->host[q] = outcome.margin;
            }
            for (int64_t k = 0; k < K; ++k)
              for (int32_t i = rows[k]; i < rows[k + 1]; ++i) dLogp->host[i] = float(gradient->host[k]);
          },
          policy, gradient, loss, margin, dLogp);
    }
  }
  {
    // Row t has token t % 3.
    const int64_t unique = std::min<int64_t>(3, T);
    std::vector<int32_t> order, offsets{0};
    for (int64_t id = 0; id < unique; ++id) {
      for (int64_t t = id; t < T; t += 3) order.push_back(int32_t(t));
      offsets.push_back(int32_t(order.size()));
    }
    auto rows = std::make_shared<Both<int32_t>>(order), ends = std::make_shared<Both<int32_t>>(offsets);
    auto ids = std::make_shared<Both<int32_t>>(std::vector<int32_t>{0, 1, 2});
    auto dx = halves(T * H);
    auto dWeight = floats(3 * H);
    add(
        "embeddingBackward", 2 * T * H,
        [=](cudaStream_t s) {
          launch::embeddingBackward(s, dx->device, ids->device, ends->device, rows->device, unique, dWeight->device, H);
        },
        [=] {
          for (int64_t i = 0; i < T * H; ++i) dWeight->host[i / H % 3 * H + i % H] += row::widen(dx->host[i]);
        },
        dWeight);
    auto keys = all<uint32_t>(T, 12345);
    auto y = halves(T * H);
    add(
        "dropout", 4 * T * H,
        [=](cudaStream_t s) { launch::dropout(s, dx->device, keys->device, 1u << 30, 4 / 3.f, y->device, T, H); },
        [=] {
          for (int64_t t = 0; t < T; ++t)
            row::drop(warp, dx->host.data() + t * H, 12345, 1u << 30, 4 / 3.f, y->host.data() + t * H, H);
        },
        y);
  }
  return list;
}

// In their order: some read what others wrote.
int test() {
  int failed = 0, passed = 0;
  const int64_t sizes[][4] = {{5, 64, 129, 37}, {130, 1088, 4096, 200004}};
  for (const auto& [T, H, V, n] : sizes)
    for (auto& kernel : kernels(T, H, V, n)) {
      kernel.launch(nullptr);
      kernel.emulate();
      require(cudaDeviceSynchronize(), kernel.name.c_str());
      double error = kernel.error();
      bool ok = error <= 1;
      ++(ok ? passed : failed);
      std::printf("%-20s T %-4ld H %-5ld V %-5ld n %-7ld %.2f of what is tolerated  %s\n", kernel.name.c_str(), long(T),
                  long(H), long(V), long(n), error, ok ? "ok" : "FAIL");
    }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}

// Medians of 20 runs, interleaved with a copy of as many bytes.
int perf() {
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin), "cudaEventCreate"), require(cudaEventCreate(&end), "cudaEventCreate");
  auto timed = [&](const std::function<void()>& body) {
    cudaEventRecord(begin);
    body();
    cudaEventRecord(end);
    require(cudaEventSynchronize(end), "cudaEventSynchronize");
    float milliseconds;
    cudaEventElapsedTime(&milliseconds, begin, end);
    return double(milliseconds);
  };
  for (auto& kernel : kernels(4096, 4096, 128256, int64_t(1) << 26)) {
    char *from, *to;
    size_t half = size_t(kernel.bytes) / 2;
    require(cudaMalloc(&from, half), "cudaMalloc"), require(cudaMalloc(&to, half), "cudaMalloc");
    std::vector<double> own, copies;
    for (int i = -3; i < 20; ++i) {
      double a = timed([&] { kernel.launch(nullptr); });
      double b = timed([&] { cudaMemcpyAsync(to, from, half, cudaMemcpyDeviceToDevice); });
      if (i >= 0) own.push_back(a), copies.push_back(b);
    }
    cudaFree(from), cudaFree(to);
    std::sort(own.begin(), own.end()), std::sort(copies.begin(), copies.end());
    std::printf("{\"kernel\":\"%s\",\"ms\":%.4f,\"gbps\":%.1f,\"copyGbps\":%.1f,\"spread\":%.3f}\n",
                kernel.name.c_str(), own[10], double(kernel.bytes) / own[10] / 1e6,
                double(kernel.bytes) / copies[10] / 1e6, (own[15] - own[5]) / own[10]);
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  std::string mode = count == 2 ? arguments[1] : "";
  if (mode != "test" && mode != "perf") return std::fprintf(stderr, "usage: gpu_check test|perf\n"), 2;
  int devices = 0;
  cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    // CUDA has one word for no driver and for an old one.
    const char* why = error == cudaErrorInsufficientDriver ? "no NVIDIA driver, or one older than this CUDA"
                      : error == cudaSuccess               ? "CUDA finds no device"
                                                           : cudaGetErrorString(error);
    std::fprintf(stderr, "there is no GPU to run the kernels on (%s): nothing was checked\n", why);
    return 1;
  }
  cudaDeviceProp properties;
  require(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  if (properties.major < 8) {
    std::fprintf(stderr, "%s is of compute capability %d.%d: expected 8.0 or more\n", properties.name, properties.major,
                 properties.minor);
    return 1;
  }
  int driver = 0;
  cudaDriverGetVersion(&driver);
  std::printf("# %s, sm_%d%d, driver for CUDA %d.%d\n", properties.name, properties.major, properties.minor,
              driver / 1000, driver % 1000 / 10);
  return mode == "test" ? test() : perf();
}
