// No row is sorted: weights go into buckets by the leading bits of their floats, which are in the order of the floats,
// and only the bucket in which the line between kept and dropped falls is put in order.
#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "error.h"
#include "kernels/simd.h"

namespace wrpo {
namespace {

using namespace simd;

// In [0, 1): two rounds of splitmix64's finaliser over seed and index.
double uniform(Draw draw) {
  auto mix = [](uint64_t h) {
    h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9ull;
    h = (h ^ (h >> 27)) * 0x94d049bb133111ebull;
    return h ^ (h >> 31);
  };
  constexpr uint64_t step = 0x9e3779b97f4a7c15ull;
  return double(mix(mix(draw.seed + step) + (draw.index + 1) * step) >> 11) * 0x1p-53;
}

// NaN where any of them is.
WRPO_CLONES float maximum(const float* z, int64_t n) {
  auto high = splat<F32>(-std::numeric_limits<float>::infinity());
  I32 odd{};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const F32 values = load(z + i);
    high = max(high, values);
    odd |= values != values;
  }
  float top = -std::numeric_limits<float>::infinity();
  bool anyOdd = false;
  for (int64_t j = 0; j < 16; ++j) top = std::max(top, high[j]), anyOdd |= odd[j] != 0;
  for (; i < n; ++i) top = std::max(top, z[i]), anyOdd |= z[i] != z[i];
  return anyOdd ? std::numeric_limits<float>::quiet_NaN() : top;
}

// z -> exp((z - top) * scale), in [0, 1]; their sum.
WRPO_CLONES float weigh(float* z, int64_t n, float top, float scale) {
  F32 total{};
  for (int64_t i = 0; i < n; i += 16) {
    int64_t count = std::min<int64_t>(16, n - i);
    auto weights = exp((get(z + i, count) - top) * scale);
    put(z + i, count, weights);
    for (int64_t j = count; j < 16; ++j) weights[j] = 0;
    total += weights;
  }
  return sum(total);
}

struct Token {
  float weight;
  int32_t id;
};
// Heavier tokens first, and of equals the first.
bool before(const Token& a, const Token& b) { return a.weight > b.weight || (a.weight == b.weight && a.id < b.id); }

// What was kept: all that come no later than `last`.
struct Kept {
  Token last{0, std::numeric_limits<int32_t>::max()};
  bool operator()(float weight, int32_t id) const { return !before(last, Token{weight, id}); }
};

class Buckets {
 public:
  explicit Buckets(std::span<const float> weights) : weights_(weights), counts_(size), masses_(size) {
    for (float w : weights) {
      size_t b = of(w);
      ++counts_[b];
      masses_[b] += w;
    }
  }
  // Drops what is lighter than the k-th; its equals stay.
  void keepTop(int64_t k) {
    int64_t above = 0;
    int64_t b = size;
    while (b > 0 && above + counts_[b - 1] < k) above += counts_[--b];
    if (b == 0) return;
    auto tokens = inOrder(--b);
    kept_.last = {tokens[k - above - 1].weight, std::numeric_limits<int32_t>::max()};
    lowest_ = b;
    masses_[b] = 0;
    for (const Token& token : tokens)
      if (token.weight >= kept_.last.weight) masses_[b] += token.weight;
  }
  // Drops a token when those before it have the share p of all that were kept so far.
  void keepMass(double p) {
    double total = 0, above = 0;
    for (int64_t b = lowest_; b < size; ++b) total += masses_[b];
    int64_t b = size;
    while (b > lowest_ && above + masses_[b - 1] < p * total) above += masses_[--b];
    if (b == lowest_) return;
    Token last = kept_.last;
    for (const Token& token : inOrder(--b)) {
      if (!kept_(token.weight, token.id) || above >= p * total) break;
      last = token;
      above += token.weight;
    }
    kept_.last = last;
  }
  Kept kept() const { return kept_; }

 private:
  static constexpr int64_t size = (0x3f800000 >> 18) + 1;  // weights are in [0, 1]
  static size_t of(float weight) {
    uint32_t bits;
    std::memcpy(&bits, &weight, sizeof(bits));
    return bits >> 18;
  }
  std::vector<Token> inOrder(int64_t bucket) const {
    std::vector<Token> tokens;
    for (size_t i = 0; i < weights_.size(); ++i)
      if (int64_t(of(weights_[i])) == bucket) tokens.push_back({weights_[i], int32_t(i)});
    std::sort(tokens.begin(), tokens.end(), before);
    return tokens;
  }

  std::span<const float> weights_;
  std::vector<int32_t> counts_;
  std::vector<double> masses_;
  int64_t lowest_ = 0;
  Kept kept_;
};

void penalise(std::span<float> logits, std::span<const int32_t> history, float penalty) {
  thread_local std::vector<uint8_t> seen;
  seen.assign(logits.size(), 0);
  for (int32_t id : history) {
    if (seen[id]) continue;
    seen[id] = 1;
    logits[id] = logits[id] < 0 ? logits[id] * penalty : logits[id] / penalty;
  }
}

}  // namespace

int32_t sampleToken(const Sampling& s, std::span<float> logits, std::span<const int32_t> history, Draw draw) {
  const auto V = int64_t(logits.size());
  if (s.repetitionPenalty != 1) penalise(logits, history, float(s.repetitionPenalty));
  const float top = maximum(logits.data(), V);
  auto refuse = [] { fail("ERR_NON_FINITE", "the model's logits are no numbers: there is no next token"); };
  if (!std::isfinite(top)) refuse();
  if (s.temperature == 0) return int32_t(std::find(logits.begin(), logits.end(), top) - logits.begin());

  if (!std::isfinite(weigh(logits.data(), V, top, float(1 / s.temperature)))) refuse();
  Kept kept;
  if (s.topK > 0 || s.topP < 1) {
    Buckets buckets(logits);
    if (s.topK > 0) buckets.keepTop(s.topK);
    if (s.topP < 1) buckets.keepMass(s.topP);
    kept = buckets.kept();
  }
  // In the order of ids, without a branch for each.
  thread_local std::vector<Token> tokens;
  tokens.resize(V);
  const auto least = float(s.minP);
  int64_t n = 0;
  double total = 0;
  for (int64_t i = 0; i < V; ++i) {
    tokens[n] = {logits[i], int32_t(i)};
    n += logits[i] > 0 && logits[i] >= least && kept(logits[i], int32_t(i));
  }
  for (int64_t i = 0; i < n; ++i) total += tokens[i].weight;
  double wanted = uniform(draw) * total;
  int64_t chosen = 0;
  for (; chosen + 1 < n; ++chosen)
    if ((wanted -= tokens[chosen].weight) < 0) break;
  return tokens[chosen].id;
}

}  // namespace wrpo
