#include "model/kv_cache.h"

#include <ATen/ops/empty.h>

namespace wrpo {

BlockPool::BlockPool(const ModelConfig& c, at::ScalarType dtype)
    : layers_(c.layers),
      kvHeads_(c.kvHeads),
      valueWidth_((c.headDim + 15) / 16 * 16),  // whole vectors
      headSize_((c.headDim + valueWidth_) * tokens),
      dtype_(dtype) {}

BlockPool::Block BlockPool::take() {
  if (free_.empty()) return std::make_shared<at::Tensor>(at::empty({layers_ * kvHeads_ * headSize_}, dtype_));
  auto block = std::move(free_.back());
  free_.pop_back();
  return block;
}

void BlockPool::give(std::vector<Block>& blocks) {
  for (auto& block : blocks)
    if (block.use_count() == 1) free_.push_back(std::move(block));
  blocks.clear();
}

void KeyValueCache::extend(int64_t count) {
  constexpr int64_t each = BlockPool::tokens;
  if (length_ % each != 0 && blocks_.back().use_count() > 1) {
    auto own = pool_->take();
    own->copy_(*blocks_.back());
    blocks_.back() = std::move(own);
  }
  length_ += count;
  while (int64_t(blocks_.size()) * each < length_) blocks_.push_back(pool_->take());
}

void KeyValueCache::clear() {
  pool_->give(blocks_);
  length_ = 0;
}

}  // namespace wrpo
