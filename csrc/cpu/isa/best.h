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

}  // namespace SACCADE_ISA
}  // namespace saccade
