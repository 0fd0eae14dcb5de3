// The best k of a row's blocks so far.
#pragma once
#include <math.h>

#include "simd.h"

namespace saccade {
namespace SACCADE_ISA {

constexpr int64_t kMaxTopK = 1024;
constexpr int64_t kShortList = 32;  // up to here a walk finds the place as fast as a search

// By descending score; equal scores: the later block first.
struct Best {
  float scores[kMaxTopK];
  int32_t ids[kMaxTopK];
  int64_t count, k;

  SACCADE_INLINE float least() const { return count < k ? -INFINITY : scores[k - 1]; }
  SACCADE_INLINE void offer(float score, int32_t id) {
    if (!(score >= least())) return;  // NaN is never chosen
    const int64_t last = count < k ? count++ : k - 1;
    int64_t at = last;
    if (last <= kShortList) {
      for (; at > 0 && scores[at - 1] <= score; --at) {
        scores[at] = scores[at - 1];
        ids[at] = ids[at - 1];
      }
    } else {
      at = place_of(score, last);
      std::memmove(scores + at + 1, scores + at, static_cast<size_t>(last - at) * sizeof(*scores));
      std::memmove(ids + at + 1, ids + at, static_cast<size_t>(last - at) * sizeof(*ids));
    }
    scores[at] = score;
    ids[at] = id;
  }

  // The first of `last` places whose score is no better.
  SACCADE_INLINE int64_t place_of(float score, int64_t last) const {
    int64_t low = 0, high = last;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (scores[middle] <= score) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }
};

SACCADE_INLINE bool any_lane(I<kWidth> mask) {
  uint64_t halves[kWidth / 2], any = 0;
  std::memcpy(halves, &mask, sizeof(mask));
  for (uint64_t half : halves) any |= half;
  return any != 0;
}

// Offers blocks first .. first + n - 1 with these scores; whole vectors are readable.
SACCADE_INLINE void offer_scores(Best& best, const float* scores, int64_t first, int64_t n) {
  constexpr int W = kWidth;
  for (int64_t i = 0; i < n; i += W) {
    if (!any_lane(load<F<W>>(scores + i) >= splat<W>(best.least()))) continue;
    for (int64_t e = i; e < i + W && e < n; ++e) {
      best.offer(scores[e], static_cast<int32_t>(first + e));
    }
  }
}

// Blocks of a list that are always in it: [0, head) and [tail, own].
struct ListEnds {
  int64_t head, tail, own;
  int64_t forced() const { return head + own + 1 - tail; }
};

SACCADE_INLINE ListEnds list_ends(int64_t own, int64_t first, int64_t recent) {
  const int64_t head = first < own + 1 ? first : own + 1;
  return {head, own + 1 - recent > head ? own + 1 - recent : head, own};
}

// Ascending, by insertion over shrinking distances.
SACCADE_INLINE void sort_ids(int32_t* ids, int64_t count) {
  constexpr int64_t kGaps[] = {301, 132, 57, 23, 10, 4, 1};
  for (const int64_t gap : kGaps)
    for (int64_t i = gap; i < count; ++i) {
      const int32_t id = ids[i];
      int64_t at = i;
      for (; at >= gap && ids[at - gap] > id; at -= gap) ids[at] = ids[at - gap];
      ids[at] = id;
    }
}

// The ends and the best between them, ascending, -1 padded to `listed`.
SACCADE_INLINE void write_list(const Best& best, const ListEnds& ends, int32_t* to,
                               int64_t listed) {
  int64_t n = 0;
  for (int64_t j = 0; j < ends.head; ++j) to[n++] = static_cast<int32_t>(j);
  for (int64_t i = 0; i < best.count; ++i) to[n++] = best.ids[i];
  sort_ids(to + ends.head, best.count);
  for (int64_t j = ends.tail; j <= ends.own; ++j) to[n++] = static_cast<int32_t>(j);
  while (n < listed) to[n++] = -1;
}

}  // namespace SACCADE_ISA
}  // namespace saccade
