// Which arithmetic serves a call of attention, and its steps as plain functions for the driver in
// units.cpp.
#pragma once
#include <type_traits>

#include "attend_unit.h"
#include "units.h"

namespace saccade {
namespace SACCADE_ISA {

// Compiled in attend.cpp, for all sources.
#if !defined(SACCADE_COMPILES_UNITS)
extern template struct UnitRun<StepOfBF16>;
#if !defined(SACCADE_OLDER)
extern template struct UnitRun<StepF32>;
extern template struct UnitRun<StepF16>;
#endif
#endif

// Keys that lie in pages, as they are.
template <class S>
struct PagedKeys {};

// The entry points of units with the arithmetic S, whose keys K finds: a Source<S>, or PagedKeys.
template <class S, class K>
struct Entry {
  static constexpr bool kGathers = std::is_base_of<Source<S>, K>::value;
  static Source<S>* source(K& keys) {
    if constexpr (kGathers) return &keys;
    return nullptr;
  }
  static int64_t scratch_bytes(const AttendParams& p, const Unit& u) {
    K keys;
    return UnitRun<S>(p, u, nullptr, source(keys)).used;
  }
  static void whole(const AttendParams& p, const Unit& u, char* scratch) {
    K keys;
    UnitRun<S> run(p, u, scratch, source(keys));
    const TileScope tiles(run.rows);
    const FlushScope flush;
    run.prepare();
    run.clear(run.own_total);
    if (p.blocks != nullptr) {
      run.attend_shorts(run.own_total);
      run.attend_longs(run.own_total);
    }
    // What the first segment gives is the sum so far, without being added to nothing.
    float* to = run.own_total;
    for (int64_t at = u.first_segment; p.blocks == nullptr && at < u.last_segment; ++at) {
      if (!may_see(p, u, at)) continue;
      if (to != run.own_total) run.clear(to);
      run.attend_segment(at * segment_of(p), false, to);
      if (to != run.own_total) run.merge_into(run.own_total, to);
      to = run.own_partial;
    }
    run.finish(run.own_total);
    if (run.source != nullptr) run.source->conclude(run, run.own_total);
  }
  static void segments(const AttendParams& p, const Unit& u, int64_t at, int64_t count,
                       char* scratch, float* partials, int64_t floats) {
    K keys;
    UnitRun<S> run(p, u, scratch, source(keys));
    const TileScope tiles(run.rows);
    const FlushScope flush;
    run.prepare();
    for (int64_t i = 0; i < count; ++i) {
      float* partial = partials + i * floats;
      run.clear(partial);
      if (at == kShorts) {
        run.attend_shorts(partial);
      } else if (p.blocks != nullptr) {
        run.attend_part(at, partial);
      } else {
        run.attend_segment((at + i) * segment_of(p), false, partial);
      }
    }
  }
  static void conclude(const AttendParams& p, const Unit& u, const float* total) {
    K keys;
    UnitRun<S> run(p, u, nullptr, source(keys));
    if (run.source != nullptr) run.source->conclude(run, total);
  }
  static UnitOps ops() { return {scratch_bytes, whole, segments, kGathers ? conclude : nullptr}; }
};

// By element type.
template <template <class> class Keys>
UnitOps unit_ops(const AttendParams& p) {
  return with_step(p.dtype, [](auto step) {
    using S = decltype(step);
    return Entry<S, Keys<S>>::ops();
  });
}

// The same for pages as they lie: defined once, in attend.cpp.
UnitOps paged_ops(const AttendParams& p);

}  // namespace SACCADE_ISA
}  // namespace saccade
