// Keys and values of the tokens of one sequence, in blocks of tokens: sequences with a common beginning share whole
// blocks, and one grows without moving what it has.
#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "model/config.h"

namespace wrpo {

// Where blocks come from and return to.
class BlockPool {
 public:
  static constexpr int64_t tokens = 32;  // of a block

  // Stored in `dtype`.
  BlockPool(const ModelConfig& config, at::ScalarType dtype);

  // A block is [layers, kvHeads, headDim * tokens + tokens * valueWidth]: of every head its keys [headDim, tokens],
  // with tokens side by side, so that scores of many are computed at once; and its values [tokens, valueWidth], of
  // which headDim are used.
  using Block = std::shared_ptr<at::Tensor>;
  Block take();
  void give(std::vector<Block>& blocks);

  int64_t headSize() const { return headSize_; }
  int64_t valueWidth() const { return valueWidth_; }

 private:
  int64_t layers_, kvHeads_, valueWidth_, headSize_;
  at::ScalarType dtype_;
  std::vector<Block> free_;
};

class KeyValueCache {
 public:
  explicit KeyValueCache(BlockPool& pool) : pool_(&pool) {}
  // Shares the blocks; whoever writes into one first copies it.
  KeyValueCache(const KeyValueCache&) = default;
  KeyValueCache(KeyValueCache&&) = default;
  KeyValueCache& operator=(KeyValueCache&&) = default;
  ~KeyValueCache() { clear(); }

  int64_t length() const { return length_; }
  // Room for so many more tokens, which count from now on and are to be written.
  void extend(int64_t count);
  void clear();

  const BlockPool& pool() const { return *pool_; }
  // The first element of a head's keys in the block of a token; its values are headDim * tokens further.
  template <class T>
  T* head(int64_t layer, int64_t kvHead, int64_t kvHeads, int64_t block) const {
    return static_cast<T*>(blocks_[block]->data_ptr()) + (layer * kvHeads + kvHead) * pool_->headSize();
  }

 private:
  BlockPool* pool_;
  std::vector<BlockPool::Block> blocks_;
  int64_t length_ = 0;
};

}  // namespace wrpo
