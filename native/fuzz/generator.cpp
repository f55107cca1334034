// Generation: whatever is asked of a generator and in which order, samples are of the vocabulary, no longer than
// allowed, and told once.
#include "model/generator.h"

#include <map>

#include "fuzz/fuzz.h"
#include "fuzz/some_sampling.h"
#include "fuzz/tiny_model.h"

namespace wrpo::fuzz {
namespace {

void generate(Input& in) {
  GeneratorOptions options{
      someSampling(in), in.ConsumeIntegralInRange(0, 9), {}, in.ConsumeBool(), in.ConsumeIntegralInRange(0, 5)};
  for (int n = in.ConsumeIntegralInRange(0, 2); n > 0; --n) options.stopIds.push_back(in.ConsumeIntegral<int8_t>());
  Generator generator(sharedTinyModel(in.ConsumeIntegralInRange(0, tinyModels - 1)), options);
  std::map<int32_t, int64_t> living;  // ids to tokens so far
  int32_t nextId = 0;
  auto take = [&](const Generated& got) {
    require(got.tokens.size() == got.ids.size() && got.finishes.size() == got.ids.size(), "a token has an id");
    require(got.logProbs.size() == (options.logProbs ? got.ids.size() : 0), "a token has a log-prob when asked for");
    for (size_t i = 0; i < got.ids.size(); ++i) {
      auto sample = living.find(got.ids[i]);
      require(sample != living.end(), "a token is of a sample that goes on");
      require(got.tokens[i] >= 0 && got.tokens[i] < vocabulary, "a token is of the vocabulary");
      require(++sample->second <= options.maxTokens, "a sample is no longer than allowed");
      if (got.finishes[i] != Generated::Goes) living.erase(sample);
    }
  };
  while (in.remaining_bytes() > 0) {
    switch (in.ConsumeIntegralInRange(0, 3)) {
      case 0:
      case 1: {
        GenerationRequest request;
        for (int n = in.ConsumeIntegralInRange(0, 40); n > 0; --n)
          request.prompt.push_back(in.ConsumeIntegralInRange(0, vocabulary - 1));
        if (in.ConsumeIntegralInRange(0, 30) == 0) request.prompt.push_back(in.ConsumeIntegral<int32_t>());
        std::vector<int32_t> ids;
        for (int n = in.ConsumeIntegralInRange(0, 3); n > 0; --n) {
          ids.push_back(nextId++);
          request.seeds.push_back(in.ConsumeIntegral<uint64_t>());
        }
        request.ids = ids;
        if (in.ConsumeIntegralInRange(0, 30) == 0) request.seeds.push_back(1);
        try {
          generator.add(std::move(request));
          for (int32_t id : ids) living[id] = 0;
        } catch (const Error& error) {
          requireSentence(error);
        }
        break;
      }
      case 2:
        take(generator.advance(in.ConsumeIntegralInRange(0, 30)));
        break;
      default: {
        std::vector<int32_t> ids{in.ConsumeIntegralInRange(-1, 12)};
        generator.cancel(ids);
        living.erase(ids[0]);
      }
    }
  }
  while (!living.empty()) {
    const auto got = generator.advance(1);
    require(got.rows > 0, "samples that are left go on");
    take(got);
  }
}

void once(Input& in) {
  try {
    generate(in);
  } catch (const Error& error) {
    requireSentence(error);
  }
}

}  // namespace
}  // namespace wrpo::fuzz

WRPO_FUZZ(wrpo::fuzz::once)
