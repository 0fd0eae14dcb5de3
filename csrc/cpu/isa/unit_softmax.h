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
  const Hidden hidden = hidden_in(p, row, active, own, first);
  const int64_t last = own.end - W;
  const int64_t step = hidden == Hidden::kEdges && last > own.begin ? last - own.begin : W;
  for (int64_t i = own.begin; hidden != Hidden::kNone && i < own.end; i += step)
    store(s + i, seen(p, row, active, first, i) ? load<F<W>>(s + i) : none);
  for (int64_t i = own.begin; i < own.end; i += W) high = max<W>(high, load<F<W>>(s + i));
  return high;
}

// Where a row has seen nothing so far, what lies in its place is not a number of ours.
template <class S>
SACCADE_INLINE void UnitRun<S>::begin_row(int64_t r, int64_t row, float* partial) {
  if (tops(partial)[row] != -INFINITY) return;
  fresh |= 1u << r;
  store(sums(partial) + row * W, F<W>{});
  if (kTiles) return;  // they begin at 0 themselves
  std::memset(partial + row * p.v_dim, 0, static_cast<size_t>(p.v_dim) * sizeof(float));
}

// Scores of the r-th row at work -> probabilities relative to its largest so far, `now`. Returns
// their sums by lane.
template <class S>
template <bool kKeeps>
SACCADE_INLINE F<kWidth> UnitRun<S>::weigh(int64_t r, const Span& own, float now, float* kept) {
  const float* s = scores + r * kPass;
  A* to = probabilities + r * kPass;
  const float base = now == -INFINITY ? 0.0f : now;
  const F<W> factor = splat<W>(to_log2), minus = splat<W>(-base);
  const bool huge = base > kFusible || base < -kFusible;
  const auto weight = [&](int64_t i) {
    const F<W> x = load<F<W>>(s + i);
    const F<W> e = exp2_nonpositive<W>(huge ? x * factor + minus : fma<W>(x, factor, minus));
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

// Scores of the rows at work -> probabilities over `span`; keeps the rows' maxima and sums.
template <class S>
SACCADE_INLINE void UnitRun<S>::softmax(const Active* active, int64_t count, int64_t first,
                                        const Span& span, float* partial) {
  fresh = 0;
  for (int64_t r = 0; r < count; r += W) {  // what a row needs once is computed for W rows
    const int64_t some = count - r < W ? count - r : W;
    F<W> lanes[W];
    float top[W], now[W];
    Span own[W];
    for (int64_t m = 0; m < W; ++m) lanes[m] = splat<W>(-INFINITY), top[m] = -INFINITY;
    for (int64_t m = 0; m < some; ++m) {
      const Active& row = active[r + m];
      begin_row(r + m, row.row, partial);
      own[m] = span_of(p, info[row.row], row, first);
      float* s = scores + (r + m) * kPass;
      if (source != nullptr) source->hide(s, own[m]);
      lanes[m] = highest(row, own[m], first, s);
      top[m] = tops(partial)[row.row];
    }
    const F<W> high = max_of_rows<W>(lanes) * splat<W>(to_log2), before = load<F<W>>(top);
    const F<W> larger = before > high ? before : high;
    store(now, larger);
    const F<W> base = larger == splat<W>(-INFINITY) ? F<W>{} : larger;
    store(shrink + r, exp2_nonpositive<W>(before - base));
    for (int64_t m = 0; m < some; ++m) {
      const int64_t row = active[r + m].row;
      A* to = probabilities + (r + m) * kPass;
      for (int64_t i = span.begin; i < own[m].begin; i += W) put_probabilities(to + i, F<W>{});
      for (int64_t i = own[m].end; i < span.end; i += W) put_probabilities(to + i, F<W>{});
#if SACCADE_AMX
      ask_lines();
#endif
      float* kept = source != nullptr ? source->kept(row, first, now[m]) : nullptr;
      const F<W> total = kept != nullptr ? weigh<true>(r + m, own[m], now[m], kept)
                                         : weigh<false>(r + m, own[m], now[m], kept);
      float* sum = sums(partial) + row * W;
      store(sum, fma<W>(load<F<W>>(sum), splat<W>(shrink[r + m]), total));
      // The maximum skips NaN; a row that saw nothing else must not pass for one that saw nothing.
      const bool is_lost = now[m] == -INFINITY && sum_lanes<W>(total) != 0.0f;
      tops(partial)[row] = is_lost ? NAN : now[m];
    }
  }
}

}  // namespace SACCADE_ISA
}  // namespace saccade
