// Which elements of a row are dropped: a hash decides, the same on every device.
#pragma once
#include "kernels/row/team.h"

namespace wrpo::row {

// A Weyl sequence from the row's key, through two rounds of multiply and shift.
WRPO_HD uint32_t draw(uint32_t key, uint32_t i) {
  uint32_t h = key + i * 0x9e3779b9u;
  h = (h ^ (h >> 16)) * 0x85ebca6bu;
  h = (h ^ (h >> 13)) * 0xc2b2ae35u;
  return h ^ (h >> 16);
}

template <class T, class Team>
WRPO_HD void drop(const Team& team, const T* x, uint32_t key, uint32_t threshold, ScalarOf<T> scale, T* y, int64_t n) {
  team.each(n, [=](int64_t i) {
    y[i] = narrow<T>(draw(key, uint32_t(i)) >= threshold ? widen(x[i]) * scale : ScalarOf<T>(0));
  });
}

}  // namespace wrpo::row
