// The best k of a row's blocks so far.
#pragma once
#include <math.h>

#include "simd.h"

namespace saccade {
namespace SACCADE_ISA {

constexpr int64_t kMaxTopK = 256;

// By descending score; equal scores: the later block first.
struct Best {
  float scores[kMaxTopK];
  int32_t ids[kMaxTopK];
  int64_t count, k;

  SACCADE_INLINE float least() const { return count < k ? -INFINITY : scores[k - 1]; }
  SACCADE_INLINE void offer(float score, int32_t id) {
    if (!(score >= least())) return;  // NaN is never chosen
    int64_t at = count < k ? count++ : k - 1;
    for (; at > 0 && scores[at - 1] <= score; --at) {
      scores[at] = scores[at - 1];
      ids[at] = ids[at - 1];
    }
    scores[at] = score;
    ids[at] = id;
  }
};

// Blocks of a list that are always in it: [0, head) and [tail, own].
struct ListEnds {
  int64_t head, tail, own;
  int64_t forced() const { return head + own + 1 - tail; }
};

SACCADE_INLINE ListEnds list_ends(int64_t own, int64_t first, int64_t recent) {
  const int64_t head = first < own + 1 ? first : own + 1;
  return {head, own + 1 - recent > head ? own + 1 - recent : head, own};
}

// The ends and the best between them, ascending, -1 padded to `listed`.
SACCADE_INLINE void write_list(const Best& best, const ListEnds& ends, int32_t* to,
                               int64_t listed) {
  int64_t n = 0;
  for (int64_t j = 0; j < ends.head; ++j) to[n++] = static_cast<int32_t>(j);
  for (int64_t i = 0; i < best.count; ++i) {
    int64_t at = n++;
    for (; at > ends.head && to[at - 1] > best.ids[i]; --at) to[at] = to[at - 1];
    to[at] = best.ids[i];
  }
  for (int64_t j = ends.tail; j <= ends.own; ++j) to[n++] = static_cast<int32_t>(j);
  while (n < listed) to[n++] = -1;
}

}  // namespace SACCADE_ISA
}  // namespace saccade
