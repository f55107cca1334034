#include "model/generator.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <string>

#include "error.h"
#include "kernels/dispatch.h"
#include "kernels/gemm.h"
#include "kernels/kernels.h"

namespace wrpo {
namespace {

// Rows of a step beside one a sequence: so many that products are fast, so few that a step is short.
constexpr int64_t rowsPerStep = 256;
// Rows of a batch that is filled up: a multiple of the rows that matrix products take together.
constexpr int64_t tileRows = 16;

int64_t wholeTiles(int64_t rows) { return rows == 1 ? 1 : (rows + tileRows - 1) / tileRows * tileRows; }

void check(const GeneratorOptions& o) {
  auto require = [](bool good, const char* what) {
    if (!good) fail("ERR_CONFIG", what);
  };
  const Sampling& s = o.sampling;
  // Below, weights other than the first would be zero anyway.
  require(s.temperature == 0 || (s.temperature >= 1e-4 && s.temperature <= 1e4),
          "temperature must be 0 (the likeliest token) or from 0.0001 to 10000");
  require(s.topP > 0 && s.topP <= 1, "top_p must be above 0 and at most 1");
  require(s.topK >= 0, "top_k must be a whole number, 0 for no limit");
  require(s.minP >= 0 && s.minP <= 1, "min_p must be from 0 to 1");
  require(s.repetitionPenalty > 0 && s.repetitionPenalty <= 1e4, "repetition_penalty must be above 0");
  require(o.maxTokens >= 1, "max_tokens must be at least 1");
  require(o.maxSequences >= 1 && o.maxSequences <= 4096, "max_sequences must be from 1 to 4096");
}

}  // namespace

Generator::Generator(std::shared_ptr<Model> model, const GeneratorOptions& options)
    : model_(std::move(model)),
      options_(options),
      anyShape_(model_->weights().dtype() == at::kFloat && sgemmPays()),
      pool_(model_->config(), model_->weights().dtype()) {
  check(options_);
  model_->requireLanguageHead();
  if (!model_->weights().device().is_cpu())
    fail("ERR_DEVICE", "text is generated on the CPU only: load the model with device \"cpu\"");
}

void Generator::add(GenerationRequest request) {
  const int64_t vocabulary = model_->config().vocabSize;
  if (request.prompt.empty()) fail("ERR_DATA", "the prompt has no tokens");
  for (size_t i = 0; i < request.prompt.size(); ++i)
    if (request.prompt[i] < 0 || request.prompt[i] >= vocabulary)
      fail("ERR_DATA", "the prompt's token " + std::to_string(i) + " has the id " + std::to_string(request.prompt[i]) +
                           "; the model's vocabulary has " + std::to_string(vocabulary) + " tokens");
  if (request.ids.size() != request.seeds.size()) fail("ERR_CONFIG", "a request needs a seed for every sample");
  const auto length = int64_t(request.prompt.size());
  Sequence sequence{std::move(request.prompt), length, KeyValueCache(pool_), {}};
  for (size_t i = 0; i < request.ids.size(); ++i) sequence.samples.push_back({request.ids[i], request.seeds[i]});
  if (!sequence.samples.empty()) waiting_.push_back(std::move(sequence));
}

void Generator::cancel(const std::vector<int32_t>& ids) {
  auto cancelled = [&](const Sample& s) { return std::find(ids.begin(), ids.end(), s.id) != ids.end(); };
  for (Sequence& s : running_) std::erase_if(s.samples, cancelled);
  for (Sequence& s : waiting_) std::erase_if(s.samples, cancelled);
  auto empty = [](const Sequence& s) { return s.samples.empty(); };
  std::erase_if(running_, empty);
  std::erase_if(waiting_, empty);
}

Generated Generator::advance(int64_t rows) {
  Generated out;
  while (out.rows < rows && !(running_.empty() && waiting_.empty())) {
    poll();
    try {
      step(out);
    } catch (...) {
      // Caches may lack what they count by now.
      running_.clear();
      waiting_.clear();
      throw;
    }
  }
  return out;
}

// How many rows a sequence may be continued by where `left` are left of a step, all of them if it is the first; 0 = not
// in this step.
int64_t Generator::rowsOf(const Sequence& s, int64_t left, bool first) const {
  // Where a sequence's length decides how it rotates, it is read at the length it has, hence in one piece.
  const bool whole = !model_->rotatesAlike(int64_t(s.tokens.size()), 1);
  if (whole) return first || s.missing() <= left ? s.missing() : 0;
  return std::min(s.missing(), left);
}

std::vector<Generator::Part> Generator::plan() {
  int64_t samples = 0;
  for (const Sequence& s : running_) samples += int64_t(s.samples.size());
  while (samples < options_.maxSequences && !waiting_.empty()) {
    samples += int64_t(waiting_.front().samples.size());
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
  for (Sequence& s : running_)
    if (s.cache.length() > 0 && !model_->rotatesAlike(s.cache.length(), int64_t(s.tokens.size()))) s.cache.clear();

  if (!anyShape_)
    for (size_t i = 0; i < running_.size(); ++i)
      if (running_[i].missing() > 1) return {{i, rowsOf(running_[i], rowsPerStep, true)}};
  // Those that were continued last are at the end.
  std::vector<Part> parts;
  int64_t left = std::max(rowsPerStep, options_.maxSequences);
  for (size_t i = 0; i < running_.size() && left > 0 && int64_t(parts.size()) < options_.maxSequences; ++i)
    if (const int64_t rows = rowsOf(running_[i], left, parts.empty())) {
      parts.push_back({i, rows});
      left -= rows;
    }
  return parts;
}

void Generator::step(Generated& out) {
  const auto parts = plan();
  const bool reads = parts.front().rows > 1;
  // Responses that stand for nothing fill a batch up to its shape.
  const int64_t responses = anyShape_ || reads ? int64_t(parts.size()) : wholeTiles(options_.maxSequences);
  Batch batch;
  batch.promptOffsets = batch.responseOffsets = batch.groupOffsets = {0};
  std::vector<KeyValueCache*> caches;
  auto push = [&](const Sequence& s, int64_t at) {
    batch.tokens.push_back(s.tokens[at]);
    batch.positions.push_back(int32_t(at));
  };
  for (const Part& part : parts) {
    Sequence& s = running_[part.sequence];
    const int64_t first = s.cache.length();
    for (int64_t at = first; at < first + part.rows - 1; ++at) push(s, at);
    batch.promptOffsets.push_back(int32_t(batch.tokens.size()));
    s.cache.extend(part.rows);
    caches.push_back(&s.cache);
  }
  for (const Part& part : parts) push(running_[part.sequence], running_[part.sequence].cache.length() - 1);
  for (int64_t k = 0; k < responses; ++k) {
    if (k >= int64_t(parts.size())) {
      batch.tokens.push_back(0);
      batch.positions.push_back(0);
      batch.promptOffsets.push_back(batch.promptOffsets.back());
    }
    batch.responseOffsets.push_back(int32_t(k + 1));
    batch.groupOffsets.push_back(int32_t(k + 1));
  }
  batch.targets.assign(responses, -1);
  out.rows += batch.size();
  draw(model_->nextLogits(batch, caches), parts, out);
}

// The next token of every sample whose sequence is read to its end, and what becomes of it.
void Generator::draw(const at::Tensor& logits, const std::vector<Part>& parts, Generated& out) {
  struct Drawn {
    size_t sequence;
    int64_t row;
    Sample sample;
    int32_t token;
  };
  std::vector<Drawn> drawn;
  for (size_t k = 0; k < parts.size(); ++k) {
    const Sequence& s = running_[parts[k].sequence];
    if (s.missing() > 0) continue;
    for (const Sample& sample : s.samples) drawn.push_back({parts[k].sequence, int64_t(k), sample, 0});
  }
  if (drawn.empty()) return;
  const int64_t vocabulary = logits.size(1);
  parallelRows(int64_t(drawn.size()), 1, [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> weights;
    for (int64_t i = begin; i < end; ++i) {
      Drawn& d = drawn[i];
      const Sequence& s = running_[d.sequence];
      byType(logits.scalar_type(), [&](auto zero) {
        const auto* row = data<decltype(zero)>(logits) + d.row * vocabulary;
        weights.assign(row, row + vocabulary);
      });
      d.token = sampleToken(options_.sampling, weights, s.tokens, {d.sample.seed, s.tokens.size() - s.prompt});
    }
  });
  if (options_.logProbs) {
    const auto n = int64_t(drawn.size());
    std::vector<int64_t> rows;
    std::vector<int32_t> targets;
    for (const Drawn& d : drawn) {
      rows.push_back(d.row);
      targets.push_back(d.token);
    }
    auto stats = computeType(logits.scalar_type());
    auto logp = at::empty({n}, stats), lse = at::empty({n}, stats), ids = place(targets, logits.device());
    for (int64_t i = 0; i < n; ++i)
      logprobForward(logits.narrow(0, rows[i], 1), ids.narrow(0, i, 1), logp.narrow(0, i, 1), lse.narrow(0, i, 1),
                     at::Tensor());
    auto wide = logp.to(at::kDouble);
    out.logProbs.insert(out.logProbs.end(), data<double>(wide), data<double>(wide) + n);
  }

  // A prompt's samples part here, each with a cache that shares what there is.
  std::vector<Sequence> continued;
  for (size_t i = 0; i < drawn.size(); ++i) {
    const Drawn& d = drawn[i];
    Sequence& s = running_[d.sequence];
    const auto length = int64_t(s.tokens.size()) - s.prompt + 1;
    const bool stops = std::find(options_.stopIds.begin(), options_.stopIds.end(), d.token) != options_.stopIds.end();
    const auto finish = stops ? Generated::Stop : length >= options_.maxTokens ? Generated::Length : Generated::Goes;
    out.ids.push_back(d.sample.id);
    out.tokens.push_back(d.token);
    out.finishes.push_back(finish);
    const bool last = i + 1 == drawn.size() || drawn[i + 1].sequence != d.sequence;
    if (last) s.samples.clear();
    if (finish == Generated::Goes) {
      continued.push_back(last ? std::move(s) : s);
      continued.back().samples = {d.sample};
      continued.back().tokens.push_back(d.token);
    } else if (last) {
      s.cache.clear();
    }
  }
  std::erase_if(running_, [](const Sequence& s) { return s.samples.empty(); });
  for (Sequence& s : continued) running_.push_back(std::move(s));
}

}  // namespace wrpo
