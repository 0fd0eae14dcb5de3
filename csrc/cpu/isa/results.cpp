#include "results.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

constexpr int W = kWidth;
constexpr float kLn2 = 0.6931471805599453f;

template <class E>
void put_rows(const Results& of, const float* total) {
  const AttendParams& p = of.p;
  for (int64_t r = 0; r < of.rows; ++r) {
    const int64_t at = of.row_of(r) * p.heads + of.head_of(r);
    typename E::T* out = static_cast<typename E::T*>(p.out) + at * p.v_dim;
    const bool empty = of.tops(total)[r] == -INFINITY;
    float top = of.tops(total)[r], keep = 1.0f;
    float sum = empty ? 0.0f : sum_lanes<W>(load<F<W>>(of.sums(total) + r * W));
    if (p.sink_logits != nullptr) {
      const float sink = p.sink_logits[of.head_of(r)] * kLog2E, now = top > sink ? top : sink;
      const float base = now == -INFINITY ? 0.0f : now;
      keep = exp2f(top - base);
      sum = sum * keep + exp2f(sink - base);
      top = now;
    }
    p.lse[at] = sum == 0.0f ? -INFINITY : (top + log2f(sum)) * kLn2;
    if (empty) {
      std::memset(static_cast<void*>(out), 0, static_cast<size_t>(p.v_dim) * sizeof(*out));
      continue;
    }
    const float factor = keep / sum;
    const float* o = total + r * p.v_dim;
    for_vectors<W>(
        p.v_dim,
        [&](int64_t i) { E::template put<W>(out + i, load<F<W>>(o + i) * splat<W>(factor)); },
        [&](int64_t i) { put_one<E>(out + i, o[i] * factor); });
  }
}

}  // namespace

void Results::merge_row(float* total, const float* partial, int64_t r) const {
  float* top = tops(total) + r;
  const float other = tops(partial)[r];
  if (other == -INFINITY) return;
  float* to = total + r * p.v_dim;
  const float* from = partial + r * p.v_dim;
  float* sum = sums(total) + r * W;
  const F<W> other_sum = load<F<W>>(sums(partial) + r * W);
  if (*top == -INFINITY) {
    std::memcpy(to, from, static_cast<size_t>(p.v_dim) * sizeof(float));
    store(sum, other_sum);
    *top = other;
    return;
  }
  const float now = *top > other ? *top : other;
  const F<W> keep = splat<W>(exp2_nonpositive<4>(splat<4>(*top - now))[0]);
  const F<W> add = splat<W>(exp2_nonpositive<4>(splat<4>(other - now))[0]);
  for_vectors<W>(
      p.v_dim,
      [&](int64_t i) {
        store(to + i, fma<W>(load<F<W>>(from + i), add, load<F<W>>(to + i) * keep));
      },
      [&](int64_t i) { to[i] = from[i] * add[0] + to[i] * keep[0]; });
  store(sum, fma<W>(other_sum, add, load<F<W>>(sum) * keep));
  *top = now;
}

void Results::merge_into(float* total, const float* partial) const {
  for (int64_t r = 0; r < rows; ++r) merge_row(total, partial, r);
}

void Results::finish(const float* total) const {
  if (p.out_dtype == DType::kF32) put_rows<ElementF32>(*this, total);
  if (p.out_dtype == DType::kBF16) put_rows<ElementBF16>(*this, total);
  if (p.out_dtype == DType::kF16) put_rows<ElementF16>(*this, total);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
