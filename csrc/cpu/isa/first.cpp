// The weight of a sequence's first token, scaled after attention: with a = exp(score - lse) its
// share, out' = (out + (gain - 1) a v) / (1 + (gain - 1) a).
#include <math.h>

#include "row_groups.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

constexpr int W = kWidth;

template <class E>
float score(const typename E::T* q, const typename E::T* k, int64_t dim) {
  F<W> sums{};
  float rest = 0.0f;
  for_vectors<W>(
      dim,
      [&](int64_t i) { sums = fma<W>(E::template get<W>(q + i), E::template get<W>(k + i), sums); },
      [&](int64_t i) { rest += get_one<E>(q + i) * get_one<E>(k + i); });
  return sum_lanes<W>(sums) + rest;
}

template <class E>
void scale_head(const ScaleFirstParams& p, int64_t row, int64_t head, int64_t seq) {
  using T = typename E::T;
  const int64_t at = row * p.heads + head;
  const int64_t owner = seq * p.kv_heads + head / (p.heads / p.kv_heads);
  const float* out = p.out + at * p.v_dim;
  T* result = static_cast<T*>(p.result) + at * p.v_dim;
  p.mass[at] = p.lse[at];
  if (p.gains[head] == 1.0f || (p.seen != nullptr && p.seen[at] == 0)) {
    for_vectors<W>(
        p.v_dim, [&](int64_t i) { E::template put<W>(result + i, load<F<W>>(out + i)); },
        [&](int64_t i) { put_one<E>(result + i, out[i]); });
    return;
  }
  const T* q = static_cast<const T*>(p.q) + row * p.q_row + head * p.q_head;
  float logit = score<E>(q, static_cast<const T*>(p.k) + owner * p.dim, p.dim) * p.scale;
  if (p.softcap > 0.0f) logit = p.softcap * tanhf(logit / p.softcap);
  const float added = (p.gains[head] - 1.0f) * expf(logit - p.lse[at]);
  const float total = 1.0f + added;
  const T* v = static_cast<const T*>(p.v) + owner * p.v_dim;
  for_vectors<W>(
      p.v_dim,
      [&](int64_t i) {
        const F<W> moved = load<F<W>>(out + i) + splat<W>(added) * E::template get<W>(v + i);
        E::template put<W>(result + i, moved / splat<W>(total));
      },
      [&](int64_t i) { put_one<E>(result + i, (out[i] + added * get_one<E>(v + i)) / total); });
  p.mass[at] += logf(total);
}

template <class E>
void scale_rows(const ScaleFirstParams& p, int64_t begin, int64_t end) {
  int64_t seq = 0;
  for (int64_t row = begin; row < end; ++row) {
    while (seq + 1 < p.seqs && row >= p.cu_rows[seq + 1]) ++seq;
    for (int64_t head = 0; head < p.heads; ++head) scale_head<E>(p, row, head, seq);
  }
}

}  // namespace

void scale_first(const ScaleFirstParams& p, ThreadPool& pool) {
  const int64_t width = p.heads * (p.dim + 2 * p.v_dim);
  by_dtype(
      p.dtype, [&] { for_row_groups(p, p.rows, width, pool, scale_rows<ElementF32>); },
      [&] { for_row_groups(p, p.rows, width, pool, scale_rows<ElementBF16>); },
      [&] { for_row_groups(p, p.rows, width, pool, scale_rows<ElementF16>); });
}

}  // namespace SACCADE_ISA
}  // namespace saccade
