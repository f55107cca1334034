// kernel_check test|grad|perf [op]: every custom op by itself, without Node, from the objects that ship. One table of
// cases; a case states its op three times: as the engine calls it, composed of plain ATen ops, and as loops in extended
// precision, the oracle. [op] is the beginning of an op's name.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "model/attention.h"
#include "model/head.h"
#include "train/objective.h"

using namespace wrpo;

namespace {

using Real = long double;
using Tensors = std::map<std::string, at::Tensor>;
using Reals = std::map<std::string, std::vector<Real>>;
using Shape = std::vector<int64_t>;

// ---- a case

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
// Reads its inputs from the map and writes its outputs into it, sometimes in place. Names carry the calculus: an input dy
// beside an output y is a cotangent, an output dx the gradient of the input x (an input dx is what it is added to).
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
};

std::string text(const Shape& sizes) {
  std::string s;
  for (int64_t n : sizes) s += (s.empty() ? "" : "x") + std::to_string(n);
  return s;
}
Input normal(const char* name, const Shape& sizes, double scale = 1) {
  return {name, at::randn(sizes, at::kDouble).mul(scale)};
}
Input wide(const char* name, const Shape& sizes) { return {name, at::randn(sizes, at::kDouble), true}; }
std::vector<int32_t> randomIds(int64_t n, int64_t below) {
  auto t = at::randint(below, {n}, at::kInt);
  return {data<int32_t>(t), data<int32_t>(t) + n};
}
at::Tensor indices(const std::vector<int32_t>& ids) { return at::tensor(ids).to(at::kLong); }
at::ScalarType statsOf(const at::Tensor& t) { return computeType(t.scalar_type()); }
std::vector<Real>& make(Reals& v, const char* name, int64_t n) { return v[name] = std::vector<Real>(n, 0); }
Real dot(const Real* a, const Real* b, int64_t n) {
  Real total = 0;
  for (int64_t i = 0; i < n; ++i) total += a[i] * b[i];
  return total;
}

// ---- the ops. Plain ATen computes in the dtype under test, but in float32 where transformers does (norm, log-softmax).

Case rmsNorm(int64_t T, int64_t H, bool residual) {
  constexpr double eps = 1e-5;
  Case c{residual ? "rms_norm_residual" : "rms_norm", text({T, H})};
  c.inputs = {normal("x", {T, H}), normal("w", {H}), normal("dy", {T, H}), normal("dx", {T, H}), wide("dw", {H})};
  if (residual) c.inputs.push_back(normal("residual", {T, H}));
  c.outputs = {"y", "rstd", "sum", "dx", "dw"};
  c.forward = {(residual ? 4 : 2) * T * H, T};
  c.backward = {4 * T * H, T};
  c.ours.forward = [](Tensors& t) {
    t["y"] = at::empty_like(t["x"]), t["rstd"] = at::empty({t["x"].size(0)}, statsOf(t["x"])), t["sum"] = t["x"];
    rmsNormForward(t["x"], t["residual"], t["sum"], t["w"], eps, t["y"], t["rstd"]);
  };
  c.ours.backward = [](Tensors& t) { rmsNormBackward(t["dy"], t["sum"], t["w"], t["rstd"], t["dx"], t["dw"]); };
  c.plain.forward = [residual](Tensors& t) {
    t["sum"] = residual ? t["x"] + t["residual"] : t["x"];
    auto x = t["sum"].to(statsOf(t["x"]));
    t["rstd"] = x.pow(2).mean(-1).add(eps).rsqrt();
    t["y"] = t["w"] * (x * t["rstd"].unsqueeze(-1)).to(t["x"].scalar_type());
  };
  c.plain.backward = [](Tensors& t) {
    auto stats = statsOf(t["x"]);
    auto r = t["rstd"].unsqueeze(-1), n = t["sum"].to(stats) * r, dy = t["dy"].to(stats), g = dy * t["w"].to(stats);
    t["dx"] = t["dx"] + (r * (g - n * (g * n).mean(-1, true))).to(t["x"].scalar_type());
    t["dw"] = t["dw"] + (dy * n).sum(0);
  };
  c.oracle = [=](Reals& v) {
    auto &x = v["x"], &w = v["w"], &dy = v["dy"], &dx = v["dx"], &dw = v["dw"];
    auto &y = make(v, "y", T * H), &rstd = make(v, "rstd", T);
    for (int64_t i = 0; residual && i < T * H; ++i) x[i] += v["residual"][i];
    v["sum"] = x;
    for (int64_t t = 0; t < T; ++t) {
      const Real *row = &x[t * H], *g = &dy[t * H];
      Real r = rstd[t] = 1 / std::sqrt(dot(row, row, H) / H + Real(eps)), s = 0;
      for (int64_t i = 0; i < H; ++i) s += g[i] * w[i] * row[i] * r / H;
      for (int64_t i = 0; i < H; ++i) {
        y[t * H + i] = w[i] * row[i] * r;
        dw[i] += g[i] * row[i] * r;
        dx[t * H + i] += r * (g[i] * w[i] - row[i] * r * s);
      }
    }
  };
  return c;
}

Case ropeTables(const RopeSettings& s, int64_t d, int64_t positions) {
  Case c{"rope_table", s.type + " " + text({positions, d})};
  c.dtypes = {at::kFloat};
  c.outputs = {"frequencies", "table"};
  c.ours.forward = [=](Tensors& t) {
    t["frequencies"] = ropeFrequencies(s, d);
    t["table"] = ropeTable(t["frequencies"], positions);
  };
  c.plain.forward = [=](Tensors& t) {
    auto f = at::pow(s.theta, at::arange(0, d, 2, at::kFloat).div(-double(d)));
    if (s.type == "linear") f = f / s.factor;
    if (s.type == "llama3") {
      auto turns = f * (s.originalMaxPosition / (2 * M_PI));
      auto keep = ((turns - s.lowFrequencyFactor) / (s.highFrequencyFactor - s.lowFrequencyFactor)).clamp(0, 1);
      f = (1 - keep) * f / s.factor + keep * f;
    }
    auto angle = at::arange(positions, at::kFloat).unsqueeze(-1) * f;
    t["frequencies"] = f, t["table"] = at::stack({angle.cos(), angle.sin()}, 1);
  };
  c.oracle = [=](Reals& v) {
    auto &f = make(v, "frequencies", d / 2), &table = make(v, "table", positions * d);
    for (int64_t i = 0; i < d / 2; ++i) {
      f[i] = std::pow(Real(s.theta), -Real(2 * i) / d);
      Real turns = s.originalMaxPosition * f[i] / (2 * std::numbers::pi_v<Real>);  // over the original context
      Real keep = (turns - s.lowFrequencyFactor) / (s.highFrequencyFactor - s.lowFrequencyFactor);
      keep = std::min(Real(1), std::max(Real(0), keep));
      if (s.type == "linear") f[i] /= s.factor;
      if (s.type == "llama3") f[i] = keep * f[i] + (1 - keep) * f[i] / s.factor;
      for (int64_t p = 0; p < positions; ++p)
        table[p * d + i] = std::cos(p * f[i]), table[p * d + d / 2 + i] = std::sin(p * f[i]);
    }
  };
  return c;
}

// Rotates `heads` heads of rows that hold one more, which must stay as it is.
Case ropeRotation(int64_t T, int64_t heads, int64_t d) {
  int64_t ld = (heads + 1) * d, half = d / 2;
  auto table = ropeTable(ropeFrequencies({}, d), 512);
  auto positions = randomIds(T, 512);
  Case c{"rope", text({T, heads, d})};
  c.inputs = {normal("x", {T, ld}), normal("dy", {T, ld})};
  c.outputs = {"y", "dx"};
  c.forward = c.backward = {2 * T * heads * d, 0};
  auto turn = [=](const at::Tensor& x, int sign) { return rope(x, heads, d, table, positions.data(), sign), x; };
  c.ours = {[=](Tensors& t) { t["y"] = turn(t["x"], 1); }, [=](Tensors& t) { t["dx"] = turn(t["dy"], -1); }};
  auto plain = [=, rows = table.index_select(0, indices(positions))](const at::Tensor& x, int sign) {
    auto cosine = rows.select(1, 0).unsqueeze(1).to(x.scalar_type()), sine = rows.select(1, 1).unsqueeze(1).to(x.scalar_type());
    auto h = x.view({T, heads + 1, d}).narrow(1, 0, heads), a = h.narrow(2, 0, half), b = h.narrow(2, half, half);
    auto turned = at::cat({a * cosine - b * sine * sign, b * cosine + a * sine * sign}, 2);
    return at::cat({turned.view({T, heads * d}), x.narrow(1, heads * d, d)}, 1);
  };
  c.plain = {[=](Tensors& t) { t["y"] = plain(t["x"], 1); }, [=](Tensors& t) { t["dx"] = plain(t["dy"], -1); }};
  c.oracle = [=](Reals& v) {
    v["y"] = v["x"], v["dx"] = v["dy"];
    for (int64_t t = 0; t < T; ++t)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t i = 0; i < half; ++i) {
          Real cosine = data<float>(table)[positions[t] * d + i], sine = data<float>(table)[positions[t] * d + half + i];
          int64_t a = t * ld + h * d + i, b = a + half;
          v["y"][a] = v["x"][a] * cosine - v["x"][b] * sine, v["y"][b] = v["x"][b] * cosine + v["x"][a] * sine;
          v["dx"][a] = v["dy"][a] * cosine + v["dy"][b] * sine, v["dx"][b] = v["dy"][b] * cosine - v["dy"][a] * sine;
        }
  };
  return c;
}

Case swiglu(int64_t T, int64_t F) {
  Case c{"swiglu", text({T, F})};
  c.inputs = {normal("gateUp", {T, 2 * F}, 3), normal("dh", {T, F})};
  for (int64_t i = 0; i < std::min<int64_t>(F, 2); ++i) c.inputs[0].value[0][i] = i ? 100 : -100;  // beyond float32's e^x
  c.outputs = {"h", "again", "dgateUp"};
  c.forward = {3 * T * F, 0};
  c.backward = {6 * T * F, 0};
  c.ours.forward = [](Tensors& t) { swigluForward(t["gateUp"], t["h"] = at::empty_like(t["dh"])); };
  c.ours.backward = [](Tensors& t) {
    swigluBackward(t["dh"], t["gateUp"], t["again"] = at::empty_like(t["dh"]));
    t["dgateUp"] = t["gateUp"];
  };
  c.plain.forward = [](Tensors& t) {
    auto parts = t["gateUp"].chunk(2, -1);
    t["h"] = at::silu(parts[0]) * parts[1];
  };
  c.plain.backward = [](Tensors& t) {
    auto parts = t["gateUp"].chunk(2, -1);
    auto s = parts[0].sigmoid(), silu = parts[0] * s;
    t["again"] = silu * parts[1];
    t["dgateUp"] = at::cat({t["dh"] * parts[1] * (s * (1 + parts[0] * (1 - s))), t["dh"] * silu}, -1);
  };
  c.oracle = [=](Reals& v) {
    auto &h = make(v, "h", T * F), &to = make(v, "dgateUp", 2 * T * F);
    for (int64_t i = 0; i < T * F; ++i) {
      int64_t at = i / F * 2 * F + i % F;
      Real g = v["gateUp"][at], u = v["gateUp"][at + F], d = v["dh"][i], s = 1 / (1 + std::exp(-g));
      h[i] = g * s * u, to[at] = d * u * s * (1 + g * (1 - s)), to[at + F] = d * g * s;
    }
    v["again"] = h;
  };
  return c;
}

// Shared by logprob and head: z [R, V] and dlogp to logp, lse, argmax and dz.
void plainLogprob(Tensors& t, const at::Tensor& targets) {
  auto z = t["z"].to(statsOf(t["z"])), column = targets.unsqueeze(-1);
  t["lse"] = at::logsumexp(z, {-1});
  t["logp"] = at::log_softmax(z, -1).gather(1, column).squeeze(-1);
  t["argmax"] = z.gather(1, column).ge(z.amax(-1, true)).squeeze(-1).to(at::kByte);
}
void plainLogprobBackward(Tensors& t, const at::Tensor& targets) {
  auto p = at::softmax(t["z"].to(statsOf(t["z"])), -1), column = targets.unsqueeze(-1), g = t["dlogp"].unsqueeze(-1);
  t["dz"] = (g * p.neg().scatter_add(1, column, at::ones_like(g))).to(t["z"].scalar_type());
}
void oracleLogprob(Reals& v, const std::vector<int32_t>& targets, int64_t V) {
  int64_t R = targets.size();
  auto &z = v["z"], &lse = make(v, "lse", R), &logp = make(v, "logp", R), &best = make(v, "argmax", R);
  auto& dz = make(v, "dz", R * V);
  for (int64_t r = 0; r < R; ++r) {
    const Real* row = &z[r * V];
    Real top = *std::max_element(row, row + V), total = 0;
    for (int64_t i = 0; i < V; ++i) total += dz[r * V + i] = std::exp(row[i] - top);
    lse[r] = top + std::log(total), logp[r] = row[targets[r]] - lse[r], best[r] = row[targets[r]] >= top;
    for (int64_t i = 0; i < V; ++i) dz[r * V + i] = v["dlogp"][r] * ((i == targets[r]) - dz[r * V + i] / total);
  }
}

Case logprob(int64_t R, int64_t V, double scale) {
  auto targets = randomIds(R, V);
  auto column = indices(targets);
  Case c{"logprob", text({R, V})};
  c.inputs = {normal("z", {R, V}, scale), wide("dlogp", {R})};
  c.inputs[0].value[0][targets[0]] = 5 * scale;  // one row whose target is the most probable token
  c.outputs = {"logp", "lse", "argmax", "dz"};
  c.forward = {R * V, 3 * R};
  c.backward = {2 * R * V, 2 * R};
  c.ours.forward = [=](Tensors& t) {
    t["logp"] = at::empty_like(t["dlogp"]), t["lse"] = at::empty_like(t["dlogp"]), t["argmax"] = at::empty({R}, at::kByte);
    logprobForward(t["z"], targets.data(), t["logp"], t["lse"], data<uint8_t>(t["argmax"]));
  };
  c.ours.backward = [=](Tensors& t) { logprobBackward(t["dz"] = t["z"], targets.data(), t["lse"], t["dlogp"]); };
  c.plain = {[=](Tensors& t) { plainLogprob(t, column); }, [=](Tensors& t) { plainLogprobBackward(t, column); }};
  c.oracle = [=](Reals& v) { oracleLogprob(v, targets, V); };
  return c;
}

Case merge(int64_t R, int64_t heads, int64_t d) {
  Case c{"merge_lse", text({R, heads, d})};
  c.inputs = {normal("o1", {R, heads * d}), normal("o2", {R, heads * d}), wide("l1", {R, heads}), wide("l2", {R, heads})};
  for (int i : {2, 3}) c.inputs[i].value.mul_(8);
  c.outputs = {"out", "lse"};
  c.forward = {3 * R * heads * d, 3 * R * heads};
  c.ours.forward = [=](Tensors& t) { mergeLse(t["out"] = t["o1"], t["lse"] = t["l1"], t["o2"], t["l2"], heads); };
  c.plain.forward = [=](Tensors& t) {
    t["lse"] = at::logaddexp(t["l1"], t["l2"]);
    auto part = [&](const char* o, const char* l) {
      auto weight = at::exp(t[l] - t["lse"]).to(t[o].scalar_type()).unsqueeze(-1);
      return (t[o].view({R, heads, d}) * weight).view({R, heads * d});
    };
    t["out"] = part("o1", "l1") + part("o2", "l2");
  };
  c.oracle = [=](Reals& v) {
    auto &out = make(v, "out", R * heads * d), &lse = make(v, "lse", R * heads);
    for (int64_t i = 0; i < R * heads * d; ++i) {
      Real a = std::exp(v["l1"][i / d]), b = std::exp(v["l2"][i / d]);
      lse[i / d] = std::log(a + b), out[i] = (a * v["o1"][i] + b * v["o2"][i]) / (a + b);
    }
  };
  return c;
}

// prompts[g] tokens of prompt g, responses[g] the lengths of its responses.
Batch packed(const std::vector<int32_t>& prompts, const std::vector<std::vector<int32_t>>& responses) {
  Batch b;
  b.promptOffsets = b.responseOffsets = b.groupOffsets = {0};
  for (size_t g = 0; g < prompts.size(); ++g) {
    b.promptOffsets.push_back(b.promptOffsets.back() + prompts[g]);
    for (int32_t n : responses[g]) b.responseOffsets.push_back(b.responseOffsets.back() + n);
    b.groupOffsets.push_back(int32_t(b.responseOffsets.size()) - 1);
  }
  b.tokens.resize(b.promptTokens() + b.responseRows());
  return b;
}
// sees[i][j]: row i attends to row j, as one dense matrix.
at::Tensor visibility(const Batch& b) {
  auto sees = at::zeros({b.size(), b.size()}, at::kBool);
  auto square = [&](int64_t i, int64_t rows, int64_t j, int64_t columns) { return sees.narrow(0, i, rows).narrow(1, j, columns); };
  for (int64_t g = 0; g < b.groups(); ++g) {
    int64_t p = b.promptOffsets[g], n = b.promptOffsets[g + 1] - p;
    square(p, n, p, n).copy_(at::ones({n, n}, at::kBool).tril());
    for (int32_t k = b.groupOffsets[g]; k < b.groupOffsets[g + 1]; ++k) {
      int64_t r = b.promptTokens() + b.responseOffsets[k], m = b.responseOffsets[k + 1] - b.responseOffsets[k];
      square(r, m, r, m).copy_(at::ones({m, m}, at::kBool).tril());
      square(r, m, p, n).fill_(true);
    }
  }
  return sees;
}

Case attention(const char* shape, const Batch& batch, int64_t heads, int64_t kvHeads, int64_t d, bool promptQueries) {
  ModelConfig config{};
  config.heads = heads, config.kvHeads = kvHeads, config.headDim = d;
  int64_t T = batch.size(), unasked = promptQueries ? 0 : batch.promptTokens(), ld = config.qkvSize(), group = heads / kvHeads;
  double scale = 1 / std::sqrt(double(d));
  auto sees = visibility(batch);
  Case c{"attention", std::string(shape) + " " + text({T, heads, kvHeads, d}) + (promptQueries ? "" : " responses")};
  c.inputs = {normal("qkv", {T, ld}), normal("dout", {T, heads * d})};
  c.outputs = {"out", "lse", "dqkv"};
  c.forward = {T * (ld + heads * d), T * heads};
  c.backward = {2 * T * (ld + heads * d), T * heads};
  c.ours.forward = [=](Tensors& t) {
    t["out"] = at::zeros_like(t["dout"]), t["lse"] = at::zeros({T, heads}, statsOf(t["qkv"]));
    attentionForward(config, batch, t["qkv"], t["out"], t["lse"], promptQueries);
  };
  c.ours.backward = [=](Tensors& t) {
    t["dqkv"] = at::full_like(t["qkv"], NAN);
    attentionBackward(config, batch, t["dout"], t["qkv"], t["out"], t["lse"], t["dqkv"], promptQueries);
  };
  auto split = [=](const at::Tensor& rows, int64_t first, int64_t count) {  // [heads, T, d], key heads repeated
    auto part = rows.narrow(1, first * d, count * d).view({T, count, d}).transpose(0, 1);
    return count == heads ? part : part.repeat_interleave(group, 0);
  };
  auto join = [=](const at::Tensor& t, int64_t count) {  // and back, repeated heads summed
    auto summed = count == heads ? t : t.view({count, group, T, d}).sum(1);
    return summed.transpose(0, 1).reshape({T, count * d});
  };
  c.plain.forward = [=](Tensors& t) {
    auto scores = at::matmul(split(t["qkv"], 0, heads), split(t["qkv"], heads, kvHeads).transpose(1, 2)) * scale;
    scores = scores.masked_fill(sees.logical_not(), -INFINITY);
    t["lse"] = at::logsumexp(scores.to(statsOf(scores)), {-1}).t().contiguous();
    t["p"] = at::softmax(scores, -1);
    t["p"].narrow(1, 0, unasked).zero_(), t["lse"].narrow(0, 0, unasked).zero_();
    t["out"] = join(at::matmul(t["p"], split(t["qkv"], heads + kvHeads, kvHeads)), heads);
  };
  c.plain.backward = [=](Tensors& t) {
    auto q = split(t["qkv"], 0, heads), k = split(t["qkv"], heads, kvHeads), v = split(t["qkv"], heads + kvHeads, kvHeads);
    auto dOut = split(t["dout"], 0, heads), p = t["p"], dp = at::matmul(dOut, v.transpose(1, 2));
    auto ds = p * (dp - (dp * p).sum(-1, true)) * scale;
    t["dqkv"] = at::cat({join(at::matmul(ds, k), heads), join(at::matmul(ds.transpose(1, 2), q), kvHeads),
                         join(at::matmul(p.transpose(1, 2), dOut), kvHeads)}, 1);
  };
  c.oracle = [=](Reals& v) {
    const Real *x = v["qkv"].data(), *g = v["dout"].data();
    auto &out = make(v, "out", T * heads * d), &lse = make(v, "lse", T * heads), &to = make(v, "dqkv", T * ld);
    std::vector<Real> p(T);
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = unasked; i < T; ++i) {
        int64_t q = i * ld + h * d, key = (heads + h / group) * d, value = key + kvHeads * d, o = (i * heads + h) * d;
        const bool* seen = data<bool>(sees) + i * T;
        Real total = 0;
        for (int64_t j = 0; j < T; ++j) total += p[j] = seen[j] ? std::exp(scale * dot(x + q, x + j * ld + key, d)) : 0;
        lse[i * heads + h] = std::log(total);
        for (int64_t j = 0; j < T; ++j)
          for (int64_t e = 0; seen[j] && e < d; ++e) out[o + e] += p[j] / total * x[j * ld + value + e];
        Real mean = dot(g + o, &out[o], d);
        for (int64_t j = 0; j < T; ++j) {
          if (!seen[j]) continue;
          Real w = p[j] / total, ds = scale * w * (dot(g + o, x + j * ld + value, d) - mean);
          for (int64_t e = 0; e < d; ++e) {
            to[q + e] += ds * x[j * ld + key + e];
            to[j * ld + key + e] += ds * x[q + e];
            to[j * ld + value + e] += w * g[o + e];
          }
        }
      }
  };
  return c;
}

// chunk: rows of logits the head may hold. Units are the responses of one prompt, here of uneven length, one empty.
enum class HeadPass { Together, BackwardAlone };
Case head(int64_t R, int64_t H, int64_t V, int64_t chunk, HeadPass pass) {
  auto targets = randomIds(R, V);
  auto column = indices(targets);
  std::vector<int64_t> units{0, R / 5, R / 5, R / 4, R};
  Case c{"head", text({R, H, V}) + (pass == HeadPass::Together ? " chunk " : " alone, chunk ") + std::to_string(chunk)};
  c.inputs = {normal("hidden", {R, H}), normal("weight", {V, H}, 0.3), wide("dlogp", {R}), wide("dweight", {V, H})};
  c.outputs = {"logp", "lse", "argmax", "seen", "dhidden", "dweight"};
  c.forward = {R * H + V * H, 2 * R};
  c.backward = {2 * R * H + V * H, 2 * V * H};
  auto bytes = [=](Tensors& t) { return chunk * V * t["weight"].element_size(); };
  c.ours.forward = [=](Tensors& t) {
    static Workspace workspace;
    auto output = Head(workspace, bytes(t)).logProbs(t["hidden"], t["weight"], targets, true);
    t["logp"] = output.logp, t["lse"] = output.lse, t["seen"] = output.logp;
    t["argmax"] = at::tensor(output.argmax);
  };
  c.ours.backward = [=](Tensors& t) {
    static Workspace workspace;
    Head head(workspace, bytes(t));
    t["dhidden"] = at::full_like(t["hidden"], NAN);
    if (pass == HeadPass::BackwardAlone)
      return head.backward(t["hidden"], t["weight"], targets, t["lse"], t["dlogp"], t["dhidden"], t["dweight"]);
    auto seen = t["seen"] = at::full_like(t["dlogp"], NAN);  // the log-probs at the time of the callback
    auto gradient = [&](const HeadOutput& output, int64_t first, int64_t last, at::Tensor& dLogp) {
      for (auto [to, from] : {std::pair{seen, output.logp}, {dLogp, t["dlogp"]}})
        to.narrow(0, first, last - first).copy_(from.narrow(0, first, last - first));
    };
    auto output = head.forwardBackward(t["hidden"], t["weight"], targets, units, gradient, t["dhidden"], t["dweight"]);
    t["logp"] = output.logp, t["lse"] = output.lse;
  };
  c.plain.forward = [=](Tensors& t) {
    t["z"] = at::matmul(t["hidden"], t["weight"].t());
    plainLogprob(t, column);
    t["seen"] = t["logp"];
  };
  c.plain.backward = [=](Tensors& t) {
    plainLogprobBackward(t, column);
    t["dhidden"] = at::matmul(t["dz"], t["weight"]);
    t["dweight"] = t["dweight"] + at::matmul(t["dz"].t(), t["hidden"]);
  };
  c.oracle = [=](Reals& v) {
    auto &z = make(v, "z", R * V), &dHidden = make(v, "dhidden", R * H);
    for (int64_t i = 0; i < R * V; ++i) z[i] = dot(&v["hidden"][i / V * H], &v["weight"][i % V * H], H);
    oracleLogprob(v, targets, V);
    v["seen"] = v["logp"];
    const Real *dz = v["dz"].data(), *hidden = v["hidden"].data(), *weight = v["weight"].data();
    Real* dWeight = v["dweight"].data();
    for (int64_t r = 0; r < R; ++r)
      for (int64_t i = 0; i < V; ++i)
        for (int64_t k = 0; k < H; ++k) {
          dHidden[r * H + k] += dz[r * V + i] * weight[i * H + k];
          dWeight[i * H + k] += dz[r * V + i] * hidden[r * H + k];
        }
  };
  return c;
}

Case embedding(int64_t T, int64_t H, int64_t V) {
  auto ids = randomIds(T, V);
  auto rows = indices(ids);
  Case c{"embedding", text({T, H, V})};
  c.inputs = {normal("weight", {V, H}), normal("dx", {T, H}), wide("dweight", {V, H})};
  c.outputs = {"x", "dweight"};
  c.forward = {2 * T * H, 0};
  c.backward = {T * H, 2 * T * H};
  c.ours.forward = c.plain.forward = [=](Tensors& t) { t["x"] = t["weight"].index_select(0, rows); };
  c.ours.backward = [=](Tensors& t) { embeddingBackward(t["dx"], ids.data(), t["dweight"]); };
  c.plain.backward = [=](Tensors& t) { t["dweight"].index_add_(0, rows, t["dx"].to(t["dweight"].scalar_type())); };
  c.oracle = [=](Reals& v) {
    auto& x = make(v, "x", T * H);
    for (int64_t i = 0; i < T * H; ++i) {
      int64_t at = ids[i / H] * H + i % H;
      x[i] = v["weight"][at], v["dweight"][at] += v["dx"][i];
    }
  };
  return c;
}

Case adamw(int64_t n, int64_t step) {
  AdamWStep s{3e-4, 0.9, 0.999, 1e-8, 0.1, 0.7, step};
  double scale1 = 1 - std::pow(s.beta1, step), scale2 = 1 - std::pow(s.beta2, step);
  Case c{"adamw", text({n}) + " step " + std::to_string(step)};
  c.inputs = {wide("master", {n}), wide("grad", {n}), wide("m", {n}), wide("v", {n}), normal("work", {n})};
  for (int i : {2, 3}) c.inputs[i].value.mul_(step > 1);
  c.inputs[3].value.square_();
  c.outputs = {"master", "work", "m", "v", "grad"};
  c.forward = {0, 8 * n};
  c.ours.forward = [=](Tensors& t) {
    bool copy = t["work"].scalar_type() == at::kBFloat16;
    adamwUpdate(t["master"], copy ? t["work"] : t["master"], t["grad"], t["m"], t["v"], s);
    if (!copy) t["work"] = t["master"];
  };
  c.plain.forward = [=](Tensors& t) {  // torch.optim.adamw._single_tensor_adamw
    auto g = t["grad"] * s.gradScale;
    t["master"].mul_(1 - s.learningRate * s.weightDecay);
    t["m"].lerp_(g, 1 - s.beta1);
    t["v"].mul_(s.beta2).addcmul_(g, g, 1 - s.beta2);
    t["master"].addcdiv_(t["m"], (t["v"].sqrt() / std::sqrt(scale2)).add_(s.eps), -s.learningRate / scale1);
    t["work"] = t["master"].to(t["work"].scalar_type());
    t["grad"].zero_();
  };
  c.oracle = [=](Reals& v) {
    for (int64_t i = 0; i < n; ++i) {
      Real g = v["grad"][i] * s.gradScale, &m = v["m"][i], &square = v["v"][i], &p = v["master"][i];
      m = s.beta1 * m + (1 - Real(s.beta1)) * g, square = s.beta2 * square + (1 - Real(s.beta2)) * g * g;
      p = p * (1 - Real(s.learningRate) * s.weightDecay) - s.learningRate * (m / scale1) / (std::sqrt(square / scale2) + s.eps);
      v["grad"][i] = 0, v["work"][i] = p;
    }
  };
  return c;
}

Case norm(int64_t n) {
  Case c{"gradient_norm", text({n})};
  c.dtypes = {at::kFloat, at::kDouble};
  c.inputs = {wide("grad", {n})};
  c.outputs = {"norm"};
  c.forward = {0, n};
  c.ours.forward = [](Tensors& t) { t["norm"] = at::scalar_tensor(gradientNorm(t["grad"]), t["grad"].scalar_type()); };
  c.plain.forward = [](Tensors& t) { t["norm"] = t["grad"].pow(2).sum().sqrt(); };
  c.oracle = [=](Reals& v) { v["norm"] = {std::sqrt(dot(v["grad"].data(), v["grad"].data(), n))}; };
  return c;
}

// `spread` scales the log-probs, and with them the margin.
Case contestCase(const char* name, const Objective& o, const std::vector<double>& coefficients, bool reference, double spread) {
  using Form = Objective::Form;
  int64_t K = coefficients.size();
  std::vector<int32_t> lengths = randomIds(K, 200);
  for (auto& n : lengths) ++n;
  auto c = Case{"objective", std::string(name) + " spread " + std::to_string(int(spread))};
  c.dtypes = {at::kDouble};
  c.inputs = {normal("policy", {K}, spread), normal("dpolicy", {K}), normal("dloss", {1})};
  if (reference) c.inputs.push_back(normal("reference", {K}, spread));
  c.outputs = {"loss", "margin", "dpolicy"};
  c.ours.forward = [=](Tensors& t) {
    auto view = [&](const char* n) { return std::span(data<double>(t[n]), K); };
    std::span<double> none;
    auto g = t["dpolicy"].clone();
    auto result = contest(o, view("policy"), reference ? view("reference") : none, lengths, coefficients,
                          t["dloss"].item<double>(), std::span(data<double>(g), K));
    t["loss"] = at::full({1}, result.loss, at::kDouble), t["margin"] = at::full({1}, result.margin, at::kDouble);
    t["next"] = g;
  };
  c.ours.backward = [](Tensors& t) { t["dpolicy"] = t["next"]; };
  c.plain.forward = [=](Tensors& t) {
    auto u = at::tensor(coefficients, at::kDouble);
    if (o.lengthNormalized) u = u / at::tensor(lengths);
    auto sum = (u * (reference ? t["policy"] - t["reference"] : t["policy"])).sum(), z = o.beta * sum - o.gamma, slope = z;
    if (o.form == Form::Sigmoid) {
      auto zero = at::zeros_like(z);
      t["loss"] = (1 - o.labelSmoothing) * at::logaddexp(zero, -z) + o.labelSmoothing * at::logaddexp(zero, z);
      slope = o.beta * (o.labelSmoothing * z.sigmoid() - (1 - o.labelSmoothing) * z.neg().sigmoid());
    } else if (o.form == Form::Ipo) {
      t["loss"] = (sum - 1 / (2 * o.beta)).pow(2), slope = 2 * (sum - 1 / (2 * o.beta));
    } else {
      t["loss"] = -sum, slope = at::full_like(sum, -1), z = sum;
    }
    t["margin"] = z, t["dpolicy"] = t["dpolicy"] + t["dloss"] * slope * u;
  };
  c.oracle = [=](Reals& v) {
    Real sum = 0, e = o.labelSmoothing;
    auto u = [&](int64_t k) { return Real(coefficients[k]) / (o.lengthNormalized ? lengths[k] : 1); };
    for (int64_t k = 0; k < K; ++k) sum += u(k) * (v["policy"][k] - (reference ? v["reference"][k] : 0));
    Real z = o.beta * sum - o.gamma, p = 1 / (1 + std::exp(-z)), distance = z / o.beta - 1 / (2 * Real(o.beta));
    Real sigmoidLoss = (1 - e) * std::log1p(std::exp(-z)) + e * std::log1p(std::exp(z));  // long double: no overflow here
    Real slope = o.form == Form::Sigmoid ? o.beta * (e * p - (1 - e) / (1 + std::exp(z)))
                 : o.form == Form::Ipo   ? 2 * distance
                                         : -1;
    v["loss"] = {o.form == Form::Sigmoid ? sigmoidLoss : o.form == Form::Ipo ? distance * distance : -sum};
    v["margin"] = {o.form == Form::Linear ? sum : z};
    for (int64_t k = 0; k < K; ++k) v["dpolicy"][k] += v["dloss"][0] * slope * u(k);
  };
  return c;
}

// ---- the table
