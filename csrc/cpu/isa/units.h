// How the units of an attention call are found, and how threads share them.
#pragma once
#include "attend.h"
#include "room.h"

namespace saccade {
namespace SACCADE_ISA {

// The units of a call, found by index without storing them.
class UnitPlan {
 public:
  UnitPlan(const AttendParams& p, const ThreadPool& pool);
  UnitPlan(const UnitPlan&) = delete;
  UnitPlan& operator=(const UnitPlan&) = delete;

  int64_t count() const { return first_[p_.seqs]; }
  int64_t largest() const { return tokens_ * heads_; }
  const AttendParams& params() const { return p_; }

  Unit unit(int64_t index) const;

 private:
  void cut(int64_t most);
  void set_keys(Unit& u) const;

  const AttendParams& p_;
  int64_t heads_, splits_, tokens_;
  Room<int64_t> first_;
};

// In the place of a part: all that rows with short lists see.
constexpr int64_t kShorts = -1;

// How one arithmetic computes units.
struct UnitOps {
  int64_t (*scratch_bytes)(const AttendParams&, const Unit&);
  void (*whole)(const AttendParams&, const Unit&, char* scratch);
  // `count` segments from `at` on, each to a partial result of its own; with lists, one part of
  // each (see end_of_part), or kShorts.
  void (*segments)(const AttendParams&, const Unit&, int64_t at, int64_t count, char* scratch,
                   float* partials, int64_t floats);
  // What else is done when all rows are summed up, or null.
  void (*conclude)(const AttendParams&, const Unit&, const float* total);
};

// Whether threads share the segments of each unit, or the parts of its lists.
bool splits_units(const UnitPlan& plan, const ThreadPool& pool);

// Computes all units of a call; there is at least one.
void run_units(const AttendParams& p, const UnitPlan& plan, const UnitOps& ops, ThreadPool& pool);

}  // namespace SACCADE_ISA
}  // namespace saccade
