#include "io/tensor_file.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "error.h"

namespace wrpo {
namespace {

[[noreturn]] void failOn(const char* code, const char* action, const std::string& path) {
  fail(code, std::string("cannot ") + action + " " + path + ": " + std::strerror(errno));
}

struct File {
  int descriptor;
  ~File() {
    if (descriptor >= 0) ::close(descriptor);
  }
};

struct Mapping {
  void* address = MAP_FAILED;
  size_t size = 0;
  ~Mapping() {
    if (address != MAP_FAILED) ::munmap(address, size);
  }
};

void writeAll(int descriptor, const void* from, size_t bytes, const std::string& path) {
  const char* p = static_cast<const char*>(from);
  while (bytes > 0) {
    ssize_t n = ::write(descriptor, p, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) failOn("ERR_CHECKPOINT", "write", path);
    p += n;
    bytes -= size_t(n);
  }
}

}  // namespace

void readTensors(const std::string& path, const std::vector<TensorRange>& ranges) {
  File file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  struct stat info;
  if (file.descriptor < 0 || ::fstat(file.descriptor, &info) != 0) failOn("ERR_MODEL", "read", path);
  Mapping map;
  map.size = size_t(info.st_size);
  if (map.size > 0) {
    map.address = ::mmap(nullptr, map.size, PROT_READ, MAP_PRIVATE, file.descriptor, 0);
    if (map.address == MAP_FAILED) failOn("ERR_MODEL", "map", path);
  }
  for (const auto& range : ranges) {
    poll();
    int64_t expected = range.destination.tensor.numel() * int64_t(c10::elementSize(range.stored));
    const auto size = int64_t(map.size);
    if (range.bytes != expected || range.offset < 0 || range.offset > size - range.bytes)
      fail("ERR_MODEL", path + " is truncated or corrupt: " + range.name + " should be " + std::to_string(range.bytes) +
                            " bytes from byte " + std::to_string(range.offset) + " on, of " + std::to_string(size));
    if (range.bytes == 0) continue;
    char* from = static_cast<char*>(map.address) + range.offset;
    auto source = at::from_blob(from, range.destination.tensor.sizes(), at::TensorOptions(range.stored));
    if (reinterpret_cast<uintptr_t>(from) % c10::elementSize(range.stored) != 0) {
      source = at::empty(range.destination.tensor.sizes(), range.stored);
      std::memcpy(source.data_ptr(), from, size_t(range.bytes));
    }
    range.destination.assign(source);
  }
}

void writeTensors(const std::string& path, const std::string& header, const std::vector<Stored>& tensors,
                  at::ScalarType dtype) {
  File file{::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)};
  if (file.descriptor < 0) failOn("ERR_CHECKPOINT", "create", path);
  try {
    writeAll(file.descriptor, header.data(), header.size(), path);
    for (const auto& tensor : tensors) {
      poll();
      auto stored = tensor.host().to(dtype).contiguous();
      writeAll(file.descriptor, stored.data_ptr(), stored.nbytes(), path);
    }
  } catch (...) {
    ::unlink(path.c_str());
    throw;
  }
}

}  // namespace wrpo
