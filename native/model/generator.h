// Generation: sequences join, are continued together and leave when they end.
#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "model/kv_cache.h"
#include "model/model.h"
#include "model/sampler.h"

namespace wrpo {

struct GeneratorOptions {
  Sampling sampling;
  int64_t maxTokens;             // of a sample, the stop token included
  std::vector<int32_t> stopIds;  // end a sample, which keeps them
  bool logProbs;                 // of each token by the model itself, before penalty, temperature and cuts
  int64_t maxSequences;          // that are continued at a time
};

// Samples of one prompt, which is read once for all of them. Their ids are the caller's.
struct GenerationRequest {
  std::vector<int32_t> prompt;
  std::vector<int32_t> ids;
  std::vector<uint64_t> seeds;
};

// New tokens, in the order in which they came.
struct Generated {
  enum Finish : uint8_t { Goes, Stop, Length };
  std::vector<int32_t> ids, tokens;  // one a token
  std::vector<uint8_t> finishes;
  std::vector<double> logProbs;  // when asked for
  int64_t rows = 0;              // that the model computed
};

// A sample depends on its prompt, its seed and the options; not on what else is generated, nor on the order. In float32
// where sgemm multiplies that holds to the bit by construction: nothing a row goes through looks at other rows. Other
// matrix products sum by their shape, and at its edges in other orders than within. There every product that a sample
// goes through has a shape of its own: prompts are read one at a time, and sequences are continued in batches of
// maxSequences rows, rounded up to whole tiles and filled up where there are fewer.
class Generator {
 public:
  // Throws ERR_CONFIG naming an option out of range, ERR_MODEL for a reward model.
  Generator(std::shared_ptr<Model> model, const GeneratorOptions& options);

  // Throws ERR_DATA for a prompt that is empty or holds an id that the model does not have.
  void add(GenerationRequest request);
  // Steps until about so many rows are computed, or nothing is left to do. After a failure no sample is left.
  Generated advance(int64_t rows);
  // Samples of these ids end without a further token.
  void cancel(const std::vector<int32_t>& ids);

 private:
  struct Sample {
    int32_t id;
    uint64_t seed;
  };
  // Tokens so far and the cache of all or some of them. A prompt that is not read yet has all its samples; later there
  // is one.
  struct Sequence {
    std::vector<int32_t> tokens;
    int64_t prompt;
    KeyValueCache cache;
    std::vector<Sample> samples;

    int64_t missing() const { return int64_t(tokens.size()) - cache.length(); }
  };
  // Rows that a sequence is continued by in a step.
  struct Part {
    size_t sequence;
    int64_t rows;
  };

  std::vector<Part> plan();
  int64_t rowsOf(const Sequence& sequence, int64_t left, bool first) const;
  void step(Generated& out);
  void draw(const at::Tensor& logits, const std::vector<Part>& parts, Generated& out);

  const std::shared_ptr<Model> model_;
  const GeneratorOptions options_;
  const bool anyShape_;  // whether a row's products are the same in every batch
  BlockPool pool_;
  std::vector<Sequence> running_;  // in the order of their turns
  std::deque<Sequence> waiting_;
};

}  // namespace wrpo
