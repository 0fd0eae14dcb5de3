// The best k of a row's blocks so far.
#pragma once
#include <math.h>

#include "simd.h"

namespace saccade {
namespace SACCADE_ISA {

constexpr int64_t kMaxTopK = 1024;
constexpr int64_t kFewTopK = 16;    // as many fit a register of AVX-512
constexpr int64_t kMostAhead = 64;  // of so many of the best a bound is looked for beforehand
constexpr int64_t kManyAhead = 4;   // and of more of them, among so many times as many
constexpr int64_t kShortList = 32;  // up to here a walk finds the place as fast as a search

// By descending score; equal scores: the later block first. kMost: as many as it may hold.
template <int64_t kMost>
struct BestOf {
  float scores[kMost];
  int32_t ids[kMost];
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
using Best = BestOf<kMaxTopK>;

// Bits of the scores i .. i + W - 1 that are no worse than `least`, of those below n.
SACCADE_INLINE uint32_t candidates(const float* scores, int64_t i, int64_t n, float least) {
  const uint32_t bits = lane_bits(load<F<kWidth>>(scores + i) >= splat<kWidth>(least));
  return n - i < kWidth ? bits & ((1u << (n - i)) - 1) : bits;
}

#if defined(__AVX512DQ__)
// How many lanes of x stand before each lane: those that Before(theirs, its own) says.
template <class V, class Before>
SACCADE_INLINE __m512i lane_ranks(V x, Before before) {
  const __m512i one = _mm512_set1_epi32(1);
  __m512i turned = (__m512i)x, ranks = _mm512_setzero_si512();
  for (int step = 1; step < 16; ++step) {
    turned = _mm512_alignr_epi32(turned, turned, 1);
    ranks = _mm512_mask_add_epi32(ranks, before((V)turned, x), ranks, one);
  }
  return ranks;
}

// A score that k of the first n reach: of the largest of every 16th, the k-th. NaN counts for
// nothing.
SACCADE_INLINE float reached(const float* scores, int64_t n, int64_t k) {
  __m512 high = _mm512_set1_ps(-INFINITY);
  for (int64_t i = 0; i + 16 <= n; i += 16) high = _mm512_max_ps(_mm512_loadu_ps(scores + i), high);
  const __m512i larger =
      lane_ranks(high, [](__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); });
  const __mmask16 best = _mm512_cmplt_epi32_mask(larger, _mm512_set1_epi32(static_cast<int>(k)));
  return _mm512_mask_reduce_min_ps(best, high);
}

// The same as offer_scores where the best fit a register, in order: no branch depends on a score.
template <class Best>
SACCADE_INLINE void offer_few(Best& best, const float* scores, int64_t first, int64_t n) {
  const auto held = static_cast<__mmask16>((1u << best.count) - 1);
  __m512 top = _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), held, best.scores);
  __m512i ids = _mm512_maskz_loadu_epi32(held, best.ids);
  const __m512i last = _mm512_set1_epi32(static_cast<int32_t>(best.k - 1));
  float least = best.least();
  if (n >= 48) {  // worth a look ahead: most scores then need none of the following
    const float sure = reached(scores, n, best.k);
    least = least > sure ? least : sure;
  }
  for (int64_t i = 0; i < n; i += 16) {
    uint32_t bits = candidates(scores, i, n, least);
    if (bits == 0) continue;
    for (; bits != 0; bits &= bits - 1) {
      const int64_t at = i + __builtin_ctz(bits);
      const __m512 score = _mm512_set1_ps(scores[at]);
      const uint32_t before = _mm512_cmp_ps_mask(top, score, _CMP_GT_OQ);  // they stay
      const auto moved = static_cast<__mmask16>(~before),
                 place = static_cast<__mmask16>(before + 1);
      const __m512i next = _mm512_castps_si512(top);
      top = _mm512_castsi512_ps(_mm512_mask_alignr_epi32(next, moved, next, next, 15));
      ids = _mm512_mask_alignr_epi32(ids, moved, ids, ids, 15);
      top = _mm512_mask_mov_ps(top, place, score);
      ids = _mm512_mask_set1_epi32(ids, place, static_cast<int32_t>(first + at));
      best.count += best.count < best.k ? 1 : 0;
    }
    const float now = _mm512_cvtss_f32(_mm512_permutexvar_ps(last, top));
    if (best.count == best.k && now > least) least = now;
  }
  _mm512_storeu_ps(best.scores, top);
  _mm512_storeu_si512(best.ids, ids);
}
#endif

// A score that k of the first n reach, or -inf: the least of the largest of every m-th, where m, a
// multiple of the width, is at least k.
SACCADE_INLINE float surely_reached(const float* scores, int64_t n, int64_t k) {
  constexpr int W = kWidth;
  F<W> high[kMostAhead / W];
  const int64_t vectors = (k + W - 1) / W, m = vectors * W;
  if (m > kMostAhead || n < 4 * m) return -INFINITY;  // not worth a look ahead
  for (int64_t j = 0; j < vectors; ++j) high[j] = splat<W>(-INFINITY);
  for (int64_t i = 0; i + m <= n; i += m)
    for (int64_t j = 0; j < vectors; ++j) {
      const F<W> own = load<F<W>>(scores + i + j * W);
      high[j] = own > high[j] ? own : high[j];  // NaN counts for nothing
    }
  float least = INFINITY;
  for (int64_t j = 0; j < vectors; ++j)
    for (int64_t lane = 0; lane < W; ++lane) least = high[j][lane] < least ? high[j][lane] : least;
  return least;
}

// The same for many: by how many scores have each beginning of a number. Not far below the k-th.
SACCADE_INLINE float reached_by_many(const float* scores, int64_t n, int64_t k) {
  constexpr int kBits = 11;
  int32_t counts[1 << kBits] = {};
  for (int64_t i = 0; i < n; ++i)
    if (scores[i] == scores[i]) ++counts[ascending_bits(scores[i]) >> (32 - kBits)];
  int64_t at = (1 << kBits) - 1;
  for (int64_t found = counts[at]; found < k; found += counts[at])
    if (--at < 0) return -INFINITY;
  const uint32_t least = static_cast<uint32_t>(at) << (32 - kBits);
  const uint32_t bits = least & 0x80000000u ? least & 0x7fffffffu : ~least;
  float score;
  std::memcpy(&score, &bits, sizeof(score));
  return score == score ? score : -INFINITY;  // the beginning of the infinities may be none
}

// Offers blocks first .. first + n - 1 with these scores; whole vectors are readable.
template <class Best>
SACCADE_INLINE void offer_scores(Best& best, const float* scores, int64_t first, int64_t n) {
#if defined(__AVX512DQ__)
  if (best.k <= kFewTopK) return offer_few(best, scores, first, n);
#endif
  const bool many = best.k > kMostAhead && n >= kManyAhead * best.k;
  const float sure = many ? reached_by_many(scores, n, best.k) : surely_reached(scores, n, best.k);
  for (int64_t i = 0; i < n; i += kWidth) {
    uint32_t bits = candidates(scores, i, n, best.least() > sure ? best.least() : sure);
    for (; bits != 0; bits &= bits - 1) {
      const int64_t at = i + __builtin_ctz(bits);
      best.offer(scores[at], static_cast<int32_t>(first + at));
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

// Ascending, by insertion over shrinking distances; few different ids by their ranks.
SACCADE_INLINE void sort_ids(int32_t* ids, int64_t count) {
#if defined(__AVX512DQ__)
  if (count <= kFewTopK) {
    const auto held = static_cast<__mmask16>((1u << count) - 1);
    const __m512i all = _mm512_mask_loadu_epi32(_mm512_set1_epi32(INT32_MAX), held, ids);
    const __m512i smaller =
        lane_ranks(all, [](__m512i a, __m512i b) { return _mm512_cmplt_epi32_mask(a, b); });
    _mm512_mask_i32scatter_epi32(ids, held, smaller, all, 4);
    return;
  }
#endif
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
template <class Some>
SACCADE_INLINE void write_list(const Some& best, const ListEnds& ends, int32_t* to,
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
