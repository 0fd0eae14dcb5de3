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

template <class S>
SACCADE_INLINE F<kWidth> UnitRun<S>::capped(F<W> s) const {
  return tanh(s * splat<W>(p.scale / p.softcap)) * splat<W>(p.softcap * kLog2E);
}

// Largest score of a row over its own keys, after cap and mask.
template <class S>
SACCADE_INLINE float UnitRun<S>::highest(const Active& active, const Span& own, int64_t first,
                                         float* s) const {
  const Row& row = info[active.row];
  const F<W> none = splat<W>(-INFINITY);
  F<W> high = none;
  if (p.softcap > 0) {
    for (int64_t i = own.begin; i < own.end; i += W) {
      store(s + i, pass.k[i / pass.chunk] == nullptr ? none : capped(load<F<W>>(s + i)));
    }
  }
  if (is_masked(p, row, own, first)) {
    for (int64_t i = own.begin; i < own.end; i += W) {
      store(s + i, seen(p, row, active, first, i) ? load<F<W>>(s + i) : none);
    }
  }
  for (int64_t i = own.begin; i < own.end; i += W) high = max<W>(high, load<F<W>>(s + i));
  return max_lanes<W>(high);
}

// Scores of the r-th row at work -> probabilities over `span`; keeps the row's maximum and sums.
template <class S>
SACCADE_INLINE void UnitRun<S>::softmax_row(const Active& active, int64_t r, int64_t first,
                                            const Span& span, float* partial) {
  float* s = scores + r * kPass;
  A* to = probabilities + r * kPass;
  float* top = tops(partial) + active.row;
  float* sum = sums(partial) + active.row * W;
  if (*top == -INFINITY) {  // nothing seen so far: what lies there is not a number of ours
    std::memset(partial + active.row * p.v_dim, 0, static_cast<size_t>(p.v_dim) * sizeof(float));
    std::memset(sum, 0, W * sizeof(float));
  }
  const Span own = span_of(p, info[active.row], first);
  for (int64_t i = span.begin; i < own.begin; i += W) put_probabilities(to + i, F<W>{});
  for (int64_t i = own.end; i < span.end; i += W) put_probabilities(to + i, F<W>{});
  if (source != nullptr) source->hide(s, own);
  const float high = highest(active, own, first, s) * to_log2;
  const float now = *top > high ? *top : high;
  const float base = now == -INFINITY ? 0.0f : now;
  shrink[r] = exp2_nonpositive<4>(splat<4>(*top - base))[0];
  const F<W> factor = splat<W>(to_log2), minus = splat<W>(-base);
  const bool huge = base > kFusible || base < -kFusible;
  F<W> total{};
  float* kept = source != nullptr ? source->kept(active.row, first, now) : nullptr;
  for (int64_t i = own.begin; i < own.end; i += W) {
    const F<W> x = load<F<W>>(s + i);
    const F<W> e = exp2_nonpositive<W>(huge ? x * factor + minus : fma<W>(x, factor, minus));
    total += e;
    put_probabilities(to + i, e);
    if (kept != nullptr) store(kept + i, e);
  }
  store(sum, fma<W>(load<F<W>>(sum), splat<W>(shrink[r]), total));
  // The maximum skips NaN; a row that saw nothing else must not pass for one that saw nothing.
  *top = now == -INFINITY && sum_lanes<W>(total) != 0.0f ? NAN : now;
}

}  // namespace SACCADE_ISA
}  // namespace saccade
