// The GPU kernels' arithmetic (kernels/row/), run on the CPU by a team that plays a block's threads, against the same
// oracles and by the same law as the CPU's kernels. The launches are gpu.cpp's to check.
#include <ATen/CPUGeneratorImpl.h>

#include "check/case.h"
#include "kernels/row/adamw.h"
#include "kernels/row/dropout.h"
#include "kernels/row/logprob.h"
#include "kernels/row/merge_lse.h"
#include "kernels/row/objective.h"
#include "kernels/row/rms_norm.h"
#include "kernels/row/rope.h"
#include "kernels/row/swiglu.h"

namespace wrpo::check {
namespace {

const row::SerialTeam block(512), warp(32);

// Calls body(type, width): the storage type as the kernels have it, and the elements of a pack.
template <class Body>
void byRow(const at::Tensor& like, int64_t length, Body body) {
  byType(like.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using Stored = std::conditional_t<std::is_same_v<T, c10::BFloat16>, row::Bf16, T>;
    if (length % 8 == 0) body(Stored{}, std::integral_constant<int, 8>{});
    else body(Stored{}, std::integral_constant<int, 1>{});
  });
}

// What a case draws first, without its drawing anything else afterwards.
std::vector<int32_t> drawnFirst(int64_t n, int64_t below) {
  auto generator = at::detail::getDefaultCPUGenerator();
  auto state = generator.get_state();
  auto ids = randomIds(n, below);
  generator.set_state(state);
  return ids;
}

Case named(Case c) {
  c.op = "gpu_" + c.op;
  c.ours = {};
  return c;
}

}  // namespace

Case gpuRmsNorm(int64_t T, int64_t H, bool residual, double plus) {
  const double eps = 1e-5;
  Case c = named(rmsNorm(T, H, residual, plus));
  c.ours.forward = [=](Tensors& t) {
    t["y"] = at::empty_like(t["x"]), t["rstd"] = at::empty({T}, statsOf(t["x"])), t["sum"] = t["x"];
    byRow(t["x"], H, [&](auto zero, auto width) {
      using S = decltype(zero);
      for (int64_t r = 0, at = 0; r < T; ++r, at += H)
        data<row::ScalarOf<S>>(t["rstd"])[r] = row::rmsForward<width()>(
            block, data<S>(t["x"]) + at, residual ? data<S>(t["residual"]) + at : nullptr, data<S>(t["sum"]) + at,
            data<S>(t["w"]), row::ScalarOf<S>(plus), row::ScalarOf<S>(eps), data<S>(t["y"]) + at, H);
    });
  };
  c.ours.backward = [=](Tensors& t) {
    byRow(t["x"], H, [&](auto zero, auto width) {
      using S = decltype(zero);
      using Wide = row::ScalarOf<S>;
      // A block's partial sums of dw, over as many neighbouring rows as the kernel's grid gives it.
      int64_t each = (T + 127) / 128;
      std::vector<double> total(H);
      for (int64_t begin = 0; begin < T; begin += each) {
        std::vector<Wide> partial(H);
        for (int64_t r = begin; r < std::min(T, begin + each); ++r)
          row::rmsBackward<width()>(block, data<S>(t["dy"]) + r * H, data<S>(t["sum"]) + r * H, data<S>(t["w"]),
                                    Wide(plus), data<Wide>(t["rstd"])[r], data<S>(t["dx"]) + r * H, true,
                                    partial.data(), H);
        for (int64_t i = 0; i < H; ++i) total[i] += double(partial[i]);
      }
      for (int64_t i = 0; i < H; ++i) data<Wide>(t["dw"])[i] += Wide(total[i]);
    });
  };
  return c;
}

Case gpuHeadNorm(int64_t T, int64_t heads, int64_t d, double plus) {
  const double eps = 1e-5;
  int64_t ld = (heads + 1) * d;
  Case c = named(headNorm(T, heads, d, plus));
  auto all = [=](auto body) {
    for (int64_t r = 0; r < T; ++r)
      for (int64_t h = 0; h < heads; ++h) body(r * ld + h * d);
  };
  c.ours.forward = [=](Tensors& t) {
    t["y"] = t["x"].clone();
    byRow(t["x"], 1, [&](auto zero, auto) {
      using S = decltype(zero);
      using Wide = row::ScalarOf<S>;
      const S* none = nullptr;
      all([&](int64_t at) {
        row::rmsForward<1>(warp, data<S>(t["x"]) + at, none, static_cast<S*>(nullptr), data<S>(t["w"]), Wide(plus),
                           Wide(eps), data<S>(t["y"]) + at, d);
      });
    });
  };
  c.ours.backward = [=](Tensors& t) {
    t["dx"] = t["dy"];
    byRow(t["x"], 1, [&](auto zero, auto) {
      using S = decltype(zero);
      using Wide = row::ScalarOf<S>;
      std::vector<double> total(d);
      all([&](int64_t at) {
        std::vector<Wide> partial(d);
        S *from = data<S>(t["x"]) + at, *g = data<S>(t["dx"]) + at;
        row::rmsBackward<1>(warp, g, from, data<S>(t["w"]), Wide(plus), row::headRstd<1>(warp, from, Wide(eps), d), g,
                            false, partial.data(), d);
        for (int64_t i = 0; i < d; ++i) total[i] += double(partial[i]);
      });
      for (int64_t i = 0; i < d; ++i) data<Wide>(t["dw"])[i] += Wide(total[i]);
    });
  };
  return c;
}

Case gpuRope(int64_t T, int64_t heads, int64_t d, int64_t rotated) {
  auto table = ropeTable(ropeFrequencies({.dim = rotated}), 512);
  auto positions = drawnFirst(T, 512);
  Case c = named(ropeRotation(T, heads, d, rotated));
  auto turn = [=](const at::Tensor& x, int sign) {
    byRow(x, 1, [&](auto zero, auto) {
      using S = decltype(zero);
      for (int64_t r = 0; r < T; ++r)
        for (int64_t h = 0; h < heads; ++h)
          row::rotateHead(warp, data<S>(x) + r * (heads + 1) * d + h * d, rotated,
                          data<float>(table) + positions[r] * rotated, sign);
    });
    return x;
  };
  c.ours = {[=](Tensors& t) { t["y"] = turn(t["x"], 1); }, [=](Tensors& t) { t["dx"] = turn(t["dy"], -1); }};
  return c;
}

Case gpuSwiglu(int64_t T, int64_t F, Activation activation) {
  bool gelu = activation == Activation::GeluTanh;
  Case c = named(swiglu(T, F, activation));
  c.ours.forward = [=](Tensors& t) {
    t["h"] = at::empty_like(t["dh"]);
    byRow(t["dh"], F, [&](auto zero, auto width) {
      using S = decltype(zero);
      for (int64_t r = 0; r < T; ++r)
        row::swigluForward<width()>(block, gelu, data<S>(t["gateUp"]) + 2 * F * r, data<S>(t["h"]) + F * r, F);
    });
  };
  c.ours.backward = [=](Tensors& t) {
    t["again"] = at::empty_like(t["dh"]);
    byRow(t["dh"], F, [&](auto zero, auto width) {
      using S = decltype(zero);
      for (int64_t r = 0; r < T; ++r)
        row::swigluBackward<width()>(block, gelu, data<S>(t["dh"]) + F * r, data<S>(t["gateUp"]) + 2 * F * r,
                                     data<S>(t["again"]) + F * r, F);
    });
    t["dgateUp"] = t["gateUp"];
  };
  return c;
}

Case gpuLogprob(int64_t R, int64_t V, double scale, double cap) {
  auto targets = drawnFirst(R, V);
  Case c = named(logprob(R, V, scale, cap));
  c.ours.forward = [=](Tensors& t) {
    t["logp"] = at::empty_like(t["dlogp"]), t["lse"] = at::empty_like(t["dlogp"]);
    t["argmax"] = at::empty({R}, at::kByte);
    byRow(t["z"], V, [&](auto zero, auto width) {
      using S = decltype(zero);
      using Wide = row::ScalarOf<S>;
      for (int64_t r = 0; r < R; ++r) {
        S* z = data<S>(t["z"]) + r * V;
        if (cap > 0) row::softcap<width()>(block, z, V, Wide(cap));
        auto result = row::logprobForward<width()>(block, z, V, targets[r]);
        data<Wide>(t["logp"])[r] = result.logp, data<Wide>(t["lse"])[r] = result.lse;
        data<uint8_t>(t["argmax"])[r] = result.top;
      }
    });
  };
  c.ours.backward = [=](Tensors& t) {
    t["dz"] = t["z"];
    byRow(t["z"], V, [&](auto zero, auto width) {
      using S = decltype(zero);
      using Wide = row::ScalarOf<S>;
      for (int64_t r = 0; r < R; ++r)
        row::logprobBackward<width()>(block, data<S>(t["z"]) + r * V, V, targets[r], data<Wide>(t["lse"])[r],
                                      data<Wide>(t["dlogp"])[r], Wide(cap));
    });
  };
  return c;
}

Case gpuMerge(int64_t R, int64_t heads, int64_t d) {
  Case c = named(merge(R, heads, d));
  c.ours.forward = [=](Tensors& t) {
    t["out"] = t["o1"], t["lse"] = t["l1"];
    byRow(t["o1"], 1, [&](auto zero, auto) {
      using S = decltype(zero);
      using Wide = row::ScalarOf<S>;
      for (int64_t i = 0; i < R * heads; ++i) {
        auto once = [&](Wide l2) {
          row::mergeHead(warp, data<S>(t["out"]) + i * d, data<Wide>(t["lse"]) + i, data<S>(t["o2"]) + i * d, l2, d);
        };
        once(data<Wide>(t["l2"])[i]);
        once(INFINITY), once(-INFINITY);  // a half without keys, in both ways of saying it
      }
    });
  };
  return c;
}

Case gpuDropout(int64_t T, int64_t H, double p) {
  auto ids = drawnFirst(T, 1 << 30);
  Case c = named(dropoutMask(T, H, p));
  auto ours = [=](const at::Tensor& x) {
    auto y = at::full_like(x, NAN);
    byRow(x, 1, [&](auto zero, auto) {
      using S = decltype(zero);
      for (int64_t r = 0; r < T; ++r)
        row::drop(block, data<S>(x) + r * H, uint32_t(ids[r]), uint32_t(p * 0x1p32), row::ScalarOf<S>(1 / (1 - p)),
                  data<S>(y) + r * H, H);
    });
    return y;
  };
  c.ours = {[=](Tensors& t) { t["y"] = ours(t["x"]); }, [=](Tensors& t) { t["dx"] = ours(t["dy"]); }};
  return c;
}

// In bfloat16 the masters go through their halves, of which the upper one is the working weight.
Case gpuAdamw(int64_t n, int64_t step) {
  Case c = named(adamw(n, step));
  c.ours.forward = [=](Tensors& t) {
    auto update = [&](auto zero) {
      using S = decltype(zero);
      auto k = row::adamwCoefficients<S>(3e-4, 0.9, 0.999, 1e-8, 0.1, step);
      S *master = data<S>(t["master"]), *grad = data<S>(t["grad"]), *m = data<S>(t["m"]), *v = data<S>(t["v"]);
      for (int64_t i = 0; i < n; ++i) {
        S p = master[i];
        if constexpr (std::is_same_v<S, float>) p = row::join(row::split(p));
        master[i] = row::adamwUpdate(k, p, S(grad[i] * S(0.7)), m[i], v[i]);
        grad[i] = 0;
        if constexpr (std::is_same_v<S, float>) {
          auto halves = row::split(master[i]);
          master[i] = row::join(halves);
          if (t["work"].scalar_type() == at::kBFloat16) data<row::Bf16>(t["work"])[i] = halves.high;
        }
      }
    };
    if (t["master"].scalar_type() == at::kDouble) update(double{});
    else update(float{});
    if (t["work"].scalar_type() != at::kBFloat16) t["work"] = t["master"];
  };
  return c;
}

Case gpuNorm(int64_t n) {
  Case c = named(norm(n));
  c.dtypes = {at::kFloat};
  c.ours.forward = [=](Tensors& t) {
    std::vector<double> partial;
    for (int64_t begin = 0; begin < n; begin += 65536)
      partial.push_back(row::squares<4>(block, data<float>(t["grad"]) + begin, std::min<int64_t>(65536, n - begin)));
    double total = row::SerialTeam(1024).reduce(
        int64_t(partial.size()), 0.0, [&](double sum, int64_t i) { return sum + partial[i]; }, row::Add{});
    t["norm"] = at::scalar_tensor(std::sqrt(total), at::kFloat);
  };
  return c;
}

Case gpuPreference(const char* form, const Objective& o, const std::vector<double>& coefficients, bool reference,
                   double spread) {
  int64_t K = coefficients.size();
  auto lengths = drawnFirst(K, 200);
  for (auto& n : lengths) ++n;
  Case c = named(preference(form, o, coefficients, reference, spread));
  c.ours.forward = [=](Tensors& t) {
    auto g = t["dpolicy"].clone();
    auto result = row::contest(
        o, K, [](int64_t e) { return e; }, data<double>(t["policy"]),
        reference ? data<double>(t["reference"]) : nullptr, lengths.data(), coefficients.data(),
        t["dloss"].item<double>(), data<double>(g));
    t["loss"] = at::full({1}, result.loss, at::kDouble), t["margin"] = at::full({1}, result.margin, at::kDouble);
    t["next"] = g;
  };
  c.ours.backward = [](Tensors& t) { t["dpolicy"] = t["next"]; };
  return c;
}

// The share of bit patterns that survive being split and joined, rounded to the nearest bfloat16 by the upper half.
Case gpuMasterHalves(int64_t stride) {
  Case c{"gpu_master_halves", "every " + std::to_string(stride) + "th of all floats"};
  c.dtypes = {at::kFloat};
  c.outputs = {"same", "nearest"};
  c.ours.forward = [=](Tensors& t) {
    int64_t same = 0, nearest = 0, finite = 0, all = 0;
    for (int64_t pattern = 0; pattern < int64_t(1) << 32; pattern += stride, ++all) {
      uint32_t bits = uint32_t(pattern), back;
      float master;
      std::memcpy(&master, &bits, sizeof(bits));
      auto halves = row::split(master);
      float joined = row::join(halves);
      std::memcpy(&back, &joined, sizeof(back));
      same += back == bits;
      if (!std::isfinite(master)) continue;
      ++finite;
      // Ties go away from zero here, and to even in the other.
      auto even = row::narrow<row::Bf16>(master);
      nearest += halves.high.bits == even.bits || ((bits & 0xffff) == 0x8000 && halves.high.bits == even.bits + 1);
    }
    t["same"] = at::full({1}, double(same) / double(all), at::kDouble);
    t["nearest"] = at::full({1}, double(nearest) / double(finite), at::kDouble);
  };
  c.plain.forward = [](Tensors& t) { t["same"] = t["nearest"] = at::ones({1}, at::kDouble); };
  c.oracle = [](Reals& v) { v["same"] = v["nearest"] = {1}; };
  return c;
}

Case gpuStored(int64_t n) {
  Case c{"gpu_stored", text({n})};
  c.dtypes = {at::kFloat};
  c.inputs = {normal("x", {n}), normal("other", {n})};
  c.outputs = {"all", "half", "work"};
  c.ours.forward = [=](Tensors& t) {
    Stored stored{at::zeros({n}, at::kBFloat16), at::zeros({n}, at::kShort)};
    stored.assign(t["other"]);
    stored.narrow(n / 2, n - n / 2).assign(t["x"].narrow(0, n / 2, n - n / 2).to(at::kDouble));
    t["half"] = stored.host().clone();
    stored.assign(t["x"]);
    t["all"] = stored.host(), t["work"] = stored.tensor.to(at::kFloat);
  };
  c.plain.forward = [=](Tensors& t) {
    t["half"] = at::cat({t["other"].narrow(0, 0, n / 2), t["x"].narrow(0, n / 2, n - n / 2)});
    t["all"] = t["x"], t["work"] = t["x"].to(at::kBFloat16).to(at::kFloat);
  };
  c.oracle = [=](Reals& v) {
    make(v, "all", n) = make(v, "work", n) = v["x"];
    auto& half = make(v, "half", n);
    for (int64_t i = 0; i < n; ++i) half[i] = i < n / 2 ? v["other"][i] : v["x"][i];
  };
  return c;
}

}  // namespace wrpo::check
