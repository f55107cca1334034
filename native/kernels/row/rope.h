// The rotation of one head (kernels/rope.cpp is the definition).
#pragma once
#include "kernels/row/team.h"

namespace wrpo::row {

// head [d] holds the pairs (i, i + d / 2); angles are d / 2 cosines, then sines; sign -1 rotates back.
template <class T, class Team>
WRPO_HD void rotateHead(const Team& team, T* head, int64_t d, const float* angles, int sign) {
  using S = ScalarOf<T>;
  int64_t half = d / 2;
  team.each(half, [=](int64_t i) {
    S a = widen(head[i]), b = widen(head[i + half]), cosine = S(angles[i]), sine = S(sign) * S(angles[i + half]);
    head[i] = narrow<T>(a * cosine - b * sine);
    head[i + half] = narrow<T>(b * cosine + a * sine);
  });
}

}  // namespace wrpo::row
