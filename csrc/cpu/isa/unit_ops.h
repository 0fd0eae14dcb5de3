// Which arithmetic serves a call of attention, and its steps as plain functions for the driver of
// attend.h.
#pragma once
#include "attend_unit.h"

namespace saccade {
namespace SACCADE_ISA {

// The entry points of one UnitRun as plain functions, so that the driver is compiled once.
template <class Run>
struct Entry {
  static int64_t scratch_bytes(const AttendParams& p, const Unit& u) {
    return Run(p, u, nullptr).used;
  }
  static int64_t partial_floats(const AttendParams& p, const Unit& u) {
    return Run(p, u, nullptr).partial_floats();
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
  static void clear(const AttendParams& p, const Unit& u, float* total) {
    Run(p, u, nullptr).clear(total);
  }
  static void merge(const AttendParams& p, const Unit& u, float* total, const float* partial) {
    Run(p, u, nullptr).merge_into(total, partial);
  }
  static void finish(const AttendParams& p, const Unit& u, const float* total) {
    Run run(p, u, nullptr);
    run.finish(total);
    if constexpr (Run::kGathers) run.source.conclude(run, total);
  }
  static UnitOps ops() {
    return {scratch_bytes, partial_floats, whole, segment, clear, merge, finish};
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
