// Tensors in files: memory-mapped reading, and writing. Which bytes belong to which tensor is decided in
// lib/model/safetensors.ts; this checks again that every range lies inside its file.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "device.h"

namespace wrpo {

struct TensorRange {
  std::string name;       // for messages
  Stored destination;     // its shape is the stored shape
  at::ScalarType stored;  // dtype in the file
  int64_t offset, bytes;  // in the file
};
// Copies the ranges of one file into their destinations, converting dtypes.
void readTensors(const std::string& path, const std::vector<TensorRange>& ranges);

// Writes header, then every tensor as `dtype`, to a new file. Waiting for the disk is the caller's, so that the engine
// can compute meanwhile. On any failure the file is removed.
void writeTensors(const std::string& path, const std::string& header, const std::vector<Stored>& tensors,
                  at::ScalarType dtype);

}  // namespace wrpo
