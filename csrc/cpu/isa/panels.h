// Rows of channels become columns of a panel, whose lanes are what was rows.
#pragma once
#include "simd.h"

namespace saccade {
namespace SACCADE_ISA {

// kWidth rows of `dim` channels, each where `from` says, to the columns from `to` on of a panel
// [dim / kU][width][kU].
template <int kU, class B>
SACCADE_INLINE void gather_columns(const B* const* from, int64_t dim, B* to, int64_t width) {
  constexpr int W = kWidth;
  int64_t c = 0;
  if constexpr (sizeof(B) * kU == 4) {  // what lies together in a column is 32 bits wide
    for (; c + W * kU <= dim; c += W * kU) {
      I<W> rows[W];
      for (int n = 0; n < W; ++n) rows[n] = load<I<W>>(from[n] + c);
      transpose<W>(rows);
      for (int n = 0; n < W; ++n) store(to + (c + n * kU) * width, rows[n]);
    }
  }
  for (; c < dim; c += kU)
    for (int64_t i = 0; i < W; ++i)
      for (int e = 0; e < kU; ++e) to[c * width + i * kU + e] = from[i][c + e];
}

}  // namespace SACCADE_ISA
}  // namespace saccade
