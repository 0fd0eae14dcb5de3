// Scores of a unit's rows become probabilities: cap, mask, running maxima and sums.
#pragma once
#include <math.h>

#include "attend_unit.h"

namespace saccade {
namespace SACCADE_ISA {

// Relative error below 2e-7 also near 0, where 1 - 2 / (e^2x + 1) would lose every digit: a
// polynomial fitted to tanh(x) / x for |x| < 0.65.
SACCADE_INLINE F<kWidth> tanh(F<kWidth> x) {
  constexpr int W = kWidth;
  const F<W> one = splat<W>(1.0f), z = x * x;
  F<W> p = splat<W>(-0.005932980217039585f);
  p = fma<W>(p, z, splat<W>(0.020881319418549538f));
  p = fma<W>(p, z, splat<W>(-0.053825847804546356f));
  p = fma<W>(p, z, splat<W>(0.13332600891590118f));
  p = fma<W>(p, z, splat<W>(-0.333333283662796f));
  const F<W> near = fma<W>(p * z, x, x);
  const F<W> far = one - splat<W>(2.0f) / (exp_any<W>(x + x) + one);
  return z < splat<W>(0.4225f) ? near : far;
}

// Logits beyond this size are not fused with their maximum: the rounding of the maximum alone could
// make an exponent far too large.
constexpr float kFusible = 1 << 24;

// Probabilities as the A operand of the second product: fp32, or bf16 where the machine multiplies
// bf16 pairs.
template <class A>
SACCADE_INLINE void put_probabilities(A* to, F<kWidth> p) {
  if constexpr (sizeof(A) == sizeof(float)) {
    store(to, p);
  } else {
#if defined(__AVX512BF16__)
    store(to, _mm512_cvtneps_pbh((__m512)p));
#endif
  }
}

template <class A>
SACCADE_INLINE void put_probabilities(A* to, F<kWidth> p, F<kWidth> after) {
  if constexpr (sizeof(A) == sizeof(float)) {
    store(to, p), store(to + kWidth, after);
  } else {
#if defined(__AVX512BF16__)
    store(to, _mm512_cvtne2ps_pbh((__m512)after, (__m512)p));  // as fast as one of them alone
#endif
  }
}

template <class S>
SACCADE_INLINE F<kWidth> UnitRun<S>::capped(F<W> s) const {
  return tanh(s * splat<W>(p.scale / p.softcap)) * splat<W>(p.softcap * kLog2E);
}

// Largest scores of a row over its own keys, after cap and mask, lane by lane.
template <class S>
SACCADE_INLINE F<kWidth> UnitRun<S>::highest(const Active& active, const Span& own, int64_t first,
                                             float* s) const {
  const Row& row = info[active.row];
  const F<W> none = splat<W>(-INFINITY);
  F<W> high = none;
  if (p.softcap > 0) {
    for (int64_t i = own.begin; i < own.end; i += W) {
      store(s + i, pass.k[i / pass.chunk] == nullptr ? none : capped(load<F<W>>(s + i)));
    }
  }
  if (source != nullptr) source->hide(s, own);  // after the cap, which knows no -inf
  const Hidden hidden = hidden_in(p, row, active, own, first);
  const int64_t last = own.end - W;
  const int64_t step = hidden == Hidden::kEdges && last > own.begin ? last - own.begin : W;
  for (int64_t i = own.begin; hidden != Hidden::kNone && i < own.end; i += step)
    store(s + i, seen(p, row, active, first, i) ? load<F<W>>(s + i) : none);
  for (int64_t i = own.begin; i < own.end; i += W) high = max<W>(high, load<F<W>>(s + i));
  return high;
}

// Largest scores of a row that sees all of a span, lane by lane.
template <int W>
SACCADE_INLINE F<W> largest_of(const float* s, const Span& span) {
  F<W> even = load<F<W>>(s + span.begin), odd = even;
  int64_t i = span.begin + W;
  for (; i + 2 * W <= span.end; i += 2 * W) {
    even = max<W>(even, load<F<W>>(s + i));
    odd = max<W>(odd, load<F<W>>(s + i + W));
  }
  if (i < span.end) even = max<W>(even, load<F<W>>(s + i));
  return max<W>(even, odd);
}

// Scores of the r-th row at work -> probabilities relative to `base`. Returns their sums by lane.
template <class S>
template <bool kKeeps>
SACCADE_INLINE F<kWidth> UnitRun<S>::weigh(int64_t r, const Span& own, float base, bool huge,
                                           float* kept) {
  const float* s = scores + r * kPass;
  A* to = weights_of(r);
  const F<W> factor = splat<W>(to_log2), minus = splat<W>(-base);
  const auto weight = [&](int64_t i) {
    const F<W> x = load<F<W>>(s + i);
    const F<W> y = huge ? x * factor + minus : fma<W>(x, factor, minus);
    const F<W> e = exp2_flushed<W>(y);
    if constexpr (kKeeps) store(kept + i, e);
    return e;
  };
  F<W> total{};
  int64_t i = own.begin;
  for (; i + 2 * W <= own.end; i += 2 * W) {
    const F<W> e = weight(i), after = weight(i + W);
    total += e;
    total += after;
    put_probabilities(to + i, e, after);
  }
  for (; i < own.end; i += W) {
    const F<W> e = weight(i);
    total += e;
    put_probabilities(to + i, e);
  }
  return total;
}

// The same for a row that may see a part of `span` alone.
template <class S>
SACCADE_INLINE F<kWidth> UnitRun<S>::weigh_own(int64_t r, int64_t row, const Span& own,
                                               int64_t first, const Span& span, float now) {
  A* to = weights_of(r);
  const float base = now == -INFINITY ? 0.0f : now;
  const bool huge = base > kFusible || base < -kFusible;
  float* kept = source != nullptr ? source->kept(row, first, now) : nullptr;
  const F<W> total = kept != nullptr ? weigh<true>(r, own, base, huge, kept)
                                     : weigh<false>(r, own, base, huge, kept);
  for (int64_t i = span.begin; i < own.begin; i += W) put_probabilities(to + i, F<W>{});
  for (int64_t i = own.end; i < span.end; i += W) put_probabilities(to + i, F<W>{});
  return total;
}

// Up to W rows, from the r-th at work on: what a row needs once is computed for all of them.
// kPlain: they see all of `span`, and nothing but their scores counts (is_plain); where their
// maxima are out of the ordinary, false is returned and nothing has happened.
template <class S>
template <bool kPlain>
SACCADE_INLINE bool UnitRun<S>::soften(const Active* active, int64_t r, int64_t some, int64_t first,
                                       const Span& span, float* partial) {
  F<W> lanes[W];
  float top[W], now[W];
  Span own[W];
  const F<W> none = splat<W>(-INFINITY);
  for (int64_t m = some; m < W; ++m) lanes[m] = kPlain ? F<W>{} : none, top[m] = -INFINITY;
  for (int64_t m = 0; m < some; ++m) {
    const Active& row = active[r + m];
    float* s = scores + (r + m) * kPass;
    top[m] = tops(partial)[row.row];
    if (p.blocks != nullptr) __builtin_prefetch(sums(partial) + row.row * W, 1, 3);
    if constexpr (kPlain) {
      lanes[m] = largest_of<W>(s, span);
    } else {
      own[m] = span_of(p, info[row.row], row, first);
      lanes[m] = highest(row, own[m], first, s);
    }
  }
  const F<W> high = max_of_rows<W>(lanes) * splat<W>(to_log2), before = load<F<W>>(top);
  const F<W> larger = before > high ? before : high;
  store(now, larger);
  if constexpr (kPlain) {
    const F<W> most = splat<W>(kFusible);
    if (lane_bits((larger <= most) & (larger >= -most)) != (1u << W) - 1) return false;
  }
  const F<W> base = larger == none ? F<W>{} : larger;
  const F<W> shrinks = exp2_nonpositive<W>(before - base);
  float own_shrink[W];
  store(shrink + r, shrinks);
  store(own_shrink, shrinks);
  const uint32_t begun = lane_bits(before == none);  // rows that had seen nothing
  fresh |= begun << r;
  float *const all_sums = sums(partial), *const all_tops = tops(partial);
  for (int64_t m = 0; m < some; ++m) {
    const int64_t row = active[r + m].row;
    const bool begins = (begun >> m & 1) != 0;
    float* sum = all_sums + row * W;
    if (!kTiles && begins)  // with tiles they begin at 0 themselves
      std::memset(partial + row * p.v_dim, 0, static_cast<size_t>(p.v_dim) * sizeof(float));
#if SACCADE_AMX
    ask_lines();
#endif
    F<W> total;
    if constexpr (kPlain) {
      float* kept = source != nullptr ? source->kept(row, first, now[m]) : nullptr;
      total = kept != nullptr ? weigh<true>(r + m, span, now[m], false, kept)
                              : weigh<false>(r + m, span, now[m], false, nullptr);
    } else {
      total = weigh_own(r + m, row, own[m], first, span, now[m]);
    }
    store(sum, fma<W>(begins ? F<W>{} : load<F<W>>(sum), splat<W>(own_shrink[m]), total));
    // The maximum skips NaN; a row that saw nothing else must not pass for one that saw nothing.
    const bool is_lost = !kPlain && now[m] == -INFINITY && sum_lanes<W>(total) != 0.0f;
    all_tops[row] = is_lost ? NAN : now[m];
  }
  return true;
}

// Scores of the rows at work -> probabilities over `span`; keeps the rows' maxima and sums.
template <class S>
SACCADE_INLINE void UnitRun<S>::softmax(const Active* active, int64_t count, int64_t first,
                                        const Span& span, bool plain, float* partial) {
  fresh = 0;
  for (int64_t r = 0; r < count; r += W) {
    const int64_t some = count - r < W ? count - r : W;
    if (!plain || !soften<true>(active, r, some, first, span, partial))
      soften<false>(active, r, some, first, span, partial);
  }
}

}  // namespace SACCADE_ISA
}  // namespace saccade
