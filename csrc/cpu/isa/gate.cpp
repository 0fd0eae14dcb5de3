// Attention branches added up under gates.
#include "row_groups.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

constexpr int W = kWidth;

template <class E>
void add_rows(const GatedSumParams& p, int64_t begin, int64_t end) {
  using T = typename E::T;
  for (int64_t row = begin; row < end; ++row) {
    const float* gates = p.gates + row * p.gate_row;
    T* out = static_cast<T*>(p.out) + row * p.dim;
    const auto part = [&](int64_t n) { return static_cast<const T*>(p.parts[n]) + row * p.dim; };
    for_vectors<W>(
        p.dim,
        [&](int64_t i) {
          F<W> sum = E::template get<W>(part(0) + i) * splat<W>(gates[0]);
          for (int64_t n = 1; n < p.count; ++n)
            sum = sum + E::template get<W>(part(n) + i) * splat<W>(gates[n]);
          E::template put<W>(out + i, sum);
        },
        [&](int64_t i) {
          float sum = get_one<E>(part(0) + i) * gates[0];
          for (int64_t n = 1; n < p.count; ++n) sum += get_one<E>(part(n) + i) * gates[n];
          put_one<E>(out + i, sum);
        });
  }
}

}  // namespace

void gated_sum(const GatedSumParams& p, ThreadPool& pool) {
  const int64_t width = p.dim * (p.count + 1);
  by_dtype(
      p.dtype, [&] { for_row_groups(p, p.rows, width, pool, add_rows<ElementF32>); },
      [&] { for_row_groups(p, p.rows, width, pool, add_rows<ElementBF16>); },
      [&] { for_row_groups(p, p.rows, width, pool, add_rows<ElementF16>); });
}

}  // namespace SACCADE_ISA
}  // namespace saccade
