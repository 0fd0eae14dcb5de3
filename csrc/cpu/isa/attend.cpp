// Paged attention. A row is one (token, head); keys pass by in blocks of kPass positions:
//   scores  S[row][key] = Q rows * K^T panels (straight from the page, lanes are keys)
//   softmax along each row
//   values  O[row][channel] += P rows * V panels (straight from the page, lanes are channels)
// Blocks and segments lie at absolute positions, every sum runs in ascending key order, and a
// masked key adds exactly 0. So a row's bits depend on that row's keys alone: not on the chunk, the
// batch, the tile or the number of threads.
//
// attend.h cuts a call into units and shares them among threads, attend_rows.h says which keys a
// row sees, attend_unit.h computes, and unit_ops.h chooses the arithmetic.
#include "tables.h"
#include "unit_ops.h"

namespace saccade {
namespace SACCADE_ISA {

void attend(const AttendParams& p, ThreadPool& pool) {
  const UnitPlan plan(p);
  if (plan.count() > 0) run_units(p, plan, unit_ops<PagedKeys>(p), pool);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
