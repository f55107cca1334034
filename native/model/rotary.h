// The rotation of every token of a batch: which row of a table of angles it takes.
#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <vector>

#include "kernels/kernels.h"
#include "model/batch.h"

namespace wrpo {

class Rotary {
 public:
  Rotary(const RopeSettings& settings, at::Device device) : settings_(settings), device_(device) {}

  // For every rotate() until the next call. Where frequencies depend on a sequence's length (dynamic, longrope) it is
  // that of each response with all before it, by the position of its last row. Throws ERR_DATA when responses that
  // share their prompt's keys would rotate them differently.
  void prepare(const Batch& batch);
  // The first `heads` heads of the rows of x [T, ld], in place; sign -1 is backward.
  void rotate(const at::Tensor& x, int64_t heads, int64_t headDim, int sign) const;
  // Frequencies by what decides them: 0, or the length of a sequence that is longer than the original context.
  int64_t variantOf(int64_t length) const;

 private:
  // The first row of a variant's part of the table.
  int32_t partOf(int64_t variant);

  void turnByLength(const Batch& batch);

  RopeSettings settings_;
  at::Device device_;
  int64_t positions_ = 0;  // of every part
  std::map<int64_t, int32_t> parts_;
  at::Tensor table_;           // [parts * positions, 2, dim / 2] float32
  std::vector<int32_t> rows_;  // [T]
  at::Tensor placed_;          // the same on the device
};

}  // namespace wrpo
