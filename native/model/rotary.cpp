#include "model/rotary.h"

#include <ATen/ops/cat.h>

#include <algorithm>

#include "error.h"

namespace wrpo {

int64_t Rotary::variantOf(int64_t length) const {
  if (!settings_.byLength() || double(length) <= settings_.originalMaxPosition) return 0;
  return settings_.type == "longrope" ? int64_t(settings_.originalMaxPosition) + 1 : length;
}

int32_t Rotary::partOf(int64_t variant) {
  auto [part, added] = parts_.try_emplace(variant, int32_t(parts_.size() * positions_));
  if (added) {
    auto own = ropeTable(ropeFrequencies(settings_, variant), positions_, settings_.attentionFactor).to(device_);
    table_ = table_.defined() ? at::cat(std::vector{table_, own}) : own;
  }
  return part->second;
}

void Rotary::prepare(const Batch& batch) {
  int64_t needed = 1 + *std::max_element(batch.positions.begin(), batch.positions.end());
  // Any number of lengths may occur in a run: only one is kept beside the original frequencies.
  if (needed > positions_ || parts_.size() > 2) {
    positions_ = std::max(positions_, (needed + 255) / 256 * 256);
    parts_.clear();
    table_ = at::Tensor();
  }
  rows_ = batch.positions;
  partOf(0);
  if (settings_.byLength()) turnByLength(batch);
  placed_ = place(rows_, device_);
}

void Rotary::turnByLength(const Batch& batch) {
  const int32_t original = partOf(0);
  const int64_t P = batch.promptTokens();
  auto turn = [&](int64_t first, int64_t last, int32_t part) {
    for (int64_t t = first; t < last; ++t) rows_[t] += part;
  };
  for (int64_t g = 0; g < batch.groups(); ++g) {
    int64_t prompt = batch.promptOffsets[g + 1] - batch.promptOffsets[g];
    int32_t ofPrompt = original;
    for (int32_t k = batch.groupOffsets[g]; k < batch.groupOffsets[g + 1]; ++k) {
      int64_t first = batch.responseOffsets[k], last = batch.responseOffsets[k + 1];
      // The last token is only predicted, unless the batch is one to be scored.
      int64_t length = last == first ? prompt : batch.positions[P + last - 1] + 1 + (batch.targets[last - 1] >= 0);
      int32_t part = partOf(variantOf(length));
      turn(P + first, P + last, part);
      if (prompt > 0 && k > batch.groupOffsets[g] && part != ofPrompt)
        fail("ERR_DATA",
             "prompt " + std::to_string(g) +
                 " of the batch is shared by responses whose lengths give it different rotary embeddings: pack it with "
                 "sharePrompt: false");
      ofPrompt = part;
    }
    turn(batch.promptOffsets[g], batch.promptOffsets[g + 1], ofPrompt);
  }
}

void Rotary::rotate(const at::Tensor& x, int64_t heads, int64_t headDim, int sign) const {
  rope(x, heads, headDim, table_, placed_, sign);
}

}  // namespace wrpo
