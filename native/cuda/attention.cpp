// Attention on a GPU by ATen's flash kernels over segments of any length, forward and backward called directly. The two
// parts of model/attention.h are one call each: all segments causally over themselves, and for every prompt the rows of
// its responses over the prompt's keys. Of the calls' arguments only those are given that no release has moved.
#include "model/attention.h"

#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <tuple>

#include "device.h"
#include "error.h"
#include "kernels/kernels.h"

namespace wrpo {
namespace {

// Neighbouring segments of rows, in both of the forms in which a call wants them.
struct Segments {
  std::vector<int32_t> offsets;  // [n + 1]
  at::Tensor placed;             // the same
  int64_t longest = 0;
  mutable int64_t lseDimensions = 2;  // of the log-sum-exps that the last forward over them gave

  Segments(std::vector<int32_t> ends, at::Device device) : offsets(std::move(ends)), placed(place(offsets, device)) {
    for (size_t i = 1; i < offsets.size(); ++i) longest = std::max<int64_t>(longest, offsets[i] - offsets[i - 1]);
  }
};

}  // namespace

// Of a batch, made at its first layer: everything, and the responses alone, over themselves; and of each prompt the
// rows of its responses, over its own.
struct AttentionSegments {
  Segments all, responses, queries, prompts;

  static std::vector<int32_t> allOf(const Batch& b) {
    auto offsets = b.promptOffsets;
    for (size_t k = 1; k < b.responseOffsets.size(); ++k)
      offsets.push_back(b.promptOffsets.back() + b.responseOffsets[k]);
    return offsets;
  }
  static std::vector<int32_t> queriesOf(const Batch& b) {
    std::vector<int32_t> offsets;
    for (int32_t k : b.groupOffsets) offsets.push_back(b.responseOffsets[k]);
    return offsets;
  }
  AttentionSegments(const Batch& b, at::Device device)
      : all(allOf(b), device),
        responses(b.responseOffsets, device),
        queries(queriesOf(b), device),
        prompts(b.promptOffsets, device) {}
};

namespace {

const AttentionSegments& segmentsOf(const Batch& batch, at::Device device) {
  if (!batch.attentionSegments) batch.attentionSegments = std::make_shared<AttentionSegments>(batch, device);
  return *batch.attentionSegments;
}

// Log-sum-exps are [heads, rows] or, in other releases, [segments, heads, longest], which is told by their dimensions;
// ours are [rows, heads]. Where a padded one holds row r: at r + the padding of the segments before.
at::Tensor paddedRows(const Segments& s, at::Device device) {
  std::vector<int64_t> at;
  for (size_t i = 1; i < s.offsets.size(); ++i)
    for (int64_t j = 0; j < s.offsets[i] - s.offsets[i - 1]; ++j) at.push_back(int64_t(i - 1) * s.longest + j);
  return place(at, device);
}
at::Tensor byRows(const at::Tensor& lse, const Segments& s) {
  if (lse.dim() == 2) return lse.t();
  return lse.transpose(1, 2).reshape({-1, lse.size(1)}).index_select(0, paddedRows(s, lse.device()));
}
at::Tensor asGiven(const at::Tensor& lse, const Segments& s) {
  if (s.lseDimensions == 2) return lse.t().contiguous();
  int64_t segments = int64_t(s.offsets.size()) - 1, heads = lse.size(1);
  auto padded = at::empty({segments * s.longest, heads}, lse.options()).zero_();
  padded.index_copy_(0, paddedRows(s, lse.device()), lse);
  return padded.view({segments, s.longest, heads}).transpose(1, 2).contiguous();
}

at::Tensor heads(const at::Tensor& rows, int64_t first, int64_t count, int64_t headDim) {
  return rows.narrow(1, first * headDim, count * headDim).view({rows.size(0), count, headDim});
}

// Some rows' queries over some rows' keys.
struct Part {
  const ModelConfig& c;
  int64_t window;
  at::Tensor q, k, v;
  const Segments &ofQueries, &ofKeys;
  bool causal;

  Part(const ModelConfig& c, int64_t window, const at::Tensor& queries, const at::Tensor& keys,
       const Segments& ofQueries, const Segments& ofKeys, bool causal)
      : c(c),
        window(window),
        q(heads(queries, 0, c.heads, c.headDim)),
        k(heads(keys, c.heads, c.kvHeads, c.headDim)),
        v(heads(keys, c.heads + c.kvHeads, c.kvHeads, c.headDim)),
        ofQueries(ofQueries),
        ofKeys(ofKeys),
        causal(causal) {}

  std::optional<int64_t> left() const { return window > 0 ? std::optional(window - 1) : std::nullopt; }
  std::optional<int64_t> right() const { return window > 0 ? std::optional<int64_t>(0) : std::nullopt; }

  std::pair<at::Tensor, at::Tensor> forward() const {
    auto result = at::_flash_attention_forward(q, k, v, ofQueries.placed, ofKeys.placed, ofQueries.longest,
                                               ofKeys.longest, 0.0, causal, false, c.queryScale, left(), right());
    ofQueries.lseDimensions = std::get<1>(result).dim();
    return {std::get<0>(result), byRows(std::get<1>(result), ofQueries)};
  }
  std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& dOut, const at::Tensor& out,
                                                          const at::Tensor& lse) const {
    // Without dropout nothing reads the state of its random numbers.
    auto unused = at::empty({2}, q.options().dtype(at::kUInt64));
    return at::_flash_attention_backward(heads(dOut, 0, c.heads, c.headDim), q, k, v, heads(out, 0, c.heads, c.headDim),
                                         asGiven(lse, ofQueries), ofQueries.placed, ofKeys.placed, ofQueries.longest,
                                         ofKeys.longest, 0.0, causal, unused, unused, c.queryScale, left(), right());
  }
};

// The window, where a sequence is longer; such a sequence must not share its prompt (lib/model/model.ts sees to it).
int64_t effective(int64_t window, const Batch& batch) {
  if (window == 0 || batch.longest() <= window) return 0;
  if (batch.promptTokens() > 0)
    fail("ERR_DATA",
         "on a GPU, sequences longer than the sliding window cannot share their prompt: pack them with "
         "sharePrompt: false");
  return window;
}

}  // namespace

void cuda::attentionForward(const ModelConfig& c, int64_t window, const Batch& batch, const at::Tensor& qkv,
                            const at::Tensor& out, const at::Tensor& lse, bool promptQueries) {
  const auto& s = segmentsOf(batch, qkv.device());
  const int64_t P = batch.promptTokens(), R = batch.responseRows();
  const int64_t first = promptQueries ? 0 : P;
  auto rows = [&](const at::Tensor& t) { return t.narrow(0, first, P + R - first); };
  const Segments& own = promptQueries ? s.all : s.responses;
  auto [o, l] = Part(c, effective(window, batch), rows(qkv), rows(qkv), own, own, true).forward();
  rows(out).copy_(o.view({P + R - first, -1}));
  rows(lse).copy_(l);
  if (P == 0 || R == 0) return;
  auto [o2, l2] = Part(c, 0, qkv.narrow(0, P, R), qkv.narrow(0, 0, P), s.queries, s.prompts, false).forward();
  mergeLse(out.narrow(0, P, R), lse.narrow(0, P, R), o2.view({R, -1}), l2.contiguous(), c.heads);
}

void cuda::attentionBackward(const ModelConfig& c, int64_t window, const Batch& batch, const at::Tensor& dOut,
                             const at::Tensor& qkv, const at::Tensor& out, const at::Tensor& lse,
                             const at::Tensor& dQkv, bool promptQueries) {
  const auto& s = segmentsOf(batch, qkv.device());
  const int64_t P = batch.promptTokens(), R = batch.responseRows();
  const int64_t first = promptQueries ? 0 : P;
  auto rows = [&](const at::Tensor& t) { return t.narrow(0, first, P + R - first); };
  auto part = [&](const at::Tensor& t, int64_t from, int64_t count) { return heads(t, from, count, c.headDim); };
  dQkv.narrow(0, 0, first).zero_();
  const Segments& own = promptQueries ? s.all : s.responses;
  {
    auto [dq, dk, dv] = Part(c, effective(window, batch), rows(qkv), rows(qkv), own, own, true)
                            .backward(rows(dOut), rows(out), rows(lse));
    part(rows(dQkv), 0, c.heads).copy_(dq);
    part(rows(dQkv), c.heads, c.kvHeads).copy_(dk);
    part(rows(dQkv), c.heads + c.kvHeads, c.kvHeads).copy_(dv);
  }
  if (P == 0 || R == 0) return;
  auto responses = [&](const at::Tensor& t) { return t.narrow(0, P, R); };
  auto [dq, dk, dv] = Part(c, 0, responses(qkv), qkv.narrow(0, 0, P), s.queries, s.prompts, false)
                          .backward(responses(dOut), responses(out), responses(lse));
  part(responses(dQkv), 0, c.heads).add_(dq);
  part(dQkv.narrow(0, 0, P), c.heads, c.kvHeads).add_(dk);
  part(dQkv.narrow(0, 0, P), c.heads + c.kvHeads, c.kvHeads).add_(dv);
}

}  // namespace wrpo
