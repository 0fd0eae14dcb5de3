// What the rows of a unit of attention have summed so far, and what becomes of it.
#pragma once
#include <math.h>

#include "attend.h"

namespace saccade {
namespace SACCADE_ISA {

constexpr float kLog2E = 1.4426950408889634f;

// A partial result: O [rows][v_dim], kWidth partial sums per row, and the rows' maxima in log2
// units. Where the maximum is -inf nothing was seen, and O and the sums hold nothing.
struct Results {
  const AttendParams& p;
  const Unit& u;
  const int64_t rows;

  Results(const AttendParams& params, const Unit& unit)
      : p(params), u(unit), rows(unit.tokens * unit.heads) {}

  int64_t row_of(int64_t r) const { return u.row + r / u.heads; }
  int64_t head_of(int64_t r) const { return u.head + r % u.heads; }

  int64_t floats() const { return rows * (p.v_dim + kWidth + 1); }
  float* sums(float* partial) const { return partial + rows * p.v_dim; }
  float* tops(float* partial) const { return partial + rows * (p.v_dim + kWidth); }
  const float* sums(const float* partial) const { return partial + rows * p.v_dim; }
  const float* tops(const float* partial) const { return partial + rows * (p.v_dim + kWidth); }

  // Nothing was seen.
  void clear(float* partial) const {
    for (int64_t r = 0; r < rows; ++r) tops(partial)[r] = -INFINITY;
  }
  // What `partial` saw is added to `total`, in all rows or in one.
  void merge_into(float* total, const float* partial) const;
  void merge_row(float* total, const float* partial, int64_t r) const;
  // Out and lse of the call, from all that its rows see.
  void finish(const float* total) const;
};

}  // namespace SACCADE_ISA
}  // namespace saccade
