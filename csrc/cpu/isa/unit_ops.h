// Which arithmetic serves a call of attention, and its steps as plain functions for the driver in
// units.cpp.
#pragma once
#include "attend_unit.h"
#include "units.h"

namespace saccade {
namespace SACCADE_ISA {

// The entry points of one UnitRun.
template <class Run>
struct Entry {
  static int64_t scratch_bytes(const AttendParams& p, const Unit& u) {
    return Run(p, u, nullptr).used;
  }
  static void whole(const AttendParams& p, const Unit& u, char* scratch) {
    Run run(p, u, scratch);
    const TileScope tiles;
    run.prepare();
    run.clear(run.own_total);
    for (int64_t at = u.first_segment; at < u.last_segment; ++at) {
      if (!may_see(p, u, at)) continue;
      run.attend_segment(at * kSegment, run.own_partial);
      run.merge_into(run.own_total, run.own_partial);
    }
    run.finish(run.own_total);
    if constexpr (Run::kGathers) run.source.conclude(run, run.own_total);
  }
  static void segment(const AttendParams& p, const Unit& u, int64_t at, char* scratch,
                      float* partial) {
    Run run(p, u, scratch);
    const TileScope tiles;
    run.prepare();
    run.attend_segment(at * kSegment, partial);
  }
  static void conclude(const AttendParams& p, const Unit& u, const float* total) {
    if constexpr (Run::kGathers) {
      Run run(p, u, nullptr);
      run.source.conclude(run, total);
    }
  }
  static UnitOps ops() {
    return {scratch_bytes, whole, segment, Run::kGathers ? conclude : nullptr};
  }
};

// By element type.
template <template <class> class Source>
UnitOps unit_ops(const AttendParams& p) {
  return with_step(p.dtype, [](auto step) {
    using S = decltype(step);
    return Entry<UnitRun<S, Source<S>>>::ops();
  });
}

// The same for pages as they lie: defined once, in attend.cpp, for it is long to compile.
UnitOps paged_ops(const AttendParams& p);

}  // namespace SACCADE_ISA
}  // namespace saccade
