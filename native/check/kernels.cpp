#include <cmath>
#include <numbers>

#include "check/case.h"

// Plain ATen computes in the dtype under test, but in float32 where transformers does: norms and log-softmax.
namespace wrpo::check {

Case rmsNorm(int64_t T, int64_t H, bool residual, double plus) {
  double eps = 1e-5;
  Case c{"rms_norm", text({T, H}) + (residual ? " residual" : "") + (plus > 0 ? " 1 + w" : "")};
  c.inputs = {normal("x", {T, H}), normal("w", {H}), normal("dy", {T, H}), normal("dx", {T, H}), wide("dw", {H})};
  if (residual) c.inputs.push_back(normal("residual", {T, H}));
  c.outputs = {"sum", "y", "rstd", "dx", "dw"};
  c.forward = {(residual ? 4 : 2) * T * H + H, T};
  c.backward = {4 * T * H + H, T + 2 * H};
  c.ours.forward = [=](Tensors& t) {
    t["y"] = at::empty_like(t["x"]), t["rstd"] = at::empty({t["x"].size(0)}, statsOf(t["x"])), t["sum"] = t["x"];
    rmsNormForward(t["x"], t["residual"], t["sum"], NormWeight{t["w"], plus}, eps, t["y"], t["rstd"]);
  };
  c.ours.backward = [=](Tensors& t) {
    rmsNormBackward(t["dy"], t["sum"], NormWeight{t["w"], plus}, t["rstd"], t["dx"], t["dw"]);
  };
  c.plain.forward = [=](Tensors& t) {
    t["sum"] = residual ? t["x"] + t["residual"] : t["x"];
    auto stats = statsOf(t["x"]);
    auto x = t["sum"].to(stats);
    t["rstd"] = x.pow(2).mean(-1).add(eps).rsqrt();
    auto n = x * t["rstd"].unsqueeze(-1);
    t["y"] = plus > 0 ? (n * (plus + t["w"].to(stats))).to(t["x"].scalar_type()) : t["w"] * n.to(t["x"].scalar_type());
  };
  c.plain.backward = [=](Tensors& t) {
    auto stats = statsOf(t["x"]);
    auto r = t["rstd"].unsqueeze(-1), n = t["sum"].to(stats) * r, dy = t["dy"].to(stats),
         g = dy * (t["w"].to(stats) + plus);
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
      for (int64_t i = 0; i < H; ++i) s += g[i] * (plus + w[i]) * row[i] * r / H;
      for (int64_t i = 0; i < H; ++i) {
        y[t * H + i] = (plus + w[i]) * row[i] * r;
        dw[i] += g[i] * row[i] * r;
        dx[t * H + i] += r * (g[i] * (plus + w[i]) - row[i] * r * s);
      }
    }
  };
  return c;
}

Case headNorm(int64_t T, int64_t heads, int64_t d, double plus) {
  double eps = 1e-5;
  int64_t ld = (heads + 1) * d, H = heads * d;
  Case c{"head_norm", text({T, heads, d}) + (plus > 0 ? " 1 + w" : "")};
  c.inputs = {normal("x", {T, ld}), normal("w", {d}), normal("dy", {T, ld}), wide("dw", {d})};
  c.outputs = {"y", "dx", "dw"};
  c.forward = {2 * T * H, 0};
  c.backward = {3 * T * H, 2 * d};
  auto own = [=](const at::Tensor& rows) { return rows.narrow(1, 0, H); };
  c.ours.forward = [=](Tensors& t) {
    headNormForward(own(t["x"]), NormWeight{t["w"], plus}, eps, own(t["y"] = t["x"].clone()));
  };
  c.ours.backward = [=](Tensors& t) {
    headNormBackward(own(t["dx"] = t["dy"]), own(t["x"]), NormWeight{t["w"], plus}, eps, t["dw"]);
  };
  auto normed = [=](Tensors& t) {
    auto x = own(t["x"]).reshape({T, heads, d}).to(statsOf(t["x"]));
    auto r = x.pow(2).mean(-1, true).add(eps).rsqrt();
    return std::pair{x * r, r};
  };
  auto whole = [=](const at::Tensor& h, const at::Tensor& like) {
    return at::cat({h.reshape({T, H}).to(like.scalar_type()), like.narrow(1, H, d)}, 1);
  };
  c.plain.forward = [=](Tensors& t) {
    auto n = normed(t).first;
    if (plus == 0) n = n.to(t["x"].scalar_type());
    t["y"] = whole(n * (plus == 0 ? t["w"] : plus + t["w"].to(statsOf(t["x"]))), t["x"]);
  };
  c.plain.backward = [=](Tensors& t) {
    auto stats = statsOf(t["x"]);
    auto [n, r] = normed(t);
    auto dy = own(t["dy"]).reshape({T, heads, d}).to(stats), g = dy * (t["w"].to(stats) + plus);
    t["dx"] = whole(r * (g - n * (g * n).mean(-1, true)), t["dy"]);
    t["dw"] = t["dw"] + (dy * n).sum({0, 1});
  };
  c.oracle = [=](Reals& v) {
    auto &w = v["w"], &dw = v["dw"], &y = v["y"] = v["x"], &dx = v["dx"] = v["dy"];
    for (int64_t t = 0; t < T; ++t)
      for (int64_t h = 0; h < heads; ++h) {
        const Real *x = &v["x"][t * ld + h * d], *g = &v["dy"][t * ld + h * d];
        Real r = 1 / std::sqrt(dot(x, x, d) / d + Real(eps)), s = 0;
        for (int64_t i = 0; i < d; ++i) s += g[i] * (plus + w[i]) * x[i] * r / d;
        for (int64_t i = 0; i < d; ++i) {
          y[t * ld + h * d + i] = (plus + w[i]) * x[i] * r;
          dx[t * ld + h * d + i] = r * (g[i] * (plus + w[i]) - x[i] * r * s);
          dw[i] += g[i] * x[i] * r;
        }
      }
  };
  return c;
}

Case ropeTables(const RopeSettings& s, int64_t length, int64_t positions) {
  int64_t d = s.dim;
  bool beyond = s.byLength() && length > s.originalMaxPosition;
  double theta = s.theta;
  if (s.type == "dynamic" && beyond)
    theta *= std::pow(s.factor * length / s.originalMaxPosition - s.factor + 1, double(d) / (d - 2));
  Case c{"rope_table", s.type + " " + text({positions, d}) + (beyond ? " beyond" : "")};
  c.dtypes = {at::kFloat};
  c.outputs = {"frequencies", "table"};
  c.ours.forward = [=](Tensors& t) {
    t["frequencies"] = ropeFrequencies(s, length);
    t["table"] = ropeTable(t["frequencies"], positions, s.attentionFactor);
  };
  c.plain.forward = [=](Tensors& t) {
    auto f = at::pow(theta, at::arange(0, d, 2, at::kFloat).div(-double(d)));
    if (s.type == "linear") f = f / s.factor;
    if (s.type == "llama3") {
      auto turns = f * (s.originalMaxPosition / (2 * M_PI));
      auto keep = ((turns - s.lowFrequencyFactor) / (s.highFrequencyFactor - s.lowFrequencyFactor)).clamp(0, 1);
      f = (1 - keep) * f / s.factor + keep * f;
    }
    if (s.type == "yarn") {
      auto ramp = ((at::arange(d / 2, at::kFloat) - s.rampLow) / (s.rampHigh - s.rampLow)).clamp(0, 1);
      f = ramp * f / s.factor + (1 - ramp) * f;
    }
    if (s.type == "longrope") f = f / at::tensor(beyond ? s.longFactors : s.shortFactors, at::kFloat);
    auto angle = at::arange(positions, at::kFloat).unsqueeze(-1) * f;
    t["frequencies"] = f, t["table"] = at::stack({angle.cos(), angle.sin()}, 1) * s.attentionFactor;
  };
  c.oracle = [=](Reals& v) {
    auto &f = make(v, "frequencies", d / 2), &table = make(v, "table", positions * d);
    Real base = s.theta;
    if (s.type == "dynamic" && beyond)
      base *= std::pow(Real(s.factor) * length / s.originalMaxPosition - s.factor + 1, Real(d) / (d - 2));
    for (int64_t i = 0; i < d / 2; ++i) {
      f[i] = std::pow(base, -Real(2 * i) / d);
      Real turns = s.originalMaxPosition * f[i] / (2 * std::numbers::pi_v<Real>);  // over the original context
      Real keep = (turns - s.lowFrequencyFactor) / (s.highFrequencyFactor - s.lowFrequencyFactor);
      keep = std::min(Real(1), std::max(Real(0), keep));
      Real ramp = std::min(Real(1), std::max(Real(0), (i - Real(s.rampLow)) / (Real(s.rampHigh) - s.rampLow)));
      if (s.type == "linear") f[i] /= s.factor;
      if (s.type == "llama3") f[i] = keep * f[i] + (1 - keep) * f[i] / s.factor;
      if (s.type == "yarn") f[i] = (1 - ramp) * f[i] + ramp * f[i] / s.factor;
      if (s.type == "longrope") f[i] /= (beyond ? s.longFactors : s.shortFactors)[i];
      for (int64_t p = 0; p < positions; ++p) {
        table[p * d + i] = std::cos(p * f[i]) * s.attentionFactor;
        table[p * d + d / 2 + i] = std::sin(p * f[i]) * s.attentionFactor;
      }
    }
  };
  return c;
}

// Rotates the first `rotated` values of `heads` heads of rows that hold one more, which must stay as it is.
Case ropeRotation(int64_t T, int64_t heads, int64_t d, int64_t rotated) {
  int64_t ld = (heads + 1) * d, half = rotated / 2;
  auto table = ropeTable(ropeFrequencies({.dim = rotated}), 512);
  auto positions = randomIds(T, 512);
  Case c{"rope", text({T, heads, d}) + (rotated < d ? " in part" : "")};
  c.inputs = {normal("x", {T, ld}), normal("dy", {T, ld})};
  c.outputs = {"y", "dx"};
  c.forward = c.backward = {2 * T * heads * d, 0};
  auto turn = [=](const at::Tensor& x, int sign) {
    return rope(x, heads, d, table, place(positions, at::kCPU), sign), x;
  };
  c.ours = {[=](Tensors& t) { t["y"] = turn(t["x"], 1); }, [=](Tensors& t) { t["dx"] = turn(t["dy"], -1); }};
  auto plain = [=, rows = table.index_select(0, indices(positions))](const at::Tensor& x, int sign) {
    auto cosine = rows.select(1, 0).unsqueeze(1).to(x.scalar_type()),
         sine = rows.select(1, 1).unsqueeze(1).to(x.scalar_type());
    auto h = x.view({T, heads + 1, d}).narrow(1, 0, heads), a = h.narrow(2, 0, half), b = h.narrow(2, half, half),
         rest = h.narrow(2, rotated, d - rotated);
    auto turned = at::cat({a * cosine - b * sine * sign, b * cosine + a * sine * sign, rest}, 2);
    return at::cat({turned.view({T, heads * d}), x.narrow(1, heads * d, d)}, 1);
  };
  c.plain = {[=](Tensors& t) { t["y"] = plain(t["x"], 1); }, [=](Tensors& t) { t["dx"] = plain(t["dy"], -1); }};
  c.oracle = [=](Reals& v) {
    v["y"] = v["x"], v["dx"] = v["dy"];
    for (int64_t t = 0; t < T; ++t)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t i = 0; i < half; ++i) {
          Real cosine = data<float>(table)[positions[t] * rotated + i],
               sine = data<float>(table)[positions[t] * rotated + half + i];
          int64_t a = t * ld + h * d + i, b = a + half;
          v["y"][a] = v["x"][a] * cosine - v["x"][b] * sine, v["y"][b] = v["x"][b] * cosine + v["x"][a] * sine;
          v["dx"][a] = v["dy"][a] * cosine + v["dy"][b] * sine, v["dx"][b] = v["dy"][b] * cosine - v["dy"][a] * sine;
        }
  };
  return c;
}

Case swiglu(int64_t T, int64_t F, Activation activation) {
  bool silu = activation == Activation::Silu;
  Case c{silu ? "swiglu" : "geglu", text({T, F})};
  c.inputs = {normal("gateUp", {T, 2 * F}, 3), normal("dh", {T, F})};
  for (int64_t i = 0; F > 2 && i < 2; ++i) c.inputs[0].value[0][i] = i ? 100 : -100;  // beyond float32's e^x
  c.outputs = {"h", "again", "dgateUp"};
  c.forward = {3 * T * F, 0};
  c.backward = {6 * T * F, 0};
  c.ours.forward = [=](Tensors& t) { swigluForward(activation, t["gateUp"], t["h"] = at::empty_like(t["dh"])); };
  c.ours.backward = [=](Tensors& t) {
    swigluBackward(activation, t["dh"], t["gateUp"], t["again"] = at::empty_like(t["dh"]));
    t["dgateUp"] = t["gateUp"];
  };
  c.plain.forward = [=](Tensors& t) {
    auto parts = t["gateUp"].chunk(2, -1);
    t["h"] = (silu ? at::silu(parts[0]) : at::gelu(parts[0], "tanh")) * parts[1];
  };
  c.plain.backward = [=](Tensors& t) {
    auto parts = t["gateUp"].chunk(2, -1);
    auto up = t["dh"] * parts[1], value = silu ? at::silu(parts[0]) : at::gelu(parts[0], "tanh");
    t["again"] = value * parts[1];
    t["dgateUp"] = at::cat(
        {silu ? at::silu_backward(up, parts[0]) : at::gelu_backward(up, parts[0], "tanh"), t["dh"] * value}, -1);
  };
  c.oracle = [=](Reals& v) {
    auto &h = make(v, "h", T * F), &to = make(v, "dgateUp", 2 * T * F);
    const Real k = std::sqrt(2 / std::numbers::pi_v<Real>), cube = 0.044715L;
    for (int64_t i = 0; i < T * F; ++i) {
      int64_t at = i / F * 2 * F + i % F;
      Real g = v["gateUp"][at], u = v["gateUp"][at + F], d = v["dh"][i], s = 1 / (1 + std::exp(-g));
      Real t = std::tanh(k * (g + cube * g * g * g));
      Real value = silu ? g * s : g * (1 + t) / 2;
      Real slope = silu ? s * (1 + g * (1 - s)) : (1 + t) / 2 + g / 2 * (1 - t * t) * k * (1 + 3 * cube * g * g);
      h[i] = value * u, to[at] = d * u * slope, to[at + F] = d * value;
    }
    v["again"] = h;
  };
  return c;
}

void plainLogprob(Tensors& t, const at::Tensor& targets, double cap) {
  if (cap > 0) t["z"] = at::tanh(t["z"] / cap) * cap;
  auto z = t["z"].to(statsOf(t["z"])), column = targets.unsqueeze(-1);
  t["lse"] = at::logsumexp(z, {-1});
  t["logp"] = at::log_softmax(z, -1).gather(1, column).squeeze(-1);
  t["argmax"] = z.gather(1, column).ge(z.amax(-1, true)).squeeze(-1).to(at::kByte);
}
void plainLogprobBackward(Tensors& t, const at::Tensor& targets, double cap) {
  auto column = targets.unsqueeze(-1), g = t["dlogp"].unsqueeze(-1);
  auto p = at::exp(t["z"].to(statsOf(t["z"])) - t["lse"].unsqueeze(-1));
  auto dz = p.scatter(1, column, p.gather(1, column) - 1) * -g;
  if (cap > 0) dz = dz * (1 - (t["z"].to(statsOf(t["z"])) / cap).pow(2));
  t["dz"] = dz.to(t["z"].scalar_type());
}
void oracleLogprob(Reals& v, const std::vector<int32_t>& targets, int64_t V, double cap) {
  int64_t R = targets.size();
  auto &z = v["z"], &lse = make(v, "lse", R), &logp = make(v, "logp", R), &best = make(v, "argmax", R);
  auto& dz = make(v, "dz", R * V);
  if (cap > 0)
    for (Real& x : z) x = cap * std::tanh(x / cap);
  for (int64_t r = 0; r < R; ++r) {
    const Real* row = &z[r * V];
    Real top = *std::max_element(row, row + V), total = 0;
    for (int64_t i = 0; i < V; ++i) total += dz[r * V + i] = std::exp(row[i] - top);
    lse[r] = top + std::log(total), logp[r] = row[targets[r]] - lse[r], best[r] = row[targets[r]] >= top;
    for (int64_t i = 0; i < V; ++i) {
      Real slope = cap > 0 ? 1 - row[i] * row[i] / (Real(cap) * cap) : 1;
      dz[r * V + i] = v["dlogp"][r] * ((i == targets[r]) - dz[r * V + i] / total) * slope;
    }
  }
}

Case logprob(int64_t R, int64_t V, double scale, double cap) {
  auto targets = randomIds(R, V);
  auto column = indices(targets);
  Case c{"logprob", text({R, V}) + (cap > 0 ? " capped" : "")};
  c.inputs = {normal("z", {R, V}, scale), wide("dlogp", {R})};
  c.inputs[0].value[0][targets[0]] = 5 * scale;  // one row whose target is the most probable token
  c.outputs = {"logp", "lse", "argmax", "dz"};
  c.forward = {(cap > 0 ? 3 : 1) * R * V, 3 * R};
  c.backward = {2 * R * V, 2 * R};
  c.ours.forward = [=](Tensors& t) {
    t["logp"] = at::empty_like(t["dlogp"]), t["lse"] = at::empty_like(t["dlogp"]),
    t["argmax"] = at::empty({R}, at::kByte);
    if (cap > 0) softcap(t["z"], cap);
    logprobForward(t["z"], place(targets, at::kCPU), t["logp"], t["lse"], t["argmax"]);
  };
  c.ours.backward = [=](Tensors& t) {
    logprobBackward(t["dz"] = t["z"], place(targets, at::kCPU), t["lse"], t["dlogp"], cap);
  };
  c.plain = {[=](Tensors& t) { plainLogprob(t, column, cap); },
             [=](Tensors& t) { plainLogprobBackward(t, column, cap); }};
  c.oracle = [=](Reals& v) { oracleLogprob(v, targets, V, cap); };
  return c;
}

Case merge(int64_t R, int64_t heads, int64_t d) {
  Case c{"merge_lse", text({R, heads, d})};
  c.inputs = {normal("o1", {R, heads * d}), normal("o2", {R, heads * d}), wide("l1", {R, heads}),
              wide("l2", {R, heads})};
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

// The mask is told by dropping ones; how often it drops, and that rows and keys differ, is for the engine's tests.
Case dropoutMask(int64_t T, int64_t H, double p) {
  auto ids = randomIds(T, 1 << 30);
  auto keys = [=] { return place(ids, at::kCPU).clone(); };
  auto kept = at::ones({T, H}, at::kDouble);
  dropout(kept, keys(), p, kept);
  Case c{"dropout", text({T, H})};
  c.inputs = {normal("x", {T, H}), normal("dy", {T, H})};
  c.outputs = {"y", "dx"};
  c.forward = c.backward = {2 * T * H, 0};
  auto ours = [=](const at::Tensor& x) {
    auto y = at::full_like(x, NAN);
    return dropout(x, keys(), p, y), y;
  };
  auto plain = [=](const at::Tensor& x) { return x.to(statsOf(x)).mul(kept.to(statsOf(x))).to(x.scalar_type()); };
  c.ours = {[=](Tensors& t) { t["y"] = ours(t["x"]); }, [=](Tensors& t) { t["dx"] = ours(t["dy"]); }};
  c.plain = {[=](Tensors& t) { t["y"] = plain(t["x"]); }, [=](Tensors& t) { t["dx"] = plain(t["dy"]); }};
  c.oracle = [=](Reals& v) {
    auto &y = make(v, "y", T * H), &dx = make(v, "dx", T * H);
    for (int64_t i = 0; i < T * H; ++i)
      if (data<double>(kept)[i] > 0) y[i] = v["x"][i] / (1 - Real(p)), dx[i] = v["dy"][i] / (1 - Real(p));
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
  c.ours.backward = [=](Tensors& t) { embeddingBackward(t["dx"], ids, t["dweight"]); };
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
  AdamWStep s{3e-4, 0.9, 0.999, 1e-8, 0.1, step};
  constexpr double gradScale = 0.7;
  double scale1 = 1 - std::pow(s.beta1, step), scale2 = 1 - std::pow(s.beta2, step);
  Case c{"adamw", text({n}) + " step " + std::to_string(step)};
  c.inputs = {wide("master", {n}), wide("grad", {n}), wide("m", {n}), wide("v", {n}), normal("work", {n})};
  for (int i : {2, 3}) c.inputs[i].value.mul_(step > 1);
  c.inputs[3].value.square_();
  c.outputs = {"master", "work", "m", "v", "grad"};
  c.forward = {0, 8 * n};
  c.ours.forward = [=](Tensors& t) {
    bool copy = t["work"].scalar_type() == at::kBFloat16;
    adamwUpdate(t["grad"], t["m"], t["v"], Stored{t["master"], {}}, copy ? t["work"] : t["master"],
                at::tensor({0.0, gradScale}, at::kDouble), s);
    if (!copy) t["work"] = t["master"];
  };
  c.plain.forward = [=](Tensors& t) {  // torch.optim.adamw._single_tensor_adamw
    auto g = t["grad"] * gradScale;
    t["master"].mul_(1 - s.learningRate * s.weightDecay);
    t["m"].lerp_(g, 1 - s.beta1);
    t["v"].mul_(s.beta2).addcmul_(g, g, 1 - s.beta2);
    t["master"].addcdiv_(t["m"], (t["v"].sqrt() / std::sqrt(scale2)).add_(s.eps), -s.learningRate / scale1);
    t["work"] = t["master"].to(t["work"].scalar_type());
    t["grad"].zero_();
  };
  c.oracle = [=](Reals& v) {
    for (int64_t i = 0; i < n; ++i) {
      Real g = v["grad"][i] * gradScale, &m = v["m"][i], &square = v["v"][i], &p = v["master"][i];
      m = s.beta1 * m + (1 - Real(s.beta1)) * g, square = s.beta2 * square + (1 - Real(s.beta2)) * g * g;
      p = p * (1 - Real(s.learningRate) * s.weightDecay) -
          s.learningRate * (m / scale1) / (std::sqrt(square / scale2) + s.eps);
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
  c.ours.forward = [](Tensors& t) { t["norm"] = gradientNorm(t["grad"], 0)[0].to(t["grad"].scalar_type()); };
  c.plain.forward = [](Tensors& t) { t["norm"] = t["grad"].pow(2).sum().sqrt(); };
  c.oracle = [=](Reals& v) { v["norm"] = {std::sqrt(dot(v["grad"].data(), v["grad"].data(), n))}; };
  return c;
}

// A hash has no oracle to be near to: it must change with every single bit.
Case hash(int64_t bytes) {
  Case c{"fingerprint", text({bytes})};
  c.dtypes = {at::kFloat};
  c.outputs = {"changed"};
  c.ours.forward = [=](Tensors& t) {
    auto flat = at::arange(bytes, at::kInt).mul(37).to(at::kByte);
    uint64_t before = fingerprint(flat);
    int64_t changed = 0, tries = 0;
    for (int64_t bit = 0; bit < 8 * bytes; bit += 1 + bit / 16, ++tries) {
      data<uint8_t>(flat)[bit / 8] ^= 1 << bit % 8;
      changed += fingerprint(flat) != before;
      data<uint8_t>(flat)[bit / 8] ^= 1 << bit % 8;
    }
    t["changed"] = at::full({1}, double(changed) / double(tries), at::kDouble);
    t["hash"] = at::full({1}, int64_t(before), at::kLong);
  };
  c.plain.forward = [](Tensors& t) { t["changed"] = at::ones({1}, at::kDouble); };
  c.oracle = [](Reals& v) { v["changed"] = {1}; };
  return c;
}

}  // namespace wrpo::check
