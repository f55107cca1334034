// Tensors in files: whatever a file holds and whatever ranges are asked of it, readTensors gives exactly the bytes of
// the range, converted, or one sentence; and what writeTensors writes is read again.
#include "io/tensor_file.h"

#include <ATen/ops/empty.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "error.h"
#include "fuzz/fuzz.h"

namespace wrpo::fuzz {
namespace {

constexpr at::ScalarType stored[] = {at::kFloat, at::kDouble, at::kBFloat16, at::kInt, at::kLong, at::kByte};
constexpr at::ScalarType computed[] = {at::kFloat, at::kDouble, at::kBFloat16};

// A file in memory, whose content and name it gives.
struct MemoryFile {
  int descriptor = ::memfd_create("tensors", MFD_CLOEXEC);
  std::string path = "/proc/self/fd/" + std::to_string(descriptor);

  void put(const std::string& bytes) {
    if (::ftruncate(descriptor, 0) != 0 || ::pwrite(descriptor, bytes.data(), bytes.size(), 0) != ssize_t(bytes.size()))
      std::abort();
  }
  std::string get() const {
    struct stat info;
    if (::fstat(descriptor, &info) != 0) std::abort();
    std::string bytes(size_t(info.st_size), '\0');
    if (::pread(descriptor, bytes.data(), bytes.size(), 0) != info.st_size) std::abort();
    return bytes;
  }
};

std::vector<TensorRange> someRanges(Input& in, int64_t fileSize) {
  std::vector<TensorRange> ranges(in.ConsumeIntegralInRange(1, 4));
  int64_t next = 0;
  for (auto& range : ranges) {
    range.name = "t";
    std::vector<int64_t> shape(in.ConsumeIntegralInRange(0, 3));
    for (auto& n : shape) n = in.ConsumeIntegralInRange(0, 5);
    range.stored = in.PickValueInArray(stored);
    range.destination = {at::empty(shape, in.PickValueInArray(computed)), {}};
    range.bytes = range.destination.tensor.numel() * int64_t(c10::elementSize(range.stored));
    range.offset = next;
    // Mostly one after the other, as in a file that is whole.
    switch (in.ConsumeIntegralInRange(0, 5)) {
      case 0:
        range.offset = in.ConsumeIntegral<int64_t>();
        break;
      case 1:
        range.bytes = in.ConsumeIntegral<int64_t>();
        break;
      case 2:
        range.offset = fileSize - range.bytes + in.ConsumeIntegralInRange(-1, 1);
        break;
    }
    next = std::clamp<int64_t>(range.offset, 0, 1 << 20) + std::clamp<int64_t>(range.bytes, 0, 1 << 20);
  }
  return ranges;
}

// What a range means, from the bytes of its file.
at::Tensor expected(const TensorRange& range, const std::string& bytes) {
  auto raw = at::empty(range.destination.tensor.sizes(), range.stored);
  if (raw.numel() > 0) std::memcpy(raw.data_ptr(), bytes.data() + range.offset, raw.nbytes());
  return raw.to(range.destination.tensor.scalar_type());
}

bool sameBits(const at::Tensor& a, const at::Tensor& b) {
  if (a.nbytes() != b.nbytes() || a.nbytes() == 0) return a.nbytes() == b.nbytes();
  return std::memcmp(a.data_ptr(), b.data_ptr(), a.nbytes()) == 0;
}

void readWhatWasWritten(const std::vector<TensorRange>& ranges, const std::string& header, at::ScalarType dtype) {
  static MemoryFile file;
  std::vector<Stored> tensors;
  std::vector<TensorRange> again;
  auto offset = int64_t(header.size());
  for (const auto& range : ranges) {
    const auto& t = range.destination.tensor;
    tensors.push_back({t, {}});
    const int64_t bytes = t.numel() * int64_t(c10::elementSize(dtype));
    again.push_back({"t", {at::empty(t.sizes(), dtype), {}}, dtype, offset, bytes});
    offset += bytes;
  }
  writeTensors(file.path, header, tensors, dtype);
  const auto bytes = file.get();
  require(int64_t(bytes.size()) == offset && bytes.starts_with(header), "a file has its header and tensors, no more");
  readTensors(file.path, again);
  for (size_t i = 0; i < again.size(); ++i)
    require(sameBits(again[i].destination.tensor, tensors[i].tensor.to(dtype)), "what was written is read again");
}

void once(Input& in) {
  static MemoryFile file;
  const bool missing = in.ConsumeIntegralInRange(0, 60) == 0;
  const auto dtype = in.PickValueInArray(computed);
  const auto header = in.ConsumeRandomLengthString(16);
  const auto fileSize = int64_t(in.ConsumeIntegralInRange(0, 400));
  const auto ranges = someRanges(in, fileSize);
  auto bytes = in.ConsumeRemainingBytesAsString();
  bytes.resize(size_t(fileSize), 'x');
  file.put(bytes);
  bool read = false;
  try {
    readTensors(missing ? "/nowhere/file" : file.path, ranges);
    read = true;
  } catch (const Error& error) {
    requireSentence(error);
  }
  require(!(read && missing), "no file is no file");
  bool fits = true;
  for (const auto& range : ranges) {
    const auto size = range.destination.tensor.numel() * int64_t(c10::elementSize(range.stored));
    fits = fits && range.bytes == size && range.offset >= 0 && range.offset <= fileSize - size;
  }
  require(read == (fits && !missing), "a range is read if and only if it lies in its file");
  if (!read) return;
  for (const auto& range : ranges)
    require(sameBits(range.destination.tensor, expected(range, bytes)), "a range has its bytes");
  try {
    if (missing) writeTensors("/nowhere/file", header, {}, dtype);
    else readWhatWasWritten(ranges, header, dtype);
  } catch (const Error& error) {
    requireSentence(error);
    require(missing, "what can be written is");
  }
}

}  // namespace
}  // namespace wrpo::fuzz

WRPO_FUZZ(wrpo::fuzz::once)
