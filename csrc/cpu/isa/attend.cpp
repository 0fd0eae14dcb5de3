// Paged attention. A row is one (token, head); keys pass by in blocks of kPass positions:
//   scores  S[row][key] = Q rows * K^T panels (straight from the page, lanes are keys)
//   softmax along each row
//   values  O[row][channel] += P rows * V panels (straight from the page, lanes are channels)
// Blocks and segments lie at absolute positions, every sum runs in ascending key order, and a
// masked key adds exactly 0. So a row's bits depend on that row's keys alone: not on the chunk, the
// batch, the tile or the number of threads.
//
// attend.h cuts a call into units and shares them among threads, attend_rows.h says which keys a
// row sees, and attend_unit.h computes.
#include "attend_unit.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

// The entry points of one UnitRun as plain functions, so that the driver is compiled once.
template <class Run, bool kTiles>
struct Entry {
  static int64_t scratch_bytes(const AttendParams& p, const Unit& u) {
    return Run(p, u, nullptr).used;
  }
  static int64_t partial_floats(const AttendParams& p, const Unit& u) {
    return Run(p, u, nullptr).partial_floats();
  }
  static void whole(const AttendParams& p, const Unit& u, char* scratch) {
    Run run(p, u, scratch);
    const TileScope<kTiles> tiles;
    run.prepare();
    run.clear(run.own_total);
    for (int64_t at = u.first_segment; at < u.last_segment; ++at) {
      if (!may_see(p, u, at)) continue;
      run.attend_segment(at * kSegment, run.own_partial);
      run.merge_into(run.own_total, run.own_partial);
    }
    run.finish(run.own_total);
  }
  static void segment(const AttendParams& p, const Unit& u, int64_t at, char* scratch,
                      float* partial) {
    Run run(p, u, scratch);
    const TileScope<kTiles> tiles;
    run.prepare();
    run.attend_segment(at * kSegment, partial);
  }
  static void clear(const AttendParams& p, const Unit& u, float* total) {
    Run(p, u, nullptr).clear(total);
  }
  static void merge(const AttendParams& p, const Unit& u, float* total, const float* partial) {
    Run(p, u, nullptr).merge_into(total, partial);
  }
  static void finish(const AttendParams& p, const Unit& u, const float* total) {
    Run(p, u, nullptr).finish(total);
  }
  static UnitOps ops() {
    return {scratch_bytes, partial_floats, whole, segment, clear, merge, finish};
  }
};

UnitOps choose_ops(const AttendParams& p) {
  if (p.dtype == DType::kF32) return Entry<UnitRun<StepF32, false>, false>::ops();
  if (p.dtype == DType::kF16) return Entry<UnitRun<StepF16, false>, false>::ops();
#if SACCADE_AMX
  if (p.dim % 32 == 0 && p.v_dim % 16 == 0 && p.page % 32 == 0)
    return Entry<UnitRun<StepBF16, true>, true>::ops();
#endif
#if defined(__AVX512BF16__)
  return Entry<UnitRun<StepBF16, false>, false>::ops();
#else
  return Entry<UnitRun<StepPairs, false>, false>::ops();
#endif
}

}  // namespace

void attend(const AttendParams& p, ThreadPool& pool) {
  const UnitPlan plan(p);
  if (plan.count() > 0) run_units(p, plan, choose_ops(p), pool);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
