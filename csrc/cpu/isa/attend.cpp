// Paged attention. A row is one (token, head); keys pass by in blocks of kPass positions:
//   scores  S[row][key] = Q rows * K^T panels (straight from the page, lanes are keys)
//   softmax along each row
//   values  O[row][channel] += P rows * V panels (straight from the page, lanes are channels)
// Blocks and segments lie at absolute positions, parts of a row's list where the list says, every
// sum runs in ascending key order, and a masked key adds exactly 0. So a row's bits depend on that
// row's keys alone: not on the chunk, the batch, the tile or the number of threads.
//
// units.cpp cuts a call into units and shares them among threads, attend_rows.h says which keys a
// row sees, attend_unit.h and the headers it names compute, unit_ops.h chooses the arithmetic, and
// results.cpp adds up what segments or parts gave. Lists of which a pass holds few keys go
// through listed.h instead.
#define SACCADE_COMPILES_UNITS
#include "listed_keys.h"
#include "listed_pages.h"
#include "tables.h"
#include "unit_passes.h"

namespace saccade {
namespace SACCADE_ISA {

template struct UnitRun<StepOfBF16>;
#if !defined(SACCADE_OLDER)
template struct UnitRun<StepF32>;
template struct UnitRun<StepF16>;
#endif

UnitOps paged_ops(const AttendParams& p) {
  return unit_ops<PagedKeys>(p);
}

namespace {

void attend_pages(const AttendParams& p, ThreadPool& pool) {
  const UnitPlan plan(p, pool);
  if (plan.count() > 0) run_units(p, plan, paged_ops(p), pool);
}

}  // namespace

void attend(const AttendParams& p, ThreadPool& pool) {
  const Listed way = way_of_lists(p);
  if (way == Listed::kPasses) return attend_pages(p, pool);
  const Room<int32_t> splits = split_rows(p);
  AttendParams whole = p;
  whole.row_ends = splits.get();
  attend_pages(whole, pool);
  (way == Listed::kPages ? attend_listed_pages : attend_gathered)(p, splits.get(), pool);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
