#include <algorithm>
#include <cmath>
#include <span>

#include "check/case.h"
#include "model/attention.h"
#include "model/decoder.h"
#include "model/head.h"
#include "model/lora.h"

namespace wrpo::check {

namespace {

// sees[i][j]: row i attends to row j, as one dense matrix.
at::Tensor visibility(const Batch& b, int64_t window) {
  auto position = at::arange(b.size(), at::kLong);  // of a row within its sequence
  auto sees = at::zeros({b.size(), b.size()}, at::kBool);
  auto square = [&](int64_t i, int64_t rows, int64_t j, int64_t columns) {
    return sees.narrow(0, i, rows).narrow(1, j, columns);
  };
  for (int64_t g = 0; g < b.groups(); ++g) {
    int64_t p = b.promptOffsets[g], n = b.promptOffsets[g + 1] - p;
    square(p, n, p, n).copy_(at::ones({n, n}, at::kBool).tril());
    position.narrow(0, p, n).copy_(at::arange(n, at::kLong));
    for (int32_t k = b.groupOffsets[g]; k < b.groupOffsets[g + 1]; ++k) {
      int64_t r = b.promptTokens() + b.responseOffsets[k], m = b.responseOffsets[k + 1] - b.responseOffsets[k];
      square(r, m, r, m).copy_(at::ones({m, m}, at::kBool).tril());
      square(r, m, p, n).fill_(true);
      position.narrow(0, r, m).copy_(at::arange(n, n + m, at::kLong));
    }
  }
  if (window > 0) sees.logical_and_((position.unsqueeze(1) - position).lt(window));
  return sees;
}

}  // namespace

Case linearLayer(int64_t T, int64_t in, int64_t out) {
  Case c{"linear", text({T, in, out})};
  c.gemms = true;
  c.inputs = {normal("x", {T, in}), normal("w", {out, in}, 0.1), normal("dy", {T, out}), wide("dw", {out, in})};
  c.outputs = {"y", "dx", "dw"};
  c.forward = {T * in + out * in + T * out, 0};
  c.backward = {2 * T * (in + out) + out * in, 2 * out * in};
  c.ours.forward = [](Tensors& t) { linear(t["y"] = at::full_like(t["dy"], NAN), t["x"], t["w"]); };
  c.ours.backward = [](Tensors& t) {
    linearInputGradient(t["dx"] = at::full_like(t["x"], NAN), t["dy"], t["w"]);
    linearWeightGradient(t["dw"], t["dy"], t["x"]);
  };
  c.plain.forward = [](Tensors& t) { t["y"] = at::mm(t["x"], t["w"].t()); };
  c.plain.backward = [](Tensors& t) {
    t["dx"] = at::mm(t["dy"], t["w"]);
    t["dw"] = t["dw"] + at::mm(t["dy"].t(), t["x"]);
  };
  c.oracle = [=](Reals& v) {
    auto &x = v["x"], &w = v["w"], &dy = v["dy"], &dw = v["dw"];
    auto &y = make(v, "y", T * out), &dx = make(v, "dx", T * in);
    for (int64_t t = 0; t < T; ++t)
      for (int64_t o = 0; o < out; ++o) {
        y[t * out + o] = dot(&x[t * in], &w[o * in], in);
        for (int64_t i = 0; i < in; ++i) {
          dx[t * in + i] += dy[t * out + o] * w[o * in + i];
          dw[o * in + i] += dy[t * out + o] * x[t * in + i];
        }
      }
  };
  return c;
}

// Adapters on one of two projections that are stored fused, so that rows of y and dy lie apart.
Case loraLayer(int64_t T, int64_t in, int64_t out, int64_t r) {
  constexpr double scale = 1.5;
  struct Layer {
    Weights weights;
    Adapters adapters;
    Workspace workspace;
    Layer(const ModelConfig& config, Tensors& t, int64_t rank)
        : weights(config, t["x"].scalar_type(), Weights::Use::Frozen, at::kCPU),
          adapters({rank, scale, 0, {"model.layers.0.mlp.up_proj"}}, weights) {
      const auto& own = adapters.on(projection())[0];
      own.a.copy_(t["a"]), own.b.copy_(t["b"]);
    }
    const at::Tensor& projection() const { return weights.view.layers[0].gateUp; }
    at::Tensor gradient(size_t i) { return adapters.slice(adapters.grad(), adapters.parameters()[i]); }
  };
  ModelConfig config{1, in, 1, 1, 1, 2, out, 1, 1e-5, 1, true, {}};
  Case c{"lora", text({T, in, out, r})};
  c.gemms = true;
  c.inputs = {normal("x", {T, in}),       normal("a", {r, in}, 0.3),    normal("b", {out, r}, 0.3),
              normal("dy", {T, 2 * out}), normal("base", {T, 2 * out}), normal("dx", {T, in}),
              wide("da", {r, in}),        wide("db", {out, r})};
  c.outputs = {"y", "dx", "da", "db"};
  c.forward = {T * in + 2 * T * out, 0};
  c.backward = {3 * T * in + T * out, 0};
  c.ours.forward = [=](Tensors& t) {
    Layer layer(config, t, r);
    t["y"] = t["base"].clone();
    LoraPass(layer.adapters, layer.workspace).forward(t["y"], t["x"], layer.projection());
  };
  c.ours.backward = [=](Tensors& t) {
    Layer layer(config, t, r);
    LoraPass pass(layer.adapters, layer.workspace);
    layer.gradient(0).copy_(t["da"]), layer.gradient(1).copy_(t["db"]);
    pass.inputGradient(t["dx"], t["dy"], layer.projection());
    pass.weightGradient(t["dy"], t["x"], layer.projection());
    t["da"] = layer.gradient(0).clone(), t["db"] = layer.gradient(1).clone();
  };
  auto up = [=](const at::Tensor& fused) { return fused.narrow(1, out, out); };
  c.plain.forward = [=](Tensors& t) {
    t["y"] = t["base"].clone();
    up(t["y"]).add_(at::mm(at::mm(t["x"], t["a"].t()), t["b"].t()) * scale);
  };
  c.plain.backward = [=](Tensors& t) {
    auto dy = up(t["dy"]) * scale, dh = at::mm(dy, t["b"]);
    t["dx"] = t["dx"] + at::mm(dh, t["a"]);
    t["da"] = t["da"] + at::mm(dh.t(), t["x"]);
    t["db"] = t["db"] + at::mm(dy.t(), at::mm(t["x"], t["a"].t()));
  };
  c.oracle = [=](Reals& v) {
    auto &x = v["x"], &a = v["a"], &b = v["b"], &dy = v["dy"], &y = v["y"] = v["base"];
    std::vector<Real> h(r), dh(r);
    for (int64_t t = 0; t < T; ++t) {
      const Real* d = &dy[t * 2 * out + out];
      for (int64_t k = 0; k < r; ++k) h[k] = scale * dot(&x[t * in], &a[k * in], in), dh[k] = 0;
      for (int64_t o = 0; o < out; ++o) {
        y[t * 2 * out + out + o] += dot(h.data(), &b[o * r], r);
        for (int64_t k = 0; k < r; ++k) dh[k] += scale * d[o] * b[o * r + k], v["db"][o * r + k] += d[o] * h[k];
      }
      for (int64_t k = 0; k < r; ++k)
        for (int64_t i = 0; i < in; ++i) {
          v["dx"][t * in + i] += dh[k] * a[k * in + i];
          v["da"][k * in + i] += dh[k] * x[t * in + i];
        }
    }
  };
  return c;
}

Case attention(const char* layout, const Batch& batch, int64_t heads, int64_t kvHeads, int64_t d, bool promptQueries,
               int64_t window, double cap) {
  double scale = 0.9 / std::sqrt(double(d));
  ModelConfig config{};
  config.heads = heads, config.kvHeads = kvHeads, config.headDim = d;
  config.queryScale = scale, config.attentionSoftcap = cap;
  int64_t T = batch.size(), P = batch.promptTokens(), unasked = promptQueries ? 0 : P;
  int64_t ld = config.qkvSize(), group = heads / kvHeads;
  auto sees = visibility(batch, window);
  Case c{"attention", std::string(layout) + " " + text({T, heads, kvHeads, d}) + (promptQueries ? "" : " responses") +
                          (window > 0 ? " window " + std::to_string(window) : "") + (cap > 0 ? " capped" : "")};
  c.gemms = true;
  c.inputs = {normal("qkv", {T, ld}, 0.7), normal("dout", {T, heads * d})};
  c.outputs = {"out", "lse", "dqkv"};
  c.forward = {T * (ld + heads * d), T * heads};
  c.backward = {2 * T * (ld + heads * d), T * heads};
  c.ours.forward = [=](Tensors& t) {
    t["out"] = at::zeros_like(t["dout"]), t["lse"] = at::zeros({T, heads}, statsOf(t["qkv"]));
    attentionForward(config, window, batch, t["qkv"], t["out"], t["lse"], promptQueries);
  };
  c.ours.backward = [=](Tensors& t) {
    t["dqkv"] = at::full_like(t["qkv"], NAN);
    attentionBackward(config, window, batch, t["dout"], t["qkv"], t["out"], t["lse"], t["dqkv"], promptQueries);
  };
  // ATen's attention under dense masks, in the same two halves: one row's own segment, and its prompt.
  auto split = [=](const at::Tensor& rows, int64_t first, int64_t count) {  // [1, heads, T, d]
    return rows.narrow(1, first * d, count * d).view({1, T, count, d}).transpose(1, 2);
  };
  auto join = [=](const at::Tensor& t) { return t.transpose(1, 2).reshape({T, -1}); };
  auto mask = at::zeros({T, T}, at::kDouble).masked_fill(sees.logical_not(), -INFINITY);
  c.plain.forward = [=](Tensors& t) {
    auto q = split(t["qkv"], 0, heads), k = split(t["qkv"], heads, kvHeads),
         v = split(t["qkv"], heads + kvHeads, kvHeads);
    t["mask"] = mask.to(q.scalar_type());
    auto own = t["mask"].clone();
    own.narrow(0, P, T - P).narrow(1, 0, P).fill_(-INFINITY);
    auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0, false, own, scale);
    if (P > 0 && P < T) {
      auto responses = [=](const at::Tensor& t) { return t.narrow(2, P, T - P); };
      auto block = [=](const at::Tensor& t) { return t.narrow(0, P, T - P).narrow(1, 0, P); };
      auto [out2, lse2] = at::_scaled_dot_product_flash_attention_for_cpu(
          responses(q), k.narrow(2, 0, P), v.narrow(2, 0, P), 0, false, block(t["mask"]), scale);
      lse2 = lse2.masked_fill(block(sees).any(1).logical_not(), -INFINITY);  // responses without a prompt
      auto to = responses(out), l1 = responses(lse), merged = at::logaddexp(l1, lse2);
      auto weight = [&](const at::Tensor& l) { return at::exp(l - merged).unsqueeze(-1).to(to.scalar_type()); };
      to.copy_(to * weight(l1) + out2.nan_to_num(0) * weight(lse2)), l1.copy_(merged);
    }
    t["out"] = join(out), t["lse"] = join(lse.unsqueeze(-1));
    t["out"].narrow(0, 0, unasked).zero_(), t["lse"].narrow(0, 0, unasked).zero_();
  };
  c.plain.backward = [=](Tensors& t) {
    auto q = split(t["qkv"], 0, heads), k = split(t["qkv"], heads, kvHeads),
         v = split(t["qkv"], heads + kvHeads, kvHeads);
    auto dOut = t["dout"].clone(), lse = t["lse"].view({1, T, heads}).transpose(1, 2);
    dOut.narrow(0, 0, unasked).zero_();
    auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        split(dOut, 0, heads), q, k, v, split(t["out"], 0, heads), lse, 0, false, t["mask"], scale);
    t["dqkv"] = at::cat({join(dq), join(dk), join(dv)}, 1);
  };
  // No flash kernel of ATen caps.
  auto dense = [=](Tensors& t, const char* of, int64_t first) {
    return split(t[of], first, first == 0 ? heads : kvHeads).repeat_interleave(first == 0 ? 1 : group, 1);
  };
  auto capped = [=](Tensors& t) {
    return at::tanh(at::matmul(dense(t, "qkv", 0), dense(t, "qkv", heads).transpose(2, 3)) * scale / cap);
  };
  if (cap > 0) {
    c.plain.forward = [=](Tensors& t) {
      auto stats = statsOf(t["qkv"]);
      auto logits = (capped(t) * cap).to(stats).masked_fill(sees.logical_not(), -INFINITY);
      t["lse"] = join(at::logsumexp(logits, {-1}).unsqueeze(-1));
      t["out"] = join(at::matmul(at::softmax(logits, -1).to(t["qkv"].scalar_type()), dense(t, "qkv", heads + kvHeads)));
      t["out"].narrow(0, 0, unasked).zero_(), t["lse"].narrow(0, 0, unasked).zero_();
    };
    c.plain.backward = [=](Tensors& t) {
      auto type = t["qkv"].scalar_type();
      auto dOut = t["dout"].clone();
      dOut.narrow(0, 0, unasked).zero_();
      auto g = split(dOut, 0, heads), q = dense(t, "qkv", 0), k = dense(t, "qkv", heads),
           v = dense(t, "qkv", heads + kvHeads), tanh = capped(t);
      auto p = at::softmax((tanh * cap).to(statsOf(q)).masked_fill(sees.logical_not(), -INFINITY), -1);
      auto dP = at::matmul(g, v.transpose(2, 3)).to(p.scalar_type());
      auto ds = (p * (dP - (p * dP).sum(-1, true)) * (1 - tanh.to(p.scalar_type()).pow(2)) * scale).to(type);
      auto shared = [=](const at::Tensor& d) { return d.view({1, kvHeads, group, T, -1}).sum(2); };
      t["dqkv"] = at::cat({join(at::matmul(ds, k)), join(shared(at::matmul(ds.transpose(2, 3), q))),
                           join(shared(at::matmul(p.to(type).transpose(2, 3), g)))},
                          1);
    };
  }
  c.oracle = [=](Reals& v) {
    const Real *x = v["qkv"].data(), *g = v["dout"].data();
    auto &out = make(v, "out", T * heads * d), &lse = make(v, "lse", T * heads), &to = make(v, "dqkv", T * ld);
    std::vector<Real> p(T), slope(T);
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = unasked; i < T; ++i) {
        int64_t q = i * ld + h * d, key = (heads + h / group) * d, value = key + kvHeads * d, o = (i * heads + h) * d;
        const bool* seen = data<bool>(sees) + i * T;
        Real total = 0;
        for (int64_t j = 0; j < T; ++j) {
          Real logit = scale * dot(x + q, x + j * ld + key, d);
          slope[j] = cap > 0 ? 1 - std::pow(std::tanh(logit / cap), 2) : 1;
          if (cap > 0) logit = cap * std::tanh(logit / cap);
          total += p[j] = seen[j] ? std::exp(logit) : 0;
        }
        lse[i * heads + h] = std::log(total);
        for (int64_t j = 0; j < T; ++j)
          for (int64_t e = 0; seen[j] && e < d; ++e) out[o + e] += p[j] / total * x[j * ld + value + e];
        Real mean = dot(g + o, &out[o], d);
        for (int64_t j = 0; j < T; ++j) {
          if (!seen[j]) continue;
          Real w = p[j] / total, ds = scale * slope[j] * w * (dot(g + o, x + j * ld + value, d) - mean);
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

// Units are the responses of one prompt, here of uneven length, one empty.
Case head(int64_t R, int64_t H, int64_t V, int64_t chunk, HeadPass pass, double cap) {
  auto targets = randomIds(R, V);
  auto column = indices(targets), placed = place(targets, at::kCPU).clone();
  std::vector<int64_t> units{0, R / 5, R / 5, R / 4, R};
  Case c{"head", text({R, H, V}) + (pass == HeadPass::Together ? " chunk " : " alone, chunk ") + std::to_string(chunk) +
                     (cap > 0 ? " capped" : "")};
  c.gemms = true;
  c.inputs = {normal("hidden", {R, H}), normal("weight", {V, H}, 0.3), wide("dlogp", {R}), wide("dweight", {V, H})};
  c.outputs = {"logp", "lse", "argmax", "seen", "dhidden", "dweight"};
  c.forward = {R * H + V * H, 2 * R};
  c.backward = {2 * R * H + V * H, 2 * V * H};
  auto bytes = [=](Tensors& t) { return chunk * V * t["weight"].element_size(); };
  c.ours.forward = [=](Tensors& t) {
    static Workspace workspace;
    auto output = Head(workspace, bytes(t), cap).logProbs(t["hidden"], t["weight"], placed, true);
    t["logp"] = output.logp, t["lse"] = output.lse, t["seen"] = output.logp;
    t["argmax"] = output.argmax;
  };
  c.ours.backward = [=](Tensors& t) {
    static Workspace workspace;
    Head head(workspace, bytes(t), cap);
    t["dhidden"] = at::full_like(t["hidden"], NAN);
    if (pass == HeadPass::BackwardAlone)
      return head.backward(t["hidden"], t["weight"], placed, t["lse"], t["dlogp"], t["dhidden"], t["dweight"]);
    auto seen = t["seen"] = at::full_like(t["dlogp"], NAN);  // the log-probs at the time of the callback
    auto gradient = [&](const HeadOutput& output, int64_t first, int64_t last, at::Tensor& dLogp) {
      for (auto [to, from] : {std::pair{seen, output.logp}, {dLogp, t["dlogp"]}})
        to.narrow(0, first, last - first).copy_(from.narrow(0, first, last - first));
    };
    auto output = head.forwardBackward(t["hidden"], t["weight"], placed, units, gradient, t["dhidden"], t["dweight"]);
    t["logp"] = output.logp, t["lse"] = output.lse;
  };
  c.plain.forward = [=](Tensors& t) {
    t["z"] = at::matmul(t["hidden"], t["weight"].t());
    plainLogprob(t, column, cap);
    t["seen"] = t["logp"];
  };
  c.plain.backward = [=, forward = c.plain.forward](Tensors& t) {
    if (pass == HeadPass::Together) forward(t);  // forwardBackward is both
    plainLogprobBackward(t, column, cap);
    t["dhidden"] = at::matmul(t["dz"], t["weight"]);
    t["dweight"] = t["dweight"] + at::matmul(t["dz"].t(), t["hidden"]);
  };
  c.oracle = [=](Reals& v) {
    auto &z = make(v, "z", R * V), &dHidden = make(v, "dhidden", R * H);
    for (int64_t i = 0; i < R * V; ++i) z[i] = dot(&v["hidden"][i / V * H], &v["weight"][i % V * H], H);
    oracleLogprob(v, targets, V, cap);
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

Case preference(const char* form, const Objective& o, const std::vector<double>& coefficients, bool reference,
                double spread) {
  using Form = Objective::Form;
  int64_t K = coefficients.size();
  std::vector<int32_t> lengths = randomIds(K, 200);
  for (auto& n : lengths) ++n;
  auto c = Case{"objective", std::string(form) + " spread " + std::to_string(int(spread))};
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
    auto sum = (u * (reference ? t["policy"] - t["reference"] : t["policy"])).sum(), z = o.beta * sum - o.gamma,
         slope = z;
    if (o.form == Form::Sigmoid) {
      auto zero = at::zeros_like(z);
      t["loss"] = (1 - o.labelSmoothing) * at::logaddexp(zero, -z) + o.labelSmoothing * at::logaddexp(zero, z);
      slope = o.beta * (o.labelSmoothing * z.sigmoid() - (1 - o.labelSmoothing) * z.neg().sigmoid());
    } else if (o.form == Form::Ipo) {
      t["loss"] = (sum - 1 / (2 * o.beta)).pow(2), slope = 2 * (sum - 1 / (2 * o.beta));
    } else {
      t["loss"] = -sum, slope = at::full_like(sum, -1), z = sum;
    }
    auto sft = o.sftWeight * at::tensor(coefficients, at::kDouble).clamp_min(0) / at::tensor(lengths);
    t["loss"] = t["loss"] - (sft * t["policy"]).sum();
    t["margin"] = z, t["dpolicy"] = t["dpolicy"] + t["dloss"] * (slope * u - sft);
  };
  c.oracle = [=](Reals& v) {
    Real sum = 0, e = o.labelSmoothing;
    auto u = [&](int64_t k) { return Real(coefficients[k]) / (o.lengthNormalized ? lengths[k] : 1); };
    for (int64_t k = 0; k < K; ++k) sum += u(k) * (v["policy"][k] - (reference ? v["reference"][k] : 0));
    Real z = o.beta * sum - o.gamma, p = 1 / (1 + std::exp(-z)), distance = z / o.beta - 1 / (2 * Real(o.beta));
    auto softplus = [](Real x) { return std::max(x, Real(0)) + std::log1p(std::exp(-std::abs(x))); };
    Real sigmoidLoss = (1 - e) * softplus(-z) + e * softplus(z);
    Real slope = o.form == Form::Sigmoid ? o.beta * (e * p - (1 - e) / (1 + std::exp(z)))
                 : o.form == Form::Ipo   ? 2 * distance
                                         : -1;
    v["loss"] = {o.form == Form::Sigmoid ? sigmoidLoss : o.form == Form::Ipo ? distance * distance : -sum};
    v["margin"] = {o.form == Form::Linear ? sum : z};
    for (int64_t k = 0; k < K; ++k) {
      Real sft = Real(o.sftWeight) * std::max(coefficients[k], 0.0) / lengths[k];
      v["loss"][0] -= sft * v["policy"][k];
      v["dpolicy"][k] += v["dloss"][0] * (slope * u(k) - sft);
    }
  };
  return c;
}

}  // namespace wrpo::check
